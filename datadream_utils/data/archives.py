"""The known data sets: what ``params/datasets/<name>.yaml`` says of each, and reading their original archives in place.

A file says where the images come from, how the archive is laid out, what the classes are called and what may be done
with the pictures. Three layouts serve most sets (folders of classes, folders of splits, text lists); Flowers-102 and
Stanford Cars keep their labels in Matlab files and have a reader each.
"""

import functools
import os
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import yaml
from scipy.io import loadmat

from datadream_utils.data.images import SUFFIXES
from datadream_utils.errors import InputError
from datadream_utils.files import plain, read_bytes
from datadream_utils.params import ROOT

FOLDER = ROOT / "params" / "datasets"


@dataclass(frozen=True)
class Known:
    """One file of ``params/datasets``: classes in label order, and the facts it states."""

    name: str
    keys: tuple[str, ...]  # folder, file prefix or label in the archive
    class_names: tuple[str, ...]  # words for a prompt
    authors_names: tuple[str, ...]  # the strings in the authors' code
    facts: dict = field(repr=False)  # everything else in the file

    def how_to(self, root):
        """What to put into ``root``, in one clause."""
        note = f" ({self.facts['note']})" if "note" in self.facts else ""
        layout = self.facts["archive"]["needs"]
        return f"put {layout} there, from {self.facts['source']}{note}; licence: {self.facts['licence']}"

    def label_of(self, name):
        """The label that a folder, list or hub means by ``name``, or None. Case, order and punctuation do not count."""
        hits = {self._aliases.get(form) for part in (name, *name.split(",")) for form in _forms(part)} - {None}
        return hits.pop() if len(hits) == 1 else None

    @functools.cached_property
    def _aliases(self):
        """Every form of every class's key, words and authors' string, to its label; None where two classes share it."""
        aliases = {}
        for label, names in enumerate(zip(self.keys, self.class_names, self.authors_names, strict=True)):
            below = names[0].partition("/")[2]  # SUN397's keys start with a letter's folder
            for form in set().union(*(_forms(name) for name in (*names, below))):
                aliases[form] = None if aliases.get(form, label) != label else label
        return aliases


