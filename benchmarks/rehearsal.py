"""The paper's notebooks at full size before any weight is downloaded: ``make rehearsal``.

Models of the published sizes with random weights (SD 2.1-base, CLIP ViT-B/16, a filter with the widths of ViT-H) and a
few drawn photographs go through 01, 02, 03, 04 and 06 with ``params/paper.yaml``, cut down to a few steps by
``rehearsal.yaml``. It ends with a table of seconds and memory for each stage, in ``results/rehearsal.json`` and in
``docs/howto/reproduce-paper.md``. Images and accuracies mean nothing.

    python -m benchmarks.rehearsal                    # a GPU in fp16; a CPU in bf16, with smaller batches
    python -m benchmarks.rehearsal --precision no     # float32
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from diffusers import PNDMScheduler
from PIL import Image, ImageDraw

from benchmarks.worlds import SIZES as PUBLISHED
from benchmarks.worlds import write_clip, write_stable_diffusion
from datadream_utils.diffusion.generate import passes_per_image
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write, read_json, write_json
from datadream_utils.params import NOTEBOOKS, ROOT, parameter_names, read_params_file, resolve
from datadream_utils.runs.device import DTYPES, choose_device, device_name, weight_dtype
from datadream_utils.runs.stage import Stage, git_commit
from workflow.scripts.estimate import plan_task, read_size
from workflow.scripts.reference import fill_marks
from workflow.scripts.study import read_study

METHODS = ("real", "issynth", "disef", "datadream_cls", "datadream_dset", "loft")
CLASSES = ("tabby cat", "fire truck", "tree frog", "sea shore")
PHOTOS = ((500, 375), (333, 500), (640, 480), (224, 224), (1024, 768))  # (width, height) of a folder's photographs
VOCABULARY = 49408  # tokens of CLIP's own tokenizer
SIZES = PUBLISHED | {
    "filter": {  # a ViT-H/14 in all but depth
        "clip_text": dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=16),
        "clip_vision": dict(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=2,
            num_attention_heads=16,
            patch_size=14,
            image_size=224,
        ),
    }
}
# On a CPU batches are smaller than published, and the seconds of the paper's study are in proportion.
SMALL = dict(classes=2, n_shot=2, n_test=4, generate_batch_size=1, train_batch_size=4, eval_batch_size=8)
LARGE = dict(classes=4, n_shot=16, n_test=16, images_per_class=20)
STUDY = ROOT / "params" / "studies" / "paper.yaml"
PAGE = ROOT / "docs" / "howto" / "reproduce-paper.md"
RESULT = ROOT / "benchmarks" / "results" / "rehearsal.json"
COUNTED = re.compile(r"(\d+)/\1 +([\d.]+) s")  # the last state of a line of progress


def write_models(folder, sizes):
    """Write the three models in the hub's layout, in single precision, unless they are there; their parameters."""
    places = {name: folder / name for name in ("sd_model", "clip_model", "filter_model")}
    writers = {
        "sd_model": lambda place: write_stable_diffusion(place, sizes, VOCABULARY, torch.float32),
        "clip_model": lambda place: write_clip(place, sizes, VOCABULARY),
        "filter_model": lambda place: write_clip(place, sizes["filter"], VOCABULARY),
    }
    for name, place in places.items():
        if not place.exists():
            with atomic_write(place) as temporary:
                writers[name](temporary)
    return {name: str(place) for name, place in places.items()}


def write_photos(folder, classes, n_train, n_test):
    """A folder data set of drawn photographs: soft light, a shape with the colour of its class, JPEG, several sizes."""
    rng = np.random.default_rng(0)
    with atomic_write(folder) as temporary:
        for split, count in {"train": n_train, "test": n_test}.items():
            for label, name in enumerate(CLASSES[:classes]):
                (temporary / split / name).mkdir(parents=True)
                for i in range(count):
                    photo = _draw_photo(rng, PHOTOS[i % len(PHOTOS)], label)
                    photo.save(temporary / split / name / f"{i:03d}.jpg", quality=90)


