"""Does the generator copy its shots? Each generated image against the nearest few-shot image.

Two yardsticks, both held-out images of the train split. ``nearer``: is an image nearer to a shot than to equally many
held-out images? Whatever else a generator draws, half of its images are, on average, if it has copied nothing (as in
the test of Meehan et al. 2020). ``summary``: is it nearer to a shot than all but ``CHANCE`` of the held-out images?
That holds without copying only for images that are distributed as real ones: a generator whose images are unlike them
in colour or style has fewer, though it copy.
"""

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from datadream_utils.analysis.features import encode_generated, encode_real
from datadream_utils.data.images import centre_square, read_image
from datadream_utils.data.shots import few_shot
from datadream_utils.methods import METHODS

CHANCE = 0.01
SIDE = 32  # pixels of the pictures that are compared pixel by pixel
SPACES = {"feature": "cosine distance of CLIP features", "pixel": "root mean square difference of pixels (0 to 1)"}

DRAWS = 10  # of held-out images, as many as there are shots; fewer where they do not last
COLUMNS = ("method", "n_shot", "seed", *(f"{space}_{kind}" for space in SPACES for kind in ("nearer", "copies")))


def pixels(paths, side=SIDE):
    """Pictures as rows (n, 3 side²) of values from 0 to 1: the middle square, ``side`` pixels."""
    return np.stack([_pixels(path, side) for path in paths]) if paths else np.zeros((0, 3 * side * side), np.float32)


@lru_cache(4096)  # 50 MB: every run is held against the same real images
def _pixels(path, side):
    return np.asarray(centre_square(read_image(path), side), np.float32).ravel() / 255


def feature_distance(a, b):
    """Cosine distances (n, m) of features of unit length."""
    return 1 - a @ b.T


def pixel_distance(a, b):
    """Root mean square differences (n, m) of rows of ``pixels``."""
    return cdist(a, b) / a.shape[1] ** 0.5


def nearest(images, shots):
    """For each image of ``images`` the nearest of ``shots``, of whatever class (``Encoded`` both).

    A row per image: path, label, and per space its distance ("feature", "pixel") and the shot ("feature_shot", ...).
    """
    table = pd.DataFrame({"path": images.paths, "label": images.labels})
    distances = {
        "feature": feature_distance(images.features, shots.features),
        "pixel": pixel_distance(pixels(images.paths), pixels(shots.paths)),
    }
    for space, values in distances.items():
        table[space] = values.min(1)
        table[f"{space}_shot"] = [shots.paths[i] for i in values.argmin(1)]
    return table


def summary(generated, held_out):
    """Two tables of ``nearest`` to the same shots as numbers, per space.

    "copies": the share (%) of generated images that are nearer to a shot than all but ``CHANCE`` of the held-out real
    ones; 1 % on average for images that are distributed as they. "median", "median_real": distances; "n", "n_real".
    """
    found = {"n": len(generated), "n_real": len(held_out)}
    for space in SPACES:
        limit = np.quantile(held_out[space], CHANCE)
        found |= {
            f"{space}_copies": 100 * float((generated[space] < limit).mean()),
            f"{space}_median": float(generated[space].median()),
            f"{space}_median_real": float(held_out[space].median()),
        }
    return found


