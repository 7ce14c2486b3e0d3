"""Figures of the results: the teaser, accuracies, the published order, accuracy against cost."""

from itertools import product

from matplotlib.patheffects import withStroke

from datadream_utils.analysis.ablations import STUDY, study_command
from datadream_utils.analysis.compare import OUTCOMES, Verdict
from datadream_utils.analysis.cost import COSTS, pareto_front
from datadream_utils.analysis.published import published_order
from datadream_utils.analysis.questions import CLASSIFIERS, GAINS
from datadream_utils.analysis.results import BLOCKS
from datadream_utils.catalogue import ABLATIONS
from datadream_utils.methods import METHODS, classifier_name, short_label
from datadream_utils.plots.pictures import show_grid
from datadream_utils.plots.style import (
    COLOURS,
    NORMAL,
    SMALL,
    STRONG,
    WHISKERS,
    WIDTH,
    PrintFigure,
    can_compare,
    describe,
    empty_figure,
    in_table_order,
    label_axes,
    legend,
    literal,
    logarithmic,
    marker_style,
    panels,
    text_width,
)

FIRST = ("fakeit", "disef", "datadream_cls", "datadream_dset")  # in the teaser, as in the paper's
ROWS, COLUMNS = 4, 6  # of generated pictures in the teaser
BARS = {"synthetic": "trained on synthetic images (S)", "real": "on real images (R), or on both (R+S)"}
WITHIN = ("on synthetic images alone (S)", "with real images (R+S)")  # panels of the published order


def teaser(rows, class_name, dataset):
    """The paper's first figure: one class, a row of pictures per source, ``{source: [picture, ...]}``.

    A source is the label of a method, or another name (real images). Of more than ``ROWS`` methods those in ``FIRST``
    are shown, and of each ``COLUMNS`` pictures.
    """
    methods = {method.label: name for name, method in METHODS.items()}
    shown = sorted((label for label in rows if label in methods), key=lambda label: methods[label] not in FIRST)[:ROWS]
    rows = {short_label(methods.get(label, label)): pictures[:COLUMNS] for label, pictures in rows.items()
            if label in shown or label not in methods}  # fmt: skip
    names = max((text_width(literal(source), NORMAL) for source in rows), default=0)
    side = min(0.75, (WIDTH - names - 0.3) / max([1, *map(len, rows.values())]))
    figure = show_grid(list(rows.values()), list(rows), title=f"Dataset: {dataset}; class: {class_name}", side=side)
    figure.dots = PrintFigure.dots
    for ax in figure.axes:
        if ax.get_ylabel() in map(short_label, STRONG):
            ax.yaxis.label.set_color(COLOURS[STRONG[1]])
    alt = f"Rows of pictures of the class {class_name}: {', '.join(rows)}."
    return describe(figure, alt, name="teaser", complete=can_compare([methods[label] for label in shown]))


def accuracy_bars(table, dataset):
    """Test accuracy per method, a panel per block of the main table, with the standard deviation over seeds.

    table: ``compare.add_verdicts``, of one number of shots. Lines: zero-shot CLIP and Real-finetune.
    """
    table = table[table["dataset"] == dataset]
    blocks = table["setting"].map(BLOCKS)
    groups = {title: table[blocks == block] for block, title in BARS.items() if (blocks == block).any()}
    groups = groups or {"zero-shot": table}
    sizes = [max(1, len(rows)) for rows in groups.values()]
    height = 0.23 * sum(sizes) + 0.35 * len(groups) + 0.9
    figure, axes = panels(1, height, len(groups), sharex=True, height_ratios=sizes)
    for ax, (title, rows) in zip(axes, groups.items(), strict=True):
        _bars(ax, rows)
        for method, ls in (("clip_zeroshot", ":"), ("real", "--")):
            for accuracy in table.loc[table["method"] == method, "accuracy_mean"]:
                ax.axvline(accuracy, color="0.3", ls=ls, lw=1.2, zorder=0, label=METHODS[method].label)
        label_axes(ax, title=title)
    axes[-1].set(xlim=(0, 115), xticks=range(0, 101, 20))
    axes[-1].set_xlabel(f"accuracy on the test images of {literal(dataset)} (%)", fontsize=NORMAL)
    legend(figure, axes)
    alt = f"Bars: test accuracy of each method on {dataset}; above, on synthetic images alone; below, with real ones."
    return describe(figure, alt, _highest(table), "accuracy_bars", can_compare(table["method"]))


