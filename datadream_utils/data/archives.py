"""Reading the unpacked original archives of the known data sets in place.

Most data sets have one of three layouts: folders of classes, folders of splits, text lists. Flowers-102 and Stanford
Cars have their labels in Matlab files, and a reader each. ``params/datasets/<name>.yaml`` names the layout of a data
set. Every reader takes ``(base, images, known)``, the archive's folder, that of its pictures and the data set, and
returns ``{split: [[path, ...] per class]}``.
"""

from pathlib import PurePosixPath

import numpy as np
from scipy.io import loadmat

from datadream_utils.data.folders import list_pictures
from datadream_utils.errors import InputError
from datadream_utils.files import read_bytes


def find_archive(root, known):
    """The folder of the known data set's archive, ``root`` or one in it; None if its probe file is nowhere there."""
    archive = known.facts["archive"]
    return next((root / place for place in archive["at"] if (root / place / archive["probe"]).exists()), None)


def read_archive(base, known):
    """``(images, {split: [[path, ...] per class]})`` of an archive at ``base``; file names are relative to ``images``.

    A data set that is not divided has the one split "all". InputError if files or whole classes are missing.
    """
    archive = known.facts["archive"]
    images = base / archive.get("images", ".")
    files = LAYOUTS[archive["layout"]](base, images, known)
    for split, classes in files.items():
        for key, paths in zip(known.keys, classes, strict=True):
            if not paths:
                raise InputError(f"{images} has no {split} images of class {key!r}: {known.how_to(base)}.")
    return images, files


def _undivided(base, images, known):
    """``images/<key>/*.jpg``."""
    return {"all": _pictures_of_classes(images, known)}


def _split_folders(base, images, known):
    """``<split>/<key>/*.jpg``."""
    folders = known.facts["archive"]["splits"]
    return {split: _pictures_of_classes(base / folder, known) for split, folder in folders.items()}


def _pictures_of_classes(folder, known):
    """``[[path, ...] per class]`` from ``folder/<key>``; other folders are not read."""
    missing = [key for key in known.keys if not (folder / key).is_dir()]
    if missing:
        raise InputError(
            f"{folder / missing[0]} is missing, and {len(missing)} class folders in all: "
            f"{known.name} has {len(known.keys)}; unpack the archive whole."
        )
    return [list_pictures(folder / key) for key in known.keys]


def _lists(base, images, known):
    """Text lists of file names, one per split, with the class in the line, the file's stem or its folder."""
    archive, files = known.facts["archive"], {}
    folders = [""] if archive["class_in"] != "folder" else known.keys
    present = {str(PurePosixPath(folder, path.name)) for folder in folders for path in list_pictures(images / folder)}
    for split, name in archive["lists"].items():
        path, classes = base / name, [[] for _ in known.keys]
        for number, line in enumerate(_text(path, known).splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            file, _, rest = line.strip().partition(" ")
            file = file.lstrip("/") + archive["suffix"]
            path_in_line = PurePosixPath(file)
            class_text = {
                "line": rest,
                "stem": path_in_line.stem.rpartition("_")[0],
                "folder": str(path_in_line.parent),
            }[archive["class_in"]]
            label = known.label_of(class_text)
            if label is None:
                raise InputError(f"{path}, line {number}: {class_text!r} is not a class of {known.name}.")
            if file not in present:
                raise InputError(f"{path}, line {number}: {images / file} is missing; unpack the archive whole.")
            classes[label].append(images / file)
        files[split] = [sorted(paths) for paths in classes]
    return files


def _text(path, known):
    try:
        return read_bytes(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): {known.name} needs it.") from None


def _flowers(base, images, known):
    """Flowers-102: one Matlab file with the labels of ``image_00001.jpg``, ``image_00002.jpg``, ..."""
    source = base / known.facts["archive"]["labels"]
    labels = _matlab(source, "labels", known)
    rows = ((f"image_{i:05d}.jpg", int(label)) for i, label in enumerate(labels, 1))
    return {"all": _labelled(rows, images, source, known)}


def _cars(base, images, known):
    """Stanford Cars: a Matlab file of annotations per split."""
    archive, files = known.facts["archive"], {}
    for split, candidates in archive["annotations"].items():
        source = next((base / name for name in candidates if (base / name).exists()), base / candidates[0])
        rows = ((str(a["fname"]), int(a["class"])) for a in _matlab(source, "annotations", known))
        files[split] = _labelled(rows, base / archive["folders"][split], source, known)
    return files


def _matlab(path, variable, known):
    """A variable of a Matlab file, as an array of at least one dimension."""
    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[variable])
    except Exception as error:  # scipy raises IndexError, zlib.error and more, depending on the damage
        raise InputError(f"{path} is no Matlab file with {variable!r} ({error}): {known.name} needs it.") from None


def _labelled(rows, folder, source, known):
    """``[[path, ...] per class]`` from ``(file name, label counted from 1)`` rows of the file ``source``."""
    present, classes = {path.name for path in list_pictures(folder)}, [[] for _ in known.keys]
    for name, number in rows:
        if name not in present:
            raise InputError(f"{source} lists {folder / name}, which is missing; unpack the archive whole.")
        if not 1 <= number <= len(classes):
            raise InputError(f"{source}: label {number} of {name} must be from 1 to {len(classes)}.")
        classes[number - 1].append(folder / name)
    return [sorted(paths) for paths in classes]


LAYOUTS = {
    "class_folders": _undivided,
    "split_folders": _split_folders,
    "lists": _lists,
    "flowers": _flowers,
    "cars": _cars,
}
