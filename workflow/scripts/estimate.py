"""What a study will take, before it starts: hours, memory, disk and jobs, from a few steps of each stage.

    python -m workflow.scripts.estimate params/studies/tiny.yaml
    python -m workflow.scripts.estimate params/studies/paper.yaml --memory 24 --disk 500 --hours 200

The study's own models are loaded and work on made-up pictures: some steps of adaptation, two batches of images, some
steps of training, an evaluation. What differs in cost is measured once; counts do the rest. When it does not fit, the
parameters to lower are named.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import pandas as pd
import psutil
import torch

from datadream_utils.data.archives import read_known
from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.images import read_image
from datadream_utils.errors import InputError
from datadream_utils.params import resolve
from datadream_utils.runs.device import choose_device
from workflow.scripts.calibration import Bench, start_seconds
from workflow.scripts.study import read_study

GIB, MB = 2**30, 1e6
NOTEBOOK_BYTES = 0.4 * MB  # an executed notebook with its pictures: the mean of the 88 of the tiny study
TRIES = 2  # draws per picture where CLIP rejects some: a guess, never more than filter_tries
SHOWN = 4 * 8 + 4 * 8 + 8 + 1  # pictures that 02 draws to be looked at; 01: 2 x 4 of up to ten classes

# Pictures in (val, test) of the known data sets, used while they are not on this disk.
HELD_OUT = {
    "caltech101": (1649, 2465), "cars": (1635, 8041), "dtd": (1128, 1692), "eurosat": (5400, 8100),
    "fgvc_aircraft": (3333, 3333), "flowers102": (1633, 2463), "food101": (20200, 30300), "imagenet": (0, 50000),
    "imagenet_100": (0, 5000), "pets": (736, 3669), "sun397": (3970, 19850),
}  # fmt: skip

# What to lower, by stage and by what is short; the first words name what helps most.
LOWER = {
    ("adapt", "memory"): ("adapters_together", "adapt_batch_size", "gradient_checkpointing"),
    ("generate", "memory"): ("generate_batch_size",),
    ("train", "memory"): ("train_batch_size", "eval_batch_size"),
    ("adapt", "hours"): ("adapt_epochs",),
    ("generate", "hours"): ("images_per_class", "num_inference_steps"),
    ("train", "hours"): ("train_epochs", "images_per_class"),
    ("adapt", "disk"): ("lora_rank",),
    ("generate", "disk"): ("images_per_class",),
    ("train", "disk"): ("clip_lora_rank",),
}
# What decides neither the seconds of a unit nor its memory, by stage.
COMMON = ("dataset", "split_file", "shots_file", "seed", "variant", "output_root", "data_root")
NO_COST = {
    "adapt": (*COMMON, "adapt_epochs", "adapt_lr", "guidance_scale", "num_inference_steps", "shard"),
    "generate": (*COMMON, "images_per_class", "shard"),
    "train": (*COMMON, "method", "n_shot", "setting", "images_per_class", "train_epochs", "real_weight"),
}


@dataclass(frozen=True)
class Sizes:
    """What of a data set decides the cost: its classes, and how many pictures are evaluated."""

    class_names: tuple[str, ...]
    n_val: int
    n_test: int
    picture: tuple[int, int]  # width, height


@dataclass(frozen=True)
class Task:
    """A stage of a run, as counts; ``key``: equal for stages whose unit costs the same."""

    kind: str
    key: tuple
    p: object
    sizes: Sizes
    jobs: int
    units: int  # steps of a group of adapters; batches of pictures; training steps
    evaluated: int = 0  # pictures
    shown: int = 0  # pictures drawn for the reader
    saved: int = 1  # adapters, pictures, classifiers


def read_sizes(dataset, data_root="data", split_file=""):
    """The ``Sizes`` of a data set: of its files when they are on this disk, of a known one also without. No download.

    InputError for one that is neither.
    """
    known = read_known(Path(dataset).name)
    if dataset == "mnist5k" or (resolve(data_root) / dataset).is_dir() or resolve(dataset).is_dir():
        data = load_dataset(dataset, data_root, split_file)
        count = {split: sum(map(len, files)) for split, files in data.files.items()}
        size = read_image(data.files["train"][0][0]).size
        return Sizes(data.class_names, count.get("val", 0), count["test"], size)
    if known is None:
        raise InputError(f"data set {dataset!r} is neither known nor a folder.")
    return Sizes(known.class_names, *HELD_OUT[known.name], (640, 480))


def tasks(study, sizes):
    """A ``Task`` for each stage of a study that is made anew. sizes: ``{dataset: Sizes}``."""
    made = []
    for run in study.runs().values():
        for stage in study.stages(run):
            if run.home(stage) == run:
                kind = stage.partition("-")[0]
                made.append(_task(study, run, kind, study.checked(run, stage), sizes[run.dataset]))
    return made


def _task(study, run, kind, p, sizes):
    parts = study.parts(run, kind) if kind != "train" else 1
    jobs, n = (parts + 1 if parts > 1 else 1), len(sizes.class_names)
    values = tuple((k, v) for k, v in p.model_dump().items() if k not in NO_COST[kind])
    if kind == "adapt":
        n_adapters = {"class": n, "dataset": 1, "image": n * p.n_shot}[p.system.adapter]
        together = 1 if p.system.adapter == "dataset" else min(p.adapters_together, n_adapters)
        steps = p.adapt_epochs * ceil(n * p.n_shot / n_adapters / p.adapt_batch_size)
        key = (kind, values, sizes.picture, together, min(n * p.n_shot // n_adapters, p.adapt_batch_size))
        units = ceil(n_adapters / together) * steps
        return Task(kind, key, p, sizes, jobs, units, shown=8 * min(10, n), saved=n_adapters)
    if kind == "generate":
        tries = min(TRIES, p.filter_tries) if p.system.keep == "clip" else 1
        units = n * ceil(p.images_per_class / p.generate_batch_size) * tries
        return Task(kind, (kind, values), p, sizes, jobs, units, shown=SHOWN, saved=n * p.images_per_class)
    kinds = 0 if p.setting == "none" else len(p.setting.split("+"))
    steps = p.train_epochs * ceil(p.images_per_class * n / p.train_batch_size) if kinds else 0
    looks = ceil(p.train_epochs / p.val_every) if kinds else 0
    evaluated = sizes.n_test + looks * sizes.n_val
    if p.protocol == "published" and kinds:
        evaluated = p.train_epochs * sizes.n_test
    return Task(kind, (kind, values, kinds, n, sizes.picture), p, sizes, jobs, steps, evaluated, saved=bool(kinds))


def measure(all_tasks, device="auto"):
    """``{key: calibration.Measured}``: each key once, adaptation first, since generation draws with its adapters.

    InputError, with what to lower, when a stage does not even fit here.
    """
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), choose_device(device))
        for kind in ("adapt", "generate", "train"):
            for key, task in {task.key: task for task in all_tasks if task.kind == kind}.items():
                print(f"measuring {kind}: {task.p.method}, {dict(task.p).get('setting', '')} ...", file=sys.stderr)
                try:
                    measured[key] = getattr(bench, kind)(task.p, task.sizes)
                except (MemoryError, RuntimeError) as error:
                    if not isinstance(error, MemoryError) and "memory" not in str(error):
                        raise
                    raise InputError(f"{kind} does not fit into memory: {_fix(kind, 'memory', task.p)}.") from None
    return measured


def table(all_tasks, measured, start):
    """A row per stage: jobs, units, seconds per unit, hours, peak memory (bytes), disk (bytes).

    start: seconds until a notebook's libraries are there. Hours are those of one device, one job at a time.
    """
    picture = {
        (t.p.method, t.p.n_shot): measured[t.key].seconds / t.p.generate_batch_size
        for t in all_tasks
        if t.kind == "generate"
    }
    rows = []
    for kind in ("adapt", "generate", "train"):
        of_kind = [task for task in all_tasks if task.kind == kind]
        if not of_kind:
            continue
        work = [task.units * measured[task.key].seconds for task in of_kind]
        for i, task in enumerate(of_kind):
            m = measured[task.key]
            shown = task.shown * picture.get((task.p.method, task.p.n_shot), 0)
            work[i] += task.evaluated * m.per_evaluated + task.jobs * (start + m.load + shown)
            work[i] += m.per_caption * task.p.n_shot * len(task.sizes.class_names)
        disk = sum(task.saved * measured[task.key].saved + task.jobs * NOTEBOOK_BYTES for task in of_kind)
        units = sum(task.units for task in of_kind)
        seconds = sum(task.units * measured[task.key].seconds for task in of_kind) / max(1, units)
        rows.append(
            {
                "stage": kind,
                "jobs": sum(task.jobs for task in of_kind),
                "units": units,
                "seconds": seconds,
                "hours": sum(work) / 3600,
                "memory": max(measured[task.key].memory for task in of_kind),
                "disk": disk,
            }
        )
    return pd.DataFrame(rows)


def advice(rows, all_tasks, limits):
    """Sentences about what does not fit. limits: {"memory": bytes, "disk": bytes, "hours": hours}, None: no limit."""
    sentences = []
    largest = {kind: max((t for t in all_tasks if t.kind == kind), key=lambda t: t.units).p for kind in rows["stage"]}
    for row in rows.itertuples():
        if limits["memory"] is not None and row.memory > limits["memory"]:
            there = f"{row.memory / GIB:.1f} GiB of memory, {limits['memory'] / GIB:.1f} are there"
            sentences.append(f"{row.stage} needs {there}: {_fix(row.stage, 'memory', largest[row.stage])}.")
    for what, unit, one in (("disk", "GiB", GIB), ("hours", "hours", 1)):
        total = rows[what].sum()
        if limits[what] is not None and total > limits[what]:
            most = rows.loc[rows[what].idxmax(), "stage"]
            there = f"{total / one:.1f} {unit}, {limits[what] / one:.1f} are there; most of it is {most}'s"
            fix = _fix(most, what, largest[most])
            sentences.append(f"the study needs {there}: {fix}, or take fewer seeds, methods or data sets.")
    return sentences


def _fix(kind, what, p):
    """What to lower, with the values that are set; what is at its lowest is left out."""
    values = {name: getattr(p, name) for name in LOWER[kind, what]}
    fixes = [f"lower {name} (now {value})" for name, value in values.items() if value is not True and value > 1]
    fixes += [f"set {name} to true" for name, value in values.items() if value is False]
    return " or ".join(fixes) or "use a larger device"


def to_text(rows, n_runs):
    """The table as lines of text."""
    unit = {"adapt": "step", "generate": "batch", "train": "step"}
    lines = [f"{'stage':<10}{'jobs':>6}{'units':>14}{'s/unit':>9}{'hours':>9}{'memory':>11}{'disk':>11}"]
    for row in rows.itertuples():
        units = f"{row.units:,} {unit[row.stage]}" + ("s" if row.stage != "generate" else "es")
        memory, disk = f"{row.memory / GIB:.2f} GiB", f"{row.disk / GIB:.2f} GiB"
        head = f"{row.stage:<10}{row.jobs:>6}{units:>16}{row.seconds:>9.3f}"
        lines.append(f"{head}{row.hours:>9.2f}{memory:>11}{disk:>11}")
    disk = f"{rows['disk'].sum() / GIB:.2f} GiB"
    lines.append(f"{'in all':<10}{rows['jobs'].sum():>6}{'':>25}{rows['hours'].sum():>9.2f}{'':>11}{disk:>11}")
    return "\n".join([f"runs: {n_runs}; the analysis is one more job", *lines])


def free(device, output_root):
    """``(memory, disk)`` in bytes that are there now."""
    memory = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    place = next(path for path in (resolve(output_root), *resolve(output_root).parents) if path.exists())
    return memory, shutil.disk_usage(place).free


def estimate(study, device="auto"):
    """``(rows, tasks)`` of a study, measured here; see ``table``."""
    split = lambda name: study.split_files.get(name, study.value("split_file"))  # noqa: E731
    sizes = {name: read_sizes(name, study.value("data_root"), split(name)) for name in study.datasets}
    planned = tasks(study, sizes)
    return table(planned, measure(planned, device), start_seconds()), planned


def main(arguments=None):
    """The command line; returns the exit code: 1 when the study does not fit, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m workflow.scripts.estimate", description=__doc__.splitlines()[0])
    parser.add_argument("study", help="a study file, params/studies/<name>.yaml")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of the device (default: what is free here)")
    parser.add_argument("--disk", type=float, metavar="GIB", help="room for the runs (default: what is free here)")
    parser.add_argument("--hours", type=float, metavar="H", help="hours of one device (default: no limit)")
    options = parser.parse_args(arguments)
    try:
        study = read_study(options.study)
        device = choose_device(study.value("device"))
        memory, disk = free(device, study.value("output_root"))
        limits = {
            "memory": memory if options.memory is None else options.memory * GIB,
            "disk": disk if options.disk is None else options.disk * GIB,
            "hours": options.hours,
        }
        rows, planned = estimate(study, device)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(to_text(rows, len(study.runs())))
    if any(task.kind == "generate" and task.p.system.keep == "clip" for task in planned):
        print(f"disef is counted with {TRIES} draws per picture; filter_tries allows more.")
    sentences = advice(rows, planned, limits)
    print("\n".join(sentences) or "It fits.")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
