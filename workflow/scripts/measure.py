"""Measure what one unit of each stage costs: the stages' own functions do a few steps on pictures of noise."""

import gc
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from datadream_utils.backbones.load import load_stable_diffusion
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.evaluate import predict
from datadream_utils.classifier.pictures import make_sets
from datadream_utils.classifier.train import compile_pays as compile_pays_to_train
from datadream_utils.classifier.train import train_classifier
from datadream_utils.data.dataset import Dataset
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.generate import compile_pays, generate, make_recipe
from datadream_utils.runs.device import advise_on_memory, peak_memory, set_threads, weight_dtype
from datadream_utils.runs.run import Run
from datadream_utils.runs.stage import Stage

# The parameters that decide the memory of a stage; the first one helps most.
DECIDE_MEMORY = {
    "adapt": ("adapters_together", "adapt_batch_size", "gradient_checkpointing"),
    "generate": ("generate_batch_size",),
    "train": ("train_batch_size", "eval_batch_size", "gradient_checkpointing"),
}
STEPS = 4  # the first one is not timed: libraries warm up in it
clock = time.perf_counter


@dataclass(frozen=True)
class DataSize:
    """What decides the cost of a data set: classes, numbers of val and test pictures, a picture's (width, height)."""

    class_names: tuple[str, ...]
    n_val: int
    n_test: int
    picture: tuple[int, int]


@dataclass(frozen=True)
class UnitCost:
    """What one unit (a step or a batch) of a stage costs.

    seconds: of a unit. load: seconds to load the models, and to compile them for ``generate``. memory: peak bytes of
    the GPU, or else of the process. saved: bytes of an adapter, an image or a classifier. per_evaluated, per_caption:
    seconds to classify or caption a picture.
    """

    seconds: float
    load: float
    memory: float
    saved: float = 0.0
    per_evaluated: float = 0.0
    per_caption: float = 0.0


def measure_unit_costs(tasks, device):
    """``{task.key: UnitCost}``; tasks with the same key are measured once, in the order of the stages.

    InputError, with the parameters to change, if a stage does not fit into memory here.
    """
    costs = {}
    with TemporaryDirectory() as folder:
        meter = Meter(Path(folder), device)
        for stage in ("adapt", "generate", "train"):  # generation draws with the adapters of adaptation
            for key, task in {task.key: task for task in tasks if task.stage == stage}.items():
                print(
                    f"measuring {stage}: {task.params.method} {dict(task.params).get('setting', '')} ...",
                    file=sys.stderr,
                )
                with advise_on_memory(task.params, *DECIDE_MEMORY[stage]):
                    costs[key] = getattr(meter, stage)(task.params, task.size)
    return costs


