"""Checkpoints inside a long training: one safetensors file with everything that the next step depends on.

Its tensors: the trained parameters, AdamW's moments, and what the training itself adds (its rows so far, the state of
its random numbers, ...). Its metadata: the states of schedule and gradient scaler, what the training is made from, and
the sha256 of all of it.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from datadream_utils.files import atomic_write
from datadream_utils.runs.plausible import are_finite

FOLDER = "checkpoints"  # in a stage's folder while it works


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of one training is kept.

    made_from: a hash of everything that the training is made from; every: steps between two saves (0: never).

    A training has ``parameters``, ``optimizer``, ``schedule``, ``scaler`` and ``rows``, one for each step so far.
    ``state()`` gives the other tensors to keep, by name; ``restore(tensors)`` takes them, after all else.
    """

    path: Path
    made_from: str
    every: int

    def is_due(self, steps):
        """Whether to save after so many steps."""
        return bool(self.every) and steps % self.every == 0

    def save_if_due(self, training):
        """Write the state after every ``every`` steps, unless its weights are not finite: the next step stops then."""
        if not self.is_due(len(training.rows)) or not are_finite(training.parameters):
            return
        tensors = {f"parameters.{i}": parameter for i, parameter in enumerate(training.parameters)}
        for i, of_parameter in training.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in of_parameter.items()}
        tensors |= training.state()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        states = {"schedule": training.schedule.state_dict(), "scaler": training.scaler.state_dict()}
        text = json.dumps({"made_from": self.made_from, **states})
        with atomic_write(self.path) as temporary:
            save_file(tensors, temporary, {"state": text, "sha256": _digest(tensors, text)})

    def load(self, training):
        """Bring the training to where the file was written; a file that cannot be trusted is reported and not used."""
        if not self.path.exists():
            return
        try:
            tensors, states = self._read()
            saved = [tensors[f"parameters.{i}"] for i in range(len(training.parameters))]
            if [tensor.shape for tensor in saved] != [parameter.shape for parameter in training.parameters]:
                raise ValueError("its matrices have other shapes")
            if not are_finite(saved):
                raise ValueError("its weights are not finite")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            print(f"{self.path} is not used ({error}): its training starts anew.")
            return
        with torch.no_grad():
            for parameter, value in zip(training.parameters, saved, strict=True):
                parameter.copy_(value)
        training.schedule.load_state_dict(states["schedule"])
        training.scaler.load_state_dict(states["scaler"])
        _load_optimizer(training, tensors)
        training.restore(tensors)
        print(f"Going on at step {len(training.rows)} of the checkpoint {self.path}.")

    def _read(self):
        with safe_open(self.path, "pt") as file:
            note = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        if note["sha256"] != _digest(tensors, note["state"]):
            raise ValueError("its contents have changed since it was written")
        states = json.loads(note["state"])
        if states["made_from"] != self.made_from:
            raise ValueError("it was made with other parameters or from other images")
        return tensors, states


def open_checkpoint(run, name, made_from, writes=True):
    """The ``Checkpoint`` of one training of the stage of ``run``, in a file called ``name``.

    made_from: a JSON value, what the training depends on beside the run's parameters, such as the names of its images.
    writes: whether this process saves it (every ``checkpoint_every`` steps).
    """
    digest = hashlib.sha256(json.dumps([run.params.identity(), made_from]).encode()).hexdigest()
    return Checkpoint(run.folder / FOLDER / f"{name}.safetensors", digest, run.params.checkpoint_every if writes else 0)


def discard_checkpoints(run):
    """Delete those of the stage, which is complete without them."""
    shutil.rmtree(run.folder / FOLDER, ignore_errors=True)


def _load_optimizer(training, tensors):
    """AdamW's moments, and the learning rate of the next step in its groups."""
    state = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, of_parameter = name.split(".")
            state.setdefault(int(i), {})[of_parameter] = value
    groups = training.optimizer.state_dict()["param_groups"]
    rates = training.schedule.get_last_lr()
    groups = [group | {"lr": rate} for group, rate in zip(groups, rates, strict=True)]
    training.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _digest(tensors, text):
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