def rivals(others, shots, seed=0):
    """Sets of held-out images of the shots' number in every class: indices into ``others``, (n_draws, n_shots).

    Up to ``DRAWS`` sets that share no image, drawn by ``seed``; none, if a class has fewer held-out images than shots.
    """
    rng, sets = np.random.default_rng(seed), []
    for label, count in zip(*np.unique(shots.labels, return_counts=True), strict=True):
        order = rng.permutation(np.flatnonzero(others.labels == label))
        n_draws = min(DRAWS, len(order) // count)
        sets.append(order[: n_draws * count].reshape(n_draws, count))
    n_draws = min(map(len, sets), default=0)
    return np.concatenate([drawn[:n_draws] for drawn in sets], axis=1) if n_draws else np.zeros((0, 0), int)


def nearer(generated, images, others, drawn):
    """The share (%) of generated images that are nearer to a shot than to every image of a drawn set, mean over sets.

    generated: ``nearest`` of ``images`` to the shots; drawn: ``rivals``, of ``others``. 50 % on average without
    copying; a tie counts half. Not a number without a set: take fewer shots, or more images into the train split.
    """
    found = {"n_draws": len(drawn)} | dict.fromkeys((f"{space}_nearer" for space in SPACES), float("nan"))
    if not drawn.size:
        return found
    used, places = np.unique(drawn, return_inverse=True)
    places, rows = places.reshape(drawn.shape), pixels([others.paths[i] for i in used])
    distances = {
        "feature": feature_distance(images.features, others.features[used]),
        "pixel": pixel_distance(pixels(images.paths), rows),
    }
    for space, values in distances.items():
        of_shots, signs = generated[space].to_numpy(), []
        for places_of_set in places:
            signs.append(np.sign(values[:, places_of_set].min(1) - of_shots))
        found[f"{space}_nearer"] = 50 + 50 * float(np.mean(signs))
    return found


def excess(table):
    """``of_runs``'s table with "feature_excess" and "pixel_excess": "nearer", minus that of methods that see no shot.

    Points, of the same shots and seed. One set of shots may be easy to be near to: what a blind method has is what
    chance gives with that very set. Not a number for those methods themselves, and where none was run.
    """
    blind = table["method"].map(lambda name: sees_no_shot(METHODS[name])).astype(bool)
    names = [f"{space}_nearer" for space in SPACES]
    yardstick = table[blind].groupby(["n_shot", "seed"])[names].mean()
    beside = table[["n_shot", "seed"]].join(yardstick, on=["n_shot", "seed"])
    found = {
        f"{space}_excess": (table[name] - beside[name]).mask(blind) for space, name in zip(SPACES, names, strict=True)
    }
    return table.assign(**found)


def worst(generated, count, space="feature"):
    """The ``count`` images nearest to a shot, nearest first: path, shot, distance; no shot twice.

    generated: a table of ``nearest``, or None: there are no images.
    """
    if generated is None:
        return pd.DataFrame(columns=["path", "shot", "distance"])
    table = generated.sort_values([space, "path"]).drop_duplicates(f"{space}_shot")
    return table.head(count).rename(columns={f"{space}_shot": "shot", space: "distance"})[["path", "shot", "distance"]]


def sees_no_shot(method):
    """Whether a method draws without any few-shot image: nothing it draws can be a copy."""
    return method.adapter == "none" and method.start == "noise" and method.prompt != "caption"


def _held_against(stages):
    """``(stage, n_shot)``: every stage with the shots of its run; one that saw none, with every number of shots.

    So it shows what other measures are worth: how far from 50 % one comes without copying. Where a method that saw none
    was run with several numbers (its images are the same), its first stage stands for those that have no other.
    """
    for stage in stages.itertuples():
        counts, of_seed = [stage.n_shot], stages[stages["seed"] == stage.seed]
        own = of_seed.loc[of_seed["method"] == stage.method, "n_shot"]
        first = stage.n_shot == own.min() and sees_no_shot(METHODS[stage.method])
        if first and not stage.parameters["shots_file"]:
            counts = sorted({*counts, *(set(of_seed["n_shot"]) - set(own))})
        for n_shot in counts:
            yield stage, n_shot


def of_runs(encoder, stages, data, output_root):
    """Copies in every generate stage of ``stages`` (``stages.generated``), against the shots that its run had.

    A method that saw no shot is held against the first 1, 2, 4, ... of its seed too, as far as other runs have so many.
    Returns a table (a row per stage and number of shots: method, n_shot, seed, ``nearer``, ``summary``, ``excess``),
    and the tables of ``nearest`` behind it: of the images, ``{(method, n_shot, seed): table}``, and of the held-out
    real ones, ``{(n_shot, seed): table}``.
    """
    rows, images, real = [], {}, {}
    if stages.empty:
        return pd.DataFrame(columns=list(COLUMNS)), {}, {}
    train = encode_real(encoder, data.files["train"], output_root)
    for stage, n_shot in _held_against(stages):
        files = few_shot(data, n_shot, stage.seed, stage.parameters["shots_file"])
        shots, sets = encode_real(encoder, files, output_root, every=True), (n_shot, stage.seed)
        others = train.without(files)
        if sets not in real:
            real[sets] = nearest(others, shots)
        if real[sets].empty:
            continue  # every real image is a shot: no yardstick
        key = (stage.method, *sets)
        drawn = encode_generated(encoder, stage, len(data.class_names))
        images[key] = nearest(drawn, shots)
        names = {"method": stage.method, "n_shot": n_shot, "seed": stage.seed}
        found = nearer(images[key], drawn, others, rivals(others, shots))
        rows.append(names | found | summary(images[key], real[sets]))
    return excess(pd.DataFrame(rows)) if rows else pd.DataFrame(columns=list(COLUMNS)), images, real


def pooled(images, real, n_shot):
    """The tables of ``of_runs`` with ``n_shot`` shots, all seeds together: of images by method, of real ones."""
    methods = dict.fromkeys(method for method, n, _ in images if n == n_shot)
    generated = {
        method: pd.concat([table for (name, n, _), table in images.items() if (name, n) == (method, n_shot)])
        for method in methods
    }
    held_out = [table for (n, _), table in real.items() if n == n_shot and len(table)]
    return generated, pd.concat(held_out) if held_out else None
