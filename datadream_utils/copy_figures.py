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
from datadream_utils.memorisation import SPACES

NOTHING = f"There are no generated images, or no real ones beside the shots: {STUDY}"
NEAR = "nearer to a shot than 99 % of the held-out real images"
CLAIMED = "datadream_cls"  # of which the authors say that with one shot it recreates its one image


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


def copies_by_shots(table, space="feature"):
    """Two shares against n_shot, means and deviations over seeds: ``<space>_nearer`` and ``<space>_copies``.

    table: of ``memorisation.of_runs``.
    """
    if table.empty:
        return empty(NOTHING)
    figure, axes = panels(2, BOTH, 2.5)
    shots, keys = sorted(set(table["n_shot"])), ["method", "n_shot"]
    titles = {"nearer": (50, "nearer to a shot than to\nas many held-out real images (%)"),
              "copies": (1, "near copies: nearer to a shot than\n99 % of held-out real images (%)")}  # fmt: skip
    for ax, (kind, (chance, words)) in zip(axes, titles.items(), strict=True):
        means = table.groupby(keys, as_index=False, sort=False)[f"{space}_{kind}"].agg(["mean", "std"])
        names = list(dict.fromkeys(means["method"]))
        for i, method in enumerate(names):
            rows = means[means["method"] == method].sort_values("n_shot")
            shift = 0.4 * (i - (len(names) - 1) / 2) / max(1, len(names) - 1)  # marks beside each other
            places, spread = [shots.index(n) + shift for n in rows["n_shot"]], rows["std"].fillna(0).to_numpy()
            whiskers = np.minimum(spread, rows["mean"]), np.minimum(spread, 100 - rows["mean"])  # a share has limits
            ax.errorbar(places, rows["mean"], whiskers, label=label(method), **look(method), **WHISKERS)
        ax.axhline(chance, color="0.4", ls="--", lw=0.8)
        ax.set_xticks(range(len(shots)), shots)
        ax.set_xlim(-0.5, len(shots) - 0.5)
        finish(ax, "real images per class", words)
    legend(figure, axes)
    mean = table.groupby(keys, sort=False)[[f"{space}_copies"]].mean()
    sentence = f"{_claim(table, space)} {_near_copies(mean[f'{space}_copies'])} {_chance(1)}"
    return described(
        figure, "Two panels of lines against the number of shots: nearer to a shot, and near copies.", sentence
    )


def _claim(table, space):
    """What the authors say of DataDream_cls with one shot, as numbers for every n_shot that was run."""
    known = table.dropna(subset=f"{space}_nearer")
    if known.empty:
        return (
            "Whether images are nearer to a shot than to as many held-out real ones cannot be said: a class has fewer "
            "held-out images than shots (set a smaller n_shot, or add images to the train split)."
        )
    claimed, others = (known[(known["method"] == CLAIMED) == is_it] for is_it in (True, False))
    words = []
    for kind in SPACES if len(claimed) else ():
        means = claimed.groupby("n_shot")[f"{kind}_nearer"].mean()
        shares = ", ".join(f"{share:.1f} % with {n_shot}" for n_shot, share in means.items())
        shares = shares.replace(" with 1,", " with 1 shot,", 1)
        words.append(f"by {kind}s {shares}")
    said = f"{label(CLAIMED)}'s images are nearer to a shot than to as many held-out real images: {'; '.join(words)}"
    if len(others):
        means = others.groupby(["method", "n_shot"])[f"{space}_nearer"].mean()
        of_others = f"of the other generators {means.min():.1f} to {means.max():.1f} % (by {space}s)"
        said = (
            f"{said}; {of_others}" if words else f"Nearer to a shot than to as many held-out real images: {of_others}"
        )
    missing = "" if 1 in set(claimed["n_shot"]) else f" {label(CLAIMED)} with 1 shot was not run."
    return f"{said}. Without copying it would be 50 % on average.{missing}"


def _near_copies(copies):
    """The method and n_shot with most near copies, every one that has as many; or that none stands out."""
    top = copies.max()
    if top <= 1:
        return f"Near copies: none stands out, at most {top:.1f} %."
    names = [f"{label(m)} with {n} shot{'s' * int(n > 1)}" for (m, n), share in copies.items()
             if f"{share:.1f}" == f"{top:.1f}"]  # fmt: skip
    return f"Most near copies: {_and(names)}, {top:.1f} %."
