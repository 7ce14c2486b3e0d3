"""Figures of the ablations: what one parameter changes, and what adaptation brings for its cost."""

from itertools import product

import pandas as pd

from datadream_utils.analysis.ablations import format_value, study_command
from datadream_utils.analysis.compare import Verdict, compare_seeds
from datadream_utils.analysis.results import BLOCKS
from datadream_utils.catalogue import ABLATIONS, AMOUNTS
from datadream_utils.methods import METHODS, classifier_name, short_label
from datadream_utils.plots.style import (
    COLOURS,
    NORMAL,
    SETTING_TITLES,
    SMALL,
    WHISKERS,
    describe,
    empty_figure,
    in_table_order,
    label_axes,
    legend,
    logarithmic,
    marker_style,
    panels,
)

MOVED = {"n_shot": "more shots", "adapt_epochs": "more epochs"}
NARROW = {  # names of parameters in two short lines
    "adapt_epochs": "epochs of\nadaptation",
    "train_text_encoder": "text encoder\nadapted",
    "lora_rank": "rank of the\nadapters",
    "guidance_scale": "guidance\nscale",
    "real_weight": "weight of\nreal loss (λ)",
}


def ablation_strip(summaries):
    """What single parameters change: differences to the default of the same seed, with 95 % intervals over seeds.

    summaries: ``{parameter: ablations.summarise_ablation}``; a panel per parameter that has runs, except ``AMOUNTS``,
    which have figures of their own; all panels have one scale.
    """
    tables = {name: table for name, table in summaries.items() if name not in AMOUNTS and len(table)}
    if not tables:
        return empty_figure("ablations", f"No runs differ in one parameter alone: {study_command('lora_rank')}")
    every = pd.concat(tables.values())
    kinds = every[["setting", "method"]].drop_duplicates().itertuples(index=False, name=None)
    kinds = sorted(kinds, key=lambda kind: list(METHODS).index(kind[1]))
    figure, axes = panels(len(tables), 3.0, sharey=True)
    for ax, (parameter, table) in zip(axes, tables.items(), strict=True):
        values = sorted(set(table["value"]))
        ax.axhline(0, color="0.5", ls="--", lw=0.8, zorder=0)
        for i, (setting, method) in enumerate(kinds):
            rows = table[(table["setting"] == setting) & (table["method"] == method)].sort_values("value")
            places = [values.index(value) + 0.16 * (i - (len(kinds) - 1) / 2) for value in rows["value"]]
            style, means = marker_style(method), rows["difference"].mask(rows["reference"], 0.0)
            face = style["color"] if setting == "S" else "white"
            ax.errorbar(places, means, [means - rows["low"], rows["high"] - means], mfc=face, **WHISKERS,
                        label=classifier_name(method, setting), **style | {"ls": ""})  # fmt: skip
        words = {False: "no", True: "yes"} if parameter == "train_text_encoder" else {}
        ax.set_xticks(range(len(values)), [words.get(value, format_value(value)) for value in values])
        ax.set_xlim(-0.6, len(values) - 0.4)
        label_axes(ax, NARROW.get(parameter, ABLATIONS[parameter]))
        ax.xaxis.label.set_size(SMALL)
        for tick, value in zip(ax.get_xticklabels(), values, strict=True):
            tick.set_weight("bold" if value in set(table.loc[table["default"], "value"]) else "normal")
    axes[0].set_ylabel("accuracy minus that with the\ndefault (bold; points)", fontsize=NORMAL)
    legend(figure, axes, 2)
    names = ", ".join(ABLATIONS[name] for name in tables)
    alt = f"Differences in accuracy to the default, with intervals, for these parameters: {names}."
    return describe(figure, alt, _beyond_noise(every), "ablations")


