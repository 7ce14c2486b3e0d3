"""Estimate what a study will take before it starts: hours, memory, disk space and jobs.

    python -m workflow.scripts.estimate params/studies/tiny.yaml
    python -m workflow.scripts.estimate params/studies/paper.yaml --memory 24 --disk 500 --hours 200

A study is counted in units: steps of adaptation, batches of images, steps of training. ``measure.py`` runs a few units
of the study's own models on pictures of noise on this machine, once for all stages whose units cost the same. The
estimate is the number of units times the cost of one, plus the time to start, to load models and to evaluate. If the
study does not fit, the output names the parameters to lower. Hours are those of one device that runs one job after
another.
"""

import argparse
import shutil
import sys
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import pandas as pd
import psutil
import torch

from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.digits import WRITERS
from datadream_utils.data.images import read_image
from datadream_utils.data.known import read_known
from datadream_utils.errors import InputError
from datadream_utils.params import resolve
from datadream_utils.runs.device import choose_device, suggest_smaller
from workflow.scripts.measure import DECIDE_MEMORY, DataSize, measure_start, measure_unit_costs
from workflow.scripts.study import read_study

GIB = 2**30
NOTEBOOK_BYTES = 400_000  # of an executed notebook with its pictures: the mean of the 88 of the tiny study
UNSEEN_PICTURE = (640, 480)  # a guess: pixels of a picture of a data set that is not on this disk
FILTER_DRAWS = 2  # a guess: draws per image if CLIP rejects some; never more than filter_tries
UNITS = {"adapt": "steps", "generate": "batches", "train": "steps"}

# The parameters to lower if a resource is short, by stage; the first one helps most.
LOWER = {
    "memory": DECIDE_MEMORY,
    "hours": {
        "adapt": ("adapt_epochs",),
        "generate": ("images_per_class", "num_inference_steps"),
        "train": ("train_epochs", "images_per_class"),
    },
    "disk": {"adapt": ("lora_rank",), "generate": ("images_per_class",), "train": ("clip_lora_rank",)},
}
# Parameters that change neither the seconds nor the memory of one unit, by stage.
SAME_COST = {
    "adapt": ("adapt_epochs", "adapt_lr", "guidance_scale", "num_inference_steps", "sampler"),
    "generate": ("images_per_class",),
    "train": ("method", "n_shot", "setting", "images_per_class", "train_epochs", "real_weight"),
}
SAME_COST_EVERYWHERE = {"dataset", "split_file", "shots_file", "seed", "variant", "output_root", "data_root"}


@dataclass(frozen=True)
class Task:
    """The work of one stage of one run, in counts.

    key: equal for tasks whose units cost the same. params: the stage's parameters. size: of its data set. jobs: how
    many notebooks run. units: steps of a group of adapters, batches of images, or training steps. evaluated: pictures
    that the classifier classifies. examples: images that a notebook draws for display. saved: adapters, images or
    classifiers that are written.
    """

    stage: str
    key: tuple
    params: object
    size: DataSize
    jobs: int
    units: int
    evaluated: int = 0
    examples: int = 0
    saved: int = 1


def read_size(dataset, data_root="data", split_file=""):
    """The ``DataSize`` of a data set on this disk, or of a known one that is not here yet. Nothing is downloaded.

    InputError for a data set that is neither.
    """
    known = read_known(Path(dataset).name)
    if dataset in WRITERS or (resolve(data_root) / dataset).is_dir() or resolve(dataset).is_dir():
        data = load_dataset(dataset, data_root, split_file)
        count = {split: sum(map(len, files)) for split, files in data.files.items()}
        picture = read_image(data.files["train"][0][0]).size
        return DataSize(data.class_names, count.get("val", 0), count["test"], picture)
    if known is None:
        raise InputError(f"data set {dataset!r} is neither known nor a folder.")
    held_out = known.facts["held_out"]
    return DataSize(known.class_names, held_out["val"], held_out["test"], UNSEEN_PICTURE)


def plan_tasks(study, sizes):
    """A ``Task`` for each stage that the study makes; a stage that several runs share is made once.

    sizes: ``{dataset: DataSize}``.
    """
    return [
        plan_task(study, run, stage, sizes[run.dataset])
        for run in study.runs().values()
        for stage in study.stages(run)
        if run.owner(stage) == run
    ]


