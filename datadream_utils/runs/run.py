"""One stage of one run in progress: its parameters, data, shots and device, and what it records at the end.

Every notebook of stages 1 to 3 begins with ``run = start_run(stage, globals())`` and passes ``run`` to the functions of
its stage. They begin with ``run.begin()``, which returns False if the stage is finished already, and end with
``run.finish()``. So a cell can be run again, a killed run continues where it stopped, and two processes never work on
the same stage at once.
"""

import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from datadream_utils.data.dataset import Dataset, flatten, load_dataset
from datadream_utils.data.images import check_images
from datadream_utils.data.shots import few_shot
from datadream_utils.errors import InputError
from datadream_utils.files import digest, read_json, remove, write_json
from datadream_utils.params import MACHINE, STAGES, RunParams, make_params, resolve
from datadream_utils.runs.checksums import LIST, torn_files, write_checksums
from datadream_utils.runs.device import choose_device, device_name, peak_memory, set_threads, weight_dtype
from datadream_utils.runs.locks import lock, release
from datadream_utils.runs.progress import calm_interruptions, quiet_libraries, show_progress
from datadream_utils.runs.shards import check_shard
from datadream_utils.runs.stage import FORMAT, Stage, describe_inputs, finished_stage, git_commit, stage_of

PACKAGES = ("datadream-notebooks", "torch", "diffusers", "transformers", "peft", "kornia", "numpy", "pillow")
SECONDS = ("seconds", "processor_seconds")  # a manifest's names for what ``_clocks`` measures