def _bars(ax, rows):
    names, colours = [short_label(method) for method in rows["method"]], [COLOURS[method] for method in rows["method"]]
    spread = rows["accuracy_std"]  # one seed has none
    bars = ax.barh(names, rows["accuracy_mean"], xerr=spread, color=colours, error_kw={"lw": 1, "capsize": 2})
    for line in (*bars.errorbar.lines[1], *bars.errorbar.lines[2]):  # a black whisker shows on a black bar too
        line.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    for y, (mean, std) in enumerate(zip(rows["accuracy_mean"], spread.fillna(0), strict=True)):
        ax.text(mean + std + 1.5, y, f"{mean:.1f}", va="center", fontsize=SMALL,
                path_effects=[withStroke(linewidth=3, foreground="white")])  # fmt: skip
    ax.invert_yaxis()


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
    """Paired differences with both intervals, single seeds as dots, the published ones as open diamonds, the verdicts.

    order: ``compare.compare_order``. A panel for claims about synthetic images alone, one for those with real images.
    """
    total = len(published_order(dataset))
    if order.empty:
        return empty_figure("order", f"None of the {total} published orders can be compared: {STUDY}")
    alone = order["pair"].str.contains("(S)", regex=False)
    groups = {title: rows for title, rows in zip(WITHIN, (order[alone], order[~alone]), strict=True) if len(rows)}
    sizes = [len(rows) for rows in groups.values()]
    height = 0.27 * len(order) + 0.35 * len(groups) + 1.1
    figure, axes = panels(1, height, len(groups), sharex=True, height_ratios=sizes)
    for ax, (title, rows) in zip(axes, groups.items(), strict=True):
        ax.axvline(0, color="0.5", lw=0.8)
        for y, row in enumerate(rows.itertuples()):
            _difference(ax, y, row)
        label_axes(ax, title=title)
        ax.set_yticks(range(len(rows)), [_without_settings(pair) for pair in rows["pair"]])
        for tick, pair in zip(ax.get_yticklabels(), rows["pair"], strict=True):
            tick.set_color(COLOURS[STRONG[1]] if pair.startswith("DataDream") else "0.35")
        ax.set_ylim(len(rows) - 0.5, -0.7)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    label = "points of accuracy: first system better →\n(rows in colour: DataDream better →)"
    axes[-1].set_xlabel(label, fontsize=NORMAL)
    legend(figure, axes[:1])
    count = [int((order["outcome"] == word).sum()) for word in OUTCOMES]
    finding = f"Of {len(order)} published orders {count[0]} hold, {count[1]} are reversed, {count[2]} are not decided."
    alt = "Lines with intervals, one for each published order: our paired difference in accuracy, the published one, "
    alt += "and the verdict as a word; above, on synthetic images alone; below, with real images."
    return describe(figure, alt, finding, "order", len(order) == total)


def _difference(ax, y, row):
    """One line of ``forest``; the first line of a panel has the labels of the key."""
    decided, labels = row.outcome != "not decided", (lambda words: words if y == 0 else None)
    colour = "black" if decided else "0.5"
    ax.plot([row.low, row.high], [y, y], color=colour, lw=6, alpha=0.35, solid_capstyle="butt", zorder=1,
            label=labels("95 %, test images"))  # fmt: skip
    ax.plot([row.seeds_low, row.seeds_high], [y, y], "|-", color=colour, lw=1, ms=6, zorder=2,
            label=labels("95 %, seeds"))  # fmt: skip
    ax.plot(list(row.per_seed.values()), [y + 0.3] * len(row.per_seed), ".", color="0.35", ms=3.5, zorder=3,
            label=labels("single seeds"))  # fmt: skip
    ax.plot(row.ours, y, "o", color=colour, ms=4, zorder=3, label=labels("ours"))
    ax.plot(row.published, y, "D", mfc="none", mec=COLOURS["disef"], mew=1, ms=5, zorder=4, label=labels("published"))
    ax.text(1.02, y, row.outcome, transform=ax.get_yaxis_transform(), va="center", fontsize=SMALL, color=colour,
            weight="bold" if decided else "normal")  # fmt: skip


def _without_settings(pair):
    """ "DISEF (S) − LoFT (S)" without its brackets, which the panel's title says."""
    return " − ".join(name.rpartition(" (")[0] for name in pair.split(" − "))


