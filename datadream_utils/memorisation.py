"""Does the generator copy its shots? Each generated image against the nearest few-shot image.

The yardstick is real: held-out images of the train split, against the same shots. By chance one in a hundred of them
is nearer to a shot than ``CHANCE`` of them; where many more generated images are, the generator copies.
"""

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from datadream_utils.datasets import few_shot
from datadream_utils.features import encode_generated, encode_real
from datadream_utils.images import centre_square, read_image

CHANCE = 0.01
SIDE = 32  # pixels of the pictures that are compared pixel by pixel
SPACES = {"feature": "cosine distance of CLIP features", "pixel": "root mean square difference of pixels (0 to 1)"}

COLUMNS = ("method", "n_shot", "seed", *(f"{space}_copies" for space in SPACES))


def pixels(paths, side=SIDE):
    """Pictures as rows (n, 3 side²) of values from 0 to 1: the middle square, ``side`` pixels."""
    rows = [np.asarray(centre_square(read_image(path), side), np.float32).ravel() / 255 for path in paths]
    return np.stack(rows) if rows else np.zeros((0, 3 * side * side), np.float32)


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
    ones; without copying it is 1 % on average. "median", "median_real": distances; "n", "n_real".
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


def worst(generated, count, space="feature"):
    """The ``count`` images nearest to a shot, nearest first: path, shot, distance; no shot twice.

    generated: a table of ``nearest``, or None: there are no images.
    """
    if generated is None:
        return pd.DataFrame(columns=["path", "shot", "distance"])
    table = generated.sort_values([space, "path"]).drop_duplicates(f"{space}_shot")
    return table.head(count).rename(columns={f"{space}_shot": "shot", space: "distance"})[["path", "shot", "distance"]]


def of_runs(encoder, stages, data, output_root):
    """Copies in every generate stage of ``stages`` (``stages.generated``), against the shots that its run had.

    Returns a table (a row per stage: method, n_shot, seed and ``summary``), and the tables of ``nearest`` behind it:
    of the images, ``{(method, n_shot, seed): table}``, and of the held-out real ones, ``{(n_shot, seed): table}``.
    """
    rows, images, real = [], {}, {}
    if stages.empty:
        return pd.DataFrame(columns=list(COLUMNS)), {}, {}
    train = encode_real(encoder, data.files["train"], output_root)
    for stage in stages.itertuples():
        files = few_shot(data, stage.n_shot, stage.seed, stage.parameters["shots_file"])
        shots, sets = encode_real(encoder, files, output_root), (stage.n_shot, stage.seed)
        if sets not in real:
            real[sets] = nearest(train.without(files), shots)
        if real[sets].empty:
            continue  # every real image is a shot: no yardstick
        key = (stage.method, *sets)
        images[key] = nearest(encode_generated(encoder, stage, len(data.class_names)), shots)
        names = {"method": stage.method, "n_shot": stage.n_shot, "seed": stage.seed}
        rows.append(names | summary(images[key], real[sets]))
    return pd.DataFrame(rows, columns=None if rows else list(COLUMNS)), images, real


def pooled(images, real, n_shot):
    """The tables of ``of_runs`` with ``n_shot`` shots, all seeds together: of images by method, of real ones."""
    methods = dict.fromkeys(method for method, n, _ in images if n == n_shot)
    generated = {
        method: pd.concat([table for (name, n, _), table in images.items() if (name, n) == (method, n_shot)])
        for method in methods
    }
    held_out = [table for (n, _), table in real.items() if n == n_shot and len(table)]
    return generated, pd.concat(held_out) if held_out else None
