"""Does the generator copy its shots? Each generated image is compared with the nearest few-shot image.

There are two measures. Both compare with held-out real images of the train split.

``share_nearer``: the share of generated images that are nearer to a shot than to every one of equally many held-out
images. Without copying it is one half on average, whatever the generator draws (Meehan et al. 2020).

``summarise_nearest``: the share of generated images that are nearer to a shot than all but ``CHANCE`` of the held-out
images are. Without copying it is ``CHANCE`` only if generated images are distributed like real ones. A generator whose
images differ from them in colour or style has fewer, even if it copies.
"""

from functools import lru_cache

import numpy as np
import pandas as pd
from sklearn.metrics.pairwise import euclidean_distances

from datadream_utils.analysis.compare import Verdict, judge_seeds, seeds_interval
from datadream_utils.analysis.features import encode_generated, encode_real
from datadream_utils.data.images import centre_square, read_image
from datadream_utils.data.shots import few_shot
from datadream_utils.methods import METHODS

ROWS = 1000  # pictures whose distances to others are in memory at once
CHANCE = 0.01  # the share of held-out real images that count as near copies
SIDE = 32  # pixels of the pictures that are compared pixel by pixel
SPACES = {"feature": "cosine distance of CLIP features", "pixel": "root mean square difference of pixels (0 to 1)"}
DRAWS = 10  # sets of held-out images, each as large as the shots; fewer if there are too few images
COLUMNS = ("method", "n_shot", "seed", *(f"{space}_{kind}" for space in SPACES for kind in ("nearer", "copies")))
JUDGED = ("method", "n_shot", "space", "copies", "nearer", "difference", "low", "high", "verdict", "outcome")


def load_pixels(paths):
    """Pictures as rows (n, 3 ``SIDE``²) of values from 0 to 1: the middle square, ``SIDE`` pixels wide."""
    return np.stack([_load_pixels(path) for path in paths]) if paths else np.zeros((0, 3 * SIDE**2), "f4")


@lru_cache(4096)  # 50 MB: the images of every run are compared with the same real ones
def _load_pixels(path):
    return np.asarray(centre_square(read_image(path), SIDE), np.float32).ravel() / 255


def iterate_distances(images, others):
    """Distances between two sets of pictures (``Encoded``): yields ``(rows, {space: (n, m)})`` for some rows at once.

    rows: a slice of ``images``, ``ROWS`` of them at most. Those of pixels are rounded, so that equal pictures have 0.
    """
    pixels = load_pixels(others.paths)
    for start in range(0, len(images.paths), ROWS):
        rows = slice(start, start + ROWS)
        by_pixel = euclidean_distances(load_pixels(images.paths[rows]), pixels) / (3 * SIDE**2) ** 0.5
        yield rows, {"feature": 1 - images.features[rows] @ others.features.T, "pixel": by_pixel.round(6)}


def find_nearest(images, shots):
    """For each of ``images`` the nearest of ``shots``, of whatever class (``Encoded`` both).

    A row per image: path, label, and for each space the distance ("feature", "pixel") and the nearest shot's path
    ("feature_shot", "pixel_shot").
    """
    table = pd.DataFrame({"path": images.paths, "label": images.labels})
    blocks = [
        {space: (block.min(1), block.argmin(1)) for space, block in distances.items()}
        for _, distances in iterate_distances(images, shots)
    ]
    for space in SPACES if blocks else ():
        least, nearest = (np.concatenate(parts) for parts in zip(*(block[space] for block in blocks), strict=True))
        table[space], table[f"{space}_shot"] = least, [shots.paths[i] for i in nearest]
    return table


def summarise_nearest(generated, held_out):
    """A summary of two tables of ``find_nearest`` to the same shots: of generated and of held-out real images.

    "n", "n_real": numbers of images. For each space, "<space>_copies": the share (%) of generated images that are
    nearer to a shot than all but ``CHANCE`` of the real ones, 1 % on average if they are distributed alike;
    "<space>_median", "<space>_median_real": median distances.
    """
    numbers = {"n": len(generated), "n_real": len(held_out)}
    for space in SPACES:
        limit = np.quantile(held_out[space], CHANCE)
        numbers |= {
            f"{space}_copies": 100 * float((generated[space] < limit).mean()),
            f"{space}_median": float(generated[space].median()),
            f"{space}_median_real": float(held_out[space].median()),
        }
    return numbers


