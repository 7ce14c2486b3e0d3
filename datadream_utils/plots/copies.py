"""Figures of what a generator has copied from its shots, from the tables of ``memorisation``."""

import numpy as np

from datadream_utils.analysis.ablations import STUDY
from datadream_utils.analysis.alignment import REAL
from datadream_utils.analysis.compare import Verdict, format_difference, judge_seeds, seeds_interval
from datadream_utils.analysis.copies import CHANCE, SPACES, above_baseline
from datadream_utils.methods import METHODS
from datadream_utils.plots.results import (
    BOTH,
    COLOURS,
    COLUMN,
    MARKERS,
    REAL_COLOUR,
    WHISKERS,
    described,
    empty,
    finish,
    label,
    legend,
    look,
    panels,
)
from datadream_utils.plots.style import PrintFigure

NOTHING = f"There are no generated images, or no real ones beside the shots: {STUDY}"
NEAR = "nearer to a shot than 99 % of the held-out real images"
CLAIMED = "datadream_cls"  # of which the authors say that with one shot it recreates its one image
NOT_RUN = f"{label(CLAIMED)} with 1 shot was not run."


def nearest_shots(generated, held_out, space="feature"):
    """Distributions of the distance to the nearest shot: ``{method: memorisation.nearest}``, and of real images."""
    if not generated or held_out is None:
        return empty(NOTHING)
    figure, (ax,) = panels(1, COLUMN, 2.6)
    copies, limit = {}, max(np.quantile(held_out[space], CHANCE), 1e-6)
    drawn = {name: generated[name] for name in sorted(generated, key=list(METHODS).index)}
    for i, (method, table) in enumerate({**drawn, REAL: held_out}.items()):
        values = np.sort(table[space]).clip(limit / 30)  # exact copies stand at the left edge
        width = 2.4 - 1.4 * i / len(drawn)  # a curve shows beside and between the dashes of one drawn over it
        style = {"ls": ":", "lw": 2} if method == REAL else {"lw": width, "ls": ("-", "--", "-.")[i % 3]}
        ax.plot(values, 100 * np.arange(1, len(values) + 1) / len(values), color=COLOURS.get(method, REAL_COLOUR),
                label=label(method), marker=MARKERS[method], markevery=(0.03 * i, 0.2), ms=4, mec="white", mew=0.3,
                **style)  # fmt: skip
        if method != REAL:
            copies[method] = 100 * float((table[space] < limit).mean())
    ax.axvline(limit, color="0.45", lw=0.9, label=f"{100 * CHANCE:.0f} % of real images")
    ax.set_xscale("log")
    finish(ax, f"distance to the nearest shot\n{SPACES[space]}", "images nearer than that (%)")
    legend(figure, [ax], 3)
    sentence = f"Images that are {NEAR}: {_most(copies)}. {_chance(1)}"
    return described(figure, "Cumulative curves of the distance to the nearest few-shot image.", sentence)


def _most(shares):
    """The largest of ``{name: share (%)}`` with every name that has it, as printed; and the least."""
    printed = {name: f"{share:.1f}" for name, share in shares.items()}
    top, low = (find(shares.values()) for find in (max, min))
    names = [label(name) for name in shares if printed[name] == f"{top:.1f}"]
    if f"{top:.1f}" == f"{low:.1f}":
        return f"{top:.1f} % of {'each method' if len(shares) > 1 else names[0]}"
    stands_out = "" if top > 1 else "; none stands out"
    return f"most of {_and(names)} ({top:.1f} %), least {low:.1f} %{stands_out}"


def _and(names):
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _chance(share):
    return (
        f"{share} % would be so by chance, but only of images that are distributed as real ones: where colour or style "
        "differ, copies pass unseen."
    )


