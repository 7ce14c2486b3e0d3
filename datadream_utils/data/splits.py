"""How the pictures of a data set are divided into train, val and test: by a fixed permutation or by a split file.

CoOp (Zhou et al. 2022) divides each class of most of its data sets into 50 % train, 20 % val and 30 % test, and has
published split files. The paper uses those files. Without a file, a permutation that is the same on every machine
divides each class in the same proportions.
"""

import csv
import hashlib
import io
import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from datadream_utils.errors import InputError, name_few
from datadream_utils.files import MAX_BYTES, atomic_write, compose_name, read_bytes
from datadream_utils.params import resolve
from datadream_utils.seeds import permuted

TRAIN_SHARE, VAL_SHARE = 0.5, 0.2  # of each class; the rest is test
OWN_SPLIT = "own split: 50 % train, 20 % val, 30 % test of each class by a fixed permutation (no split file given)"
HELD_OUT = "val is 20 % of each class's train by a fixed permutation (no split file given)"
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {  # names of each split in folders and on hub pages, in lower case
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class SplitFile:
    """The content of a split file: rows ``(place in the file, split, file name, class name or "")``."""

    rows: tuple
    where: str  # path or URL as given
    sha256: str

    def __str__(self):
        return f"split file {self.where} (sha256 {self.sha256})"


def own_split(folders, files):
    """Divide each class 50/20/30: ``{"train": [[path, ...], ...], "val": ..., "test": ...}``, sorted within a class.

    files: ``[[path, ...] per class]``, sorted. The permutation of a class depends only on its folder's name. Sizes are
    rounded as in CoOp. InputError for a class of fewer than four images.
    """
    divided = {split: [] for split in SPLITS}
    if few := {folder: len(paths) for folder, paths in zip(folders, files, strict=True) if len(paths) < 4}:
        raise InputError(
            f"{name_few(few)}, and dividing it into train, val and test takes at least 4: add images, or put them into "
            "train/<class>/ and test/<class>/ yourself."
        )
    for folder, paths in zip(folders, files, strict=True):
        order = permuted(paths, "split", folder)
        n_train, n_val = round(len(paths) * TRAIN_SHARE), round(len(paths) * VAL_SHARE)
        divided["train"].append(sorted(order[:n_train]))
        divided["val"].append(sorted(order[n_train : n_train + n_val]))
        divided["test"].append(sorted(order[n_train + n_val :]))
    return divided


def hold_out(folders, files):
    """Take 20 % of each class of a train split for validation: ``(train, val)``, each ``[[path, ...] per class]``.

    InputError for a class of fewer than three images.
    """
    train, val = [], []
    counts = {folder: len(paths) for folder, paths in zip(folders, files, strict=True)}
    if few := {folder: count for folder, count in counts.items() if not round(count * VAL_SHARE)}:
        raise InputError(f"train {name_few(few)}, too few for a val split: it takes 3.")
    for folder, paths in zip(folders, files, strict=True):
        n_val = round(len(paths) * VAL_SHARE)
        order = permuted(paths, "hold_out", folder)
        val.append(sorted(order[:n_val]))
        train.append(sorted(order[n_val:]))
    return train, val


def read_split_file(where, data_root):
    """Read a split file from a path or a URL: CoOp's JSON, or CSV with the columns ``split,filename[,class]``.

    A URL is downloaded once and kept under ``data_root/split_files``. InputError names the file, the line and the fix.
    """
    content = _fetch(where, split_path(where, data_root)) if _is_url(where) else _read(where)
    try:
        text = content.decode("utf-8-sig")
        rows = _json_rows(text, where) if text.lstrip()[:1] in ("{", "[") else _csv_rows(text, where)
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{where} cannot be read as a CSV or JSON split file: {error}") from None
    for place, split, _, _ in rows:
        if split not in SPLITS:
            raise InputError(f"{where}, {place}: split {split!r} must be one of {', '.join(SPLITS)}.")
    return SplitFile(tuple(rows), where, hashlib.sha256(content).hexdigest())


def _read(where):
    try:
        return read_bytes(resolve(where))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"split file {where} cannot be read ({reason}): give its path or a URL.") from None


def _is_url(where):
    return re.match(r"https?://", where) is not None


def split_path(where, data_root):
    """The absolute path of a split file; that of its copy, whether it is there yet or not, if ``where`` is a URL."""
    if not _is_url(where):
        return resolve(where)
    name = re.sub(r"[^A-Za-z0-9.]+", "_", where.rpartition("/")[2])[-60:]
    return resolve(data_root) / "split_files" / f"{hashlib.sha256(where.encode()).hexdigest()[:16]}_{name}"


