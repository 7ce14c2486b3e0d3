"""Figures of single classes: who gains, what is confused, whose certainty can be trusted."""

import numpy as np
import seaborn as sns

from datadream_utils.analysis.ablations import STUDY
from datadream_utils.analysis.compare import Verdict
from datadream_utils.analysis.per_class import judge_gains
from datadream_utils.methods import classifier_name, short_label
from datadream_utils.plots.style import (
    GAIN_WORDS,
    NORMAL,
    SETTING_TITLES,
    SMALL,
    WIDTH,
    can_compare,
    describe,
    empty_figure,
    in_table_order,
    label_axes,
    legend,
    literal,
    marker_style,
    panels,
    turn_names,
)

MOST_CLASSES, MOST_CONFUSED = 25, 10  # in one figure: those that change most
COLOUR_MAP = "RdBu"  # red: below 0, blue: above


def _part(count, total):
    """What alt text and title add where a figure does not show all classes."""
    return f"the {count} of {total} classes that change most" if count < total else ""


def _points(values):
    """Whole points with their sign as texts, "" where there is no number."""
    return np.vectorize(lambda value: "" if np.isnan(value) else f"{round(value):+d}" if round(value) else "0")(values)


def gain_heatmap(gains, setting):
    """Gains beyond noise as a heat map: rows are classes, columns methods, numbers points (means over seeds).

    gains: ``per_class.compute_gains``. A cell is blank where the interval has 0 in it; with one seed nothing is known
    of noise, and every cell is drawn. All settings have one scale of colours. Of many classes, those that change most
    are shown.
    """
    name, rows = f"class_gains_{setting.replace('+', '')}", gains[gains["setting"] == setting]
    if rows.empty:
        return empty_figure(name, f"No {setting} classifier has its reference: {STUDY}")
    every = judge_gains(gains)
    cells = every[every["setting"] == setting]
    means = cells.pivot(index="label", columns="method", values="gain")
    means = means[in_table_order(means.columns)]
    names = rows.drop_duplicates("label").set_index("label")["class_name"]
    shown = means.loc[sorted(means.abs().max(axis=1).sort_values(ascending=False, kind="stable").index[:MOST_CLASSES])]
    alone = (cells["verdict"] == Verdict.ONE_SEED.label).all()
    beyond = cells.assign(beyond=alone | cells["verdict"].isin([Verdict.ABOVE.label, Verdict.BELOW.label]))
    beyond = beyond.pivot(index="label", columns="method", values="beyond").reindex_like(shown).eq(True)
    figure, (ax,) = panels(1, 0.22 * len(shown) + 1.5)
    limit = float(every["gain"].abs().max()) or 1.0
    points = shown.where(beyond)
    sns.heatmap(points, ax=ax, cmap=COLOUR_MAP, center=0, vmin=-limit, vmax=limit, annot=_points(points.to_numpy()),
                fmt="", annot_kws={"size": SMALL}, cbar=False, linewidths=0.5, linecolor="0.85",
                xticklabels=[short_label(m) for m in shown.columns],
                yticklabels=[literal(names[i]) for i in shown.index])  # fmt: skip
    part = _part(len(shown), len(means))
    title = [f"Gain {GAIN_WORDS[setting]} (points), {SETTING_TITLES[setting]}"]
    title += [part] if part else []
    title += ["one seed: how much is noise is not known"] if alone else ["blank: within the noise"]
    label_axes(ax)
    figure.suptitle("\n".join(title), fontsize=NORMAL)
    turn_names(ax, 35)
    alt = f"Heat map: gain in accuracy of each class with each method {GAIN_WORDS[setting]}"
    return describe(figure, f"{alt}; {part}." if part else f"{alt}.", _beyond_noise(cells), name, can_compare(means))


def _beyond_noise(cells):
    """How many gains exceed the noise, and in which direction."""
    if (cells["verdict"] == Verdict.ONE_SEED.label).all():
        return "With one seed no gain can be separated from noise."
    above, below = (int((cells["verdict"] == side.label).sum()) for side in (Verdict.ABOVE, Verdict.BELOW))
    return f"Beyond the noise, {above} of {len(cells)} gains (a class with a method) are above 0, {below} below."


