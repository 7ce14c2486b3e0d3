"""Where a run is kept, and what it remembers of itself.

    outputs/mnist5k_datadream_cls_16shot_seed0/
        adapt/      adapters/<class>/pytorch_lora_weights.safetensors, losses.csv, manifest.json
        generate/   images/<class>/00000.png, images/metadata.jsonl, manifest.json
        train-S/    classifier/, predictions.parquet, history.csv, metrics.json, manifest.json
        train-R+S/  ...

A stage writes ``parameters.json`` when it starts and ``manifest.json`` when everything else is on disk: with that file
it is finished, without it the stage goes on where it was. Other parameters never overwrite: they need another
``variant``.
"""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from datadream_utils.errors import InputError
from datadream_utils.images import written_whole
from datadream_utils.params import NOT_IDENTITY, ROOT, resolve

PACKAGES = ("datadream-notebooks", "torch", "diffusers", "transformers", "peft", "kornia", "numpy", "pillow")


def write_json(path, value):
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@dataclass
class Stage:
    """One stage of a run: its folder, its parameters, and whether it is finished."""

    name: str
    folder: Path
    parameters: dict
    started: float = 0.0

    @property
    def finished(self):
        return (self.folder / "manifest.json").exists()

    def manifest(self):
        """What the finished stage wrote of itself."""
        return json.loads((self.folder / "manifest.json").read_text())

    def begin(self):
        """Note the parameters and the time, and return True; say so and return False when the stage is finished.

        InputError when the folder cannot be written.
        """
        if self.finished:
            print(f"{self.folder} is finished already: nothing to do.")
            return False
        try:
            write_json(self.folder / "parameters.json", self.parameters)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written ({error}): set output_root to another folder.") from None
        self.started = time.time()
        return True

    def finish(self, device="cpu", **facts):
        """Write ``manifest.json``: everything needed to make this stage again, and what it came to."""
        manifest = {
            "stage": self.name,
            "parameters": self.parameters,
            **facts,
            "seconds": round(time.time() - self.started, 1),
            "device": device_name(device),
            "num_threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "git": git_state(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_json(self.folder / "manifest.json", manifest)
        return manifest


def stage(p, name):
    """The stage ``name`` of the run that ``p`` describes.

    Raises InputError when its folder holds the same stage made, or begun, with other parameters.
    """
    folder = resolve(p.output_root) / p.run_name / name
    parameters = p.identity()
    note = folder / "parameters.json"
    if note.exists():
        before = {k: v for k, v in json.loads(note.read_text()).items() if k not in NOT_IDENTITY}
        changed = sorted(k for k in parameters.keys() | before.keys() if parameters.get(k) != before.get(k))
        if changed:
            k = changed[0]
            raise InputError(
                f"{folder} was made with {k}={before.get(k)!r}, not {parameters.get(k)!r}: set 'variant' to a word of "
                "your own to keep both, or delete that folder."
            )
    return Stage(name, folder, parameters)


def needs(p, name, notebook):
    """The finished stage ``name`` that another stage reads; InputError naming the notebook to run first."""
    folder = resolve(p.output_root) / p.run_name / name
    if not (folder / "manifest.json").exists():
        raise InputError(
            f"{folder} is not finished: run {notebook} first with the same dataset, method, n_shot, seed and variant."
        )
    return Stage(name, folder, json.loads((folder / "parameters.json").read_text()))


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
    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{device} ({platform.machine()})"


def git_state():
    """The commit, with ``-dirty`` when tracked files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() or None


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def digest(paths):
    """One sha256 of the contents of many files, in order: what a stage was given."""
    return hashlib.sha256("".join(sha256(path) for path in paths).encode()).hexdigest()