def _draw_photo(rng, size, label):
    light = Image.fromarray(rng.integers(40, 216, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    colour = tuple(int(value) for value in 90 + 160 * np.eye(3)[label % 3])
    (left, top), (width, height) = rng.uniform(0.05, 0.4, 2) * size, rng.uniform(0.3, 0.5, 2) * size
    ImageDraw.Draw(light).ellipse((left, top, left + width, top + height), fill=colour)
    return light


def plan(output, precision, device):
    """Write models, pictures, parameter files and study under ``output``; returns the study file's path."""
    size, folder = SMALL if device == "cpu" else LARGE, output / precision
    cut = read_params_file(ROOT / "benchmarks" / "rehearsal.yaml") | write_models(output / "models", SIZES)
    cut |= {"mixed_precision": precision, "output_root": str(folder), "figures_dir": str(folder / "figures")}
    cut |= {"num_threads": os.cpu_count()} if device == "cpu" else {}
    cut |= {name: value for name, value in size.items() if name in parameter_names()}
    photos = output / f"photos-{size['classes']}x{size['n_shot']}"
    if not photos.exists():
        write_photos(photos, size["classes"], size["n_shot"], size["n_test"])
    resnet = read_params_file(ROOT / "params" / "resnet50.yaml")
    resnet |= {name: cut[name] for name in ("train_epochs", "train_warmup_epochs")}
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in {"parameters": cut, "resnet": resnet}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    study = {
        "parameters": ["params/paper.yaml", str(folder / "parameters.yaml")],
        "datasets": [str(photos)],
        "methods": list(METHODS),
        "n_shots": [size["n_shot"]],
        "seeds": [0],
        "settings": ["R", "R+S"],
        "resnet": {"parameters": str(folder / "resnet.yaml"), "settings": ["R"]},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return folder / "study.yaml"


def run_study(path):
    """Run the study, one job at a time; what fails stops only what needs it. Returns whether everything ran."""
    snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "workflow" / "Snakefile")]
    quiet = ["--quiet", "host", "reason", "--logger", "rich", "--show-failed-logs"]
    options = ["--cores", "1", "--keep-going", "--nolock", "--rerun-incomplete", "--configfile", str(path)]
    return subprocess.run([*snakemake, *quiet, *options], check=False, cwd=ROOT).returncode == 0


def read_stages(study):
    """A row per stage of the study: its units, seconds, memory and, where it failed, the error's sentence."""
    rows = []
    for run in study.runs().values():
        size = read_size(run.dataset)
        for name in study.stages(run):
            p, kind = study.params(run, name), name.partition("-")[0]
            stage = Stage(name, p.run_folder / name)
            executed = p.run_folder / f"{NOTEBOOKS[kind]}{name.removeprefix(kind)}.ipynb"
            row = {"method": run.method, "stage": name, "images": unit_images(p, size)}
            if not stage.finished:
                rows.append(row | {"error": _error(executed)})
                continue
            manifest, (units, seconds) = stage.manifest(), _units(executed)
            memory = manifest.get("peak_gpu_memory_mb", manifest["peak_memory_mb"]) / 1e3
            row |= {"units": units, "unit_seconds": seconds / units} if units else {}  # none: done before it was killed
            row |= {"memory_gb": memory}
            row |= {"threads": manifest["machine"]["num_threads"] or 1}  # 0: what Snakemake gives a job, one core
            rows.append(row | {"passes": manifest.get("passes_per_image", 1)})
    for stage in ("analysis", "beyond"):
        if error := _error(resolve(study.value("output_root")) / f"{NOTEBOOKS[stage]}.ipynb", None):
            rows.append({"method": "all", "stage": stage, "images": "", "error": error})
    return rows


def unit_images(p, size):
    """Images in a unit of progress: a training step, a batch of images, or a step of adaptation of one adapter."""
    if p.stage == "adapt":
        n_shots = {"class": p.n_shot, "dataset": p.n_shot * len(size.class_names), "image": 1}
        return min(p.adapt_batch_size, n_shots[p.system.adapter])
    if p.stage == "generate":
        return min(p.generate_batch_size, p.images_per_class)
    kinds = len(p.setting.split("+"))
    return kinds * min(p.train_batch_size, p.images_per_class * len(size.class_names))


def scale_up(rows, study, scheduler):
    """Hours of the units of a study from the rehearsal's rows: ``{stage: (units, hours)}``; ``scheduler``: the model's.

    Units are those of ``workflow.scripts.estimate``. One takes as long as its images do, and in generation as its
    passes of the U-Net. Methods that were not rehearsed are left out.
    """
    measured = {(row["method"], row["stage"]): row for row in rows if "units" in row}
    sizes, hours = {name: read_size(name) for name in study.datasets}, {}
    for run in study.runs().values():
        for name in study.stages(run):
            task, row = plan_task(study, run, name, sizes[run.dataset]), measured.get((run.method, name))
            if row is None:
                continue
            images, passes, p = unit_images(task.params, task.size), 1, task.params
            if task.stage == "adapt" and p.system.adapter != "dataset":
                images *= p.adapters_together  # the estimate's unit is a step of all of them
            if task.stage == "generate":
                passes = passes_per_image(SimpleNamespace(scheduler=scheduler), p)
            seconds = row["unit_seconds"] * images / row["images"] * passes / row["passes"]
            units, so_far = hours.get(task.stage, (0, 0.0))
            hours[task.stage] = units + task.units, so_far + task.units * seconds / 3600
    return hours


def _units(executed):
    """``(units, seconds)`` of the line of progress that took longest in an executed notebook: that of its stage."""
    return max(_progress(executed), key=lambda line: line[1])


def _progress(executed):
    for output in _outputs(executed):
        text = "".join(output.get("data", {}).get("text/plain", ""))
        yield from ((int(n), float(seconds)) for n, seconds in COUNTED.findall(text))


def _error(executed, other="not run: a stage before it failed"):
    """The error in an executed notebook, one line; without one ``other``."""
    errors = [f"{o['ename']}: {o['evalue']}" for o in _outputs(executed) if o["output_type"] == "error"]
    return errors[0].splitlines()[0] if errors else other


def _outputs(executed):
    cells = read_json(executed, "run the rehearsal again")["cells"] if executed.exists() else []
    return [output for cell in cells for output in cell.get("outputs", ())]


def table(result):
    """Markdown of one rehearsal: its stages, the errors, and the hours of the paper's main table."""
    lines = [
        f"On {result['device']}, {result['cores']} cores (load of the last 15 minutes: {result['load']:.1f}), "
        f"{result['precision']}, commit {result['git'][:7]}, {result['date']}:",
        "",
        "| stage | method | threads | images in a unit | seconds a unit | peak memory, GB |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        cells = [row["stage"], row["method"], str(row.get("threads", "")), str(row["images"])]
        if "error" in row:
            lines.append(f"| {' | '.join(cells)} | **failed** | {row['error']} |")
        else:
            seconds = f"{row['unit_seconds']:.2f}" if "units" in row else "killed and continued"
            lines.append(f"| {' | '.join(cells)} | {seconds} | {row['memory_gb']:.1f} |")
    if result["hours"]:
        hours = "; ".join(f"{stage} {h:,.0f} hours ({n:,} units)" for stage, (n, h) in result["hours"].items())
        lines += ["", f"What was rehearsed of the paper's main table, at this speed, on one such device: {hours}."]
    failed = next((row for row in result["rows"] if "error" in row), None)
    last = "Every notebook ran to its end."
    if failed:
        last = f"First failure: {failed['stage']} of {failed['method']}: {failed['error']}."
    return [*lines, "", last]


def write_page(results):
    """Put the tables of all rehearsals between the marks of ``PAGE``."""
    lines = [line for result in results.values() for line in [*table(result), ""]]
    fill_marks(PAGE, {"rehearsal": "\n".join(lines)})


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=DTYPES, help="default: fp16 on a GPU, bf16 on a CPU")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "rehearsal")
    options = parser.parse_args(arguments)
    device = choose_device("auto")
    precision = options.precision or ("bf16" if device == "cpu" else "fp16")
    try:
        weight_dtype(precision, device)
        study_file = plan(options.output.resolve(), precision, device)
        ran = run_study(study_file)
        rows = read_stages(read_study(study_file))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    models = options.output.resolve() / "models"
    scheduler = PNDMScheduler.from_pretrained(models / "sd_model", subfolder="scheduler")
    result = {
        "device": device_name(device),
        "precision": precision,
        "date": time.strftime("%Y-%m-%d"),
        "git": git_commit() or "unknown",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[2],
        "rows": rows,
        "hours": scale_up(rows, read_study(STUDY), scheduler),
    }
    results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    write_json(RESULT, results | {f"{result['device']}, {precision}": result})
    write_page(results | {f"{result['device']}, {precision}": result})
    print("\n".join(table(result)))
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
