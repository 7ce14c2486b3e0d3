"""CLIP features of pictures, as measures of distance use them; kept on disk under a checksum of pictures and model.

The one place of the analysis where a picture becomes a feature: CLIP's own preprocessing, its image encoder, unit
length.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from datadream_utils.backbones.clip import image_features
from datadream_utils.backbones.load import load_clip, model_identity
from datadream_utils.classifier.pictures import evaluation_pictures
from datadream_utils.data.dataset import flatten
from datadream_utils.diffusion.generate import read_generated
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write, digest
from datadream_utils.params import resolve
from datadream_utils.runs.device import choose_device
from datadream_utils.runs.plausible import check_finite

BATCH = 256
MOST = 20_000  # pictures of one set that are encoded, equally many of each class, but at least ``LEAST`` of each
LEAST = 40


@dataclass(frozen=True)
class Encoder:
    """A CLIP that no run has trained, which turns pictures into features; ``identity``: its folder or hub commit."""

    clip: torch.nn.Module
    processor: object
    identity: dict

    @property
    def name(self):
        """``CLIP features (tiny-clip)``: what a figure calls the space."""
        return f"CLIP features ({Path(self.identity.get('folder') or self.identity['hub']).name})"


@dataclass(frozen=True)
class Encoded:
    """Pictures in feature space: paths (n), labels (n,), features (n, d) of unit length."""

    paths: tuple
    labels: np.ndarray
    features: np.ndarray

    def of_class(self, label):
        """The pictures of one class."""
        return self.where(self.labels == label)

    def where(self, mask):
        """The pictures where ``mask`` (n,) is true."""
        chosen = np.flatnonzero(mask)
        return Encoded(tuple(self.paths[i] for i in chosen), self.labels[chosen], self.features[chosen])

    def without(self, files):
        """The pictures that are not in ``files[label]`` (paths)."""
        left_out = {path for paths in files for path in paths}
        return self.where(np.array([path not in left_out for path in self.paths], bool))

    def sample(self, count, seed):
        """``count`` pictures of every class (or all, where there are fewer), drawn by ``seed``."""
        rank, rng = np.zeros(len(self.labels), int), np.random.default_rng(seed)
        for label in np.unique(self.labels):
            rank[self.labels == label] = rng.permutation((self.labels == label).sum())
        return self.where(rank < count)


def load_encoder(clip_model, clip_revision, device="auto"):
    """The ``Encoder`` of a CLIP as it was before any training (a folder or a hub id)."""
    clip, _, processor = load_clip(clip_model, clip_revision, choose_device(device))
    return Encoder(clip, processor, model_identity(clip_model, clip_revision))


def try_encoder(runs):
    """``(Encoder, "")`` of the CLIP that ``runs`` (``results.load_results``) started from, or None and a sentence.

    None where they started from several, or where that CLIP is on another machine.
    """
    models = {(p["clip_model"], p["clip_revision"]) for p in runs["parameters"]}
    names = ", ".join(sorted(model for model, _ in models)) or "none"
    why_not = f"the runs have {len(models)} values of clip_model, {names}: set output_root to runs of one."
    if len(models) == 1:
        try:
            return load_encoder(*models.pop()), ""
        except InputError as error:
            why_not = error
    return None, f"Nothing is measured on images here: {why_not}"


def encode(encoder, files, cache, checksum=""):
    """The pictures ``files[label]`` as ``Encoded``, read from ``cache`` (a folder) if they were encoded before.

    checksum: of the pictures' contents, where it is known already; else the pictures are read for it. InputError
    names a picture or a kept file that cannot be read.
    """
    paths, labels = flatten(files)
    if not paths:
        return Encoded((), np.zeros(0, int), np.zeros((0, 1), np.float32))
    key = json.dumps([encoder.identity, checksum or digest(paths), len(paths)])
    place = Path(cache) / f"features-{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    features = _read(place, len(paths)) if place.exists() else _compute(encoder, paths, place)
    return Encoded(tuple(paths), np.array(labels), features)


def encode_generated(encoder, stage, n_classes):
    """The first pictures (``MOST``) of a stage of ``results.select_generated``, kept in the run's ``analysis/``."""
    files = [paths[: count_per_class(n_classes)] for paths in read_generated(stage, n_classes)]
    return encode(encoder, files, stage.folder.parent / "analysis", stage.digest)


def encode_real(encoder, files, output_root, every=False):
    """Real pictures ``files[label]``, ``MOST`` of them or ``every``, kept in ``output_root``'s ``analysis/``."""
    most = max(map(len, files)) if every else count_per_class(len(files))
    few = [sorted(random.Random(label).sample(paths, most)) if len(paths) > most else paths
           for label, paths in enumerate(files)]  # fmt: skip
    return encode(encoder, few, resolve(output_root) / "analysis")


def count_per_class(n_classes):
    """How many pictures of each of ``n_classes`` classes are encoded."""
    return max(LEAST, MOST // n_classes)


@torch.inference_mode()
def _compute(encoder, paths, place):
    pictures = evaluation_pictures(paths, encoder.processor)
    device = next(encoder.clip.parameters()).device
    batches = torch.utils.data.DataLoader(pictures, BATCH, generator=torch.Generator())
    features = torch.cat([image_features(encoder.clip, batch.to(device)).float().cpu() for batch in batches]).numpy()
    check_finite(features, paths, "The CLIP features", "set clip_model to a model whose weights are whole")
    with atomic_write(place) as temporary:
        save_file({"features": features}, temporary)
    return features


def _read(place, n):
    try:
        with safe_open(place, "np") as file:
            features = file.get_tensor("features")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{place} cannot be read ({error}): delete it, it is made again.") from None
    if features.ndim != 2 or len(features) != n:
        raise InputError(f"{place} holds {features.shape}, not the features of {n} pictures: delete it.")
    check_finite(features, [f"picture {i}" for i in range(n)], f"{place}: the features", "delete it, it is made again")
    return features
