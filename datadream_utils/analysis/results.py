"""The results of finished runs as tidy tables: one row per classifier, one row per stage.

``load_results`` reads every ``metrics.json`` under ``output_root``, ``load_stages`` every ``manifest.json``. No other
module of the analysis looks for runs. ``compute_main_results`` makes the paper's main table from them.
"""

from pathlib import Path

import pandas as pd
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from datadream_utils.diffusion.generate import read_metadata
from datadream_utils.errors import InputError, suggest
from datadream_utils.files import join_inside, read_json
from datadream_utils.methods import METHODS, SETTINGS, get_method
from datadream_utils.params import resolve
from datadream_utils.runs.stage import Stage

RUN_KEYS = ("dataset", "method", "setting", "n_shot", "seed", "variant", "classifier", "protocol")
RESULT_COLUMNS = ("dataset", "method", "setting", "n_shot", "n_seeds", "accuracy_mean", "accuracy_std", "n_test")
STAGE_COLUMNS = ("run", "stage", "dataset", "method", "n_shot", "seed", "variant", "seconds", "peak_memory_mb",
                 "n_real", "passes", "parameters", "digest", "folder")  # fmt: skip
BLOCKS = {"none": "zero-shot", "S": "synthetic", "R": "real", "R+S": "real"}  # of the paper's table, by setting
RANKS = {
    "setting": {name: rank for rank, name in enumerate(BLOCKS)},
    "method": {name: rank for rank, name in enumerate(METHODS)},
}  # the order of rows in the paper's table

# What ``metrics.json`` must hold for a table, and of which type.
METRICS = dict.fromkeys(RUN_KEYS, str) | {"n_shot": int, "seed": int, "n_test": int, "accuracy": (int, float)}

# The tables of results, by name: classifier and protocol.
RESULT_TABLES = {
    "main_results": ("clip", "sound"),
    "resnet_results": ("resnet", "sound"),
    "published_protocol": ("clip", "published"),
    "resnet_published_protocol": ("resnet", "published"),
}
PREDICTION_COLUMNS = ("label", "prediction", "correct", "probability")
MEASURED_SEEDS = 3  # seeds of a method whose images are measured: further seeds cost time and change little
CLASSES_SHOWN = 12  # in the picture of the method


def count_confusions(predictions, n_classes):
    """The confusion matrix, counts (n_classes, n_classes): row is the true class, column the predicted one."""
    counts, classes = pd.crosstab(predictions["label"], predictions["prediction"]), range(n_classes)
    return counts.reindex(index=classes, columns=classes, fill_value=0).to_numpy()


def load_results(output_root):
    """A row per finished classifier under ``output_root``: the values of its ``metrics.json``, and its folder.

    InputError if there is none, a result cannot be read, or two folders hold the same run.
    """
    folders = [path.parent for path in sorted(resolve(output_root).glob("*/train-*/manifest.json"))]
    if not folders:
        raise InputError(f"no finished classifier under {resolve(output_root)}: run 03_train_clip first.")
    runs = pd.DataFrame([_read_metrics(folder) | {"folder": folder} for folder in folders])
    duplicates = runs[runs.duplicated(list(RUN_KEYS), keep=False)]
    if len(duplicates):
        first, second = duplicates["folder"].iloc[:2]
        raise InputError(f"{first} and {second} hold the same run: move one of them out of {resolve(output_root)}.")
    return runs


def _read_metrics(folder):
    Stage(folder.name, folder).check_files(["metrics.json", "predictions.parquet"])
    path, fix = folder / "metrics.json", f"delete {folder} and run 03_train_clip again"
    metrics = read_json(path, fix)
    for key, kind in METRICS.items():
        if not isinstance(metrics.get(key), kind) or (key == "setting" and metrics[key] not in SETTINGS):
            raise InputError(f"{path} cannot be read ({key!r} is {metrics.get(key)!r}): {fix}.")
    return metrics


def select_n_shot(runs, dataset, n_shot):
    """The runs of every data set with ``n_shot`` real images per class; InputError when ``dataset`` has none."""
    chosen = runs[runs["n_shot"] == n_shot]
    if dataset not in set(chosen["dataset"]):
        trained = sorted({f"{row.dataset} with n_shot={row.n_shot}" for row in runs.itertuples()})
        raise InputError(
            f"no classifier of {dataset!r} with n_shot={n_shot} has been trained. Found: {', '.join(trained)}."
        )
    return chosen


