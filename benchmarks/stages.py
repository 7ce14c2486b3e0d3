"""Each stage by the authors' procedure and by the package, in turn on one machine: python -m benchmarks.stages

Writes ``benchmarks/results/<world>.json`` and its table into ``benchmarks/README.md``. A side is one process after
another as its procedure asks for; what is compared is the time from the first one's start to the last file on disk.
Sides whose results are further apart than rounding explains are not compared: that is an error.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import yaml
from PIL import Image

from benchmarks.tables import STAGES, write_readme
from benchmarks.worlds import WORLDS, prepare, write_pictures
from datadream_utils.data.dataset import load_dataset
from datadream_utils.diffusion.lora import WEIGHTS, read_lora
from datadream_utils.files import write_json
from datadream_utils.params import ROOT, make_params, parameter_names
from datadream_utils.runs.device import choose_device, device_name
from datadream_utils.runs.run import PACKAGES
from datadream_utils.runs.stage import cpu_name, git_commit

SIDES = ("reference", "ours")
# Largest distance between the sides' results: of an adapter's change of weights; mean levels of 255; share of
# predictions. Half precision and cuDNN's TF32 round other batches otherwise.
BOUNDS = {"adapt_cls": 1e-2, "adapt_dset": 1e-2, "generate": 0.5, "evaluate": 1e-3}
MANY = (100, 1000)  # classes, of the rows that "train" and "evaluate" have beside the world's own
# Of ``--classes``: as many test pictures as the tiny world has, and a few epochs, which all take the same time.
TEST_PICTURES, TRAIN_PICTURES, TRAIN_EPOCHS = 3500, 1000, 3
SIDE = {"tiny": 32, "full": 256}  # of these pictures, in pixels
MADE = {"adapt": WEIGHTS, "generate": "*.png", "train": "adapter_model.safetensors", "evaluate": "predictions.json"}
READS = {"adapters": "adapt_cls/adapters", "images": "generate/images", "classifier": "train/classifier"}


def start(job, folder):
    """Run ``job`` in a process of its own; ``(the worker's seconds by part, seconds, processor seconds)``."""
    write_json(folder / "job.json", job)
    cpu = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # noqa: E731
    wall, before = perf_counter(), cpu()
    command = [sys.executable, "-m", "benchmarks.worker", str(folder / "job.json")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), perf_counter() - wall, cpu() - before


def run_side(stage, side, folder, changes, reads):
    """Run one side of a stage; ``{"total", "load", "work", and each with " cpu"}``: seconds. Writes under ``folder``.

    reads: the paths of what earlier stages made.
    """
    jobs = [{"stage": stage, "side": side, "folder": str(folder), "changes": changes} | reads]
    if (stage, side) == ("adapt_cls", "reference"):  # a process for every class
        p = make_params("adapt", changes)
        n_classes = len(load_dataset(p.dataset, p.data_root, p.split_file).class_names)
        jobs = [jobs[0] | {"part": label} for label in range(n_classes)]
    seconds = {}
    for job in jobs:
        parts, wall, cpu = start(job, folder)
        for part, value in (parts | {"total": wall, "total cpu": cpu}).items():
            seconds[part] = seconds.get(part, 0.0) + value
    return seconds


def measure(stages, folder, changes, repeats, limits=True, others=None, images=None):
    """``{stage: {"reference": [seconds, ...], "ours": [...], "difference": text, "limits": ...}}``.

    The sides take turns in going first. What a stage reads is made once by the package, untimed. others: changes of
    the measured stages alone; images: what "train" reads instead.
    """
    made, measured = folder / "made", {}
    reads = {name: str(made / path) for name, path in READS.items()} | ({"images": str(images)} if images else {})
    last = 0 if images else max(STAGES.index(stage) for stage in stages)
    for stage in ("adapt_cls", "generate", "train"):
        if STAGES.index(stage) < last and not (made / stage).exists():
            run_side(stage, "ours", made / stage, changes, reads)
    changes = changes | (others or {})
    for stage in stages:
        measured[stage] = {side: [] for side in SIDES} | {"machine": machine(make_params("train", changes))}
        distances = []
        for repeat in range(repeats):
            for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
                seconds = run_side(stage, side, folder / stage / f"{side}{repeat}", changes, reads)
                measured[stage][side].append(seconds)
                print(
                    f"{stage:10s} {side:9s} {seconds['total']:8.1f} s, processor {seconds['total cpu']:.1f} s",
                    flush=True,
                )
            distances.append(difference(stage, *(folder / stage / f"{side}{repeat}" for side in SIDES)))
        measured[stage]["difference"] = max(distances)[1]
        if limits:
            job = {"stage": stage, "side": "ours", "folder": str(folder / stage / "limits"), "changes": changes}
            measured[stage]["limits"] = start(job | reads | {"inspect": True}, folder / stage / "limits")[0]
    return measured


def difference(stage, theirs, ours):
    """The distance between the results of the two sides, ``(as a number, in words)``.

    ValueError when a file is on one side only, or the results are further apart than ``BOUNDS``. What "train" makes
    cannot be equal, since pictures are augmented by other code.
    """
    files = [_results(stage, side) for side in (theirs, ours)]
    if files[0] != files[1] or not files[0]:
        raise ValueError(f"{stage}: {len(files[0])} files by the reference, {len(files[1])} by the package")
    if stage == "train":
        return 0.0, "augmentation by other code, other draws of dropout; the same without both (tests)"
    if stage.startswith("adapt"):
        distance = max(adapter_distance((theirs / file).parent, (ours / file).parent) for file in files[0])
        words = f"largest relative distance of an adapter's B A: {distance:.1e}"
    elif stage == "generate":
        levels = [np.abs(_pixels(theirs / file) - _pixels(ours / file)) for file in files[0]]
        distance, largest = np.mean([x.mean() for x in levels]), max(x.max() for x in levels)
        words = f"pixels: mean difference {distance:.4f}, largest {largest} of 255"
    else:
        labels = [
            np.array(json.loads((side / "predictions.json").read_text(encoding="utf-8"))) for side in (theirs, ours)
        ]
        distance = (labels[0] != labels[1]).mean()
        words = f"{(labels[0] != labels[1]).sum()} of {len(labels[0])} predictions differ"
    if distance > BOUNDS[stage]:
        raise ValueError(f"{stage}: the two procedures do not come to the same: {words}")
    return float(distance), words


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


def _results(stage, side):
    return sorted(file.relative_to(side) for file in side.rglob(MADE[stage.split("_")[0]]))


def adapter_distance(theirs, ours):
    """|| B A - B' A' || / || B A || over all layers of two adapters' folders: 0 for the same change of weights."""
    theirs, ours = read_lora(theirs), read_lora(ours)
    if theirs.keys() != ours.keys():
        raise ValueError(f"adapters of other layers: {sorted(map(str, theirs.keys() ^ ours.keys()))[:3]}")
    distance, size = 0.0, 0.0
    for layer in theirs:
        first, second = (up.double() * scale @ down.double() for down, up, scale in (theirs[layer], ours[layer]))
        distance, size = distance + (first - second).square().sum(), size + first.square().sum()
    return float((distance / size).sqrt())


def machine(p):
    """What the numbers were measured on."""
    return {
        "device": device_name(choose_device(p.device)),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": p.num_threads or os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": git_commit(),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="tiny")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--classes", nargs="+", type=int, default=[], help="only rows of noise of N classes")
    parser.add_argument("--no-limits", dest="limits", action="store_false", help="leave out FLOPs and profile")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other parameters than the world's")
    options = parser.parse_args(arguments)
    own = read_own(options.set, parser)
    if options.classes and not {*options.stages} <= {"train", "evaluate"}:
        parser.error("--classes goes with --stages train evaluate: the others do the same for every class")
    if options.world == "full" and choose_device(own.get("device", "auto")) == "cpu":
        parser.error("--world full needs a GPU: its stages would take days on a CPU")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        changes = prepare(options.world, folder) | own
        for stage in options.stages:
            many = MANY if stage in ("train", "evaluate") and not own else ()
            for classes in options.classes or [None, *many]:
                others = noise(folder, classes, SIDE[options.world]) if classes else {}
                images = Path(others["dataset"]) / "train" if classes and stage == "train" else None
                limits = options.limits and not classes
                (sides,) = measure([stage], folder, changes, options.repeats, limits, others, images).values()
                named = own | ({"classes": classes} if classes else {})
                shutil.rmtree(folder / stage)
                write(options.world, stage, sides | {"repeats": options.repeats, "set": named})


def read_own(pairs, parser):
    """The parameters of ``--set``; the parser's error for one that is unknown or would not be in force."""
    own = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or name not in parameter_names() or name == "method":
            parser.error(f"--set {pair}: NAME=VALUE, a parameter's name (not method, which the stage decides)")
        own[name] = yaml.safe_load(value)
    return own


def noise(folder, classes, side):
    """Changes for a data set of noise, written here: ``TEST_PICTURES`` and ``TRAIN_PICTURES``, or one of each class.

    side: of a picture, in pixels.
    """
    place, train, test = folder / f"classes{classes}", -(-TRAIN_PICTURES // classes), -(-TEST_PICTURES // classes)
    if not place.exists():
        write_pictures(place, classes, train, test, side)
    few = {"n_shot": 1, "images_per_class": train, "train_epochs": TRAIN_EPOCHS}
    return few | {"dataset": str(place)}


def write(world, stage, sides):
    """Put a stage's result among those of its world, a row for each ``--set``, and every table into the README."""
    path = ROOT / "benchmarks" / "results" / f"{world}.json"
    row = " ".join([stage, *(f"{name}={value}" for name, value in sides["set"].items())])
    result = (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}) | {row: sides}
    write_json(path, dict(sorted(result.items(), key=lambda pair: STAGES.index(pair[0].split()[0]))))
    write_readme()


if __name__ == "__main__":
    main()
