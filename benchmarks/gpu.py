"""How fast the package is on one GPU, in about ten minutes: python -m benchmarks.gpu

Random weights at the size of SD 2.1-base and CLIP ViT-B/16 (``worlds``), one unit of each stage as ``estimate``
measures it, but on square pictures: their latents are made once, those of others in every step. Parts: adapt, generate,
train (with evaluation), memory (adapters that do not fit into it), tests (pytest -m gpu), two (processes at once).
Every row is written to ``results/gpu.json`` as soon as it is measured, in the end the README's table. A row that is
there is not measured again, so a call that was cut short is simply repeated.

    python -m benchmarks.gpu --parts adapt generate    # some parts alone
    python -m benchmarks.gpu --again --parts train     # a part anew
    python -m benchmarks.gpu --world tiny              # a rehearsal on any machine, kept in outputs/gpu alone
"""

import argparse
import contextlib
import gc
import io
import json
import re
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import psutil
import torch

from benchmarks.limits import matmul_peak
from benchmarks.stages import machine, start
from benchmarks.tables import gpu_table, write_readme
from benchmarks.worlds import make_run, prepare
from datadream_utils.analysis.cost import adapt_flops, clip_flops, sd_flops
from datadream_utils.backbones.load import load_clip, load_stable_diffusion
from datadream_utils.data.dataset import Dataset
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.generate import passes_per_image
from datadream_utils.files import write_json
from datadream_utils.params import ROOT, make_params
from datadream_utils.runs import compiling
from datadream_utils.runs.device import DTYPES, choose_device
from datadream_utils.runs.progress import quiet_libraries
from workflow.scripts.measure import DataSize, Meter

# What is varied in each world. room: GiB that the part "memory" leaves to the batch of adapters that does not fit.
WORLDS = {
    "full": dict(
        precisions=("fp16", "bf16"),
        together=(1, 4, 8),
        samplers=(("model", 50), ("dpmsolver++", 20)),
        batches=(8, 20, 64),
        classes=(10, 100),
        picture=(512, 512),
        crowd=16,
        room=24.0,
    ),
    "tiny": dict(
        precisions=("no", "bf16"),
        together=(1, 2),
        samplers=(("model", 4), ("dpmsolver++", 2)),
        batches=(2, 4),
        classes=(2, 4),
        picture=(32, 32),
        crowd=64,
        room=0.5,
    ),
}