def confusion_change_heatmap(change, class_names, method, setting):
    """The change of the confusion matrix as a heat map, in points; of many classes those that change most.

    change: ``per_class.compute_confusion_change``, (n_classes, n_classes), or None.
    """
    if change is None:
        reason = f"{classifier_name(method, setting)} has no reference to compare it with: {STUDY}"
        return empty_figure("confusion_change", reason)
    shown = np.sort(np.argsort(-np.abs(change).max(1), kind="stable")[:MOST_CONFUSED])
    values, names = change[np.ix_(shown, shown)], [literal(class_names[i]) for i in shown]
    figure, (ax,) = panels(1, max(2.6, min(0.34 * len(shown) + 1, WIDTH)))
    limit = float(np.abs(values).max()) or 1.0
    sns.heatmap(values, ax=ax, cmap=COLOUR_MAP, center=0, vmin=-limit, vmax=limit, annot=_points(values), fmt="",
                cbar=False, annot_kws={"size": SMALL}, xticklabels=names, yticklabels=names, square=True)  # fmt: skip
    part, title = _part(len(shown), len(change)), f"{classifier_name(method, setting)} {GAIN_WORDS[setting]} (points)"
    label_axes(ax, "predicted", "true")
    figure.suptitle(f"{title}\n{part}" if part else title, fontsize=NORMAL)
    turn_names(ax, 60)
    alt = f"Heat map: change of the confusion matrix with {classifier_name(method, setting)}"
    alt = f"{alt}; {part}." if part else f"{alt}."
    return describe(figure, alt, _largest_change(change, class_names), "confusion_change")


def _largest_change(change, class_names):
    """The pair of classes whose confusion changes most."""
    off_diagonal = np.where(np.eye(len(change), dtype=bool), 0, change)
    true, predicted = np.unravel_index(np.abs(off_diagonal).argmax(), change.shape)
    points = off_diagonal[true, predicted]
    if not points:
        return "No class is taken for another more or less often."
    how = "more" if points > 0 else "less"
    confused = f"'{class_names[true]}' is taken for '{class_names[predicted]}'"
    return f"Largest change: {confused} {how} often ({points:+z.1f} points)."


def reliability_curves(bins, errors, settings=("R", "R+S")):
    """Accuracy minus certainty as curves against certainty, with the mean calibration error of each classifier.

    bins: ``per_class.compute_reliability``, of which those with fewer than 10 predictions are left out; errors:
    ``per_class.compute_calibration``; settings: what is drawn, with real images or ("none", "S") without.
    """
    name = "reliability_RS" if "R+S" in settings else "reliability_S"
    bins = bins[bins["setting"].isin(settings) & (bins["n"] >= 10)]
    means = errors[errors["setting"].isin(settings)].groupby(["method", "setting"])["error"].mean()
    if means.empty:
        return empty_figure(name, f"No classifier of these settings has been trained: {STUDY}")
    figure, (ax,) = panels(1, 4.0)
    ax.axhline(0, color="0.4", lw=1, ls="--")
    for key, rows in bins.groupby(["method", "setting"], sort=False):
        words = f"{classifier_name(*key)}: {means[key]:.1f}"
        ax.plot(rows["certainty"], rows["accuracy"] - rows["certainty"], ms=4, label=words, **marker_style(key[0]))
    label_axes(ax, "certainty of the prediction (%)", "accuracy minus certainty (points)",
               "Above 0: less sure than right; below: too sure.\nIn the key: calibration error (points)")  # fmt: skip
    legend(figure, [ax], 2)
    finding = f"Calibration error of {classifier_name(*means.idxmin())}: {means.min():.1f} points."
    if len(means) > 1:
        best, worst = (classifier_name(*key) for key in (means.idxmin(), means.idxmax()))
        finding = f"Smallest calibration error: {best}, {means.min():.1f} points; largest: {worst}, {means.max():.1f}."
    alt = "Curves, one per classifier: accuracy minus certainty against certainty; at 0 both agree."
    return describe(figure, alt, finding, name, can_compare(means.index.get_level_values("method")))
