"""The figures of the ablations: what one parameter changes, and what adaptation brings for its cost."""

import numpy as np

from datadream_utils.ablations import ABLATIONS, study_that_moves
from datadream_utils.compare import row_name
from datadream_utils.figures import (
    BOTH,
    COLUMN,
    SETTING_TITLES,
    WHISKERS,
    described,
    empty,
    finish,
    label,
    legend,
    look,
    panels,
)
from datadream_utils.plots import COLOURS
from datadream_utils.results import BLOCKS


def ablation(table, parameter, baseline=None):
    """``ablations.summary``: mean accuracy over seeds against ``parameter``, whiskers of one deviation, per block.

    Real-finetune stands beside R+S; where ``parameter`` does not move it, as a line at ``baseline``, its accuracy (%).
    """
    if table.empty:
        return empty(f"No runs differ in {parameter} alone: {study_that_moves(parameter)}")
    blocks = table["setting"].map(BLOCKS)
    values, default = sorted(set(table["value"])), set(table.loc[table["default"], "value"])
    figure, axes = panels(blocks.nunique(), COLUMN if blocks.nunique() == 1 else BOTH, 2.4)
    for ax, block in zip(axes, blocks.unique(), strict=True):
        rows = table[blocks == block]
        names = list(dict.fromkeys(rows["method"]))
        for i, method in enumerate(names):
            of = rows[rows["method"] == method]
            shift = 0.12 * (i - (len(names) - 1) / 2) / max(1, len(names) - 1)  # whiskers beside each other
            places, spread = [values.index(v) + shift for v in of["value"]], of["accuracy_std"]
            ax.errorbar(places, of["accuracy_mean"], spread, **look(method), label=label(method), **WHISKERS)
        if baseline is not None and "R+S" in set(rows["setting"]) and "real" not in names:
            ax.axhline(baseline, color=COLOURS["real"], ls="--", lw=1, label=label("real"))
        ax.set_xticks(range(len(values)), [_value(v) + "\n(default)" * (v in default) for v in values])
        setting = "R+S" if block == BLOCKS["R+S"] else rows["setting"].iloc[0]
        finish(ax, ABLATIONS.get(parameter, parameter), "test accuracy (%)", SETTING_TITLES[setting])
    legend(figure, axes)
    return described(figure, f"Lines: test accuracy against {ABLATIONS.get(parameter, parameter)}.", _most_moved(table))


def compute(table):
    """``ablations.compute``: accuracy on synthetic images alone against the images that adaptation looked at."""
    if table.empty:
        return empty(f"No runs differ in how long an adapter is trained: {study_that_moves('adapt_epochs')}")
    figure, (ax,) = panels(1, COLUMN, 2.6)
    styles, words = {"n_shot": "-", "adapt_epochs": "--"}, []
    for (method, moved), rows in table.groupby(["method", "moved"], sort=False):
        rows = rows.sort_values("adapted")
        name = f"{label(method)}, {ABLATIONS[moved]}"
        ax.errorbar(rows["adapted"], rows["accuracy_mean"], rows["accuracy_std"], ls=styles[moved],
                    label=name, **look(method), **WHISKERS)  # fmt: skip
        first, last = rows.iloc[0], rows.iloc[-1]
        words.append(f"{name}: {first.accuracy_mean:.1f} % on {first.adapted:,.0f} images adapted on, "
                     f"{last.accuracy_mean:.1f} % on {last.adapted:,.0f}")  # fmt: skip
    ax.set_xscale("log")
    finish(ax, "images adapted on (shots × epochs, all adapters)", "test accuracy (%)", SETTING_TITLES["S"])
    legend(figure, [ax], 1)
    return described(figure, "Lines: test accuracy against what adaptation costs.", "; ".join(words) + ".")


def _value(value):
    return {True: "yes", False: "no"}[value] if isinstance(value, bool | np.bool_) else f"{value:g}"


def _most_moved(table):
    ranges = table.groupby(["method", "setting"])["accuracy_mean"].agg(lambda means: means.max() - means.min())
    method, setting = ranges.idxmax()
    rows = table[(table["method"] == method) & (table["setting"] == setting)]
    low, high = (rows.loc[find()] for find in (rows["accuracy_mean"].idxmin, rows["accuracy_mean"].idxmax))
    spread, seeds = table["accuracy_std"].max(), int(table["n_seeds"].min())
    known = (
        f"the largest deviation between seeds is {spread:.1f} points" if spread == spread else "one seed: no deviation"
    )
    moved = (
        f"{row_name(method, setting)} moves{' most' * (len(ranges) > 1)}, from {low.accuracy_mean:.1f} % at "
        f"{_value(low.value)} to {high.accuracy_mean:.1f} % at {_value(high.value)}"
    )
    return f"{moved} (means of at least {seeds} seed{'s' * (seeds > 1)}; {known})."