def load_predictions(runs, dataset, n_shot, classifier="clip", variant=""):
    """``{(method, setting): {seed: table}}``, in the order of the main table; a table has a row per test image.

    runs: ``load_results``; other variants and the published protocol are left out. The columns are
    ``PREDICTION_COLUMNS``, the index is the images' paths. All tables have the same images in the same order.
    InputError if predictions cannot be read, or if two runs were tested on different images or in a different order.
    """
    same = (runs["dataset"] == dataset) & (runs["n_shot"] == n_shot) & (runs["classifier"] == classifier)
    plain = runs[same & (runs["protocol"] == "sound") & (runs["variant"] == variant)]
    ordered = plain.sort_values(["setting", "method", "seed"], key=_rank, kind="stable")
    predictions, first = {}, None
    for row in ordered.itertuples():
        table = _read_predictions(row.folder / "predictions.parquet")
        first = first or (row.folder, table.index)
        if not table.index.equals(first[1]):
            raise InputError(
                f"{row.folder} and {first[0]} were not tested on the same images in the same order: delete the one "
                "that belongs to an older test split and run 03_train_clip again."
            )
        table.index = first[1]  # one for all: ImageNet has 50,000 paths
        predictions.setdefault((row.method, row.setting), {})[row.seed] = table
    return predictions


def _rank(column):
    """Sort key: methods and settings in the order of the paper's table, anything else by its value."""
    return column.map(RANKS[column.name]) if column.name in RANKS else column


def _read_predictions(path):
    try:
        return pd.read_parquet(path, columns=["file", *PREDICTION_COLUMNS]).set_index("file")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): copy it from where the run was made, or delete {path.parent} and run "
            "03_train_clip again."
        ) from None


def compute_main_results(runs, classifier="clip", protocol="sound"):
    """Mean and sample standard deviation of the accuracy (%) over seeds, in the order of the paper's table.

    The columns are ``RESULT_COLUMNS``. If there are several data sets, the rows "average" have the mean over data sets;
    their standard deviation is that of this mean over seeds. Variants are left out.
    """
    same = (runs["classifier"] == classifier) & (runs["protocol"] == protocol)
    plain = runs[same & (runs["variant"] == "")]
    for name in plain["method"].unique():
        get_method(name)
    table = (
        pd.concat([plain, _average_datasets(plain)])
        .groupby(["dataset", "method", "setting", "n_shot"], as_index=False)
        .agg(
            n_seeds=("seed", "nunique"),
            accuracy_mean=("accuracy", "mean"),
            accuracy_std=("accuracy", "std"),
            n_test=("n_test", "max"),
        )
    )
    table = table.sort_values(["setting", "method"], key=_rank, kind="stable")
    return table[list(RESULT_COLUMNS)].reset_index(drop=True)


def _average_datasets(runs):
    """Means over data sets, as runs of data set "average", of each method, setting and seed that has all of them."""
    n_datasets = runs["dataset"].nunique()
    means = runs.groupby(["method", "setting", "n_shot", "seed"], as_index=False).agg(
        accuracy=("accuracy", "mean"), n_test=("n_test", "sum"), n=("dataset", "nunique")
    )
    return means[(means.pop("n") == n_datasets) & (n_datasets > 1)].assign(dataset="average")


def compute_all_results(runs):
    """``{name: compute_main_results}`` for ``RESULT_TABLES``: "main_results" always, the others if they have runs."""
    tables = {name: compute_main_results(runs, *which) for name, which in RESULT_TABLES.items()}
    return {name: table for name, table in tables.items() if name == "main_results" or len(table)}


def load_stages(output_root):
    """A row per finished stage under ``output_root`` (``STAGE_COLUMNS``), read from its manifest.

    n_real: few-shot images of all classes (adapt; else 0). passes: of the U-Net per image (generate; else 0). digest:
    the checksum of the generated images (generate; else ""). seconds: processor seconds for a stage on a CPU, because
    other work on the machine slows the clock; else clock seconds; NaN for a stage that was interrupted, whose seconds
    before that are not recorded. peak_memory_mb: the GPU's, else the process's; missing if it was not recorded. A stage
    that runs share by a link is listed once, for the run that made it. InputError names a manifest that cannot be read.
    """
    paths = sorted(resolve(output_root).glob("*/*/manifest.json"))
    rows = [_read_stage(path) for path in paths if not path.parent.is_symlink()]
    return pd.DataFrame(rows, columns=list(STAGE_COLUMNS))


def _read_stage(path):
    try:
        manifest = Stage(path.parent.name, path.parent).manifest()
        parameters = manifest["parameters"]
        on_cpu, seconds = manifest.get("device", "").startswith("cpu"), manifest["seconds"]
        seconds = manifest.get("processor_seconds", seconds) if on_cpu else seconds
        return {
            "run": path.parent.parent.name,
            "stage": manifest["stage"],
            "dataset": Path(parameters["dataset"]).name,
            **{key: parameters[key] for key in ("method", "n_shot", "seed", "variant")},
            "seconds": float("nan") if manifest.get("resumed") else seconds,
            "peak_memory_mb": manifest.get("peak_gpu_memory_mb", manifest.get("peak_memory_mb")),
            "n_real": len(manifest["shots"]) if manifest["stage"] == "adapt" else 0,
            "passes": manifest["passes_per_image"] if manifest["stage"] == "generate" else 0,
            "parameters": parameters,
            "digest": manifest.get("images_sha256", ""),
            "folder": path.parent,
        }
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{path} cannot be read ({reason}): delete {path.parent} and run its notebook again."
        ) from None