class Meter:
    """Measures stages on ``device`` in a temporary ``folder``; keeps Stable Diffusion loaded for the next task."""

    def __init__(self, folder, device):
        self.folder, self.device = folder, device
        self.kept = (None, None, 0.0)  # which pipeline is loaded, the pipeline, the seconds that loading took
        self.adapters = {}  # {method: an adapter's folder}, to generate with
        self.n_runs = 0

    def adapt(self, params, size):
        """The ``UnitCost`` of a step of a full group of adapters; of several steps where the group does not fit."""
        pipe, load = self._load_pipeline(params)
        n_adapters = 1 if params.system.adapter == "dataset" else params.adapters_together
        n_classes = max(n_adapters, ceil(STEPS * params.adapt_batch_size / params.n_shot))
        run, ticks = self._make_run(params, size, params.n_shot, min(n_classes, len(size.class_names)))
        n_shots = STEPS * params.adapt_batch_size  # of an adapter: an epoch of at most STEPS steps
        group = [
            replace(adapter, paths=adapter.paths[:n_shots], prompts=adapter.prompts[:n_shots])
            for adapter in plan_adapters(run)[:n_adapters]
        ]
        epochs = ceil(STEPS / ceil(len(group[0].paths) / params.adapt_batch_size))
        run.params = params.model_copy(update={"adapt_epochs": epochs, "checkpoint_every": 0})
        self._reset_peak()
        adapt(pipe, group, run)
        folder = run.folder / "adapters" / group[0].name
        self.adapters[params.method] = folder
        seconds = _mean_difference(ticks[:STEPS]) * len(group) / ticks[0][1]  # the group may have been halved
        return UnitCost(seconds, load, self._read_peak(), saved=_count_bytes(folder))

    def generate(self, params, size):
        """The ``UnitCost`` of a batch of images: two are drawn, of two classes, and the second is timed."""
        pipe, load = self._load_pipeline(params)
        pays = compile_pays(pipe, params, len(size.class_names))
        few = params.model_copy(update={"images_per_class": params.generate_batch_size, "filter_tries": 1})
        run, ticks = self._make_run(few, size, params.n_shot, 2)
        if params.system.adapts:
            run.source = Stage("adapt", self.folder / f"adapters of {params.method}")
            for adapter in plan_adapters(run):  # copies of the adapter that was measured
                place = run.source.folder / "adapters" / adapter.name
                shutil.copytree(self.adapters[params.method], place, dirs_exist_ok=True)
        self._reset_peak()
        began = clock()
        recipe = make_recipe(run)
        n_captions = len(recipe.captions or ())
        per_caption = _mean_difference(ticks) if n_captions else 0.0
        load += clock() - began - n_captions * per_caption
        ticks.clear()
        began = clock()
        generate(pipe, recipe, run, pays)
        saved = _count_bytes(run.folder / "images", "*.png") / (2 * params.generate_batch_size)
        seconds = _mean_difference(ticks)
        load += max(0.0, ticks[0][0] - began - seconds)
        return UnitCost(seconds, load, self._read_peak(), saved, per_caption=per_caption)

    def train(self, params, size):
        """The ``UnitCost`` of a training step, and of an evaluated picture by two batches."""
        self.kept = (None, None, 0.0)
        n_classes = len(size.class_names)
        pays = compile_pays_to_train(self.device, params, n_classes)
        images = ceil(STEPS * params.train_batch_size / n_classes)
        params = params.model_copy(update={"images_per_class": images, "synthetic_per_class": 0})
        run, ticks = self._make_run(params, size, 1, n_classes)
        began = clock()
        classifier = make_classifier(run)
        load = clock() - began
        sets = make_sets(params, run.shots, [shots * images for shots in run.shots], classifier.image_size)
        seconds, saved = 0.0, 0.0
        self._reset_peak()
        if sets:
            with run.progress(STEPS, "") as advance:
                for _ in zip(range(STEPS), train_classifier(classifier, sets, params, pays=pays), strict=False):
                    advance()
            classifier.save(run.folder / "classifier")
            seconds, saved = _mean_difference(ticks), _count_bytes(run.folder / "classifier")
        pictures = self._link_pictures(size, "test", 2 * params.eval_batch_size)
        began = clock()
        predict(classifier, [pictures], params)
        return UnitCost(seconds, load, self._read_peak(), saved, (clock() - began) / len(pictures))

    def _load_pipeline(self, params):
        """``(pipeline, seconds to load it)``."""
        set_threads(params.num_threads)
        dtype = weight_dtype(params.mixed_precision, self.device)
        key = (params.sd_model, params.sd_revision, dtype)
        if self.kept[0] != key:
            self.kept = (None, None, 0.0)
            gc.collect()
            began = clock()
            self.kept = (
                key,
                load_stable_diffusion(params.sd_model, params.sd_revision, self.device, dtype),
                clock() - began,
            )
        return self.kept[1:]

    def _make_run(self, params, size, n_shot, n_classes):
        """``(run, ticks)`` on pictures of noise; the run appends to the list ``ticks``, see ``_note_times``."""
        self.n_runs += 1
        names = (*size.class_names, "another thing")[:n_classes]
        shots = [self._link_pictures(size, str(label), n_shot) for label in range(len(names))]
        data = Dataset("noise", self.folder, names, names, {"train": shots, "test": shots})
        stage, ticks = Stage(params.stage, self.folder / str(self.n_runs) / params.stage), []
        set_threads(params.num_threads)
        return Run(params, stage, data, shots, self.device, progress=_note_times(ticks)), ticks

    def _link_pictures(self, size, name, count):
        """The paths of ``count`` pictures in the folder ``name``: links to one picture of noise."""
        noise = self.folder / "noise{}x{}.png".format(*size.picture)
        if not noise.exists():
            pixels = np.random.default_rng(0).integers(0, 256, (*size.picture[::-1], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(noise)
        folder = self.folder / noise.stem / name
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{i}.png" for i in range(count)]
        for path in (path for path in paths if not path.exists()):
            path.symlink_to(noise)
        return paths

    def _reset_peak(self):
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()  # what the stage before it has reserved
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):  # only Linux has this; elsewhere the peak is that of the process so far
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def _read_peak(self):
        """Peak bytes that torch has reserved on the GPU, or else of the process."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_reserved()
        return peak_memory(self.device)["peak_memory_mb"] * 1e6


def measure_start():
    """Seconds until papermill has started and a kernel has loaded the libraries of a stage."""
    began = clock()
    kernel = "ipykernel.kernelapp, datadream_utils.classifier.train, datadream_utils.plots.style"
    for modules in ("papermill.cli", kernel):
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return clock() - began


def _note_times(ticks):
    """A progress for a ``Run`` that appends ``(time, what it counts)`` of each step to ``ticks``; undone steps go."""

    @contextmanager
    def progress(total, label):
        def advance(n=1):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if n > 0:
                ticks.append((clock(), n))
            elif n:
                ticks.clear()

        yield advance

    return progress


def _mean_difference(ticks):
    """Mean seconds between successive ticks."""
    return (ticks[-1][0] - ticks[0][0]) / (len(ticks) - 1)


def _count_bytes(folder, pattern="*"):
    return sum(path.stat().st_size for path in Path(folder).rglob(pattern) if path.is_file())
