"""Figures of single classes: who gains, what is confused, whose certainty can be trusted."""

import numpy as np
import seaborn as sns

from datadream_utils.analysis.ablations import STUDY
from datadream_utils.analysis.compare import Verdict
from datadream_utils.analysis.per_class import BINS, judge_gains
from datadream_utils.files import literal
from datadream_utils.methods import classifier_name
from datadream_utils.plots.ablations import ABOVE, BELOW, by_chance
from datadream_utils.plots.results import (
    BOTH,
    COLUMN,
    SETTING_TITLES,
    SMALL,
    described,
    empty,
    finish,
    label,
    legend,
    look,
    panels,
)

MOST_CLASSES = 25  # in one figure: those that change most
GAIN_WORDS = {"S": "over zero-shot CLIP", "R+S": "over Real-finetune"}


def _shown(count, total):
    """What an alt text adds, and a title in a line of its own, where a figure has not all classes."""
    return f": the {count} of {total} classes that change most" if count < total else ""


def _points(values):
    return np.vectorize(lambda value: "" if np.isnan(value) else f"{round(value):+d}" if round(value) else "0")(values)


def class_gains(gains, setting):
    """``classwise.gains`` as a heat map: rows are classes, columns methods, numbers points (means over seeds).

    A star: the interval over seeds excludes 0 (``classwise.marked``).
    """
    rows = gains[gains["setting"] == setting]
    if rows.empty:
        return empty(f"No {setting} classifier has its reference beside it: {STUDY}")
    cells = judge_gains(rows).drop_duplicates(["method", "label"])
    means = cells.pivot_table("gain_mean", "label", "method", sort=False)
    stars = cells.assign(star=cells["verdict"].isin([ABOVE, BELOW])).pivot(
        index="label", columns="method", values="star"
    )
    names = rows.drop_duplicates("label").set_index("label")["class_name"]
    shown = means.loc[sorted(means.abs().max(axis=1).sort_values(ascending=False, kind="stable").index[:MOST_CLASSES])]
    figure, (ax,) = panels(1, COLUMN + 1, 0.22 * len(shown) + 1.1)
    limit = float(np.nanmax(np.abs(shown.to_numpy()))) or 1.0
    beyond = stars.reindex_like(shown).eq(True).to_numpy()
    words = np.char.add(_points(shown.to_numpy()).astype(str), np.where(beyond, "*", ""))
    sns.heatmap(shown, ax=ax, cmap="PuOr", center=0, vmin=-limit, vmax=limit, annot=words, fmt="",
                annot_kws={"size": SMALL}, cbar=False, xticklabels=[label(m) for m in shown.columns],
                yticklabels=[literal(names[i]) for i in shown.index])  # fmt: skip
    part = _shown(len(shown), len(means))
    title = f"Gain {GAIN_WORDS[setting]} (points), {SETTING_TITLES[setting]}"
    key = "\n*: more than noise over seeds (95 % interval)" if beyond.any() else ""
    finish(ax, title=title + part.replace(": ", "\n") + key)
    ax.tick_params(axis="x", rotation=25)
    ax.tick_params(axis="y", rotation=0)
    sentence = _gain_sentence(cells, setting)
    return described(figure, f"Heat map: change in accuracy of each class with each method{part}.", sentence)


def _gain_sentence(cells, setting):
    """How many cells are beyond noise, how many chance alone would give, and the largest either way of those."""
    count, beyond = len(cells), cells[cells["verdict"].isin([ABOVE, BELOW])]
    if (cells["verdict"] == Verdict.ONE_SEED.label).all():
        gain = int((cells["gain_mean"] > 0).sum())
        return (
            f"{gain} of {count} cells (a class with a method) gain {GAIN_WORDS[setting]}, with one seed: how much of "
            "that is noise is not known, and none is marked."
        )
    said = []
    for side, words, which in zip((ABOVE, BELOW), ("up", "down"), ("idxmax", "idxmin"), strict=True):
        rows = beyond[beyond["verdict"] == side]
        if len(rows):
            row = rows.loc[getattr(rows["gain_mean"], which)()]
            name = f"{row['class_name']} with {label(row['method'])} ({row['gain_mean']:+.1f} points)"
            said.append(f"{len(rows)} {words}, most {name}")
    return (
        f"{len(beyond)} of {count} cells (a class with a method) differ {GAIN_WORDS[setting].replace('over', 'from')} "
        f"by more than noise over seeds ({by_chance(count)})"
        f"{': ' if said else ''}{'; '.join(said)}."
    )


