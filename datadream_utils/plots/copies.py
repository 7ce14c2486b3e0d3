"""Figures of what a generator has copied from its shots, from the tables of ``analysis.copies``."""

import numpy as np

from datadream_utils.analysis.ablations import STUDY
from datadream_utils.analysis.alignment import REAL
from datadream_utils.analysis.copies import CHANCE, SPACES
from datadream_utils.data.images import centre_square, read_image
from datadream_utils.methods import short_label
from datadream_utils.plots.style import (
    BOTH,
    COLUMN,
    NORMAL,
    SMALL,
    WHISKERS,
    PrintFigure,
    can_compare,
    describe,
    empty_figure,
    in_table_order,
    label_axes,
    legend,
    list_names,
    marker_style,
    panels,
)

NOTHING = f"There are no generated images, or no real ones besides the shots: {STUDY}"
CLAIMED = "datadream_cls"  # the authors write that with one shot it recreates its one image


def nearest_shots(generated, held_out, space="feature"):
    """Distributions of the distance to the nearest shot, of generated and of held-out real images, as curves.

    generated: ``{method: copies.find_nearest}``; held_out: the same of real images; space: "feature" or "pixel".
    """
    if not generated or held_out is None:
        return empty_figure("nearest_shots", NOTHING)
    figure, (ax,) = panels(1, COLUMN, 2.6)
    limit, shares = max(np.quantile(held_out[space], CHANCE), 1e-6), {}
    tables = {name: generated[name] for name in in_table_order(generated)}
    for i, (method, table) in enumerate({**tables, REAL: held_out}.items()):
        values = np.sort(table[space]).clip(limit / 30)  # exact copies stand at the left edge
        width = 2.4 - 1.4 * i / len(tables)  # a thin dashed curve leaves one below it visible
        line = {"ls": ":", "lw": 2} if method == REAL else {"lw": width, "ls": ("-", "--", "-.")[i % 3]}
        ax.plot(values, 100 * np.arange(1, len(values) + 1) / len(values), label=short_label(method),
                markevery=(0.03 * i, 0.2), ms=4, mec="white", mew=0.3, **marker_style(method), **line)  # fmt: skip
        if method != REAL:
            shares[method] = 100 * float((table[space] < limit).mean())
    ax.axvline(limit, color="0.45", lw=0.9, label=f"{100 * CHANCE:.0f} % of real images")
    ax.set_xscale("log")
    label_axes(ax, f"distance to the nearest shot\n{SPACES[space]}", "images nearer than that (%)")
    legend(figure, [ax], 3)
    finding = f"Nearer to a shot than 99 % of held-out real images: {_most(shares)}."
    alt = "Cumulative curves of the distance to the nearest few-shot image, one per method and one of real images."
    return describe(figure, alt, finding, "nearest_shots", can_compare(generated))


def _most(shares):
    """The largest of ``{method: share (%)}``, with every method that has it as printed, up to two by name."""
    most = f"{max(shares.values()):.1f}"
    names = [method for method, share in shares.items() if f"{share:.1f}" == most]
    whose = list_names(names) if len(names) <= 2 else f"{len(names)} methods"
    return f"{'at most ' if len(shares) > len(names) else ''}{most} % ({whose})"


def copies_by_shots(table):
    """Shares against the number of shots, means and deviations over seeds: a row of two panels per space.

    table: ``copies.compute_copies``. Left: images nearer to a shot than to held-out images; right: near copies.
    """
    if table.empty:
        return empty_figure("copies", NOTHING)
    figure = PrintFigure(figsize=(BOTH, 4.4), layout="constrained")
    axes = figure.subplots(2, 2, squeeze=False, sharex=True)
    shots, names = sorted(set(table["n_shot"])), in_table_order(set(table["method"]))
    panels_of_space = {
        "nearer": (50, "nearer to a shot than to as\nmany held-out, by {}s (%)"),
        "copies": (1, "near copies: nearer than 99 %\nof held-out, by {}s (%)"),
    }
    for row, space in zip(axes, SPACES, strict=True):
        for ax, (column, (chance, words)) in zip(row, panels_of_space.items(), strict=True):
            means = table.groupby(["method", "n_shot"])[f"{space}_{column}"].agg(["mean", "std"])
            for i, method in enumerate(names):
                rows = means.loc[method].sort_index()
                shift = 0.4 * (i - (len(names) - 1) / 2) / max(1, len(names) - 1)  # so that no mark covers another
                places = [shots.index(n) + shift for n in rows.index]
                whiskers = [np.minimum(rows["std"], end) for end in (rows["mean"], 100 - rows["mean"])]  # of a share
                ax.errorbar(places, rows["mean"], whiskers, label=short_label(method), **marker_style(method),
                            **WHISKERS)  # fmt: skip
            ax.axhline(chance, color="0.4", ls="--", lw=0.8)
            ax.set_xticks(range(len(shots)), shots)
            ax.set_xlim(-0.5, len(shots) - 0.5)
            label_axes(ax, "real images per class" if ax in axes[-1] else "", words.format(space))
    legend(figure, axes.ravel())
    alt = "Four panels of lines against the number of shots: nearer to a shot, and near copies, by features and pixels."
    return describe(figure, alt, _nearer(table), "copies", can_compare(names) and 1 in shots)