def known_names():
    """The known data sets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@functools.cache
def read_known(name):
    """The file of a known data set as ``Known``, or None for another name."""
    if name not in known_names():
        return None
    facts = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    rows = facts.pop("classes")
    if isinstance(glosses := facts.get("definitions"), str):  # a file of definitions by key
        glosses = yaml.safe_load((ROOT / "params" / "definitions" / f"{glosses}.yaml").read_text(encoding="utf-8"))
        facts["definitions"] = {row[1]: glosses[row[0]] for row in rows}
    return Known(
        name=name,
        keys=tuple(row[0] for row in rows),
        class_names=tuple(row[1] for row in rows),
        authors_names=tuple(row[-1] for row in rows),
        facts=facts,
    )


def _forms(name):
    """A name without case and punctuation, in two forms: run together, and as its words in sorted order."""
    words = re.findall(r"\w+", name.lower().replace("_", " "))
    return {"".join(words), " ".join(sorted(words))} - {""}


def safe_dir(label, class_name):
    """A folder name for a class: safe on every file system, unique, never a path."""
    return f"{label:04d}_{re.sub(r'[^A-Za-z0-9]+', '_', class_name).strip('_')[:60]}"


def list_pictures(directory):
    """The pictures in a folder, sorted by name; hidden files and other kinds are left out."""
    try:
        with os.scandir(directory) as entries:
            found = [e for e in entries if e.name.lower().endswith(SUFFIXES) and not e.name.startswith(".")]
        broken = next((entry for entry in found if not entry.is_file()), None)
    except OSError as error:
        raise InputError(f"folder {directory} cannot be read ({error.strerror}): put it back.") from None
    if broken:
        raise InputError(f"{directory}: {broken.name!r} is called as a picture but is no file: remove it.")
    return [directory / plain(name, f"a file in {directory}", 255) for name in sorted(e.name for e in found)]


def read_archive(root, known):
    """Read an original archive in place: ``(folder its file names are relative to, {split: [[path, ...], ...]})``.

    The one split "all" stands for a set that is not divided yet. None when ``root`` does not have the layout.
    """
    archive = known.facts["archive"]
    for at in archive["at"]:
        base = root / at
        if (base / archive["probe"]).exists():
            images = base / archive.get("images", ".")
            files = LAYOUTS[archive["layout"]](base, images, known)
            for split, classes in files.items():
                for key, paths in zip(known.keys, classes, strict=True):
                    if not paths:
                        raise InputError(f"{images} has no {split} images of class {key!r}: {known.how_to(root)}.")
            return images, files
    return None


def _class_folders(folder, known):
    """``<key>/*.jpg`` for every class; other folders are not looked at."""
    missing = [key for key in known.keys if not (folder / key).is_dir()]
    if missing:
        raise InputError(
            f"{folder / missing[0]} is missing, and {len(missing)} class folders in all: "
            f"{known.name} has {len(known.keys)}; unpack the archive whole."
        )
    return [list_pictures(folder / key) for key in known.keys]


def _undivided(base, images, known):
    return {"all": _class_folders(images, known)}


def _split_folders(base, images, known):
    folders = known.facts["archive"]["splits"]
    return {split: _class_folders(base / folder, known) for split, folder in folders.items()}


def _lists(base, images, known):
    """Text lists of file names, one per split, with the class in the line, the file's stem or its folder."""
    archive, files = known.facts["archive"], {}
    folders = [""] if archive["class_in"] != "folder" else known.keys
    there = {str(PurePosixPath(folder, path.name)) for folder in folders for path in list_pictures(images / folder)}
    for split, name in archive["lists"].items():
        path, classes = base / name, [[] for _ in known.keys]
        for number, line in enumerate(_text(path, known).splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            file, _, rest = line.strip().partition(" ")
            file = file.lstrip("/") + archive["suffix"]
            stem = PurePosixPath(file)
            raw = {"line": rest, "stem": stem.stem.rpartition("_")[0], "folder": str(stem.parent)}[archive["class_in"]]
            label = known.label_of(raw)
            if label is None:
                raise InputError(f"{path}, line {number}: {raw!r} is not a class of {known.name}.")
            if file not in there:
                raise InputError(f"{path}, line {number}: {images / file} is missing; unpack the archive whole.")
            classes[label].append(images / file)
        files[split] = [sorted(paths) for paths in classes]
    return files


def _text(path, known):
    try:
        return read_bytes(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): {known.name} needs it.") from None


def _matlab(path, variable, known):
    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[variable])
    except Exception as error:  # scipy lets IndexError, zlib.error and more out, by the damage
        raise InputError(f"{path} is no Matlab file with {variable!r} ({error}): {known.name} needs it.") from None


def _labelled(rows, folder, source, known):
    """``[[path, ...], ...]`` from ``(file name, label counted from 1)`` rows."""
    there, classes = {path.name for path in list_pictures(folder)}, [[] for _ in known.keys]
    for name, number in rows:
        if name not in there:
            raise InputError(f"{source} lists {folder / name}, which is missing; unpack the archive whole.")
        if not 1 <= number <= len(classes):
            raise InputError(f"{source}: label {number} of {name} must be from 1 to {len(classes)}.")
        classes[number - 1].append(folder / name)
    return [sorted(paths) for paths in classes]


def _flowers(base, images, known):
    source = base / known.facts["archive"]["labels"]
    labels = _matlab(source, "labels", known)
    rows = ((f"image_{i:05d}.jpg", int(label)) for i, label in enumerate(labels, 1))
    return {"all": _labelled(rows, images, source, known)}


def _cars(base, images, known):
    archive, files = known.facts["archive"], {}
    for split, candidates in archive["annotations"].items():
        source = next((base / name for name in candidates if (base / name).exists()), base / candidates[0])
        rows = ((str(a["fname"]), int(a["class"])) for a in _matlab(source, "annotations", known))
        files[split] = _labelled(rows, base / archive["folders"][split], source, known)
    return files


LAYOUTS = {
    "class_folders": _undivided,
    "split_folders": _split_folders,
    "lists": _lists,
    "flowers": _flowers,
    "cars": _cars,
}