def select_generated(stages, dataset, n_shot=None):
    """The generate stages (rows of ``load_stages``) of ``dataset`` without variant, of one ``n_shot`` or of all.

    A method that generates nothing may have a finished generate stage; it is left out.
    """
    same = (stages["stage"] == "generate") & (stages["dataset"] == dataset) & (stages["variant"] == "")
    same &= stages["method"].isin([name for name, method in METHODS.items() if method.generates])
    if n_shot is not None:
        same &= stages["n_shot"] == n_shot
    return stages[same].sort_values(["method", "n_shot", "seed"])


def select_measured(stages, dataset, split_file=""):
    """The rows of ``select_generated`` whose images are measured: ``MEASURED_SEEDS`` seeds per method and ``n_shot``.

    InputError for a stage that was made with another split: its shots may be test images of this split.
    """
    chosen = select_generated(stages, dataset).groupby(["method", "n_shot"]).head(MEASURED_SEEDS)
    for stage in chosen.itertuples():
        other = stage.parameters["split_file"]
        if Path(other).name != Path(split_file).name:
            raise InputError(
                f"{stage.folder} was made with split_file={other!r}, not {split_file!r}: set split_file to that."
            )
    return chosen


def list_pictures(stage, label, count):
    """The first ``count`` pictures (paths) of class ``label`` in a generate stage, a row of ``load_stages``.

    InputError when the stage's list of images cannot be read, names a file elsewhere, or a picture has changed.
    """
    on_disk = Stage("generate", stage.folder)
    on_disk.check_files(["images/metadata.jsonl"])
    names = [row.get("file_name") for row in read_metadata(stage) if row.get("label") == label][:count]
    paths = [join_inside(stage.folder / "images", name, stage.folder / "images" / "metadata.jsonl") for name in names]
    on_disk.check_files([f"images/{name}" for name in names])
    return paths


def example_pictures(stages, dataset, n_shot, label, count):
    """``{method's label: [path, ...]}``: ``count`` pictures of class ``label`` from each method's lowest seed."""
    chosen = select_generated(stages, dataset, n_shot).drop_duplicates("method").set_index("method", drop=False)
    order = [name for name in METHODS if name in chosen.index]
    return {METHODS[name].label: list_pictures(chosen.loc[name], label, count) for name in order}


def pictures_of_classes(stages, dataset, n_shot, n_classes, count):
    """``[[path, ...], ...]``: ``count`` pictures of each of the first classes (``CLASSES_SHOWN``) from one run.

    It is one of DataDream_cls, if there is one; of every class an empty list where no method has generated images.
    """
    chosen = select_generated(stages, dataset, n_shot)
    chosen = chosen.sort_values("method", key=lambda names: names != "datadream_cls", kind="stable")
    stage = next(chosen.itertuples(), None)
    shown = range(min(n_classes, CLASSES_SHOWN))
    return [list_pictures(stage, label, count) if stage else [] for label in shown]


def find_target(stages):
    """What the base model of the runs predicts: "v", or the noise "ε"; "ε or v" if its files are not here."""
    for parameters in stages["parameters"]:
        if "sd_model" in parameters and (file := _find_scheduler(parameters["sd_model"], parameters["sd_revision"])):
            kind = read_json(file, f"get {parameters['sd_model']} again").get("prediction_type")
            return "v" if kind == "v_prediction" else "ε"
    return "ε or v"


def _find_scheduler(sd_model, revision):
    """A base model's configuration of its scheduler, in its folder or the hub's cache; None if it is in neither."""
    name = "scheduler/scheduler_config.json"
    if (resolve(sd_model) / name).is_file():
        return resolve(sd_model) / name
    try:
        cached = try_to_load_from_cache(sd_model, name, revision=revision or None)
    except HFValidationError:  # a folder of another machine
        return None
    return Path(cached) if isinstance(cached, str) else None


def find_class(data, class_name):
    """The label of ``class_name``; for "" that of the data set's example class, or else of its first class.

    InputError, with the nearest name, for a class that the data set does not have.
    """
    class_name = class_name or data.example or data.class_names[0]
    if class_name not in data.class_names:
        raise InputError(f"{data.name} has no class {class_name!r}.{suggest(class_name, data.class_names)}")
    return data.class_names.index(class_name)
