"""The figures of the analysis, from tidy tables. Each has an alt text and a sentence, both written from its data.

Sizes are for print: ``COLUMN`` inches is one of two columns, no letter is under 6 points. The ground is white and
opaque, so that they are read in dark mode too; colours are told apart by the colour-blind, and every method has a
marker of its own.
"""

import numpy as np
import seaborn as sns
from matplotlib.ticker import LogFormatter, ScalarFormatter

from datadream_utils.analysis.ablations import STUDY
from datadream_utils.analysis.alignment import CORRELATIONS, MEASURES, REAL
from datadream_utils.analysis.compare import seeds_interval
from datadream_utils.analysis.cost import COSTS, pareto_front
from datadream_utils.methods import METHODS, classifier_name, short_label
from datadream_utils.plots.style import COLOURS, PrintFigure

COLUMN, BOTH = 3.4, 7.0
SMALL, NORMAL = 6, 7  # points
ADAPTED = ("datadream_cls", "datadream_dset")
FOUR = ("precision", "recall", "density", "coverage")
WHISKERS = {"ms": 4, "lw": 1, "capsize": 2}
MARKERS = dict(zip(METHODS, "PsovDX^*<>hpd8", strict=False)) | {REAL: "+"}
REAL_COLOUR = "0.25"
RELATIONS = {
    "below": "Nearer images bring more",
    "above": "Nearer images bring less",
    "within noise": "No relation shows",
}  # by the verdict of a correlation
SETTING_TITLES = {"S": "synthetic only", "R+S": "real and synthetic", "R": "real only", "none": "zero-shot"}


def panels(columns, width, height, **options):
    """A white figure with a row of panels: ``(figure, [axes, ...])``."""
    figure = PrintFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def finish(ax, xlabel="", ylabel="", title=""):
    """Labels in print sizes, and no more frame than is needed."""
    ax.set_xlabel(xlabel, fontsize=NORMAL)
    ax.set_ylabel(ylabel, fontsize=NORMAL)
    ax.set_title(title, fontsize=NORMAL)
    ax.tick_params(labelsize=SMALL, which="both")
    sns.despine(ax=ax)


def described(figure, what, sentence):
    """Give ``figure`` its alt text (what is drawn, then what it says) and its sentence."""
    figure.alt, figure.sentence = f"{what} {sentence}", sentence
    return figure


def empty(sentence):
    """A figure that says why there is nothing to draw, and what to run."""
    figure, (ax,) = panels(1, BOTH, 0.6)
    ax.text(0.5, 0.5, sentence, ha="center", va="center", fontsize=NORMAL, wrap=True)
    ax.axis("off")
    figure.empty = True
    return described(figure, "An empty figure.", sentence)


def label(method):
    return short_label(method)


def look(method):
    """Colour and marker of a method, as keywords."""
    return {"color": COLOURS.get(method, REAL_COLOUR), "marker": MARKERS.get(method, "+")}


def legend(figure, handles_of, columns=4):
    """One legend below all panels, of the labels of every panel in ``handles_of`` once."""
    found = {}
    for ax in handles_of:
        found |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize=SMALL,
                      frameon=False)  # fmt: skip


def alignment_scatter(points, found, setting, measure="frechet", space="CLIP features"):
    """``fidelity.against_gains`` as points with ``fidelity.numbers_of``: distance of a class against its gain."""
    if points.empty:
        return empty(f"No method has both generated images and a classifier to compare: {STUDY}")
    figure, (ax,) = panels(1, COLUMN, 2.9)
    for method, rows in points.groupby("method", sort=False):
        ax.plot(rows["distance"], rows["gain"], ls="", ms=4, alpha=0.8, label=label(method), **look(method))
    ax.axhline(0, color="0.6", lw=0.8)
    if (points["distance"] > 0).all():
        ax.set_xscale("log")
    else:  # an unbiased distance may be negative
        ax.set_xscale("symlog", linthresh=float(points["distance"].abs().median()))
    reference = {"S": "zero-shot CLIP", "R+S": "Real-finetune"}[setting]
    finish(ax, f"{MEASURES[measure]} to real test images\n{space}", f"gain over {reference} (points)")
    legend(figure, [ax], 3)
    what = "Scatter plot: one point per method and class, distance on a logarithmic axis."
    within = found["within"]
    words = f"{within['n_points']} points of {within['n_classes']} classes, {SETTING_TITLES[setting]}"
    found = {kind: numbers for kind, numbers in found.items() if not np.isnan(numbers["rho"])}
    if not found:
        return described(figure, what, f"{words}: too few for a correlation.")
    titles = [
        f"{CORRELATIONS[kind]} {_interval(found[kind], '[{}, {}]')}" for kind in ("within", "adapted") if kind in found
    ]
    ax.set_title("\n".join(["Spearman's correlation:", *titles]), fontsize=NORMAL)
    said = {relation: [] for relation in RELATIONS.values()}
    for kind, numbers in found.items():
        said[RELATIONS[numbers["verdict"]]].append(_correlated(kind, numbers))
    said = [f"{relation}: {'; '.join(kinds)}" for relation, kinds in said.items() if kinds]
    sentence = (
        f"{words}. {'. '.join(said)}. Rank correlations of {MEASURES[measure]} and gain, with 95 % intervals that "
        "resample classes."
    )
    return described(figure, what, sentence)


