"""A trained classifier on new pictures: from a finished run's folder alone, without its data set."""

import os
from pathlib import Path

import pandas as pd
import torch

from datadream_utils.classifier.build import load_classifier
from datadream_utils.classifier.pictures import Preprocess
from datadream_utils.data.dataset import Dataset
from datadream_utils.data.folders import walk_pictures
from datadream_utils.data.images import read_image
from datadream_utils.errors import InputError
from datadream_utils.params import resolve
from datadream_utils.runs.device import choose_device
from datadream_utils.runs.plausible import check_finite
from datadream_utils.runs.progress import no_progress
from datadream_utils.runs.run import Run, params_of
from datadream_utils.runs.stage import Stage

BATCH = 64
COLUMNS = ["file", "class", "probability", "problem"]


def open_classifier(folder, device):
    """``(classifier, class names)`` of the finished train stage in ``folder``, for instance ".../train-R+S".

    InputError for a folder that is no finished train stage, or when a file of it has vanished or changed.
    """
    stage = Stage(Path(folder).name, resolve(folder))
    if not stage.name.startswith("train-") or not stage.finished:
        raise InputError(
            f"{stage.folder} is no finished classifier: name the folder train-<setting> of a run that 03_train_clip "
            "has finished, for instance outputs/.../train-R+S."
        )
    stage.check_files()
    manifest, params = stage.manifest(), params_of(stage.folder.parent, stage.name)
    names, domain = manifest["class_names"], manifest["domain"]
    data = Dataset(name=params.dataset, root=Path(), folders=(), class_names=tuple(names), files={}, domain=domain)
    run = Run(params, stage, data, [], choose_device(device), progress=no_progress)
    return load_classifier(run), list(names)


@torch.inference_mode()
def classify_folder(classifier, class_names, folder, progress=no_progress):
    """Classify every picture in ``folder`` and the folders below it: a row of ``COLUMNS`` for each, sorted by file.

    file: its path within ``folder``; probability: of the class. A picture that cannot be read has no class, and its
    problem in words. InputError when there is no picture.
    """
    folder = Path(folder).expanduser()
    paths = walk_pictures(folder)
    if not paths:
        raise InputError(f"{folder} has no pictures in it: name the folder that holds them.")
    preprocess, device = Preprocess(classifier.processor), next(classifier.parameters()).device
    weights, rows = classifier.class_weights(), []
    with progress(len(paths), "classifying") as advance:
        for start in range(0, len(paths), BATCH):
            batch, images = [], []
            for path in paths[start : start + BATCH]:
                row = dict.fromkeys(COLUMNS, "") | {"file": os.path.relpath(path, folder), "probability": float("nan")}
                rows.append(row)
                try:
                    images.append(read_image(path))
                    batch.append(row)
                except InputError as error:
                    row["problem"] = str(error)
            if batch:
                pixels = torch.stack(preprocess(images)).to(device)
                logits = classifier(pixels, weights).float()
                fix = "this classifier cannot be used; train it again"
                check_finite(logits, [row["file"] for row in batch], "The logits", fix)
                best = logits.softmax(-1).max(-1)
                for row, value, label in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
                    row |= {"class": class_names[label], "probability": round(value, 4)}
            advance(len(paths[start : start + BATCH]))
    return pd.DataFrame(rows, columns=COLUMNS)