def plan_task(study, run, stage, size):
    """The ``Task`` of one stage ("adapt", "generate", "train-S", ...) of a run."""
    p, kind, n_classes = study.params(run, stage), stage.partition("-")[0], len(size.class_names)
    parts = study.count_parts(run, stage)
    jobs = parts + 1 if parts > 1 else 1  # the last job finishes what the parts have made
    ignored = SAME_COST_EVERYWHERE | {*SAME_COST[kind]}
    key = (kind, *((name, value) for name, value in p.model_dump().items() if name not in ignored))
    if kind == "adapt":
        n_adapters = {"class": n_classes, "dataset": 1, "image": n_classes * p.n_shot}[p.system.adapter]
        together = 1 if p.system.adapter == "dataset" else min(p.adapters_together, n_adapters)
        shots = n_classes * p.n_shot // n_adapters  # of one adapter
        steps = p.adapt_epochs * ceil(shots / p.adapt_batch_size)
        return Task(
            kind,
            (*key, size.picture, together, min(shots, p.adapt_batch_size)),
            p,
            size,
            jobs,
            units=ceil(n_adapters / together) * steps,
            examples=2 * min(3, p.pictures_shown) * min(p.pictures_shown, n_classes) + 2,  # 01 draws them for display
            saved=n_adapters,
        )
    if kind == "generate":
        draws = min(FILTER_DRAWS, p.filter_tries) if p.system.keep == "clip" else 1
        units = n_classes * ceil(p.images_per_class / p.generate_batch_size) * draws
        saved = n_classes * p.images_per_class
        row = min(8, p.pictures_shown)  # 02's pictures: guidance, guidance by strength, image to image, and one alone
        examples = 4 * row + 3 * 4 * min(2, row) + 4 * row + 1
        return Task(kind, key, p, size, jobs, units, examples=examples, saved=saved)
    sources = 0 if p.setting == "none" else len(p.setting.split("+"))  # real images, synthetic images or both
    key = (*key, sources, n_classes, size.picture)
    if not sources:
        return Task(kind, key, p, size, jobs, units=0, evaluated=size.n_test, saved=0)
    steps = p.train_epochs * ceil(p.images_per_class * n_classes / p.train_batch_size)
    evaluated = size.n_test + ceil(p.train_epochs / p.val_every) * size.n_val
    if p.protocol == "published":
        evaluated = p.train_epochs * size.n_test
    return Task(kind, key, p, size, jobs, steps, evaluated)


def add_up(tasks, costs, start):
    """A data frame with a row per kind of stage: jobs, units, seconds per unit, hours, memory and disk (bytes).

    costs: ``{task key: UnitCost}``. start: seconds until a notebook has loaded its libraries.
    """
    rows, image_seconds = [], {}  # {(method, n_shot): seconds to draw one image}
    for task in tasks:
        if task.stage == "generate":
            image_seconds[task.params.method, task.params.n_shot] = (
                costs[task.key].seconds / task.params.generate_batch_size
            )
    for stage in ("adapt", "generate", "train"):
        of_stage = [task for task in tasks if task.stage == stage]
        if not of_stage:
            continue
        units = sum(task.units for task in of_stage)
        unit_seconds = sum(task.units * costs[task.key].seconds for task in of_stage)
        other_seconds = sum(_seconds_besides_units(task, costs[task.key], start, image_seconds) for task in of_stage)
        rows.append(
            {
                "stage": stage,
                "jobs": sum(task.jobs for task in of_stage),
                "units": units,
                "seconds": unit_seconds / max(1, units),
                "hours": (unit_seconds + other_seconds) / 3600,
                "memory": max(costs[task.key].memory for task in of_stage),
                "disk": sum(task.saved * costs[task.key].saved + task.jobs * NOTEBOOK_BYTES for task in of_stage),
            }
        )
    return pd.DataFrame(rows)


def _seconds_besides_units(task, cost, start, image_seconds):
    """Seconds to start, to load models, to draw examples, to caption the shots and to evaluate."""
    example_seconds = task.examples * image_seconds.get((task.params.method, task.params.n_shot), 0.0)
    return (
        task.jobs * (start + cost.load + example_seconds)
        + task.params.n_shot * len(task.size.class_names) * cost.per_caption
        + task.evaluated * cost.per_evaluated
    )


