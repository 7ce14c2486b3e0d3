"""Figures of the results: the teaser, accuracies, the published order, accuracy against cost."""

import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogFormatter, ScalarFormatter

from datadream_utils.analysis.ablations import STUDY, study_command
from datadream_utils.analysis.compare import Verdict
from datadream_utils.analysis.cost import COSTS, pareto_front
from datadream_utils.analysis.published import published_order
from datadream_utils.analysis.questions import CLASSIFIERS
from datadream_utils.analysis.results import BLOCKS
from datadream_utils.catalogue import ABLATIONS
from datadream_utils.methods import METHODS, classifier_name, short_label
from datadream_utils.plots.pictures import show_grid
from datadream_utils.plots.style import (
    BLUE,
    BOTH,
    COLOURS,
    COLUMN,
    ORANGE,
    WHISKERS,
    can_compare,
    describe,
    empty_figure,
    in_table_order,
    label_axes,
    legend,
    literal,
    marker_style,
    new_figure,
    panels,
    text_width,
)

# Of a published order in our runs: colour and marker.
ORDER_STYLES = {"holds": (BLUE, "s"), "reversed": (ORANGE, "X"), "not decided": ("0.4", "o")}


def teaser(rows, class_name, dataset):
    """The paper's first figure: one class, a row of pictures per source, ``{source: [picture, ...]}``.

    A source is the label of a method, or another name (real images).
    """
    names = max((text_width(literal(source), 9) for source in rows), default=0)
    side = min(0.95, (BOTH - names - 0.4) / max([1, *map(len, rows.values())]))
    figure = show_grid(list(rows.values()), list(rows), title=f"Dataset: {dataset}; class: {class_name}", side=side)
    methods = [name for name, method in METHODS.items() if method.label in rows]
    alt = f"Rows of pictures of the class {class_name}: {', '.join(rows)}."
    return describe(figure, alt, name="teaser", complete=can_compare(methods))


def accuracy_bars(table, dataset):
    """Test accuracy per method and setting, with the standard deviation over seeds.

    table: ``compare.add_verdicts``, of one number of shots.
    """
    table = table[table["dataset"] == dataset]
    figure, axes = new_figure(1, 1, BOTH, 0.36 * len(table) + 1)
    ax = axes[0, 0]
    names = [f"{METHODS[row.method].label}, {row.setting}".removesuffix(", none") for row in table.itertuples()]
    colours = [COLOURS[method] for method in table["method"]]
    spread = table["accuracy_std"]  # one seed has none
    bars = ax.barh(names, table["accuracy_mean"], xerr=spread, color=colours, error_kw={"lw": 1, "capsize": 2})
    for line in (*bars.errorbar.lines[1], *bars.errorbar.lines[2]):  # a black whisker shows on a black bar too
        line.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    for y, (mean, std) in enumerate(zip(table["accuracy_mean"], spread.fillna(0), strict=True)):
        ax.text(mean + std + 0.8, y, f"{mean:.1f}", va="center", fontsize=8)
    ax.invert_yaxis()
    ax.set(
        xlim=(0, 110),
        xticks=range(0, 101, 20),
        xlabel="top-1 accuracy on the test split (%)",
        title=f"Accuracy on {literal(dataset)}",
    )
    sns.despine(ax=ax)
    alt = f"Bars: test accuracy of each method and setting on {dataset}."
    return describe(figure, alt, _highest(table), "accuracy_bars", can_compare(table["method"]))


def _highest(table):
    """The highest mean, and how many others of its block are not surely below it."""
    if table.empty:
        return ""
    best = table.loc[table["accuracy_mean"].idxmax()]
    finding = f"Highest mean: {classifier_name(best.method, best.setting)}, {best.accuracy_mean:.1f} %"
    others = table[(table["setting"].map(BLOCKS) == BLOCKS[best.setting]) & (table.index != best.name)]
    if others.empty or "verdict" not in table:
        return f"{finding}."
    unsure = int((others["verdict"] != Verdict.BELOW.label).sum())
    return f"{finding}; {unsure} of {len(others)} others of its block are not surely below it."


