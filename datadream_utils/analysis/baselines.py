"""Plain baselines on the same shots: what is reached without a generator and without training a network.

Nearest neighbour: the class of the shot that is nearest by pixels. Linear probe: logistic regression on the frozen
features of CLIP, each scaled by the shots' mean and spread.
"""

import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datadream_utils.analysis.copies import load_pixels
from datadream_utils.analysis.features import encode_real
from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.shots import few_shot
from datadream_utils.errors import InputError

NEAREST, PROBE = "Nearest neighbour on pixels", "Linear probe of frozen CLIP"
TRAINED = {"clip": "Real-finetune of CLIP", "resnet": "ResNet from scratch"}  # on the same shots, by classifier
COLUMNS = ("dataset", "baseline", "n_shot", "n_seeds", "accuracy_mean", "accuracy_std")
STRENGTH = 1.0  # inverse of the probe's L2 penalty; of 0.01 to 10 the best on validation images (seeds 100, 101)


def predict_nearest(shots, shot_labels, images):
    """The label of the nearest row of ``shots`` (n, d) for each row of ``images`` (m, d): (m,)."""
    return KNeighborsClassifier(1, algorithm="brute").fit(shots, shot_labels).predict(images)


def predict_probe(shots, shot_labels, images):
    """Predictions (m,) of logistic regression, from features of shots (n, d) and of images (m, d)."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
    return probe.fit(shots, shot_labels).predict(images)


def _measure_dataset(encoder, runs, data_root, output_root):
    """``[(dataset, baseline, n_shot, seed, accuracy), ...]`` of one data set's runs; [] where it is not here."""
    first, rows = runs["parameters"].iloc[0], []
    try:
        data = load_dataset(first["dataset"], data_root, first["split_file"])
    except InputError as error:
        print(f"No baselines without the images: {error}")
        return []
    images = encode_real(encoder, data.files["test"], output_root, every=True)
    pixels = load_pixels(images.paths)
    for run in runs.itertuples():
        shots = few_shot(data, run.n_shot, run.seed, run.parameters["shots_file"])
        shots = encode_real(encoder, shots, output_root, every=True)
        predictions = {
            NEAREST: predict_nearest(load_pixels(shots.paths), shots.labels, pixels),
            PROBE: predict_probe(shots.features, shots.labels, images.features),
        }
        for name, predicted in predictions.items():
            rows.append((run.dataset, name, run.n_shot, run.seed, 100 * float((predicted == images.labels).mean())))
    return rows


def compare_baselines(encoder, runs, data_root, output_root):
    """Accuracy (%) of the baselines on the shots of Real-finetune's runs, and of those runs: a row of ``COLUMNS`` each.

    encoder: of CLIP without training, or None: then nothing is measured. runs: ``results.load_results``. Of a data set
    that is not here nothing is measured; a line says so.
    """
    real = runs[(runs["method"] == "real") & (runs["variant"] == "") & (runs["protocol"] == "sound")]
    rows = [(run.dataset, TRAINED[run.classifier], run.n_shot, run.seed, run.accuracy) for run in real.itertuples()]
    for _, of_dataset in real.drop_duplicates(["dataset", "n_shot", "seed"]).groupby("dataset") if encoder else ():
        rows += _measure_dataset(encoder, of_dataset, data_root, output_root)
    table = pd.DataFrame(rows, columns=["dataset", "baseline", "n_shot", "seed", "accuracy"])
    table = table.groupby(["dataset", "baseline", "n_shot"], as_index=False).agg(
        n_seeds=("seed", "nunique"), accuracy_mean=("accuracy", "mean"), accuracy_std=("accuracy", "std")
    )
    rank = {name: place for place, name in enumerate([NEAREST, PROBE, *TRAINED.values()])}
    table = table.sort_values("baseline", key=lambda names: names.map(rank), kind="stable")
    return table.sort_values("dataset", kind="stable", ignore_index=True)[list(COLUMNS)]