def confusion_change(change, class_names, method, setting):
    """``classwise.confusion_change`` as a heat map; of many classes those that change most."""
    if change is None:
        return empty(f"{classifier_name(method, setting)} has no reference beside it: {STUDY}")
    shown = np.sort(np.argsort(-np.abs(change).max(1), kind="stable")[:MOST_CLASSES])
    part, names = change[np.ix_(shown, shown)], [literal(class_names[i]) for i in shown]
    side = max(2.6, min(0.24 * len(shown) + 1, BOTH))
    figure, (ax,) = panels(1, side + 0.5, side)
    limit = float(np.abs(part).max()) or 1.0
    sns.heatmap(part, ax=ax, cmap="PuOr", center=0, vmin=-limit, vmax=limit, annot=_points(part), fmt="", cbar=False,
                annot_kws={"size": SMALL}, xticklabels=names, yticklabels=names, square=True)  # fmt: skip
    words = _shown(len(shown), len(change))
    title = f"{classifier_name(method, setting)} {GAIN_WORDS[setting]} (points)"
    finish(ax, "predicted", "true", title + words.replace(": ", "\n"))
    ax.tick_params(axis="x", rotation=60)
    ax.tick_params(axis="y", rotation=0)
    off, said = np.where(np.eye(len(change), dtype=bool), 0, change), []
    for find, how in ((np.argmax, "more often"), (np.argmin, "less often")):
        place = np.unravel_index(find(off), off.shape)
        if off[place]:
            names = (class_names[i] for i in place)
            said.append(f"{' is taken for '.join(names)} {how} ({off[place]:+.1f} points)")
    changed = ", ".join(said) or "no class is taken for another more or less often"
    sentence = f"With {classifier_name(method, setting)}, {changed}."
    return described(figure, f"Heat map: change of the confusion matrix{words}.", sentence)


def _deviation(value):
    return "" if np.isnan(value) else f" ± {value:.1f}"


def reliability(bins, errors, settings=("R", "R+S")):
    """``classwise.reliability`` as curves of accuracy minus certainty, with the mean of ``classwise.calibration``.

    Bins of fewer than 10 predictions are left out.
    """
    bins = bins[bins["setting"].isin(settings) & (bins["n"] >= 10)]
    of_seeds = errors[errors["setting"].isin(settings)].groupby(["method", "setting"])
    errors, spread = of_seeds["error"].mean(), of_seeds["error"].std()
    if errors.empty:
        return empty(f"No classifier of these settings has been trained: {STUDY}")
    figure, (ax,) = panels(1, COLUMN, 3.0)
    ax.axhline(0, color="0.4", lw=1, ls="--")
    for (method, setting), rows in bins.groupby(["method", "setting"], sort=False):
        name = f"{classifier_name(method, setting)}: {errors[method, setting]:.1f}"
        ax.plot(rows["certainty"], rows["accuracy"] - rows["certainty"], ms=3, lw=1, label=name, **look(method))
    finish(ax, "certainty of the prediction (%)", "accuracy minus certainty (points)",
           "Above 0: less sure than right; below: too sure.\nIn the key: calibration error (points)")  # fmt: skip
    legend(figure, [ax], 2)
    said = {key: f"{classifier_name(*key)} ({errors[key]:.1f}{_deviation(spread[key])} points)" for key in errors.index}
    low, high = errors.idxmin(), errors.idxmax()
    sentence = (
        f"The calibration error ({BINS} bins) has its smallest mean over seeds with {said[low]}, its largest with "
        f"{said[high]}."
    )
    if len(errors) == 1:
        sentence = f"The calibration error ({BINS} bins) of {classifier_name(*low)} is {errors[low]:.1f} points."
    return described(figure, "Curves: accuracy minus certainty against certainty; at 0 both agree.", sentence)