def gain_by_shots(table):
    """R+S and S minus Real-finetune against the number of shots: a row per setting, a column per classifier.

    table: ``questions.gains_by_shots``.
    """
    name = "gain_by_shots"
    if table.empty:
        return empty_figure(name, f"No method was trained beside Real-finetune: {study_command('n_shot')}")
    classifiers = [key for key in CLASSIFIERS if key in set(table["classifier"])]
    settings = [setting for setting in GAINS if setting in set(table["setting"])]
    figure, axes = panels(len(classifiers), 0.8 + 2.1 * len(settings), len(settings), sharex=True, sharey="row")
    shots = sorted(set(table["n_shot"]))
    for ax, (setting, classifier) in zip(axes, product(settings, classifiers), strict=True):
        first, last = classifier == classifiers[0], setting == settings[-1]
        _gains(ax, table[(table["classifier"] == classifier) & (table["setting"] == setting)], shots)
        ylabel = f"{setting} minus Real-finetune\n(points)" if first else ""
        title = CLASSIFIERS[classifier] if setting == settings[0] else ""
        label_axes(ax, ABLATIONS["n_shot"] if last else "", ylabel, title)
    legend(figure, axes)
    several = table[(table["n_seeds"] > 1) & (table["setting"] == "R+S")]
    counts = [
        f"{CLASSIFIERS[name]} {(rows['low'] > 0).sum()} of {len(rows)} above 0, {(rows['high'] < 0).sum()} below"
        for name, rows in several.groupby("classifier", sort=False)
    ]
    finding = f"Intervals of R+S: {'; '.join(counts)}."
    if several.empty:
        finding = "One seed: the intervals are over test images alone." if table["n_seeds"].max() == 1 else ""
    alt = "Lines: what generated images bring beside the real ones and instead of them, against the number of shots."
    return describe(figure, alt, finding, name, len(shots) > 1)


def _gains(ax, rows, shots):
    """One panel of ``gain_by_shots``."""
    methods = in_table_order(set(rows["method"]))
    ax.axhline(0, color=COLOURS["real"], ls="--", lw=1, label=short_label("real"))
    for i, method in enumerate(methods):
        of_method, shift = rows[rows["method"] == method], 0.12 * (i - (len(methods) - 1) / 2)
        places, style = [shots.index(n_shot) + shift for n_shot in of_method["n_shot"]], marker_style(method)
        whiskers = [of_method["difference"] - of_method["low"], of_method["high"] - of_method["difference"]]
        ax.errorbar(places, of_method["difference"], whiskers, label=short_label(method), **style, **WHISKERS)
        for x, points in zip(places, of_method["per_dataset"], strict=True):
            if len(points) > 1:
                ax.plot([x] * len(points), points.values(), ms=3, alpha=0.6, **style | {"lw": 0})
    ax.set_xticks(range(len(shots)), shots)
    ax.set_xlim(-0.5, len(shots) - 0.5)


def pareto(table, cost="seconds"):
    """Accuracy against cost; below or right of the dashed steps another classifier is cheaper and more accurate.

    table: ``cost.compute_costs``; cost: one of its columns in ``cost.COSTS``. What costs nothing has no place on the
    logarithmic axis.
    """
    name = "pareto"
    table = table[table[cost].notna() & (table[cost] > 0)]
    if table.empty:
        return empty_figure(name, f"No run has {COSTS[cost]}: {STUDY}")
    figure, (ax,) = panels(1, 3.8)
    for row in table.itertuples():
        style = marker_style(row.method)
        face = style["color"] if "R" in row.setting else "none"
        ax.errorbar(getattr(row, cost), row.accuracy_mean, row.accuracy_std, ls="", ms=6, mfc=face,
                    label=METHODS[row.method].label if row.setting == "none" else short_label(row.method),
                    **style | {"lw": 1})  # fmt: skip
    front = pareto_front(table, cost)
    ax.step(front[cost], front["accuracy_mean"], where="post", color="0.5", lw=0.8, ls="--", zorder=0)
    logarithmic(ax)
    label_axes(ax, COSTS[cost], "test accuracy (%)", "filled: with real images (R, R+S); open: without")
    legend(figure, [ax])
    cheapest, best = (classifier_name(row.method, row.setting) for row in (front.iloc[0], front.iloc[-1]))
    finding = f"{len(front)} of {len(table)} classifiers are not beaten in both cost and mean accuracy"
    finding += f": from {cheapest} to {best}." if len(front) > 1 else f": {best}."
    finding = finding if len(table) > 1 else ""
    alt = f"Scatter plot: accuracy of each classifier against {COSTS[cost]}."
    return describe(figure, alt, finding, name, can_compare(table["method"]))
