"""Figures of the ablations: what one parameter changes, and what adaptation brings for its cost."""

from itertools import product

from datadream_utils.analysis.ablations import format_value, study_command
from datadream_utils.analysis.compare import Verdict, compare_seeds
from datadream_utils.analysis.results import BLOCKS
from datadream_utils.catalogue import ABLATIONS
from datadream_utils.methods import short_label
from datadream_utils.plots.style import (
    BOTH,
    COLOURS,
    COLUMN,
    SETTING_TITLES,
    WHISKERS,
    describe,
    empty_figure,
    in_table_order,
    label_axes,
    legend,
    marker_style,
    panels,
)


def ablation_lines(table, parameter, baseline=None):
    """Mean accuracy over seeds against ``parameter``, whiskers of one deviation, a panel per block of the main table.

    table: ``ablations.summarise_ablation``; baseline: accuracy (%) of Real-finetune, drawn as a line beside R+S where
    ``parameter`` does not change it. Where Real-finetune is the reference (images added to its shots), each seed's
    difference to it is drawn instead: the seeds share test images and shots, so their differences vary less than their
    accuracies.
    """
    name = f"ablation_{parameter}"
    if table.empty:
        return empty_figure(name, f"No runs differ in {parameter} alone: {study_command(parameter)}")
    blocks, by_share = table["setting"].map(BLOCKS), parameter == "synthetic_per_class"
    figure, axes = panels(blocks.nunique(), COLUMN if blocks.nunique() == 1 else BOTH, 2.4)
    xlabel = ABLATIONS.get(parameter, parameter)
    if by_share:
        most = max(table["value"])
        xlabel = f"images used of the {most:g} generated per class (%)"
    for ax, block in zip(axes, blocks.unique(), strict=True):
        rows = table[blocks == block]
        values, default = sorted(set(rows["value"])), set(rows.loc[rows["default"], "value"])
        setting = "R+S" if block == BLOCKS["R+S"] else rows["setting"].iloc[0]
        title, ylabel = SETTING_TITLES[setting], "test accuracy (%)"
        if by_share and setting == "R+S" and (rows["reference"] & (rows["value"] == 0)).any():
            _draw_differences(ax, rows, values)
            title, ylabel = f"{title}; dots: seeds, lines: means", "minus Real-finetune\n(points, same seed)"
        else:
            _draw_accuracies(ax, rows, values, baseline)
        words = [f"{100 * v / most:.0f}" if by_share else format_value(v) for v in values]
        ticks = [word + "\n(default)" * (value in default) for word, value in zip(words, values, strict=True)]
        ax.set_xticks(range(len(values)), ticks)
        label_axes(ax, xlabel, ylabel, title)
    legend(figure, axes)
    return describe(figure, f"Lines: test accuracy against {xlabel}.", _beyond_noise(table), name)


def _draw_accuracies(ax, rows, values, baseline):
    for method, of_method, places in _side_by_side(rows, values):
        ax.errorbar(places, of_method["accuracy_mean"], of_method["accuracy_std"], label=short_label(method),
                    **marker_style(method), **WHISKERS)  # fmt: skip
    if baseline is not None and "R+S" in set(rows["setting"]) and "real" not in set(rows["method"]):
        ax.axhline(baseline, color=COLOURS["real"], ls="--", lw=1, label=short_label("real"))


def _draw_differences(ax, rows, values):
    """Lines of mean differences that start at the reference's 0, and a dot per seed."""
    for method, of_method, places in _side_by_side(rows, values):
        style, reference = marker_style(method), of_method.loc[of_method["reference"], "per_seed"].iloc[0]
        for x, seeds in zip(places, of_method["per_seed"], strict=True):
            points = [accuracy - reference[seed] for seed, accuracy in seeds.items() if seed in reference]
            if values[round(x)]:
                ax.plot([x] * len(points), points, ls="", ms=2.5, alpha=0.6, **style)
        means = of_method["difference"].fillna(0.0)
        ax.plot([0, *places[1:]], means, ms=4.5, lw=1, mec="white", mew=0.5, label=short_label(method), **style)
    ax.axhline(0, color=COLOURS["real"], ls="--", lw=1, label=short_label("real"))


def _side_by_side(rows, values):
    """``(method, its rows, places)``: the places on the axis keep marks of one value from covering each other."""
    names = in_table_order(set(rows["method"]))
    for i, method in enumerate(names):
        of_method = rows[rows["method"] == method].sort_values("value")
        shift = min(0.2, 0.05 * len(names)) * 2 * (i - (len(names) - 1) / 2) / max(1, len(names) - 1)
        yield method, of_method, [values.index(value) + shift for value in of_method["value"]]


def _beyond_noise(table):
    """How many differences to the reference exceed the seeds' noise."""
    verdicts = table.loc[table["verdict"] != "", "verdict"]
    if verdicts.empty:
        return "The reference has not been run: nothing can be compared."
    if (verdicts == Verdict.ONE_SEED.label).all():
        return "With one seed no difference can be separated from noise."
    above, below = (int((verdicts == side.label).sum()) for side in (Verdict.ABOVE, Verdict.BELOW))
    count = f"{above} of {len(verdicts)} differences to the reference are above 0, {below} below"
    return f"Beyond the seeds' noise, {count}."


def compute_lines(table):
    """Accuracy on synthetic images alone against the images that adaptation processes.

    table: ``ablations.join_compute``.
    """
    if table.empty:
        reason = f"No runs differ in how long an adapter is trained: {study_command('adapt_epochs')}"
        return empty_figure("ablation_compute", reason)
    figure, (ax,) = panels(1, COLUMN, 2.6)
    styles = {"n_shot": "-", "adapt_epochs": "--"}
    for method, moved in product(in_table_order(set(table["method"])), styles):
        rows = table[(table["method"] == method) & (table["moved"] == moved)].sort_values("adapted")
        if rows.empty:
            continue
        ax.errorbar(rows["adapted"], rows["accuracy_mean"], rows["accuracy_std"], ls=styles[moved],
                    label=f"{short_label(method)}, {ABLATIONS[moved]}", **marker_style(method), **WHISKERS)  # fmt: skip
    ax.set_xscale("log")
    label_axes(ax, "images adapted on (shots × epochs, all adapters)", "test accuracy (%)", SETTING_TITLES["S"])
    legend(figure, [ax], 1)
    alt = "Lines: test accuracy against the images that adaptation processes."
    return describe(figure, alt, _at_equal_cost(table), "ablation_compute")


def _at_equal_cost(table):
    """How often more shots for fewer epochs are better than few shots for all epochs, where both cost the same."""
    verdicts = []
    for _, rows in table.groupby("method", sort=False):
        shots, epochs = (rows[(rows["moved"] == name) & ~rows["default"]] for name in ("n_shot", "adapt_epochs"))
        for few in shots.itertuples():
            for short in epochs[epochs["adapted"] == few.adapted].itertuples():
                difference = compare_seeds(short.per_seed, few.per_seed)
                verdicts += [difference["verdict"]] if difference else []
    if not verdicts:
        return ""
    count = f"{verdicts.count(Verdict.ABOVE.label)} of {len(verdicts)}"
    return f"At equal cost, more shots for fewer epochs are better beyond the seeds' noise in {count} cases."
