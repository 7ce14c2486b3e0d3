"""Every finished stage of every run under a folder, and what a variant changes: tidy tables for the analysis."""

from pathlib import Path

import pandas as pd

from datadream_utils.errors import InputError
from datadream_utils.methods import METHODS
from datadream_utils.params import resolve
from datadream_utils.runs.stage import Stage

STAGE_COLUMNS = ("run", "stage", "dataset", "method", "n_shot", "seed", "variant", "seconds", "peak_memory_mb",
                 "n_real", "parameters", "digest", "folder")  # fmt: skip
MEASURED_SEEDS = 3  # more images would take longer than they tell
NOT_A_CHANGE = ("variant", "setting")  # what names a run or a stage, beside what it changes


def load_stages(output_root):
    """A row per finished stage under ``output_root`` (``STAGE_COLUMNS``), read from its manifest.

    n_real: few-shot images of all classes (adapt; else 0); digest: the generated images' checksum (generate; else
    ""); seconds: those of the processor for a stage that ran on a CPU, where other work on the machine shows in the
    wall's; peak_memory_mb: the GPU's, else the process's; missing where it was not recorded. A stage that a run shares
    with another (a link) is listed for the one that made it. InputError names a manifest that cannot be read.
    """
    paths = sorted(resolve(output_root).glob("*/*/manifest.json"))
    rows = [_row(path) for path in paths if not path.parent.is_symlink()]
    return pd.DataFrame(rows, columns=list(STAGE_COLUMNS))


def _row(path):
    try:
        manifest = Stage(path.parent.name, path.parent).manifest()
        parameters = manifest["parameters"]
        return {
            "run": path.parent.parent.name,
            "stage": manifest["stage"],
            "dataset": Path(parameters["dataset"]).name,
            **{key: parameters[key] for key in ("method", "n_shot", "seed", "variant")},
            "seconds": _seconds(manifest),
            "peak_memory_mb": manifest.get("peak_gpu_memory_mb", manifest.get("peak_memory_mb")),
            "n_real": len(manifest["shots"]) if manifest["stage"] == "adapt" else 0,
            "parameters": parameters,
            "digest": manifest.get("images_sha256", ""),
            "folder": path.parent,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{path} cannot be read ({reason}): delete {path.parent} and run its notebook again."
        ) from None


def _seconds(manifest):
    on_cpu = manifest.get("device", "").startswith("cpu")
    return manifest.get("processor_seconds", manifest["seconds"]) if on_cpu else manifest["seconds"]


def generated(stages, dataset, n_shot=None, variant=""):
    """The generate stages of a data set without variant (or with ``variant``), of one ``n_shot`` or of all.

    A method that generates nothing may have a finished stage too; it is left out.
    """
    same = (stages["stage"] == "generate") & (stages["dataset"] == dataset) & (stages["variant"] == variant)
    same &= stages["method"].isin([name for name, method in METHODS.items() if method.generates])
    if n_shot is not None:
        same &= stages["n_shot"] == n_shot
    return stages[same].sort_values(["method", "n_shot", "seed"])


def measured(stages, dataset, split_file=""):
    """``generated``, the first ``MEASURED_SEEDS`` seeds of each method and ``n_shot``: whose images are looked at.

    InputError for one that was made with another split: its shots may be test images of this one.
    """
    found = generated(stages, dataset).groupby(["method", "n_shot"]).head(MEASURED_SEEDS)
    for stage in found.itertuples():
        if Path(stage.parameters["split_file"]).name != Path(split_file).name:
            raise InputError(
                f"{stage.folder} was made with split_file={stage.parameters['split_file']!r}, not {split_file!r}: set "
                "split_file to that."
            )
    return found


def run_parameters(stages):
    """``{run: {stage: parameters}}``."""
    return {run: dict(zip(rows["stage"], rows["parameters"], strict=True)) for run, rows in stages.groupby("run")}


def changes(stages):
    """``{run: (changed parameters, the run without variant beside it)}`` for every run with a variant.

    A parameter is changed where a stage has another value than the same stage of the run without variant:
    ``{name: value}``. Runs without such a run beside them are left out.
    """
    parameters, found = run_parameters(stages), {}
    keys = ["dataset", "method", "n_shot", "seed"]
    plain = stages[stages["variant"] == ""].drop_duplicates("run").set_index(keys)["run"].to_dict()
    for row in stages[stages["variant"] != ""].drop_duplicates("run").itertuples():
        base = plain.get((row.dataset, row.method, row.n_shot, row.seed))
        if base is None:
            continue
        changed = {}
        for stage, values in parameters[row.run].items():
            before = parameters[base].get(stage, values)
            changed |= {
                name: value
                for name, value in values.items()
                if name not in NOT_A_CHANGE and name in before and before[name] != value
            }
            if "lora_alpha" in changed and all(p["lora_alpha"] == p.get("lora_rank") for p in (before, values)):
                del changed["lora_alpha"]  # it follows the rank
        found[row.run] = (changed, base)
    return found


def value_of(parameters, name):
    """A parameter's value in a run, from the first of its stages that has it; None where none has."""
    return next((values[name] for values in parameters.values() if name in values), None)
