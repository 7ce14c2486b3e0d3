"""Measure what one unit of each stage costs: a few steps on pictures of noise, by the stages' own functions."""

import gc
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from datadream_utils.backbones.clip import ClipClassifier
from datadream_utils.backbones.load import load_clip, load_stable_diffusion, weight_dtype
from datadream_utils.classifier.train import (
    clip_image_size,
    evaluation_pictures,
    fit,
    make_classifier,
    predict,
    training_pictures,
)
from datadream_utils.data.dataset import Dataset
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.captions import read_captions
from datadream_utils.diffusion.generate import Recipe, generate, load_judge
from datadream_utils.errors import InputError
from datadream_utils.runs.device import begun_again, is_full, peak_memory
from datadream_utils.runs.stage import Stage, set_threads

STEPS = 4  # the first is not counted: it is slower, because libraries warm up in it
clock = time.perf_counter


@dataclass(frozen=True)
class DataSize:
    """What decides the cost of a data set: its classes, pictures in val and test, and (width, height) of a picture."""

    class_names: tuple[str, ...]
    n_val: int
    n_test: int
    picture: tuple[int, int]


@dataclass(frozen=True)
class UnitCost:
    """What one unit (a step or a batch) of a stage costs.

    seconds: of a unit. load: seconds to load the models. memory: peak bytes of the GPU, or else of the process. saved:
    bytes of an adapter, an image or a classifier. per_evaluated, per_caption: seconds for a picture.
    """

    seconds: float
    load: float
    memory: float
    saved: float = 0.0
    per_evaluated: float = 0.0
    per_caption: float = 0.0


def measure_unit_costs(tasks, device, advise):
    """``{task.key: UnitCost}``; tasks with the same key are measured once, in the order of the stages.

    advise: what to say about a task that does not fit into memory. InputError with this advice.
    """
    costs = {}
    with TemporaryDirectory() as folder:
        meter = Meter(Path(folder), device)
        for stage in ("adapt", "generate", "train"):  # generation draws with the adapters of adaptation
            for key, task in {task.key: task for task in tasks if task.stage == stage}.items():
                print(f"measuring {stage}: {task.p.method} {dict(task.p).get('setting', '')} ...", file=sys.stderr)
                try:
                    costs[key] = getattr(meter, stage)(task.p, task.size)
                except (MemoryError, RuntimeError) as error:
                    if not is_full(error):
                        raise
                    raise InputError(f"{stage} does not fit into memory: {advise(task)}.") from None
    return costs


