"""Figures of what a generator has copied from its shots, from the tables of ``memorisation``."""

import numpy as np

from datadream_utils.ablations import STUDY
from datadream_utils.fidelity import REAL
from datadream_utils.figures import (
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
from datadream_utils.memorisation import SPACES, sees_no_shot
from datadream_utils.methods import METHODS
from datadream_utils.plots import PrintFigure

NOTHING = f"There are no generated images, or no real ones beside the shots: {STUDY}"
NEAR = "nearer to a shot than 99 % of the held-out real images"
CLAIMED = "datadream_cls"  # of which the authors say that with one shot it recreates its one image
NOT_RUN = f" {label(CLAIMED)} with 1 shot was not run."


def nearest_shots(generated, held_out, space="feature"):
    """Distributions of the distance to the nearest shot: ``{method: memorisation.nearest}``, and of real images."""
    if not generated or held_out is None:
        return empty(NOTHING)
    figure, (ax,) = panels(1, COLUMN, 2.6)
    copies, limit = {}, max(np.quantile(held_out[space], 0.01), 1e-6)
    for method, table in {**generated, REAL: held_out}.items():
        values = np.sort(table[space]).clip(limit / 30)  # exact copies stand at the left edge
        style = {"ls": "--", "lw": 1.6} if method == REAL else {"lw": 1.1}
        ax.plot(values, 100 * np.arange(1, len(values) + 1) / len(values), color=COLOURS.get(method, REAL_COLOUR),
                label=label(method), marker=MARKERS[method], markevery=0.2, ms=3, **style)  # fmt: skip
        if method != REAL:
            copies[method] = 100 * float((table[space] < limit).mean())
    ax.axvline(limit, color="0.6", lw=0.8)
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
    shots, names = sorted(set(table["n_shot"])), list(dict.fromkeys(table["method"]))
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


def _claim(table):
    """What the authors say of DataDream_cls with one shot, as numbers for every n_shot that was run."""
    known = table.dropna(subset=[f"{space}_nearer" for space in SPACES])
    if known.empty:
        return (
            "Whether images are nearer to a shot than to as many held-out real ones cannot be said: a class has fewer "
            "held-out images than shots (set a smaller n_shot, or add images to the train split)."
        )
    blind = known["method"].map(lambda name: sees_no_shot(METHODS[name]))
    names = " and ".join(label(name) for name in known.loc[blind, "method"].unique())
    said = [_shares(known[known["method"] == CLAIMED], f"{label(CLAIMED)}'s images"),
            _shares(known[blind], f"those of {names}, which sees no shot,")]  # fmt: skip
    missing = "" if ((known["method"] == CLAIMED) & (known["n_shot"] == 1)).any() else NOT_RUN
    said = "; ".join(filter(None, said)) or "Images of other methods are in the table"
    return f"Nearer to a shot than to as many held-out real images (50 % on average without copying): {said}.{missing}"


def _shares(rows, whose):
    """``whose``, then means and deviations over seeds of "nearer", by space and number of shots; "" without rows."""
    words = []
    for space in SPACES if len(rows) else ():
        found = rows.groupby("n_shot")[f"{space}_nearer"].agg(["mean", "std"])
        shares = [
            f"{mean:.1f}{'' if std != std else f' ± {std:.1f}'} % with {n}" for n, (mean, std) in found.iterrows()
        ]
        words.append(f"by {space}s {', '.join(shares)}")
    return f"{whose} {'; '.join(words)}" if words else ""


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