def _nearer(table):
    """How many of the images of the claimed method, with the fewest shots, are nearer to a shot than chance gives."""
    rows = table[table["method"] == CLAIMED].dropna(subset=[f"{space}_nearer" for space in SPACES])
    if rows.empty:
        return ""
    fewest = rows[rows["n_shot"] == rows["n_shot"].min()]
    shares = " and ".join(f"{fewest[f'{space}_nearer'].mean():.0f} % by {space}s" for space in SPACES)
    shots = "1 shot" if fewest["n_shot"].iloc[0] == 1 else f"{fewest['n_shot'].iloc[0]} shots"
    nearer = f"{shares} are nearer to a shot than to held-out images (50 % without copying)"
    return f"{short_label(CLAIMED)}, {shots}: {nearer}."


def most_copies(table, method=None):
    """The run ``(method, n_shot, seed)`` with the largest share of near copies by features; None without a run.

    method: only its runs with the fewest shots.
    """
    rows = table if method is None else table[table["method"] == method]
    rows = rows[rows["n_shot"] == rows["n_shot"].min()] if method else rows
    if rows.empty:
        return None
    row = rows.loc[rows["feature_copies"].astype(float).idxmax()]
    return row["method"], int(row["n_shot"]), int(row["seed"])


def worst_copies(blocks, space="feature", side=96):
    """The closest pairs as pictures: above the generated one, below the shot nearest to it, with their distance.

    blocks: ``{(method, n_shot, seed): copies.find_worst}``, drawn one below the other.
    """
    blocks = {run: pairs for run, pairs in blocks.items() if len(pairs)}
    if not blocks:
        return empty_figure("worst_copies", NOTHING)
    width = min(BOTH, max(COLUMN, 0.62 * max(map(len, blocks.values())) + 0.5))
    figure = PrintFigure(figsize=(width, 1.75 * len(blocks)), layout="constrained")
    parts = figure.subfigures(len(blocks), 1, squeeze=False)[:, 0]
    for part, (run, pairs) in zip(parts, blocks.items(), strict=True):
        _pairs(part, pairs, side)
        part.suptitle(_pairs_title(run, len(pairs), space), fontsize=NORMAL)
    closest = min(pairs["distance"].min() for pairs in blocks.values())
    alt = "Pairs of pictures: above a generated one, below the few-shot image nearest to it."
    return describe(figure, alt, f"The closest pair has a distance of {closest:.3f}.", "worst_copies")


def _pairs_title(run, count, space):
    method, n_shot, seed = run
    closest = f"the {'ten' if count == 10 else count} closest pairs" if count > 1 else "the closest pair"
    return f"{short_label(method)}, {n_shot}-shot, seed {seed}: {closest} of a generated image and a shot, by {space}s"


def _pairs(part, pairs, side):
    axes = part.subplots(2, len(pairs), squeeze=False)
    for column, row in enumerate(pairs.itertuples()):
        for line, path in enumerate((row.path, row.shot)):
            ax = axes[line, column]
            ax.imshow(np.asarray(centre_square(read_image(path), side)), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set_visible(False)
        axes[0, column].set_title(f"{row.distance:.3f}", fontsize=SMALL)
    for line, words in enumerate(("generated", "shot")):
        axes[line, 0].set_ylabel(words, fontsize=SMALL)