def held_out_draws(held_out, shots):
    """Sets of held-out images, with as many of each class as the shots: indices into ``held_out``, (n_draws, n_shots).

    Up to ``DRAWS`` sets that share no image; none if a class has fewer held-out images than shots.
    """
    rng, sets = np.random.default_rng(0), []
    for label, count in zip(*np.unique(shots.labels, return_counts=True), strict=True):
        shuffled = rng.permutation(np.flatnonzero(held_out.labels == label))
        n_draws = min(DRAWS, len(shuffled) // count)
        sets.append(shuffled[: n_draws * count].reshape(n_draws, count))
    n_draws = min(map(len, sets), default=0)
    return np.concatenate([drawn[:n_draws] for drawn in sets], axis=1) if n_draws else np.zeros((0, 0), int)


def share_nearer(nearest, images, held_out, draws):
    """The share (%) of images that are nearer to a shot than to every image of a drawn set, mean over sets.

    nearest: ``find_nearest`` of ``images`` to the shots; draws: ``held_out_draws``. Without copying it is 50 % on
    average; a tie counts half. Returns "n_draws" and "<space>_nearer" for each space, NaN if there is no set: then use
    fewer shots, or a train split with more images.
    """
    shares = {"n_draws": len(draws)} | dict.fromkeys((f"{space}_nearer" for space in SPACES), float("nan"))
    if draws.size:
        used, columns = np.unique(draws, return_inverse=True)  # columns: each draw's images among the used ones
        drawn = held_out.where(np.isin(np.arange(len(held_out.labels)), used))
        signs = {space: [] for space in SPACES}
        for rows, distances in iterate_distances(images, drawn):
            for space, block in distances.items():
                to_shot = nearest[space].to_numpy()[rows]
                signs[space] += [
                    np.sign(block[:, one_set].min(1) - to_shot) for one_set in columns.reshape(draws.shape)
                ]
        shares |= {f"{space}_nearer": 50 + 50 * float(np.concatenate(parts).mean()) for space, parts in signs.items()}
    return shares


def above_baseline(table):
    """``compute_copies``' table with "feature_above_baseline" and "pixel_above_baseline" (points).

    They are "nearer" minus the mean "nearer" of the methods that see no shot, for the same n_shot and seed. Some sets
    of shots are near to many images by chance; methods that see no shot measure that. NaN for those methods themselves,
    and if none was run.
    """
    sees_none = ~table["method"].map(lambda name: METHODS[name].uses_shots).astype(bool)
    names = [f"{space}_nearer" for space in SPACES]
    baseline = table[sees_none].groupby(["n_shot", "seed"])[names].mean()
    baseline = table[["n_shot", "seed"]].join(baseline, on=["n_shot", "seed"])
    return table.assign(
        **{f"{space}_above_baseline": (table[f"{space}_nearer"] - baseline[f"{space}_nearer"]).mask(sees_none)
           for space in SPACES}
    )  # fmt: skip


def find_worst(nearest, count, space):
    """The ``count`` images that are nearest to a shot, nearest first, one per shot: columns path, shot, distance.

    nearest: a table of ``find_nearest``.
    """
    table = nearest.sort_values([space, "path"]).drop_duplicates(f"{space}_shot")
    return table.head(count).rename(columns={f"{space}_shot": "shot", space: "distance"})[["path", "shot", "distance"]]


def _list_comparisons(stages):
    """Yields ``(stage, n_shot)``: each stage with its run's n_shot, a method that sees no shot with every n_shot.

    So such a method shows, for each number of shots, what "nearer" is without copying. Its images do not depend on that
    number. If it was run with several, its stage with the fewest shots serves for the numbers that it was not run with.
    """
    for stage in stages.itertuples():
        counts, same_seed = [stage.n_shot], stages[stages["seed"] == stage.seed]
        own = same_seed.loc[same_seed["method"] == stage.method, "n_shot"]
        serves_all = stage.n_shot == own.min() and not METHODS[stage.method].uses_shots
        if serves_all and not stage.parameters["shots_file"]:
            counts = sorted({*counts, *(set(same_seed["n_shot"]) - set(own))})
        for n_shot in counts:
            yield stage, n_shot


def compute_copies(encoder, stages, data, output_root):
    """How near the images of every generate stage in ``stages`` (``results.select_generated``) are to its run's shots.

    A method that sees no shot is also compared with the shots of other runs of its seed. Returns a table with a row per
    stage and number of shots (method, n_shot, seed, ``share_nearer``, ``summarise_nearest``, ``above_baseline``), and
    the tables of ``find_nearest`` that it summarises: of generated images ``{(method, n_shot, seed): table}``, of
    held-out real images ``{(n_shot, seed): table}``.
    """
    rows, generated, real = [], {}, {}
    if stages.empty:
        return pd.DataFrame(columns=list(COLUMNS)), {}, {}
    train = encode_real(encoder, data.files["train"], output_root)
    for stage, n_shot in _list_comparisons(stages):
        files = few_shot(data, n_shot, stage.seed, stage.parameters["shots_file"])
        shots, shot_set = encode_real(encoder, files, output_root, every=True), (n_shot, stage.seed)
        held_out = train.without(files)
        if shot_set not in real:
            real[shot_set] = find_nearest(held_out, shots)
        if real[shot_set].empty:
            continue  # every real image is a shot: there is nothing to compare with
        images = encode_generated(encoder, stage, len(data.class_names))
        nearest = generated[stage.method, *shot_set] = find_nearest(images, shots)
        names = {"method": stage.method, "n_shot": n_shot, "seed": stage.seed}
        shares = share_nearer(nearest, images, held_out, held_out_draws(held_out, shots))
        rows.append(names | shares | summarise_nearest(nearest, real[shot_set]))
    return above_baseline(pd.DataFrame(rows)) if rows else pd.DataFrame(columns=list(COLUMNS)), generated, real


def pool_seeds(generated, real, n_shot):
    """``compute_copies``' tables of nearest shots, all seeds together: ``({method: table}, table of real images)``.

    Only tables with ``n_shot`` shots. The second is None if there are no held-out real images.
    """
    methods = dict.fromkeys(method for method, n, _ in generated if n == n_shot)
    pooled = {
        method: pd.concat([table for (name, n, _), table in generated.items() if (name, n) == (method, n_shot)])
        for method in methods
    }
    held_out = [table for (n, _), table in real.items() if n == n_shot and len(table)]
    return pooled, pd.concat(held_out) if held_out else None


def judge_copies(table):
    """Verdicts over seeds: a row of ``JUDGED`` for each method, number of shots and space.

    table: ``compute_copies``. copies, nearer: means (%). difference: the mean of "above_baseline" (points), or of
    "nearer" minus 50 if no method that sees no shot was run; low, high, verdict: ``compare.judge_seeds`` of it.
    outcome: "recreated" if the interval of copies over seeds lies above 50 %; else "drawn towards its shots" if the
    verdict is "above"; else "not decided"; "sees no shot" of a method that does not use them.
    """
    rows = []
    for (method, n_shot), seeds in table.groupby(["method", "n_shot"], sort=False):
        for space in SPACES:
            copies, nearer, above = (seeds[f"{space}_{name}"] for name in ("copies", "nearer", "above_baseline"))
            points = above.dropna() if above.notna().any() else (nearer - 50).dropna()
            if points.empty:
                continue
            judged = judge_seeds(points)
            outcome = "drawn towards its shots" if judged["verdict"] == Verdict.ABOVE.label else "not decided"
            if seeds_interval(copies.tolist())[0] > 50:
                outcome = "recreated"
            outcome = outcome if METHODS[method].uses_shots else "sees no shot"
            means = {"copies": copies.mean(), "nearer": nearer.mean(), "difference": judged.pop("mean")}
            rows.append({"method": method, "n_shot": n_shot, "space": space} | means | judged | {"outcome": outcome})
    return pd.DataFrame(rows, columns=list(JUDGED))
