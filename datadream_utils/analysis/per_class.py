"""Where synthetic images help and where they hurt, class by class; and whether certainty can be trusted."""

import numpy as np
import pandas as pd
import torch
from torchmetrics.functional.classification import binary_calibration_error

from datadream_utils.analysis.noise import against_noise
from datadream_utils.analysis.results import BLOCKS, confusion
from datadream_utils.errors import InputError
from datadream_utils.methods import METHODS

BINS = 15  # of certainty, as is usual for the calibration error (Guo et al. 2017)
REFERENCE = {"S": ("clip_zeroshot", "none"), "R+S": ("real", "R")}  # what a classifier is held against
ORDER = {
    "setting": {name: rank for rank, name in enumerate(BLOCKS)},
    "method": {name: rank for rank, name in enumerate(METHODS)},
}


def load_predictions(runs, dataset, n_shot, classifier="clip"):
    """``{(method, setting): {seed: predictions}}`` of the runs without variant, in the order of ``ORDER`` and of seeds.

    runs: ``results.load_results``. InputError when predictions cannot be read or are of other test images.
    """
    same = (runs["dataset"] == dataset) & (runs["n_shot"] == n_shot) & (runs["classifier"] == classifier)
    found, first = {}, None
    plain = runs[same & (runs["protocol"] == "sound") & (runs["variant"] == "")]
    ranked = plain.sort_values([*ORDER, "seed"], key=lambda column: column.map(ORDER.get(column.name, lambda n: n)))
    for row in ranked.itertuples():
        path = row.folder / "predictions.parquet"
        try:
            table = pd.read_parquet(path, columns=["file", "label", "prediction", "correct", "probability"])
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read ({error}): delete {row.folder}, run 03_train_clip again."
            ) from None
        first = first or (row.folder, table["file"])
        if not table["file"].equals(first[1]):
            raise InputError(
                f"{row.folder} and {first[0]} were not tested on the same images in the same order: delete the one "
                "that belongs to an older test split and run 03_train_clip again."
            )
        found.setdefault((row.method, row.setting), {})[row.seed] = table
    return found


def _reference(predictions, setting, seed):
    tables = predictions.get(REFERENCE.get(setting), {})
    return next(iter(tables.values()), None) if setting == "S" else tables.get(seed)


def gains(predictions, class_names):
    """Per class and seed, how much more often (points) a classifier is right than what it is held against.

    S is held against zero-shot CLIP, R+S against Real-finetune of the same seed (``REFERENCE``); where that has not
    been run there is no row. Columns method, setting, seed, label, class_name, "accuracy", "gain" (%).
    """
    rows = []
    for (method, setting), tables in predictions.items():
        for seed, table in tables.items():
            before = _reference(predictions, setting, seed)
            if before is None:
                continue
            accuracy = 100 * table.groupby("label")["correct"].mean()
            gain = accuracy - 100 * before.groupby("label")["correct"].mean()
            rows += [
                dict(method=method, setting=setting, seed=seed, label=label, class_name=class_names[label],
                     accuracy=accuracy[label], gain=gain[label])
                for label in accuracy.index
            ]  # fmt: skip
    columns = ["method", "setting", "seed", "label", "class_name", "accuracy", "gain"]
    return pd.DataFrame(rows, columns=columns)


def marked(gains):
    """``gains`` with what the seeds of its class, method and setting say together, on each of their rows.

    "gain_mean" (points), "low", "high" and "verdict": ``noise.against_noise``.
    """
    rows = []
    for _, cell in gains.groupby(["method", "setting", "label"], sort=False):
        found = against_noise(cell["gain"])
        rows.append(cell.assign(gain_mean=found.pop("mean"), **found))
    return pd.concat(rows).loc[gains.index] if rows else gains.assign(gain_mean=0.0, low=0.0, high=0.0, verdict="")


def confusion_change(predictions, method, setting, n_classes):
    """How predictions move against ``REFERENCE``: (n_classes, n_classes), points of the true class, mean over seeds.

    Row: true class; column: predicted class; rows sum to 0. None where one of the two has not been run.
    """
    changes = []
    for seed, table in predictions.get((method, setting), {}).items():
        before = _reference(predictions, setting, seed)
        if before is not None:
            counts = confusion(table, n_classes) - confusion(before, n_classes)
            changes.append(100 * counts / np.maximum(1, confusion(table, n_classes).sum(1, keepdims=True)))
    return np.mean(changes, axis=0) if changes else None


def calibration_error(table, bins=BINS):
    """Expected calibration error (points): how far certainty and accuracy lie apart, over ``bins`` of certainty."""
    certainty, correct = (torch.tensor(table[name].to_numpy()) for name in ("probability", "correct"))
    return 100 * binary_calibration_error(certainty.double().clamp(0, 1), correct.int(), n_bins=bins).item()


def calibration(predictions):
    """Per classifier and seed: "error" (``calibration_error``), "certainty" and "accuracy" (means, %)."""
    rows = [
        dict(method=method, setting=setting, seed=seed, error=calibration_error(table),
             certainty=100 * float(table["probability"].mean()), accuracy=100 * float(table["correct"].mean()))
        for (method, setting), tables in predictions.items()
        for seed, table in tables.items()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "setting", "seed", "error", "certainty", "accuracy"])


def reliability(predictions, bins=BINS):
    """Accuracy (%) by certainty (%), all seeds together: method, setting, "certainty", "accuracy", "n" per bin."""
    rows = []
    for (method, setting), tables in predictions.items():
        table = pd.concat(tables.values())
        bin_of = np.minimum((table["probability"] * bins).astype(int), bins - 1)
        for _, group in table.groupby(bin_of):
            means = 100 * group[["probability", "correct"]].astype(float).mean()
            rows.append((method, setting, means["probability"], means["correct"], len(group)))
    return pd.DataFrame(rows, columns=["method", "setting", "certainty", "accuracy", "n"])
