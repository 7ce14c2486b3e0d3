"""Where a run is kept, and what it remembers of itself.

    outputs/mnist5k_datadream_cls_16shot_seed0/
        adapt/      adapters/<class>/pytorch_lora_weights.safetensors, losses/<class>.csv, shots.txt, ...
        generate/   images/<class>/00000.png, images/metadata.jsonl, ...
        train-S/    classifier/, predictions.parquet, history.csv, metrics.json, ...
        train-R+S/  ...

A stage writes ``parameters.json`` when it starts; when all else is on disk ``checksums.txt``, and last
``manifest.json``: with that file it is finished, without it the stage goes on where it was. Of a finished stage what
has vanished or changed is made again. Other parameters never overwrite: they need another ``variant``.
"""

import importlib.metadata
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from datadream_utils.errors import InputError
from datadream_utils.files import digest, read_json, remove, write_json
from datadream_utils.params import NOT_IDENTITY, ROOT, resolve
from datadream_utils.runs.checksums import LIST, changed_files, torn_files, write_checksums
from datadream_utils.runs.device import peak_memory
from datadream_utils.runs.locks import hold, release

PACKAGES = ("datadream-notebooks", "torch", "diffusers", "transformers", "peft", "kornia", "numpy", "pillow")

SECONDS = ("seconds", "processor_seconds")  # of a stage, as its manifest names them

# Parameters that a stage had not always, each with the value that says what it did before.
SINCE = {"adapt": {"crops_per_shot": 0}}


def _clocks():
    """(the clock on the wall, processor seconds of this process and its children), to take differences of."""
    return time.time(), sum(os.times()[:4])


def _read_json(path):
    return read_json(path, "delete it and run the notebook that wrote it")


