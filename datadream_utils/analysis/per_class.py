"""Where synthetic images help and where they hurt, class by class; and whether a classifier's certainty is right."""

import numpy as np
import pandas as pd

from datadream_utils.analysis.compare import judge_seeds
from datadream_utils.analysis.results import count_confusions

BINS = 15  # of certainty, as is usual for the calibration error (Guo et al. 2017)
REFERENCE = {"S": ("clip_zeroshot", "none"), "R+S": ("real", "R")}  # what a classifier is compared with, by setting


def _reference(predictions, setting, seed):
    """The predictions that those of ``setting`` and ``seed`` are compared with; None where they have not been run."""
    tables = predictions.get(REFERENCE.get(setting), {})
    return next(iter(tables.values()), None) if setting == "S" else tables.get(seed)


def compute_gains(predictions, class_names):
    """Per class and seed, how much more often (points) a classifier is right than its ``REFERENCE``.

    predictions: ``results.load_predictions``. S is compared with zero-shot CLIP, R+S with Real-finetune of the same
    seed; where that has not been run there is no row. Columns method, setting, seed, label, class_name, "accuracy",
    "gain" (%), and "image_variance": that of the mean gain over seeds, from the choice of the class's test images.
    """
    rows = []
    for (method, setting), tables in predictions.items():
        pairs = {seed: (table, _reference(predictions, setting, seed)) for seed, table in tables.items()}
        pairs = {seed: pair for seed, pair in pairs.items() if pair[1] is not None}
        noise = _image_variance(list(pairs.values()))
        for seed, (table, before) in pairs.items():
            accuracy = 100 * table.groupby("label")["correct"].mean()
            gain = accuracy - 100 * before.groupby("label")["correct"].mean()
            rows += [
                dict(method=method, setting=setting, seed=seed, label=label, class_name=class_names[label],
                     accuracy=accuracy[label], gain=gain[label], image_variance=noise[label])
                for label in accuracy.index
            ]  # fmt: skip
    columns = ["method", "setting", "seed", "label", "class_name", "accuracy", "gain", "image_variance"]
    return pd.DataFrame(rows, columns=columns)


def _image_variance(pairs):
    """Of each class's mean gain over ``pairs`` (tables after and before): the variance that its test images bring."""
    if not pairs:
        return pd.Series(dtype=float)
    wins = [100.0 * (after["correct"].to_numpy(int) - before["correct"].to_numpy(int)) for after, before in pairs]
    by_class = pd.Series(np.mean(wins, axis=0)).groupby(pairs[0][0]["label"].to_numpy())
    return by_class.var() / by_class.size()


def judge_gains(gains):
    """``compute_gains`` over seeds: a row for each class of a method and setting, with a verdict.

    Columns: "method", "setting", "label", "class_name", "n_seeds", "accuracy" (%, mean), "gain" (points, mean), "low",
    "high" and "verdict" (``compare.judge_seeds``, with the noise of the class's test images). A class with a single
    test image has no interval.
    """
    columns = ["method", "setting", "label", "class_name"]
    rows = []
    for names, cell in gains.groupby(columns, sort=False):
        judged = judge_seeds(cell["gain"], cell["image_variance"].iloc[0])
        means = {"n_seeds": len(cell), "accuracy": cell["accuracy"].mean(), "gain": round(judged.pop("mean"), 6)}
        rows.append(dict(zip(columns, names, strict=True)) | means | judged)
    return pd.DataFrame(rows, columns=[*columns, "n_seeds", "accuracy", "gain", "low", "high", "verdict"])


def compute_confusion_change(predictions, method, setting, n_classes):
    """How predictions move from those of ``REFERENCE``: (n_classes, n_classes), points of the true class.

    Row: true class; column: predicted class; the mean over seeds; rows sum to 0. None where one of the two was not run.
    """
    changes = []
    for seed, table in predictions.get((method, setting), {}).items():
        before = _reference(predictions, setting, seed)
        if before is not None:
            counts = count_confusions(table, n_classes)
            changes.append(
                100 * (counts - count_confusions(before, n_classes)) / np.maximum(1, counts.sum(1, keepdims=True))
            )
    return np.mean(changes, axis=0) if changes else None


def calibration_error(table, bins=BINS):
    """Expected calibration error (points): |accuracy - certainty| of each bin of certainty, weighted by its size.

    Guo et al. 2017, eq. 3. table: "probability" (of the predicted class, 0 to 1) and "correct" per image.
    """
    binned = table[["probability", "correct"]].astype(float).groupby(_bin_certainty(table, bins))
    gaps = (binned["correct"].mean() - binned["probability"].mean()).abs()
    return 100 * float((gaps * binned.size()).sum() / len(table))


def _bin_certainty(table, bins):
    """The bin (0 to bins - 1) of each image's certainty."""
    return np.minimum((table["probability"] * bins).astype(int), bins - 1)


def compute_calibration(predictions):
    """Per classifier and seed: "error" (``calibration_error``, points), "certainty" and "accuracy" (means, %)."""
    rows = [
        dict(method=method, setting=setting, seed=seed, error=calibration_error(table),
             certainty=100 * float(table["probability"].mean()), accuracy=100 * float(table["correct"].mean()))
        for (method, setting), tables in predictions.items()
        for seed, table in tables.items()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "setting", "seed", "error", "certainty", "accuracy"])


def compute_reliability(predictions):
    """Accuracy (%) by certainty (%), all seeds together: method, setting, "certainty", "accuracy", "n" per bin."""
    rows = []
    for (method, setting), tables in predictions.items():
        table = pd.concat(tables.values(), ignore_index=True)
        for _, group in table.groupby(_bin_certainty(table, BINS)):
            means = 100 * group[["probability", "correct"]].astype(float).mean()
            rows.append((method, setting, means["probability"], means["correct"], len(group)))
    return pd.DataFrame(rows, columns=["method", "setting", "certainty", "accuracy", "n"])