def ablation_lines(table, parameter):
    """Accuracy against one of ``AMOUNTS``, a panel per block of the main table.

    table: ``ablations.summarise_ablation``. Of n_shot: mean accuracies, whiskers of one deviation over seeds. Of
    synthetic_per_class: each seed's difference to the reference (Real-finetune where its shots are the same), because
    the seeds share test images and shots, so their differences vary less than their accuracies.
    """
    name = f"ablation_{parameter}"
    if table.empty:
        return empty_figure(name, f"No runs differ in {parameter} alone: {study_command(parameter)}")
    blocks, by_share = table["setting"].map(BLOCKS), parameter == "synthetic_per_class"
    figure, axes = panels(1, 2.2 * blocks.nunique() + 0.8, blocks.nunique())
    xlabel = ABLATIONS[parameter]
    if by_share:
        most = max(table["value"])
        xlabel = f"images used of the {most:g} generated per class (%)"
    for ax, block in zip(axes, blocks.unique(), strict=True):
        rows = table[blocks == block]
        values, default = sorted(set(rows["value"])), set(rows.loc[rows["default"], "value"])
        title = "with real images (R, R+S)" if block == BLOCKS["R+S"] else SETTING_TITLES["S"]
        if by_share:
            _draw_differences(ax, rows, values)
            against = short_label("real") if (rows["reference"] & (rows["value"] == 0)).any() else "the default"
            ylabel = f"minus {against}\n(points, same seed)"
        else:
            _draw_accuracies(ax, rows, values)
            ylabel = "test accuracy (%)"
        words = [f"{100 * v / most:.0f}" if by_share else format_value(v) for v in values]
        ax.set_xticks(range(len(values)), words)
        label_axes(ax, xlabel if ax is axes[-1] else "", ylabel, title)
        for tick, value in zip(ax.get_xticklabels(), values, strict=True):
            tick.set_weight("bold" if value in default else "normal")
    legend(figure, axes)
    return describe(figure, f"Lines: test accuracy against {xlabel}.", _beyond_noise(table), name)


def _draw_accuracies(ax, rows, values):
    for method, of_method, places in _side_by_side(rows, values):
        ax.errorbar(places, of_method["accuracy_mean"], of_method["accuracy_std"], label=short_label(method),
                    **marker_style(method), **WHISKERS)  # fmt: skip


def _draw_differences(ax, rows, values):
    """Lines of mean differences, 0 at the reference, and a dot per seed."""
    for method, of_method, places in _side_by_side(rows, values):
        if not of_method["reference"].any():
            continue  # nothing to subtract
        style, reference = marker_style(method), of_method.loc[of_method["reference"], "per_seed"].iloc[0]
        for x, seeds, is_reference in zip(places, of_method["per_seed"], of_method["reference"], strict=True):
            points = [accuracy - reference[seed] for seed, accuracy in seeds.items() if seed in reference]
            if not is_reference:
                ax.plot([x] * len(points), points, ms=3, alpha=0.6, **style | {"ls": ""})
        means = of_method["difference"].mask(of_method["reference"], 0.0)
        places = [round(x) if at else x for x, at in zip(places, of_method["reference"], strict=True)]
        ax.plot(places, means, ms=5, mec="white", mew=0.5, label=short_label(method), **style)
    ax.axhline(0, color=COLOURS["real"], ls="--", lw=1, zorder=0)


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
    figure, (ax,) = panels(1, 3.2)
    styles = {"n_shot": "-", "adapt_epochs": "--"}
    for method, moved in product(in_table_order(set(table["method"])), styles):
        rows = table[(table["method"] == method) & (table["moved"] == moved)].sort_values("adapted")
        if rows.empty:
            continue
        ax.errorbar(rows["adapted"], rows["accuracy_mean"], rows["accuracy_std"], ls=styles[moved],
                    label=f"{short_label(method)}, {MOVED[moved]}", **marker_style(method), **WHISKERS)  # fmt: skip
    logarithmic(ax)
    label_axes(ax, "images adapted on (shots × epochs, all adapters)", "test accuracy (%)", SETTING_TITLES["S"])
    legend(figure, [ax], 2)
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
