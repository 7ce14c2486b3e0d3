"""Figures of what a generator has copied from its shots, from the tables of ``analysis.copies``."""

import numpy as np

from datadream_utils.analysis.ablations import STUDY
from datadream_utils.analysis.alignment import REAL
from datadream_utils.analysis.copies import CHANCE, SPACES, find_worst
from datadream_utils.catalogue import ABLATIONS
from datadream_utils.methods import short_label
from datadream_utils.plots.pictures import square_pixels
from datadream_utils.plots.style import (
    NORMAL,
    SMALL,
    WHISKERS,
    WIDTH,
    PrintFigure,
    can_compare,
    describe,
    empty_figure,
    in_table_order,
    label_axes,
    legend,
    logarithmic,
    marker_style,
    panels,
)

NOTHING = f"There are no generated images, or no real ones besides the shots: {STUDY}"
CLAIMED = "datadream_cls"  # the authors write that with one shot it recreates its one image
SHOWN = "pixel"  # of ``SPACES``: a picture that shows a copy is compared as the eye compares it


def nearest_shots(generated, held_out, space="feature"):
    """Distributions of the distance to the nearest shot, of generated and of held-out real images, as curves.

    generated: ``{method: copies.find_nearest}``; held_out: the same of real images; space: "feature" or "pixel".
    """
    if not generated or held_out is None:
        return empty_figure("nearest_shots", NOTHING)
    figure, (ax,) = panels(1, 3.4)
    limit, shares = max(np.quantile(held_out[space], CHANCE), 1e-6), {}
    tables = {name: generated[name] for name in in_table_order(generated)}
    for i, (method, table) in enumerate({**tables, REAL: held_out}.items()):
        values = np.sort(table[space]).clip(limit / 30)  # exact copies stand at the left edge
        width = 2.4 - 1.4 * i / len(tables)  # a thin dashed curve leaves one below it visible
        line = {"ls": ":", "lw": 2.4} if method == REAL else {"lw": width, "ls": ("-", "--", "-.")[i % 3]}
        ax.plot(values, 100 * np.arange(1, len(values) + 1) / len(values), label=short_label(method),
                markevery=(0.03 * i, 0.2), ms=5, mec="white", mew=0.3, **marker_style(method) | line)  # fmt: skip
        if method != REAL:
            shares[method] = 100 * float((table[space] < limit).mean())
    ax.axvline(limit, color="0.45", lw=0.9, label=f"{100 * CHANCE:.0f} % of real images")
    logarithmic(ax)
    label_axes(ax, f"distance to the nearest shot\n{SPACES[space]}", "images nearer than that (%)")
    legend(figure, [ax])
    finding = f"Nearer to a shot than 99 % of held-out real images: {_most(shares)}."
    alt = "Cumulative curves of the distance to the nearest few-shot image, one per method and one of real images."
    return describe(figure, alt, finding, "nearest_shots", can_compare(generated))


def _most(shares):
    """The largest of ``{method: share (%)}``, with every method that has it as printed, up to two by name."""
    most = f"{max(shares.values()):.1f}"
    names = [method for method, share in shares.items() if f"{share:.1f}" == most]
    whose = " and ".join(map(short_label, names)) if len(names) <= 2 else f"{len(names)} methods"
    return f"{'at most ' if len(shares) > len(names) else ''}{most} % ({whose})"


def copies_by_shots(table):
    """How strongly generated images are pulled towards their shots, by pixels, against the number of shots.

    table: ``copies.compute_copies``: the share that is nearer to a shot than to every one of as many held-out images,
    means and deviations over seeds.
    """
    if table.empty:
        return empty_figure("copies", NOTHING)
    figure, (ax,) = panels(1, 3.2)
    shots, names = sorted(set(table["n_shot"])), in_table_order(set(table["method"]))
    means = table.groupby(["method", "n_shot"])[f"{SHOWN}_nearer"].agg(["mean", "std"])
    for i, method in enumerate(names):
        rows = means.loc[method].sort_index()
        shift = 0.4 * (i - (len(names) - 1) / 2) / max(1, len(names) - 1)  # so that no mark covers another
        places = [shots.index(n) + shift for n in rows.index]
        whiskers = [np.minimum(rows["std"], end) for end in (rows["mean"], 100 - rows["mean"])]  # of a share
        ax.errorbar(places, rows["mean"], whiskers, label=short_label(method), **marker_style(method), **WHISKERS)
    ax.axhline(50, color="0.3", ls="--", lw=1.2, label="50: not pulled")
    ax.set_xticks(range(len(shots)), shots)
    ax.set_xlim(-0.5, len(shots) - 0.5)
    label_axes(ax, ABLATIONS["n_shot"], "pulled towards its shots (%)")
    legend(figure, [ax])
    alt = "Lines, one per method, against the number of shots: the share of images pulled towards them, by pixels."
    return describe(figure, alt, _nearer(table), "copies", can_compare(names) and 1 in shots)