class Meter:
    """Measures stages on ``device`` in a temporary ``folder``; keeps the loaded model for a next task with the same."""

    def __init__(self, folder, device):
        self.folder, self.device = folder, device
        self.kept = (None, None, 0.0)  # what was loaded, the models, the seconds that loading took
        self.adapters = {}  # {method: an adapter's folder}, to generate with
        self.n_stages = 0

    def adapt(self, p, size):
        """Steps of a full group of adapters."""
        pipe, load = self._load_stable_diffusion(p)
        n_adapters = 1 if p.system.adapter == "dataset" else p.adapters_together
        n_classes = max(n_adapters, ceil(STEPS * p.adapt_batch_size / p.n_shot))
        data, shots = self._make_data(size, p.n_shot, min(n_classes, len(size.class_names)))
        n_shots = STEPS * p.adapt_batch_size  # of an adapter: an epoch of at most STEPS steps
        group = [
            replace(adapter, paths=adapter.paths[:n_shots], prompts=adapter.prompts[:n_shots])
            for adapter in plan_adapters(p.system, data, shots)[:n_adapters]
        ]
        epochs = ceil(STEPS / ceil(len(group[0].paths) / p.adapt_batch_size))
        stage, ticks = self._make_stage(), []
        self._reset_peak()
        adapt(pipe, group, _change(p, adapt_epochs=epochs, checkpoint_every=0), stage, _note_times(ticks))
        folder = next((stage.folder / "adapters").iterdir())
        self.adapters[p.method] = folder
        return UnitCost(_mean_difference(ticks[:STEPS]), load, self._read_peak(), saved=_count_bytes(folder))

    def generate(self, p, size):
        """Two batches of images, of two classes; the second is counted."""
        pipe, load = self._load_stable_diffusion(p)
        data, shots = self._make_data(size, p.n_shot, 2)
        adapted = self._copy_adapters(p, data, shots) if p.system.adapts else None
        stage, began = self._make_stage(), clock()
        captions = read_captions(p.system, data, shots, p, stage, self.device)
        per_caption = (clock() - began) / sum(map(len, shots)) if captions else 0.0
        recipe = Recipe(p.system, data, shots, p.seed, captions)
        judge = load_judge(p, data, self.device) if p.system.keep == "clip" else None
        few, ticks = _change(p, images_per_class=p.generate_batch_size, filter_tries=1, shard=""), []
        self._reset_peak()
        generate(pipe, recipe, few, stage, adapted, judge, _note_times(ticks))
        saved = _count_bytes(stage.folder, "*.png") / (2 * p.generate_batch_size)
        return UnitCost(_mean_difference(ticks), load, self._read_peak(), saved, per_caption=per_caption)

    def train(self, p, size):
        """Steps of training, and an evaluation of two batches."""
        (clip, tokenizer, processor), load = self._load_clip(p)
        n_classes, side = len(size.class_names), clip_image_size(clip)
        data, shots = self._make_data(size, 1, n_classes)
        p = _change(p, images_per_class=ceil(STEPS * p.train_batch_size / n_classes))
        picture = shots[0][0]
        labels = torch.arange(n_classes).repeat(p.images_per_class)
        sources = [source for source, letter in (("real", "R"), ("synthetic", "S")) if letter in p.setting]
        sets = {source: (training_pictures([picture] * len(labels), side), labels) for source in sources}
        seconds, saved = 0.0, 0.0
        self._reset_peak()
        if sets:
            classifier, ticks = make_classifier(clip, tokenizer, data, p), []
            start = lambda: fit(classifier, processor, sets, p, side, n_classes)  # noqa: E731
            steps = begun_again(start, classifier.parameters(), classifier.spare_memory)
            for _ in zip(range(STEPS), _note_times(ticks)(steps), strict=False):
                pass
            folder = self._make_stage().folder / "classifier"
            classifier.save(folder)
            seconds, saved = _mean_difference(ticks), _count_bytes(folder)
        else:
            classifier = ClipClassifier(clip, tokenizer, data).eval()
        test = evaluation_pictures([picture] * (2 * p.eval_batch_size), processor)
        test.room = 0  # decode every picture, as each test picture is seen once
        began = clock()
        predict(classifier, test, [0] * len(test), p)
        per_evaluated = (clock() - began) / len(test)
        self.kept = (None, None, 0.0)  # the classifier has changed the model
        return UnitCost(seconds, load, self._read_peak(), saved, per_evaluated)

    def _load_stable_diffusion(self, p):
        set_threads(p.num_threads)
        dtype = weight_dtype(p.mixed_precision, self.device)
        key = (p.sd_model, p.sd_revision, dtype)
        return self._load(key, lambda: load_stable_diffusion(p.sd_model, p.sd_revision, self.device, dtype))

    def _load_clip(self, p):
        set_threads(p.num_threads)
        key = (p.clip_model, p.clip_revision)
        return self._load(key, lambda: load_clip(p.clip_model, p.clip_revision, self.device))

    def _load(self, key, load):
        """``(models, seconds that loading took)``."""
        if self.kept[0] != key:
            self.kept = (None, None, 0.0)
            gc.collect()
            began = clock()
            self.kept = (key, load(), clock() - began)
        return self.kept[1:]

    def _make_data(self, size, n_shot, n_classes):
        """``(data set, shots)`` with so many classes; every shot is a link to one picture of noise."""
        names = (*size.class_names, "another thing")[:n_classes]
        picture = self.folder / "noise{}x{}.png".format(*size.picture)
        if not picture.exists():
            noise = np.random.default_rng(0).integers(0, 256, (*size.picture[::-1], 3), dtype=np.uint8)
            Image.fromarray(noise).save(picture)
        folder = self.folder / picture.stem
        shots = [[folder / str(label) / f"{i}.png" for i in range(n_shot)] for label in range(len(names))]
        for path in (path for paths in shots for path in paths if not path.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(picture)
        return Dataset("noise", self.folder, names, names, {"train": shots, "test": shots}), shots

    def _copy_adapters(self, p, data, shots):
        """A stage with every adapter that ``data`` needs: copies of the one that was measured."""
        stage = self._make_stage()
        for adapter in plan_adapters(p.system, data, shots):
            shutil.copytree(self.adapters[p.method], stage.folder / "adapters" / adapter.name)
        return stage

    def _make_stage(self):
        self.n_stages += 1
        return Stage("measured", self.folder / f"stage{self.n_stages}", {})

    def _reset_peak(self):
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):  # only Linux has this; elsewhere the peak is that of the process so far
            Path("/proc/self/clear_refs").write_text("5")

    def _read_peak(self):
        """Peak bytes: what torch has reserved on the GPU, else the process's."""
        if self.device == "cuda":
            return torch.cuda.max_memory_reserved()
        return peak_memory(self.device)["peak_memory_mb"] * 1e6


def measure_start():
    """Seconds until papermill has started and a kernel has loaded the libraries of a stage."""
    began = clock()
    kernel = "ipykernel.kernelapp, datadream_utils.classifier.train, datadream_utils.plots.style"
    for modules in ("papermill.cli", kernel):
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return clock() - began


def _change(p, **values):
    return p.model_copy(update=values)


def _note_times(ticks):
    """A progress function that appends the time of each step to ``ticks``."""

    def progress(iterable, total=None, label=""):
        for item in iterable:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ticks.append(clock())
            yield item

    return progress


def _mean_difference(ticks):
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1)


def _count_bytes(folder, pattern="*"):
    return sum(path.stat().st_size for path in Path(folder).rglob(pattern) if path.is_file())