class Bench:
    """Measures rows in a world: ``folder`` keeps its models, ``temporary`` all else; ``changes``: its parameters."""

    def __init__(self, world, folder, temporary):
        self.world = WORLDS[world]
        self.changes = prepare(world, folder) | ({} if world == "full" else {"train_batch_size": 8})
        self.device = choose_device(self.changes.get("device", "auto"))
        self.temporary, self.meter = temporary, Meter(temporary, self.device)
        self.flops = cache(self._count_flops)
        self.peak = cache(partial(matmul_peak, self.device))

    def params(self, stage, **changes):
        return make_params(stage, self.changes | changes)

    def size(self, n_classes):
        names = tuple(f"thing {label:04d}" for label in range(n_classes))
        return DataSize(names, 0, 0, self.world["picture"])

    def adapt_rows(self):
        """``{row: function that measures it}``: a step of adapters trained at once."""
        kinds = [("datadream_cls", together) for together in self.world["together"]] + [("datadream_dset", 1)]
        return {
            f"{method}, {together} at once, {precision}": partial(self._adapt, method, together, precision)
            for method, together in kinds
            for precision in self.world["precisions"]
        }

    def _adapt(self, method, together, precision):
        p = self.params("adapt", method=method, adapters_together=together, mixed_precision=precision)
        cost = self.meter.adapt(p, self.size(10))
        flops = together * p.adapt_batch_size * self.flops("sd")["adapt"]
        return self._row(cost, "step", together * p.adapt_batch_size, flops, precision)

    def generate_rows(self):
        """A batch of images, of another class than the one before it."""
        return {
            f"{sampler}, {steps} steps, batch {batch}, compile {choice}": partial(
                self._generate, sampler, steps, batch, choice
            )
            for choice in ("no", "yes")
            for sampler, steps in self.world["samplers"]
            for batch in self.world["batches"]
        }

    def _generate(self, sampler, steps, batch, choice):
        changes = dict(sampler=sampler, num_inference_steps=steps, generate_batch_size=batch, compile=choice)
        p, size = self.params("generate", **changes), self.size(10)
        if p.method not in self.meter.adapters:
            self.meter.adapt(self.params("adapt", adapters_together=1), size)
        cost = self.meter.generate(p, size)
        _, pipe, load = self.meter.kept
        flops = batch * (passes_per_image(pipe, p) * self.flops("sd")["denoise"] + self.flops("sd")["decode"])
        row = self._row(cost, "batch", batch, flops, p.mixed_precision)
        return row | ({"compile": cost.load - load} if choice == "yes" else {})

    def train_rows(self):
        """A step of CLIP's training, and a classified picture."""
        return {
            f"{classes} classes, compile {choice}": partial(self._train, classes, choice)
            for classes in self.world["classes"]
            for choice in ("no", "yes")
        }

    def _train(self, classes, choice):
        p = self.params("train", compile=choice)
        cost = self.meter.train(p, self.size(classes))
        n, flops = p.train_batch_size * len(p.setting.split("+")), self.flops("clip", classes)
        row = self._row(cost, "step", n, n * flops["image"] + flops["texts"], p.mixed_precision)
        return row | {"evaluated": 1 / cost.per_evaluated}

    def _row(self, cost, unit, images, flops, precision):
        """seconds: of a unit. images: of a unit. flops: per second. peak: FLOP/s of matmul. memory: bytes."""
        row = dict(unit=unit, seconds=cost.seconds, images=images, flops=flops / cost.seconds, memory=cost.memory)
        return row | {"peak": self.peak(DTYPES[precision])}

    def _count_flops(self, model, n_classes=0):
        """Operations, as ``analysis.cost`` counts them, on a CPU; Stable Diffusion's without computing anything."""
        p, q = self.params("adapt"), self.params("train")
        if model == "clip":
            names = self.size(n_classes).class_names
            clip, tokenizer, _ = load_clip(q.clip_model)
            return clip_flops(clip, tokenizer, Dataset("noise", Path(), names, names, {}), q.clip_lora_rank)
        pipe = load_stable_diffusion(p.sd_model).to("meta")
        found = sd_flops(pipe, p.resolution)
        return found | {"adapt": adapt_flops(pipe, p.lora_rank, p.train_text_encoder, p.resolution)}

    def _make_room(self):
        """Leave the device's memory to other processes."""
        self.meter.kept = (None, None, 0.0)
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def memory_rows(self):
        """Adapters that do not fit into memory at once: they are trained all the same, in smaller groups."""
        return {f"{self.world['crowd']} adapters in {self.world['room']:g} GiB": self._memory}

    def _memory(self):
        job = {"folder": str(self.temporary), "crowd": self.world["crowd"], "room": self.world["room"]}
        job |= {"changes": self.changes}
        self._make_room()
        command = [sys.executable, "-m", "benchmarks.gpu", "--crowd", json.dumps(job)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    def tests_rows(self):
        """The tests that need a GPU."""
        return {"pytest -m gpu": self._tests}

    def _tests(self):
        self._make_room()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        summary = done.stdout.strip().splitlines()[-1]
        if done.returncode:
            raise RuntimeError(done.stdout)
        return {"says": re.sub(r" in [\d.]+s.*", "", summary)}

    def two_rows(self):
        """Half of a stage in one process, and both halves in two processes at once on the same device."""
        return {"generate, two processes": self._two}

    def _two(self):
        self._make_room()
        place, jobs = self.temporary / "two", []
        changes = self.changes | {"images_per_class": self.world["batches"][-1], "num_inference_steps": 10}
        adapters = place / "adapt"
        job = {"side": "ours", "changes": changes, "adapters": str(adapters / "adapters")}
        start(job | {"stage": "adapt_cls", "folder": str(adapters)}, place)
        for name, shard in (("alone", "1/2"), ("first", "1/2"), ("second", "2/2")):
            jobs.append(job | {"stage": "generate", "folder": str(place / name), "shard": shard})
        alone = start(jobs[0], place / "alone")[0]["work"]
        with ThreadPoolExecutor(2) as pool:
            works = list(pool.map(lambda job: start(job, Path(job["folder"]))[0]["work"], jobs[1:]))
        return {"says": f"{2 * alone:.1f} s one after the other, {max(works):.1f} s at once"}


PARTS = ("adapt", "generate", "train", "memory", "tests", "two")


@contextlib.contextmanager
def cramped(device, room):
    """While the block runs, this process gets no more than ``room`` bytes, on a CPU besides what it has already."""
    limit = partial(resource.setrlimit, resource.RLIMIT_AS)
    if device == "cpu":
        limit((psutil.Process().memory_info().vms + room, resource.RLIM_INFINITY))
    else:
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    try:
        with torch.backends.mkldnn.flags(enabled=device != "cpu"):  # its errors do not say that memory is full
            yield lambda n=1: None
    finally:
        if device == "cpu":
            limit((resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        else:
            torch.cuda.set_per_process_memory_fraction(1.0)


def crowd(job):
    """Train ``job["crowd"]`` adapters at once in too little memory; ``{"says": what came of it}``.

    ValueError when they fit, and when one is missing afterwards.
    """
    folder, n = Path(job["folder"]), job["crowd"]
    changes = {"adapters_together": n, "n_shot": 8, "adapt_epochs": 1, "checkpoint_every": 0}
    p = make_params("adapt", job["changes"] | changes)
    run = make_run(p, folder / "crowd")
    pipe = load_stable_diffusion(p.sd_model, p.sd_revision, run.device, run.dtype)
    adapters = [replace(plan_adapters(run)[0], name=f"adapter {i}") for i in range(n)]
    run.progress = lambda total, label: cramped(run.device, int(job["room"] * 2**30))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        losses = adapt(pipe, adapters, run)
    halved = re.findall(r"going on with (\d+)", printed.getvalue())
    if not halved or len(losses) != n:
        raise ValueError(f"{len(losses)} of {n} adapters, halved to {halved or 'nothing: they fit'}")
    return {"says": f"{n} adapters, trained {halved[-1]} at once"}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="full")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--again", action="store_true", help="measure the rows of these parts again")
    parser.add_argument("--crowd", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    quiet_libraries()
    if options.crowd:
        print(json.dumps(crowd(options.crowd)))
        return
    if options.world == "full" and choose_device("auto") == "cpu":
        parser.error("--world full needs a GPU: rehearse with --world tiny")
    folder = ROOT / "outputs" / "gpu" / options.world
    folder.mkdir(parents=True, exist_ok=True)
    path = ROOT / "benchmarks" / "results" / "gpu.json" if options.world == "full" else folder / "gpu.json"
    if options.world == "tiny":
        compiling.HOW = {"backend": "aot_eager"}  # of minutes of a compiler nothing is learnt here
    with tempfile.TemporaryDirectory() as temporary:
        measure(Bench(options.world, folder, Path(temporary)), options.parts, path, options.again)
    if options.world == "full":
        write_readme()
    else:
        print("\n".join(gpu_table(json.loads(path.read_text(encoding="utf-8")))))


def measure(bench, parts, path, again):
    """Measure the rows of ``parts`` that the file ``path`` lacks (``again``: all of them), and note each there."""
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in parts:
        for name, function in getattr(bench, f"{part}_rows")().items():
            key = f"{part}: {name}"
            if again or key not in result:
                result[key] = function() | {"machine": machine(bench.params("train"))}
                write_json(path, result)
                print(key, {k: v for k, v in result[key].items() if k != "machine"}, flush=True)


if __name__ == "__main__":
    main()