def _nearer(table):
    """How many of the images of the claimed method, with the fewest shots, are nearer to a shot than chance gives."""
    rows = table[table["method"] == CLAIMED].dropna(subset=f"{SHOWN}_nearer")
    if rows.empty:
        return ""
    fewest = rows[rows["n_shot"] == rows["n_shot"].min()]
    shots = "1 shot" if fewest["n_shot"].iloc[0] == 1 else f"{fewest['n_shot'].iloc[0]} shots"
    share = f"{fewest[f'{SHOWN}_nearer'].mean():.0f} % of the images are nearer to a shot than to held-out images"
    return f"{short_label(CLAIMED)}, {shots}: {share}, by {SHOWN}s (50 % without copying)."


def most_copies(table, method=None):
    """The run ``(method, n_shot, seed)`` with the largest share of near copies by pixels; None without a run.

    method: only its runs with the fewest shots.
    """
    rows = table if method is None else table[table["method"] == method]
    rows = rows[rows["n_shot"] == rows["n_shot"].min()] if method else rows
    if rows.empty:
        return None
    row = rows.loc[rows[f"{SHOWN}_copies"].astype(float).idxmax()]
    return row["method"], int(row["n_shot"]), int(row["seed"])


def worst_copies(blocks, count=7, side=96):
    """The closest pairs by pixels as pictures: above the generated one, below the shot nearest to it; their distance.

    blocks: ``{(method, n_shot, seed): copies.find_nearest}`` (or None), one below the other; count: pairs of each.
    """
    blocks = {run: nearest for run, nearest in blocks.items() if nearest is not None and len(nearest)}
    if not blocks:
        return empty_figure("worst_copies", NOTHING)
    figure = PrintFigure(figsize=(WIDTH, 1.8 * len(blocks) + 0.25), layout="constrained")
    *parts, below = figure.subfigures(len(blocks) + 1, 1, height_ratios=[1.8] * len(blocks) + [0.25])
    closest = []
    for part, (run, nearest) in zip(parts, blocks.items(), strict=True):
        pairs = find_worst(nearest, count, SHOWN)
        _pairs(part, pairs, count, side)
        method, n_shot, seed = run
        title = f"{short_label(method)}, {n_shot}-shot, seed {seed}: closest of {len(nearest):,} generated images"
        part.suptitle(title, fontsize=NORMAL)
        closest.append(pairs["distance"].min())
    below.text(0.5, 0.5, f"number: {SPACES[SHOWN]}", ha="center", va="center", fontsize=SMALL)
    alt = "Pairs of pictures: above a generated one, below the few-shot image nearest to it."
    finding = f"The closest pair has a distance of {min(closest):.3f} by {SHOWN}s."
    return describe(figure, alt, finding, "worst_copies")


def _pairs(part, pairs, count, side):
    """The pairs in ``count`` columns, so that pictures of all parts are as large."""
    axes = part.subplots(2, count, squeeze=False)
    for ax in axes[:, len(pairs) :].flat:
        ax.axis("off")
    for column, row in enumerate(pairs.itertuples()):
        for line, path in enumerate((row.path, row.shot)):
            ax = axes[line, column]
            ax.imshow(square_pixels(path, side), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set_visible(False)
        axes[0, column].set_title(f"{row.distance:.3f}", fontsize=SMALL)
    for line, words in enumerate(("generated", "shot")):
        axes[line, 0].set_ylabel(words, fontsize=SMALL)