def forest(order, dataset):
    """Paired differences with both intervals; below them seeds as dots, and the published ones as open diamonds.

    order: ``compare.compare_order``.
    """
    total = len(published_order(dataset))
    if order.empty:
        return empty_figure("order", f"None of the {total} published orders can be compared: {STUDY}")
    figure, axes = new_figure(1, 1, BOTH, 0.32 * len(order) + 1.5)
    ax = axes[0, 0]
    ax.axvline(0, color="0.5", lw=0.8)
    for y, row in enumerate(order.itertuples()):
        colour, marker = ORDER_STYLES[row.outcome]
        ax.plot(list(row.per_seed.values()), [y + 0.3] * len(row.per_seed), ".", color="0.35", ms=3.5, zorder=3)
        ax.plot([row.low, row.high], [y, y], color=colour, lw=6, alpha=0.35, solid_capstyle="butt", zorder=1)
        ax.plot([row.seeds_low, row.seeds_high], [y, y], "|-", color=colour, lw=0.9, ms=6, zorder=2)
        ax.plot(row.ours, y, marker, color=colour, ms=3.5, zorder=3)
        ax.plot(row.published, y, "D", mfc="none", mec="black", mew=0.8, ms=4, zorder=4)
    marks = [("published averages", "D", "none", "black"), ("one seed", ".", "0.35", "0.35")]
    marks += [(f"ours: {word}", marker, colour, colour) for word, (colour, marker) in ORDER_STYLES.items()]
    handles = [Line2D([], [], ls="", marker=m, mfc=face, mec=edge, label=words) for words, m, face, edge in marks]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    ax.set_yticks(range(len(order)), order["pair"], fontsize=8)
    ax.invert_yaxis()
    ax.set(
        xlabel="points of accuracy, with 95 % intervals\n(broad and pale: over test images, thin: over seeds)",
        title=literal(f"The published order, on {dataset}"),
    )
    sns.despine(ax=ax, left=True)
    count = [int((order["outcome"] == word).sum()) for word in ORDER_STYLES]
    finding = f"Of {len(order)} published orders {count[0]} hold, {count[1]} are reversed, {count[2]} are not decided."
    alt = "Lines with intervals: our paired differences in accuracy, and the published ones."
    return describe(figure, alt, finding, "order", len(order) == total)


def gain_by_shots(table):
    """R+S minus Real-finetune against the number of shots, a panel per classifier.

    table: ``questions.gains_by_shots``.
    """
    name = "gain_by_shots"
    if table.empty:
        return empty_figure(name, f"No method was trained with R+S beside Real-finetune: {study_command('n_shot')}")
    classifiers = [key for key in CLASSIFIERS if key in set(table["classifier"])]
    figure, axes = panels(len(classifiers), BOTH if len(classifiers) > 1 else COLUMN, 2.6)
    shots = sorted(set(table["n_shot"]))
    for ax, classifier in zip(axes, classifiers, strict=True):
        rows = table[table["classifier"] == classifier]
        methods = in_table_order(set(rows["method"]))
        ax.axhline(0, color=COLOURS["real"], ls="--", lw=1, label=short_label("real"))
        for i, method in enumerate(methods):
            of_method, shift = rows[rows["method"] == method], 0.12 * (i - (len(methods) - 1) / 2)
            places, style = [shots.index(n_shot) + shift for n_shot in of_method["n_shot"]], marker_style(method)
            whiskers = [of_method["difference"] - of_method["low"], of_method["high"] - of_method["difference"]]
            ax.errorbar(places, of_method["difference"], whiskers, label=short_label(method), **style, **WHISKERS)
            for x, points in zip(places, of_method["per_dataset"], strict=True):
                ax.plot([x] * len(points), points.values(), ls="", ms=2.5, alpha=0.6, **style)
        ax.set_xticks(range(len(shots)), shots)
        label_axes(ax, ABLATIONS["n_shot"], "R+S minus Real-finetune (points)", CLASSIFIERS[classifier])
    legend(figure, axes)
    several = table[table["n_seeds"] > 1]
    above, below = int((several["low"] > 0).sum()), int((several["high"] < 0).sum())
    finding = f"Of {len(several)} gains, {above} intervals lie above 0 and {below} below." if len(several) else ""
    finding = finding or "One seed: the intervals are over test images alone."
    alt = "Lines: what generated images bring beside the real ones, against the number of shots."
    return describe(figure, alt, finding, name, len(shots) > 1)


def pareto(table, cost="seconds"):
    """Accuracy against cost; below or right of the dashed steps another classifier is cheaper and more accurate.

    table: ``cost.compute_costs``; cost: one of its columns in ``cost.COSTS``. What costs nothing has no place on the
    logarithmic axis.
    """
    name = {"seconds": "pareto", "flops": "pareto_flops"}.get(cost, "")
    table = table[table[cost].notna() & (table[cost] > 0)]
    if table.empty:
        return empty_figure(name, f"No run has {COSTS[cost]}: {STUDY}")
    figure, (ax,) = panels(1, COLUMN, 2.9)
    for row in table.itertuples():
        style = marker_style(row.method)
        face = style["color"] if "R" in row.setting else "none"
        ax.errorbar(getattr(row, cost), row.accuracy_mean, row.accuracy_std, ls="", ms=5, lw=0.8, mfc=face,
                    label=classifier_name(row.method, row.setting), **style)  # fmt: skip
    front = pareto_front(table, cost)
    ax.step(front[cost], front["accuracy_mean"], where="post", color="0.5", lw=0.8, ls="--", zorder=0)
    ax.set_xscale("log")
    if cost != "flops":
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    label_axes(ax, COSTS[cost], "test accuracy (%)")
    legend(figure, [ax], 2)
    cheapest, best = (classifier_name(row.method, row.setting) for row in (front.iloc[0], front.iloc[-1]))
    finding = f"{len(front)} of {len(table)} classifiers are not beaten in both cost and mean accuracy"
    finding += f": from {cheapest} to {best}." if len(front) > 1 else f": {best}."
    finding = finding if len(table) > 1 else ""
    alt = f"Scatter plot: accuracy of each classifier against {COSTS[cost]}."
    return describe(figure, alt, finding, name, can_compare(table["method"]))