@dataclass
class Stage:
    """One stage of a run: its folder, its parameters, and whether it is finished.

    how: the parameters that do not change the result; of these "shard" ("2/4") is the part of the work to do here.
    """

    name: str
    folder: Path
    parameters: dict
    how: dict = field(default_factory=dict)
    started: tuple = (0.0, 0.0)  # by the clock, and of processor time
    resumed: bool = False
    before: dict = field(default_factory=dict)  # the seconds of a finished stage whose damage is being mended
    locks: list = field(default_factory=list)

    @property
    def finished(self):
        return (self.folder / "manifest.json").exists()

    @property
    def part(self):
        """The shard as it stands in file names, "2-of-4"; "" for the whole stage."""
        return self.how.get("shard", "").replace("/", "-of-")

    def manifest(self):
        """What the finished stage wrote of itself."""
        return _read_json(self.folder / "manifest.json")

    def damage(self, names=None):
        """The files of a finished stage (of ``names``, or all) that have vanished or changed since."""
        noted = self.manifest().get("checksums") if self.finished else None  # the first manifests had none
        return changed_files(self.folder, noted, names) if noted else []

    def begin(self):
        """Lock the folder, note parameters and time, and return True; say so and return False when all is done.

        Of a finished stage what has vanished or changed is taken away, to be made again. InputError when another
        process works here, or the folder cannot be written.
        """
        if self._done():
            return False
        try:
            self.locks = hold(self.folder, self.part)
            if self._done():  # by another process, in the meantime
                release(self.locks)
                return False
            self.resumed = (self.folder / "parameters.json").exists()
            self._clear()
            write_json(self.folder / "parameters.json", self.parameters)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written ({error}): set output_root to another folder.") from None
        self.started = _clocks()
        return True

    def finish(self, device="cpu", **facts):
        """Write ``manifest.json``: everything needed to make this stage again, and what it came to.

        A shard writes ``shards/<k>-of-<n>.json`` instead. Either is returned, and the lock released.
        """
        took = {name: now - then for name, now, then in zip(SECONDS, _clocks(), self.started, strict=True)}
        done = {"device": device_name(device), **peak_memory(device)}
        done["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self.part:
            record = {"shard": self.part, **{name: round(took[name], 1) for name in SECONDS}, **done}
            write_json(self._part_record, record)
            print(f"Part {self.part} is done.")
        else:
            shards = [_read_json(path) for path in sorted(self.folder.glob("shards/*.json"))]
            earlier = [self.before] if self.before else shards
            record = {
                "stage": self.name,
                "parameters": self.parameters,
                "how": self.how,
                **facts,
                **{name: round(took[name] + sum(one.get(name, 0) for one in earlier), 1) for name in SECONDS},
                "resumed": self.resumed,  # then the seconds are those since
                **done,
                "num_threads": torch.get_num_threads(),
                "shards": shards,
                "python": platform.python_version(),
                "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
                "git": git_state(),
                "checksums": write_checksums(self.folder),
            }
            write_json(self.folder / "manifest.json", record)
        release(self.locks)
        return record

    @property
    def _part_record(self):
        return self.folder / "shards" / f"{self.part}.json"

    def _done(self):
        if self.part and not self.finished and self._part_record.exists():
            print(f"Part {self.part} of {self.folder} is done already.")
            return True
        if self.finished and (self.part or not self.damage()):
            print(f"{self.folder} is finished already: nothing to do.")
            return True
        return False

    def _clear(self):
        """Take away damaged files, then the manifest (a kill in between loses nothing), the list, torn-off writes."""
        if self.part:
            return  # other parts may be writing
        for name in self.damage() if self.finished else torn_files(self.folder):
            if name != LIST:
                print(f"{self.folder / name} has vanished or changed: it is made again.")
                (self.folder / name).unlink(missing_ok=True)
        if self.finished:
            manifest = self.manifest()
            self.before = {name: manifest.get(name, 0.0) for name in SECONDS}
            (self.folder / "manifest.json").unlink()
        (self.folder / LIST).unlink(missing_ok=True)
        for torn in list(self.folder.rglob(".*.part")):
            remove(torn)


def stage(p, name):
    """The stage ``name`` of the run that ``p`` describes.

    Raises InputError when its folder holds the same stage made, or begun, with other parameters.
    """
    folder = resolve(p.output_root) / p.run_name / name
    found = Stage(name, folder, p.identity(), {k: v for k, v in p.model_dump().items() if k in NOT_IDENTITY})
    begun = folder / "parameters.json"
    if found.finished or begun.exists():
        before = found.manifest()["parameters"] if found.finished else _read_json(begun)
        before = SINCE.get(name, {}) | {k: v for k, v in before.items() if k not in NOT_IDENTITY}
        now = found.parameters
        changed = [k for k in [*now, *sorted(before.keys() - now.keys())] if now.get(k) != before.get(k)]
        if changed:
            k = changed[0]
            raise InputError(
                f"{folder} was made with {k}={before.get(k)!r}, not {now.get(k)!r}: set 'variant' to a word of "
                "your own to keep both, or delete that folder."
            )
    return found


# What two stages of one run must share; of a path the last part, as it may lie elsewhere on another machine.
SAME = ("split_file", "shots_file", "sd_model", "sd_revision", "resolution")


def needs(p, name, notebook, shots=None):
    """The finished stage ``name`` that another stage reads; InputError naming the notebook to run first.

    Its files are checked against their checksums: InputError names one that has vanished or changed, or a parameter in
    ``SAME`` that had another value, or other ``shots`` (paths): images from shots that are tested on here would make a
    result too good.
    """
    folder = resolve(p.output_root) / p.run_name / name
    if not (folder / "manifest.json").exists():
        raise InputError(
            f"{folder} is not finished: run {notebook} first with the same dataset, method, n_shot and seed, and with "
            f"variant={p.variant!r}."
        )
    check_made(folder, notebook)
    made = _read_json(folder / "parameters.json")
    for key in SAME:
        before, now = made.get(key), getattr(p, key, made.get(key))
        if Path(str(before)).name != Path(str(now)).name:
            raise InputError(
                f"{folder} was made with {key}={before!r}, not {now!r}: use the same value here, or set 'variant' to a "
                f"word of your own and run {notebook} with it first."
            )
    found = Stage(name, folder, made)
    if shots is not None and digest(shots) != found.manifest().get("shots_sha256", digest(shots)):
        raise InputError(
            f"{folder} was made from other few-shot images: use the same data, split_file and shots_file here, or set "
            f"'variant' to a word of your own and run {notebook} with it first."
        )
    return found


def check_made(folder, notebook, names=None):
    """InputError when a file (of ``names``, or any) of the finished stage in ``folder`` has vanished or changed."""
    damaged = Stage(folder.name, folder, {}).damage(names)
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if damaged[1:] else ""
        raise InputError(
            f"{folder / damaged[0]}{more} has vanished or changed since {notebook} made it: run {notebook} again, "
            "which makes it anew and keeps the rest."
        )


def choose_device(device):
    """ "auto": CUDA, then Apple's MPS, then the CPU; InputError for one that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name in available if available[name])
    if not available[device]:
        raise InputError(f"device {device!r} is not available here: use 'auto' or 'cpu'.")
    return device


def set_threads(num_threads):
    """Limit torch's CPU threads (0: as many as cores). A fixed number gives the same bytes on every core count."""
    if num_threads:
        torch.set_num_threads(num_threads)


def device_name(device):
    """The device in words: two of the same name round alike, so they make the same bytes."""
    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{device} ({cpu_name()}, {torch.backends.cpu.get_cpu_capability()})"


def cpu_name():
    """The processor's model, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_state():
    """The commit, with ``-dirty`` when tracked files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() or None
