"""Figures of how near generated images are to real ones: distance against gain, fidelity against diversity."""

from datadream_utils.analysis.ablations import STUDY
from datadream_utils.analysis.alignment import CORRELATIONS, MEASURES, REAL
from datadream_utils.analysis.compare import Verdict, seeds_interval
from datadream_utils.methods import short_label
from datadream_utils.plots.style import (
    BOTH,
    COLUMN,
    NORMAL,
    SETTING_TITLES,
    can_compare,
    describe,
    empty_figure,
    in_table_order,
    label_axes,
    legend,
    marker_style,
    panels,
)

REFERENCES = {"S": "zero-shot CLIP", "R+S": "Real-finetune"}  # by what a gain is measured against


def alignment_scatter(points, correlations, setting, space="CLIP features"):
    """The distance of a class to real images against its gain in accuracy, a point per method and class.

    points: ``alignment.join_gains`` of ``setting``; correlations: ``alignment.correlate_settings``; space: the features
    in which the distance is measured.
    """
    name = f"alignment_{setting.replace('+', '')}"
    if points.empty:
        return empty_figure(name, f"No method has both generated images and a classifier to compare: {STUDY}")
    figure, (ax,) = panels(1, COLUMN, 2.9)
    for method in in_table_order(set(points["method"])):
        rows = points[points["method"] == method]
        ax.plot(rows["distance"], rows["gain"], ls="", ms=4, alpha=0.8, label=short_label(method),
                **marker_style(method))  # fmt: skip
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set_xscale("log")
    label_axes(ax, f"Fréchet distance to real test images\n{space}", f"gain over {REFERENCES[setting]} (points)")
    legend(figure, [ax], 3)
    known = correlations[(correlations["setting"] == setting) & correlations["rho"].notna()]
    known = known.set_index("kind").to_dict("index")
    titles = [f"{CORRELATIONS[kind]} {_interval(known[kind])}" for kind in ("within", "between") if kind in known]
    if titles:
        ax.set_title("\n".join(["Spearman's correlation:", *titles]), fontsize=NORMAL)
    alt = f"Scatter plot, one point per method and class: Fréchet distance against gain, {SETTING_TITLES[setting]}."
    return describe(figure, alt, _relation(known), name, can_compare(points["method"]))


def _interval(numbers):
    """A correlation with its interval, or with its p-value where a permutation test has replaced the interval."""
    if numbers["low"] != numbers["low"]:
        return f"{numbers['rho']:+.2f} (p = {numbers['p_holm']:.3f})"
    return f"{numbers['rho']:+.2f} [{numbers['low']:+.2f}, {numbers['high']:+.2f}]"


def _relation(known):
    """What the correlation within classes says, as a finding."""
    numbers = known.get("within")
    if not numbers:
        return ""
    words = {Verdict.BELOW.label: "nearer images bring more", Verdict.ABOVE.label: "nearer images bring less"}
    relation = words.get(numbers["verdict"], "no relation shows between nearness and gain")
    return f"Within classes, {relation}: rank correlation {_interval(numbers)}."


def fidelity_diversity(aligned):
    """Fidelity against diversity, means over classes; whiskers: deviation over seeds.

    aligned: ``alignment.compute_alignment``.
    """
    means = aligned.groupby(["method", "seed"], as_index=False)[list(MEASURES)].mean().dropna(subset="density")
    if set(means["method"]) <= {REAL}:
        reason = f"No method has generated as many images of a class as the measures need (7): {STUDY}"
        return empty_figure("fidelity", reason)
    figure, axes = panels(2, BOTH, 2.8)
    for ax, (x, y) in zip(axes, (("recall", "precision"), ("coverage", "density")), strict=True):
        for method in in_table_order(set(means["method"])):
            rows = means[means["method"] == method]
            spread = rows[[x, y]].std()  # one seed has none
            ax.errorbar(rows[x].mean(), rows[y].mean(), spread[y], spread[x], ls="", ms=5, lw=0.8, capsize=2,
                        label=short_label(method), **marker_style(method))  # fmt: skip
        label_axes(ax, f"{x} (diversity)", f"{y} (fidelity)")
        ax.set_xlim(-0.03, 1.03)
    legend(figure, axes)
    generators = means[means["method"] != REAL]
    finding = ""
    if generators["method"].nunique() > 1:
        finding = f"Highest mean density: {_highest(generators, 'density')}; coverage: "
        finding += f"{_highest(generators, 'coverage')}."
    alt = "Two scatter plots, a point per method: precision against recall and density against coverage."
    return describe(figure, alt, finding, "fidelity", can_compare(means["method"]))


def _highest(means, measure):
    """The method with the highest mean, and how many others are not below it by more than the seeds' noise."""
    table = means.pivot(index="seed", columns="method", values=measure)
    best = table.mean().idxmax()
    lows = [seeds_interval((table[best] - table[other]).dropna())[0] for other in table if other != best]
    near = sum(not low > 0 for low in lows)  # one seed has no interval: nothing is known
    return f"{short_label(best)} ({table[best].mean():.2f}; {near} of {len(lows)} others not surely below)"