def copies_by_shots(table):
    """Shares against n_shot, means and deviations over seeds: "nearer" and "copies", a row of panels per space.

    table: of ``memorisation.of_runs``.
    """
    if table.empty:
        return empty(NOTHING)
    figure = PrintFigure(figsize=(BOTH, 4.4), layout="constrained")
    axes = figure.subplots(2, 2, squeeze=False, sharex=True)
    shots, names = sorted(set(table["n_shot"])), sorted(set(table["method"]), key=list(METHODS).index)
    titles = {
        "nearer": (50, "nearer to a shot than to as\nmany held-out, by {}s (%)"),
        "copies": (1, "near copies: nearer than 99 %\nof held-out, by {}s (%)"),
    }
    for row, space in zip(axes, SPACES, strict=True):
        for ax, (kind, (chance, words)) in zip(row, titles.items(), strict=True):
            means = table.groupby(["method", "n_shot"])[f"{space}_{kind}"].agg(["mean", "std"])
            for i, method in enumerate(names):
                rows = means.loc[method].sort_index()
                shift = 0.4 * (i - (len(names) - 1) / 2) / max(1, len(names) - 1)  # marks beside each other
                places = [shots.index(n) + shift for n in rows.index]
                whiskers = [np.minimum(rows["std"], end) for end in (rows["mean"], 100 - rows["mean"])]  # of a share
                ax.errorbar(places, rows["mean"], whiskers, label=label(method), **look(method), **WHISKERS)
            ax.axhline(chance, color="0.4", ls="--", lw=0.8)
            ax.set_xticks(range(len(shots)), shots)
            ax.set_xlim(-0.5, len(shots) - 0.5)
            finish(ax, "real images per class" if ax in axes[-1] else "", words.format(space))
    legend(figure, axes.ravel())
    sentence = f"{_claim(table)} {_near_copies(table)} {_chance(1)}"
    what = (
        "Four panels of lines against the number of shots: nearer to a shot, and near copies, by features and pixels."
    )
    return described(figure, what, sentence)


def most_copies(table, method=None):
    """The run ``(method, n_shot, seed)`` with the largest share of near copies by features; None without a run.

    method: of its runs with the fewest shots.
    """
    rows = table if method is None else table[table["method"] == method]
    rows = rows[rows["n_shot"] == rows["n_shot"].min()] if method else rows
    if rows.empty:
        return None
    row = rows.loc[rows["feature_copies"].astype(float).idxmax()]
    return row["method"], int(row["n_shot"]), int(row["seed"])


def _claim(table):
    """What the authors say of DataDream_cls with one shot, and with the most that were run: numbers and verdicts."""
    known = table.dropna(subset=[f"{space}_nearer" for space in SPACES])
    if known.empty:
        return (
            "Whether images are nearer to a shot than to as many held-out real ones cannot be said: a class has fewer "
            "held-out images than shots (set a smaller n_shot, or add images to the train split)."
        )
    known = above_baseline(known)
    rows = known[known["method"] == CLAIMED]
    blind = known.loc[~known["method"].map(lambda name: METHODS[name].uses_shots).astype(bool), "method"].unique()
    said = []
    for n in sorted({min(rows["n_shot"]), max(rows["n_shot"])}) if len(rows) else ():
        spaces = [f"by {space}s {_verdict(rows[rows['n_shot'] == n], space, blind)}" for space in SPACES]
        said.append(f"{label(CLAIMED)} with {n} shot{'s' * int(n > 1)}: {'; '.join(spaces)}.")
    if not (rows["n_shot"] == 1).any():
        said.append(NOT_RUN)
    return " ".join(said)


def _verdict(rows, space, blind):
    """A claim in one space: near copies, images nearer to a shot, how many more than chance, and what follows."""
    copies, near, apart = (rows[f"{space}_{kind}"] for kind in ("copies", "nearer", "above_baseline"))
    whose = f"{_and([label(name) for name in blind])}'s, which sees no shot" if len(blind) else "chance"
    found = judge_seeds(near - 50 if apart.isna().all() else apart.dropna())
    plural = "s" * int(rows["n_shot"].iloc[0] > 1)
    recreated = seeds_interval(copies.tolist())[0] > 50
    verdict = (
        "recreated"
        if recreated
        else f"drawn towards its shot{plural}"
        if found["verdict"] == Verdict.ABOVE.label
        else "not decided"
    )
    return (
        f"{copies.mean():.1f} % near copies, {near.mean():.1f} % nearer to a shot than to as many held-out images; "
        f"against {whose}, {format_difference(found)}: {verdict}"
    )


def _near_copies(table):
    """By each space, the methods and numbers of shots with most near copies; or that none stands out."""
    said = []
    for space in SPACES:
        copies = table.groupby(["method", "n_shot"], sort=False)[f"{space}_copies"].mean()
        top = copies.max()
        names = [f"{label(m)} with {n} shot{'s' * int(n > 1)}" for (m, n), share in copies.items()
                 if f"{share:.1f}" == f"{top:.1f}"]  # fmt: skip
        most = f"most of {_and(names)} ({top:.1f} %)" if top > 1 else f"none stands out, at most {top:.1f} %"
        said.append(f"by {space}s {most}")
    return f"Near copies: {'; '.join(said)}."
