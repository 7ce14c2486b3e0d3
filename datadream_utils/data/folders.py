"""Folders of classes: their names, their pictures, and the ``dataset.yaml`` that may stand beside them."""

import os
import unicodedata

from datadream_utils.data.archives import list_pictures
from datadream_utils.data.images import SUFFIXES
from datadream_utils.errors import InputError, suggest
from datadream_utils.files import LONG, plain, read_yaml


def read_info(root):
    """``dataset.yaml`` of a data set's folder as a dict, empty when there is none; InputError names a wrong line."""
    path = root / "dataset.yaml"
    if not path.exists():
        return {}
    _stays_in(root.resolve(), path)
    info = read_yaml(path) or {}
    allowed = ("classes", "domain", "definition", "definitions", "source", "licence", "split", "example")
    if not isinstance(info, dict):
        raise InputError(f"{path} must hold 'name: value' lines; known names: {', '.join(allowed)}.")
    for key, value in info.items():
        if key not in allowed:
            raise InputError(f"{path}: {key!r} is not known.{suggest(key, allowed)}")
        if key in ("classes", "definitions") and not isinstance(value, dict):
            raise InputError(f"{path}: {key!r} must be 'name: value' lines, not {value!r}.")
        if key in ("classes", "definitions"):
            longest = LONG if key == "definitions" else 200
            info[key] = {_word(path, k): _word(path, v, longest) for k, v in value.items()}
        elif value is not None:
            info[key] = _word(path, value, LONG)
    return {key: value for key, value in info.items() if value is not None}


def _word(path, value, limit=200):
    """A name or sentence as text. A whole number will do; YAML reads ``no`` as a truth value."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{path}: {value!r} stands where text must: put it in quotes.")
    return plain(str(value), f"{path}: a name", limit)


def subfolders(folder):
    """The names of the folders in a folder, sorted, without hidden ones."""
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def class_folders(folder):
    """``subfolders`` whose names are to be classes': InputError for one that cannot be printed."""
    return [plain(name, f"a folder in {folder}") for name in subfolders(folder)]


def read_classes(root, directory, info, known):
    """``{folder: class name}`` in label order: as dataset.yaml, the known data set or the folders themselves say."""
    found = class_folders(directory)
    if not found:
        raise InputError(
            f"{directory} has no class folders: put each class's images in train/<class>/ and test/<class>/, "
            "or in <class>/ directly."
        )
    if "classes" in info:
        classes = info["classes"]
        for folder in classes:
            if folder not in found:
                raise InputError(
                    f"{directory / folder} is missing, but dataset.yaml lists it: add it or drop the line."
                )
        for folder in found:
            if folder not in classes:
                raise InputError(f"{directory / folder} is not listed under 'classes' in dataset.yaml: add it there.")
    elif known:
        classes = _known_classes(root, directory, found, known)
    else:
        classes = {folder: folder.replace("_", " ") for folder in found}
    names = list(classes.values())
    first = {}
    for name in names:
        form = " ".join(unicodedata.normalize("NFC", name).lower().split())  # as CLIP's tokenizer sees it
        if not form:
            raise InputError(f"{root}: a class is called {name!r}: give it a name in dataset.yaml.")
        if form in first:
            other = "" if first[form] == name else f" and {first[form]!r}, the same to CLIP"
            raise InputError(f"{root}: two classes are called {name!r}{other}: give each its own name in dataset.yaml.")
        first[form] = name
    if info.get("example", names[0]) not in names:
        raise InputError(
            f"{root / 'dataset.yaml'}: example {info['example']!r} is no class.{suggest(info['example'], names)}"
        )
    return classes


def _known_classes(root, directory, found, known):
    """The folders of a known data set in its label order, whatever of its names they bear."""
    own = "for a data set of your own give the folder another name or a dataset.yaml"
    labels = {}
    for folder in found:
        label = known.label_of(folder)
        if label is None and folder not in known.facts.get("drop", ()):
            raise InputError(f"{directory / folder} is no class of {known.name}: {known.how_to(root)}; {own}.")
        if label in labels:
            raise InputError(f"{directory} has two folders for one class, {labels[label]!r} and {folder!r}: join them.")
        labels |= {} if label is None else {label: folder}
    for label, name in enumerate(known.class_names):
        if label not in labels:
            raise InputError(f"{directory} has no folder for {name!r}: {known.how_to(root)}; {own}.")
    return {labels[label]: name for label, name in enumerate(known.class_names)}


def list_files(root, split, folders):
    """The pictures of one split, a sorted list per class; InputError when its folders are not those of train."""
    for extra in class_folders(root / split):
        if extra not in folders:
            raise InputError(f"{root / split / extra} has no counterpart in {root / 'train'}: add it or remove it.")
    for folder in folders:
        if not (root / split / folder).is_dir():
            raise InputError(
                f"class folder {root / split / folder} is missing: every class of train needs one in {split}."
            )
    return [pictures_of(root / split / folder) for folder in folders]


def pictures_of(directory):
    """The pictures of one class; InputError when there are none."""
    if files := list_pictures(directory):
        return files
    raise InputError(f"{directory} has no images ({', '.join(SUFFIXES)}).")


def refuse_links_out(root, files):
    """InputError for a picture or class folder that is a link out of ``root``. The folder ``root`` may be a link.

    A data set from somebody else could otherwise make a run read, and its pictures show, any picture of this machine.
    """
    home, paths = root.resolve(), {path for classes in files.values() for of_class in classes for path in of_class}
    for folder in sorted({path.parent for path in paths}):
        _stays_in(home, folder)
        with os.scandir(folder) as entries:
            links = [folder / entry.name for entry in entries if entry.is_symlink()]
        for link in paths.intersection(links):
            _stays_in(home, link)


def _stays_in(home, path):
    if not path.resolve().is_relative_to(home):
        raise InputError(f"{path} is a link to {path.resolve()}, out of the data set: put a copy in its place.")
