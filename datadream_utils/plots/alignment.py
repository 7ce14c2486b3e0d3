"""Figures of how near generated images are to real ones: distance against gain, fidelity against diversity."""

from datadream_utils.analysis.ablations import STUDY
from datadream_utils.analysis.alignment import MEASURES, REAL
from datadream_utils.analysis.compare import Verdict, seeds_interval
from datadream_utils.methods import short_label
from datadream_utils.plots.style import (
    GAIN_WORDS,
    SETTING_TITLES,
    WHISKERS,
    can_compare,
    describe,
    empty_figure,
    in_table_order,
    label_axes,
    legend,
    marker_style,
    panels,
)

RELATIONS = {Verdict.BELOW.label: "nearer images bring more", Verdict.ABOVE.label: "nearer images bring less"}


def alignment_scatter(points, correlations, setting, space="CLIP features"):
    """Distance to real images against gain in accuracy, both minus their class's mean, a point per method and class.

    points: ``alignment.join_gains`` of ``setting``; correlations: ``alignment.correlate_settings``, whose correlation
    within classes is that of these points; space: the features in which the distance is measured.
    """
    name = f"alignment_{setting.replace('+', '')}"
    if points.empty:
        return empty_figure(name, f"No method has both generated images and a classifier to compare: {STUDY}")
    figure, (ax,) = panels(1, 3.8)
    values = points[["distance", "gain"]]
    values = values - values.groupby(points["label"]).transform("mean")
    for method in in_table_order(set(points["method"])):
        rows = values[points["method"] == method]
        ax.plot(rows["distance"], rows["gain"], label=short_label(method), ms=5, alpha=0.85,
                **marker_style(method) | {"ls": ""})  # fmt: skip
    ax.axhline(0, color="0.6", lw=0.8, zorder=0)
    ax.axvline(0, color="0.6", lw=0.8, zorder=0)
    known = correlations[(correlations["setting"] == setting) & correlations["rho"].notna()]
    known = known.set_index("kind").to_dict("index").get("within")
    title = f"Within a class, {_relation(known)}:\nrank correlation {_interval(known)}" if known else ""
    label_axes(ax, f"Fréchet distance to real images minus its class's mean\n{space}",
               f"gain {GAIN_WORDS[setting]}\nminus its class's mean (points)", title)  # fmt: skip
    legend(figure, [ax])
    alt = "Scatter plot, one point per method and class: Fréchet distance against gain, both minus the class's mean, "
    alt += f"{SETTING_TITLES[setting]}."
    finding = f"Within classes, {_relation(known)}: rank correlation {_interval(known)}." if known else ""
    return describe(figure, alt, finding, name, can_compare(points["method"]))


def _interval(numbers):
    """A correlation with its interval."""
    return f"{numbers['rho']:+.2f} [{numbers['low']:+.2f}, {numbers['high']:+.2f}]"


def _relation(numbers):
    """What a correlation says, in words."""
    return RELATIONS.get(numbers["verdict"], "no relation shows between nearness and gain")


def fidelity_diversity(aligned):
    """Fidelity against diversity, means over classes; whiskers: deviation over seeds.

    aligned: ``alignment.compute_alignment``.
    """
    means = aligned.groupby(["method", "seed"], as_index=False)[list(MEASURES)].mean().dropna(subset="density")
    if set(means["method"]) <= {REAL}:
        reason = f"No method has generated as many images of a class as the measures need (7): {STUDY}"
        return empty_figure("fidelity", reason)
    figure, axes = panels(2, 3.2)
    for ax, (x, y) in zip(axes, (("recall", "precision"), ("coverage", "density")), strict=True):
        for method in in_table_order(set(means["method"])):
            rows = means[means["method"] == method]
            spread = rows[[x, y]].std()  # one seed has none
            style = marker_style(method) | WHISKERS | {"ls": "", "lw": 1}
            ax.errorbar(rows[x].mean(), rows[y].mean(), spread[y], spread[x], label=short_label(method), **style)
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