def _interval(numbers, brackets):
    low, high = (f"{numbers[name]:+.2f}" for name in ("low", "high"))
    return f"{numbers['rho']:+.2f} {brackets.format(low, high)}"


def _correlated(kind, numbers):
    if kind == "between":
        p = f"p = {numbers['p_holm']:.3f} by Holm, permuting {numbers['n_methods']} methods"
        return f"{CORRELATIONS[kind]} {numbers['rho']:+.2f} ({p})"
    return f"{CORRELATIONS[kind]} {_interval(numbers, '({} to {})')}"


def fidelity_diversity(aligned):
    """``fidelity.alignment``: fidelity against diversity, means over classes; whiskers: deviation over seeds."""
    means = aligned.groupby(["method", "seed"], as_index=False)[list(MEASURES)].mean().dropna(subset="density")
    if set(means["method"]) <= {REAL}:
        return empty(f"No method has generated as many images of a class as the measures need (7): {STUDY}")
    figure, axes = panels(2, BOTH, 2.8)
    for ax, (x, y) in zip(axes, (("recall", "precision"), ("coverage", "density")), strict=True):
        for method, rows in means.groupby("method", sort=False):
            spread = rows[[x, y]].std()  # one seed has none
            ax.errorbar(rows[x].mean(), rows[y].mean(), spread[y], spread[x], ls="", ms=5, lw=0.8, capsize=2,
                        label=label(method), **look(method))  # fmt: skip
        finish(ax, f"{x} (diversity)", f"{y} (fidelity)")
        ax.set_xlim(-0.03, 1.03)
    legend(figure, axes)
    numbers = means.groupby("method")[list(FOUR)].mean()
    generators = [name for name in numbers.index if name != REAL]
    several = len(generators) > 1
    named = [name for name in ([*ADAPTED, REAL] if several else [*generators, REAL]) if name in numbers.index]
    each = [f"{label(name)} {', '.join(f'{x:.2f}' for x in numbers.loc[name])}" for name in named]
    said = [f"Of the generators {_highest(means[means['method'] != REAL])}"] if several else []
    if each:
        said.append(f"Precision, recall, density and coverage: {'; '.join(each).replace(REAL, f'other {REAL}')}")
    what = "Two scatter plots, precision against recall and density against coverage."
    return described(figure, what, f"{'. '.join(said)}.")


def _highest(means):
    """Who has the highest mean density and coverage, and who cannot be told from it by the 95 % interval over seeds."""
    found = {}
    for name in ("density", "coverage"):
        table = means.pivot(index="seed", columns="method", values=name)
        best = table.mean().idxmax()
        lows = {other: seeds_interval((table[best] - table[other]).dropna())[0] for other in table if other != best}
        near = [label(other) for other, low in lows.items() if low <= 0]
        beside = f"; within the seeds' noise of it: {', '.join(near)}" if near else ""
        found.setdefault(label(best), []).append(f"{name} ({table[best].mean():.2f}{beside})")
    return ", ".join(f"{best} has the highest mean {' and '.join(said)}" for best, said in found.items())


def pareto(table, cost="seconds"):
    """``cost.mean_costs``: accuracy against cost; below and right of the stepped line something is cheaper and better.

    What costs nothing has no place on the logarithmic axis: the sentence names it.
    """
    free = [classifier_name(row.method, row.setting) for row in table[table[cost] == 0].itertuples()]
    table = table[table[cost].notna() & (table[cost] > 0)]
    if table.empty:
        return empty(f"No run has {COSTS[cost]}: {STUDY}")
    figure, (ax,) = panels(1, COLUMN, 2.9)
    faces = {"S": "none", "none": "none"}
    for row in table.itertuples():
        style, x = look(row.method), getattr(row, cost)
        face = faces.get(row.setting, style["color"])
        ax.errorbar(x, row.accuracy_mean, row.accuracy_std, ls="", ms=5, lw=0.8, mfc=face,
                    label=classifier_name(row.method, row.setting), **style)  # fmt: skip
    best = pareto_front(table, cost)
    ax.step(best[cost], best["accuracy_mean"], where="post", color="0.5", lw=0.8, ls="--", zorder=0)
    ax.set_xscale("log")
    if cost != "flops":
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    finish(ax, COSTS[cost], "test accuracy (%)")
    legend(figure, [ax], 2)
    names = ", ".join(classifier_name(row.method, row.setting) for row in best.itertuples())
    sentence = f"By means over seeds, nothing is both cheaper and more accurate than: {names}."
    if free:
        sentence += f" Not drawn, because it trains nothing: {', '.join(free)}."
    return described(figure, f"Scatter plot: accuracy against {COSTS[cost]}; filled: with real images.", sentence)