def find_shortages(rows, tasks, limits):
    """A sentence for each limit that the study exceeds, with the parameters to lower.

    limits: {"memory": bytes, "disk": bytes, "hours": hours}; None: no limit.
    """
    sentences = []
    largest = {
        stage: max((t for t in tasks if t.stage == stage), key=lambda t: t.units).params for stage in rows["stage"]
    }
    for row in rows.itertuples():
        if limits["memory"] is not None and row.memory > limits["memory"]:
            needs = f"{row.memory / GIB:.1f} GiB of memory, {limits['memory'] / GIB:.1f} are available"
            sentences.append(f"{row.stage} needs {needs}: {advise(row.stage, 'memory', largest[row.stage])}.")
    for resource, unit, size in (("disk", "GiB", GIB), ("hours", "hours", 1)):
        total = rows[resource].sum()
        if limits[resource] is not None and total > limits[resource]:
            stage = rows.loc[rows[resource].idxmax(), "stage"]
            needs = f"{total / size:.1f} {unit}, {limits[resource] / size:.1f} are available; {stage} takes most of it"
            advice = advise(stage, resource, largest[stage])
            sentences.append(f"the study needs {needs}: {advice}, or take fewer seeds, methods or data sets.")
    return sentences


def advise(stage, resource, params):
    """Which parameters to change if a stage needs too much "memory", "hours" or "disk"."""
    return suggest_smaller(params, *LOWER[resource][stage]) or "use a larger device"


def format_table(rows, n_runs):
    """The rows of ``add_up`` and their sums as lines of text."""
    table = pd.DataFrame(
        {
            "stage": rows["stage"],
            "jobs": rows["jobs"],
            "units": [f"{row.units:,} {UNITS[row.stage]}" for row in rows.itertuples()],
            "s/unit": rows["seconds"].map("{:.3f}".format),
            "hours": rows["hours"].map("{:.2f}".format),
            "memory (GiB)": (rows["memory"] / GIB).map("{:.2f}".format),
            "disk (GiB)": (rows["disk"] / GIB).map("{:.2f}".format),
        }
    )
    hours, disk = f"{rows['hours'].sum():.2f}", f"{rows['disk'].sum() / GIB:.2f}"
    table.loc[len(table)] = ["in all", rows["jobs"].sum(), "", "", hours, "", disk]
    return f"runs: {n_runs}; the analysis is one more job\n{table.to_string(index=False)}"


def read_free_room(device, output_root):
    """``(memory, disk)``: free bytes of the device and of the disk that holds ``output_root``."""
    memory = torch.cuda.mem_get_info()[0] if device.startswith("cuda") else psutil.virtual_memory().available
    place = next(path for path in (resolve(output_root), *resolve(output_root).parents) if path.exists())
    return memory, shutil.disk_usage(place).free


def estimate_study(study, device="auto"):
    """``(rows, tasks)`` of a study, measured on this machine; see ``add_up`` for the rows."""
    splits = {name: study.split_files.get(name, study.value("split_file")) for name in study.datasets}
    sizes = {name: read_size(name, study.value("data_root"), split) for name, split in splits.items()}
    tasks = plan_tasks(study, sizes)
    return add_up(tasks, measure_unit_costs(tasks, choose_device(device)), measure_start()), tasks


def main(arguments=None):
    """Run the command; returns the exit status: 1 if the study does not fit, 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m workflow.scripts.estimate", description=__doc__.splitlines()[0])
    parser.add_argument("study", help="a study file, params/studies/<name>.yaml")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of the device (default: what is free here)")
    parser.add_argument("--disk", type=float, metavar="GIB", help="room for the runs (default: what is free here)")
    parser.add_argument("--hours", type=float, metavar="H", help="hours of one device (default: no limit)")
    options = parser.parse_args(arguments)
    try:
        study = read_study(options.study)
        device = choose_device(study.value("device"))
        memory, disk = read_free_room(device, study.value("output_root"))
        rows, tasks = estimate_study(study, device)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    limits = {
        "memory": memory if options.memory is None else options.memory * GIB,
        "disk": disk if options.disk is None else options.disk * GIB,
        "hours": options.hours,
    }
    print(format_table(rows, len(study.runs())))
    if any(task.stage == "generate" and task.params.system.keep == "clip" for task in tasks):
        print(f"Images that CLIP filters are counted with {FILTER_DRAWS} draws each; filter_tries allows more.")
    shortages = find_shortages(rows, tasks, limits)
    print("\n".join(shortages) or "It fits.")
    return 1 if shortages else 0


if __name__ == "__main__":
    sys.exit(main())