@dataclass
class Run:
    """One stage of one run, opened by ``start_run``.

    params: the checked parameters; shots: ``shots[label]``, the few real images; source: the finished stage that this
    one reads (the adapters for generate, the images for train), or None; shard: "2/4" for the second quarter of the
    work, "" for all of it; progress: a context manager like ``progress.show_progress``.
    """

    params: RunParams
    stage: Stage
    data: Dataset
    shots: list[list[Path]]
    device: str
    source: Stage | None = None
    shard: str = ""
    progress: Any = show_progress
    trained: bool = False  # whether a classifier's training has come to its end in this process
    _inputs: dict = field(default_factory=dict)  # ``describe_inputs`` when ``begin`` returned
    _started: tuple = (0.0, 0.0)  # ``_clocks`` when ``begin`` returned
    _resumed: bool = False  # whether the stage had been started before
    _earlier: dict = field(default_factory=dict)  # the seconds of a finished stage whose damage is being mended
    _locks: list = field(default_factory=list)

    def __repr__(self):
        p, count = self.params, len(self.data.class_names)
        work = f" (part {self.shard})" if self.shard else ""
        return (
            f"{self.method.label}: {p.n_shot} shots of {count} classes of {self.data.name}, on {self.device}\n"
            f"{self.stage.name}{work} is kept in {self.folder}"
        )

    @property
    def method(self):
        """The compared system, a row of ``methods.METHODS``."""
        return self.params.system

    @property
    def folder(self):
        """The stage's folder."""
        return self.stage.folder

    @property
    def dtype(self):
        """The dtype of frozen weights."""
        return weight_dtype(self.params.mixed_precision, self.device)

    @property
    def part(self):
        """The shard as written in file names, "2-of-4"; "" for the whole stage."""
        return self.shard.replace("/", "-of-")

    def begin(self):
        """Lock the folder, write the parameters to it, start the clock and return True; return False if all is done.

        Damaged files of a finished stage are deleted, so that they are made again. InputError if another process works
        in the folder, or if it cannot be written.
        """
        if self._done():
            return False
        try:
            self._locks = lock(self.folder, self.part)
            if self._done():  # by another process, in the meantime
                release(self._locks)
                return False
            self._resumed = (self.folder / "parameters.json").exists()
            if not self.part:  # other processes may be writing the other parts
                self._delete_damaged()
            self._inputs = describe_inputs(flatten(self.shots)[0], self.source)
            record = {"format": FORMAT, "parameters": self.params.identity(), **self._inputs}
            write_json(self.folder / "parameters.json", record)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written ({error}): set output_root to another folder.") from None
        self._started = _clocks()
        return True

    def finish(self, **facts):
        """Write ``manifest.json``: all that is needed to make this stage again, and ``facts``. Then release the lock.

        A part of the work writes ``shards/<k>-of-<n>.json`` instead, without ``facts``.
        """
        if not self._locks:
            raise RuntimeError(f"{self.folder} was not begun: call begin first.")
        took = {name: now - then for name, now, then in zip(SECONDS, _clocks(), self._started, strict=True)}
        record = {"device": device_name(self.device), **peak_memory(self.device)}
        record["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self.part:
            seconds = {name: round(took[name], 1) for name in SECONDS}
            write_json(self.folder / "shards" / f"{self.part}.json", {"shard": self.part, **seconds, **record})
            print(f"Part {self.part} is done.")
        else:
            write_json(self.folder / "manifest.json", self._manifest(took, record, facts))
        release(self._locks)
        self._locks = []

    def _manifest(self, took, record, facts):
        fix = f"delete it and run {self.stage.notebook} again"
        shards = [read_json(path, fix) for path in sorted(self.folder.glob("shards/*.json"))]
        earlier = [self._earlier] if self._earlier else shards
        paths = flatten(self.shots)[0]
        fields = type(self.params).model_fields
        return {
            "format": FORMAT,
            "stage": self.stage.name,
            "parameters": self.params.identity(),
            "machine": {name: getattr(self.params, name) for name in fields if MACHINE in fields[name].metadata},
            "split": self.data.split,
            **self._inputs,
            "shots": [path.relative_to(self.data.root).as_posix() for path in paths],
            **facts,
            **{name: round(took[name] + sum(one.get(name, 0) for one in earlier), 1) for name in SECONDS},
            "resumed": self._resumed and not earlier,  # if true, time before an interruption is not counted
            **record,
            **{name: max(one.get(name, 0) for one in (record, *shards)) for name in record if name.startswith("peak")},
            "num_threads": torch.get_num_threads(),
            "shards": shards,
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "git": git_commit(),
            "checksums": write_checksums(self.folder),
        }

    def _done(self):
        """Whether there is nothing to do; prints that."""
        if self.part and not self.stage.finished and (self.folder / "shards" / f"{self.part}.json").exists():
            print(f"Part {self.part} of {self.folder} is done already.")
            return True
        if self.stage.finished and (self.part or not self.stage.damaged_files()):
            print(f"{self.folder} is finished already: nothing to do.")
            return True
        return False

    def _delete_damaged(self):
        """Delete damaged files, then the manifest, the list of checksums and half-written files.

        In this order a kill in between loses nothing.
        """
        damaged = self.stage.damaged_files() if self.stage.finished else torn_files(self.folder)
        for name in damaged:
            if name != LIST:
                print(f"{self.folder / name} has vanished or changed: it is made again.")
                (self.folder / name).unlink(missing_ok=True)
        if self.stage.finished:
            manifest = self.stage.manifest()
            self._earlier = {name: manifest[name] for name in SECONDS}
            (self.folder / "manifest.json").unlink()
        (self.folder / LIST).unlink(missing_ok=True)
        for half_written in list(self.folder.rglob(".*.part")):
            remove(half_written)


def start_run(stage, namespace):
    """Open ``stage`` ("adapt", "generate" or "train") of the run that a notebook's parameters describe.

    ``namespace`` is the notebook's ``globals()``. InputError, before any model is loaded, for a bad parameter, data
    that cannot be read, or a stage that is missing, or was made from something else than there is now.
    """
    return open_run(STAGES[stage].read(namespace))


def open_run(params, shard="", progress=show_progress):
    """A ``Run`` of checked parameters; see ``start_run``. ``shard``: the part of the work to do, "2/4"; "" for all."""
    quiet_libraries()
    calm_interruptions()
    check_shard(shard)
    data = load_dataset(params.dataset, params.data_root, params.split_file)
    shots = few_shot(data, params.n_shot, params.seed, params.shots_file)
    paths = flatten(shots)[0]
    check_images(paths)
    source = None
    if params.stage == "generate" and params.system.adapts:
        source = finished_stage(params, "adapt", paths)
    elif params.stage.startswith("train") and params.system.generates:
        source = finished_stage(params, "generate", paths)
        adapted = Stage("adapt", params.run_folder / "adapt")
        if params.system.adapts and adapted.finished:  # 02 may have been left out since 01 was made again
            source.check_inputs(describe_inputs(paths, adapted))
    device = choose_device(params.device)
    weight_dtype(params.mixed_precision, device)  # InputError for a precision that the device lacks
    set_threads(params.num_threads)
    run = Run(params, stage_of(params), data, shots, device, source, shard, progress)
    run.stage.check_inputs(describe_inputs(paths, source))
    _check_tested(run)
    return run


def _check_tested(run):
    """InputError when a finished classifier was tested on other pictures than the data set has now."""
    if not (run.stage.finished and run.stage.name.startswith("train-")):
        return
    manifest = run.stage.manifest()
    tested = flatten(run.data.files.get(manifest.get("evaluated_on"), []))[0]
    if manifest.get("evaluated_sha256") not in (None, digest(tested)):
        raise InputError(
            f"{run.folder} was tested on other {manifest['evaluated_on']} images: the pictures of {run.data.root} or "
            "their split have changed since. Put them back, or set 'variant' to a word of your own to keep both, or "
            "delete that folder."
        )


def params_of(folder, stage, **changes):
    """The parameters of ``stage`` ("adapt", "generate", "train-S", ...) of the run in ``folder``, with ``changes``.

    InputError when the run has no such stage.
    """
    folder = resolve(folder)
    started = Stage(stage, folder / stage)
    if (values := started.parameters()) is None:
        raise InputError(f"{started.folder} is not there: run {started.notebook} first.")
    return make_params(stage.partition("-")[0], values | {"output_root": str(folder.parent)} | changes)


def _clocks():
    """(seconds of a clock that nobody can set, processor seconds of this process and its children), for differences."""
    return time.monotonic(), sum(os.times()[:4])
