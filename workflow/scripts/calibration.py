"""A few steps of each stage on pictures of noise, by the stages' own functions: seconds, memory, bytes."""

import gc
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datadream_utils.backbones.clip import ClipClassifier
from datadream_utils.backbones.load import load_clip, load_stable_diffusion
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.evaluate import predict
from datadream_utils.classifier.pictures import evaluation_pictures, training_pictures
from datadream_utils.classifier.train import clip_image_size, fit
from datadream_utils.data.dataset import Dataset
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.captions import read_captions
from datadream_utils.diffusion.generate import generate, load_judge
from datadream_utils.diffusion.recipe import Recipe
from datadream_utils.runs.device import begun_again, set_threads, weight_dtype
from datadream_utils.runs.stage import Stage

STEPS = 4  # the first is not counted: libraries warm up in it
clock = time.perf_counter


@dataclass(frozen=True)
class Measured:
    """What one unit of a stage takes.

    seconds: of a step or batch; load: of the models; memory: peak bytes, of the GPU or of the process; saved: bytes
    of an adapter, picture or classifier; per_evaluated, per_caption: seconds per picture.
    """

    seconds: float
    load: float
    memory: int
    saved: float = 0.0
    per_evaluated: float = 0.0
    per_caption: float = 0.0


class Bench:
    """Measures stages on ``device``, in a temporary ``folder``; keeps a model while the next stage wants the same."""

    def __init__(self, folder, device):
        self.folder, self.device, self.kept, self.adapters, self.count = folder, device, (None, None, 0.0), {}, 0

    def adapt(self, p, sizes):
        """Steps of a full group of adapters."""
        pipe, load = self._pipe(p)
        size = 1 if p.system.adapter == "dataset" else p.adapters_together
        wanted = max(size, ceil(STEPS * p.adapt_batch_size / p.n_shot))
        data, shots = self._data(sizes, p.n_shot, min(wanted, len(sizes.class_names)))
        group = [
            replace(a, paths=a.paths[: STEPS * p.adapt_batch_size], prompts=a.prompts[: STEPS * p.adapt_batch_size])
            for a in plan_adapters(p.system, data, shots)[:size]
        ]
        epochs = ceil(STEPS / ceil(len(group[0].paths) / p.adapt_batch_size))
        p, stage, ticks = p.model_copy(update={"adapt_epochs": epochs, "checkpoint_every": 0}), self._stage(), []
        self._begin()
        adapt(pipe, group, p, stage, _ticking(ticks))
        folder = next((stage.folder / "adapters").iterdir())
        self.adapters[p.method] = folder
        return Measured(_per_tick(ticks[:STEPS]), load, self._peak(), saved=_bytes(folder))

    def generate(self, p, sizes):
        """Two batches of pictures, of two classes; the second counts."""
        pipe, load = self._pipe(p)
        data, shots = self._data(sizes, p.n_shot, 2)
        adapted = self._adapted(p, data, shots)
        stage, began = self._stage(), clock()
        captions = read_captions(p.system, data, shots, p, stage, self.device)
        per_caption = (clock() - began) / sum(map(len, shots)) if captions else 0.0
        recipe = Recipe(p.system, data, shots, p.seed, captions)
        judge = load_judge(p, data, self.device) if p.system.keep == "clip" else None
        few, ticks = {"images_per_class": p.generate_batch_size, "filter_tries": 1, "shard": ""}, []
        self._begin()
        generate(pipe, recipe, p.model_copy(update=few), stage, adapted, judge, _ticking(ticks))
        pictures = list((stage.folder / "images").rglob("*.png"))
        saved = sum(path.stat().st_size for path in pictures) / len(pictures)
        return Measured(_per_tick(ticks), load, self._peak(), saved, per_caption=per_caption)

    def train(self, p, sizes):
        """Steps of training, and an evaluation of two batches."""
        (clip, tokenizer, processor), load = self._clip(p)
        n = len(sizes.class_names)
        data, shots = self._data(sizes, 1, n)
        side = clip_image_size(clip)
        p = p.model_copy(update={"images_per_class": ceil(STEPS * p.train_batch_size / n)})
        paths, labels = [shots[0][0]] * (n * p.images_per_class), torch.arange(n).repeat(p.images_per_class)
        kinds = [kind for kind, letter in (("real", "R"), ("synthetic", "S")) if letter in p.setting]
        sets = {kind: (training_pictures(paths, side), labels) for kind in kinds}
        self._begin()
        seconds, saved = 0.0, 0.0
        classifier = make_classifier(clip, tokenizer, data, p) if sets else ClipClassifier(clip, tokenizer, data).eval()
        if sets:
            ticks, start = [], lambda: fit(classifier, processor, sets, p, side, n)
            rows = begun_again(start, classifier.parameters(), classifier.spare_memory)
            for _ in zip(range(STEPS), _ticking(ticks)(rows), strict=False):
                pass
            seconds = _per_tick(ticks)
            folder = self._stage().folder / "classifier"
            classifier.save(folder)
            saved = _bytes(folder)
        test = evaluation_pictures([shots[0][0]] * (2 * p.eval_batch_size), processor)
        test.room = 0  # every test picture is decoded once, when it is first seen
        began = clock()
        predict(classifier, test, [0] * len(test), p)
        per_evaluated = (clock() - began) / len(test)
        self.kept = (None, None, 0.0)  # the classifier has changed the model
        return Measured(seconds, load, self._peak(), saved, per_evaluated)

    def _pipe(self, p):
        set_threads(p.num_threads)
        dtype = weight_dtype(p.mixed_precision, self.device)
        return self._model(
            ("sd", p.sd_model, p.sd_revision, dtype),
            lambda: load_stable_diffusion(p.sd_model, p.sd_revision, self.device, dtype),
        )

    def _clip(self, p):
        set_threads(p.num_threads)
        key = ("clip", p.clip_model, p.clip_revision)
        return self._model(key, lambda: load_clip(p.clip_model, p.clip_revision, self.device))

    def _model(self, key, load):
        if self.kept[0] != key:
            self.kept = (None, None, 0.0)
            gc.collect()
            began = clock()
            self.kept = (key, load(), clock() - began)
        return self.kept[1:]

    def _data(self, sizes, n_shot, n_classes):
        """A data set of so many classes, whose shots are all one picture of noise, under names of their own."""
        names = (*sizes.class_names, "another thing")[:n_classes]
        picture = self.folder / "noise{}x{}.png".format(*sizes.picture)
        if not picture.exists():
            noise = np.random.default_rng(0).integers(0, 256, (*sizes.picture[::-1], 3), dtype=np.uint8)
            Image.fromarray(noise).save(picture)
        shots = [
            [self.folder / picture.stem / f"{label}" / f"{i}.png" for i in range(n_shot)] for label in range(len(names))
        ]
        for path in (path for paths in shots for path in paths if not path.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(picture)
        return Dataset("noise", self.folder, names, names, {"train": shots, "test": shots}), shots

    def _adapted(self, p, data, shots):
        """A stage with every adapter that two classes need: copies of the one that was measured."""
        if not p.system.adapts:
            return None
        stage, source = self._stage(), self.adapters[p.method]
        for adapter in plan_adapters(p.system, data, shots):
            shutil.copytree(source, stage.folder / "adapters" / adapter.name)
        return stage

    def _stage(self):
        self.count += 1
        return Stage("calibration", self.folder / f"stage{self.count}", {})

    def _begin(self):
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the process starts anew

    def _peak(self):
        if self.device == "cuda":
            return torch.cuda.max_memory_reserved()
        if Path("/proc/self/status").exists():
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            return int(lines["VmHWM"].split()[0]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def start_seconds():
    """Seconds until papermill and a kernel with the libraries of a stage are there."""
    began = time.perf_counter()
    for libraries in (
        "papermill.cli",
        "ipykernel.kernelapp, datadream_utils.classifier.train, datadream_utils.plots.style",
    ):
        subprocess.run([sys.executable, "-c", f"import {libraries}"], check=True)
    return time.perf_counter() - began


def _ticking(ticks):
    """A progress that notes when each item was done."""

    def progress(iterable, total=None, label=""):
        for item in iterable:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ticks.append(clock())
            yield item

    return progress


def _per_tick(ticks):
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1)


def _bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