def _fetch(url, path):
    if not path.exists():
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                content = answer.read(MAX_BYTES + 1)
        except (OSError, ValueError, urllib.error.URLError) as error:
            raise InputError(f"{url} cannot be fetched ({error}): download it and give the file's path.") from None
        if len(content) > MAX_BYTES:
            raise InputError(f"{url} is larger than {MAX_BYTES // 2**20} MB: that is no split file.")
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return path.read_bytes()


def _csv_rows(text, where):
    table = csv.DictReader(io.StringIO(text))
    if not {"split", "filename"} <= set(table.fieldnames or ()):
        raise InputError(f"{where} must have the columns split,filename[,class], not {table.fieldnames}.")
    return [(f"line {table.line_num}", row["split"], row["filename"] or "", row.get("class") or "") for row in table]


def _json_rows(text, where):
    content = json.loads(text)
    if not isinstance(content, dict) or not all(isinstance(entries, list) for entries in content.values()):
        raise InputError(f"{where} must hold {{'train': [[file, label, class name], ...], 'val': ..., 'test': ...}}.")
    rows = []
    for split, entries in content.items():
        for i, entry in enumerate(entries):
            if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)):
                raise InputError(f"{where}, {split} entry {i}: {entry!r} must be [file, label, class name].")
            rows.append((f"{split} entry {i}", split, entry[0], str(entry[2])))
    return rows


def apply_split(split_file, images, folders, files):
    """Divide the pictures as a split file says: ``{"train": [[path, ...], ...], ...}``, sorted within each class.

    images: the folder to which the file's names are relative; a name can also be ``<class folder>/<name>``. files:
    every picture, ``{any split: [[path, ...] per class]}``. InputError for a picture that is missing or named twice, a
    class without train or test images, and class names that contradict the folders.
    """
    where, pictures = split_file.where, PictureIndex(images, folders, files)
    missing = [(place, name) for place, _, name, _ in split_file.rows if pictures.find(name) is None]
    if missing:
        place, name = missing[0]
        raise InputError(
            f"{where} names {len(missing)} images that are not in {images} ({place}: {name!r}): unpack the whole "
            "original archive there; copies from the hub may not keep the original file names."
        )
    first_place, label_of = {}, {}  # {path: its place in the split file}, {class name in the split file: label}
    divided = {split: [[] for _ in folders] for split in SPLITS}
    for place, split, name, class_name in split_file.rows:
        path, label = pictures.find(name)
        if path in first_place:
            raise InputError(f"{where}: {name!r} stands there twice ({first_place[path]} and {place}): keep one.")
        first_place[path] = place
        if class_name and label_of.setdefault(class_name, label) != label:
            other = folders[label_of[class_name]]
            raise InputError(f"{where}, {place}: {name!r} is of {folders[label]!r}, but {class_name!r} was {other!r}.")
        divided[split][label].append(path)
    for split in ("train", "test"):
        for folder, paths in zip(folders, divided[split], strict=True):
            if not paths:
                raise InputError(f"{where} has no {split} image of class {folder!r}: is it of another data set?")
    if not any(divided["val"]):
        del divided["val"]
    return {split: [sorted(paths) for paths in classes] for split, classes in divided.items()}


class PictureIndex:
    """Finds pictures by name: by the path from the folder ``root``, or by ``<class folder>/<file>``.

    ``train/<file>`` also finds one in a folder ``<any>_train``: CoOp's list of Stanford Cars says
    ``cars_train/05266.jpg``, the CSV copy of it ``train/05266.jpg``.
    """

    def __init__(self, root, folders, files):
        """files: ``{any split: [[path, ...] per class of folders]}``."""
        self._by_name, start = {}, len(str(root)) + 1  # {name: (path, label), or None if two pictures have it}
        for classes in files.values():
            for label, (folder, paths) in enumerate(zip(folders, classes, strict=True)):
                for path in paths:
                    _, joint, split = path.parent.name.rpartition("_")
                    names = {Path(str(path)[start:]).as_posix(), f"{folder}/{path.name}"}
                    for name in names | ({f"{split}/{path.name}"} if joint and split in SPLITS else set()):
                        self._by_name[name] = None if name in self._by_name else (path, label)
        for name, picture in [(n, p) for n, p in self._by_name.items() if not n.isascii()]:
            self._by_name.setdefault(compose_name(name), picture)

    def find(self, name):
        """``(path, label)`` of the one picture called ``name``; None if there is none or more than one."""
        return self._by_name.get(name) or self._by_name.get(compose_name(name))
