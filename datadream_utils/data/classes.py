"""What the classes are called: by ``dataset.yaml``, by the known data set, or by their folders."""

import os
import re

from datadream_utils.data.folders import refuse_link_out
from datadream_utils.errors import InputError, suggest
from datadream_utils.files import LONG, check_plain, compose_name, read_yaml

ALLOWED = ("classes", "domain", "definition", "definitions", "source", "licence", "split", "example")
NEARLY = re.compile(r"dataset\.ya?ml(\.txt)?", re.IGNORECASE)  # what editors and habit make of "dataset.yaml"
CODE = re.compile(r"(n\d{8}|\d+)[-_. ]+(?=[^\W\d_])")  # of "n02085620-Chihuahua", "001.Black_footed_Albatross"


def read_info(root):
    """``dataset.yaml`` of a data set's folder as a dict, empty when there is none; InputError names a wrong line."""
    path = root / "dataset.yaml"
    if not path.exists():
        with os.scandir(root) as entries:
            near = next((entry.name for entry in entries if NEARLY.fullmatch(entry.name)), None)
        if near:
            raise InputError(f"{root / near} is not read under that name: rename it to dataset.yaml, or remove it.")
        return {}
    refuse_link_out(root.resolve(), path)
    info = read_yaml(path) or {}
    if not isinstance(info, dict):
        raise InputError(f"{path} must hold 'name: value' lines; known names: {', '.join(ALLOWED)}.")
    for key, value in info.items():
        if key not in ALLOWED:
            raise InputError(f"{path}: {key!r} is not known.{suggest(key, ALLOWED)}")
        if key in ("classes", "definitions"):
            if not isinstance(value, dict):
                raise InputError(f"{path}: {key!r} must be 'name: value' lines, not {value!r}.")
            longest = LONG if key == "definitions" else 200
            info[key] = {_text(path, k): _text(path, v, longest) for k, v in value.items()}
        elif value is not None:
            info[key] = _text(path, value, LONG)
    return {key: value for key, value in info.items() if value is not None}


def _text(path, value, limit=200):
    """A name or sentence as text; a whole number is taken as text. YAML reads ``no`` as a truth value: InputError."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{path}: {value!r} stands where text must: put it in quotes.")
    return check_plain(str(value), f"{path}: a name", limit)


def name_classes(root, directory, folders, info, known):
    """``{folder: class name}`` in label order.

    root: the data set's folder. directory: the folder in it that holds the class ``folders`` (composed names). info:
    what ``read_info`` gives. known: a ``Known`` or None. InputError when they do not fit together or two classes have
    one name.
    """
    if "classes" in info:
        classes = _listed_names(directory, folders, info["classes"])
    elif known:
        classes = _known_names(root, directory, folders, known)
    else:
        classes = _folder_names(folders)
    names = list(classes.values())
    if known and len(names) != len(known.class_names):
        raise InputError(
            f"{root} is called as the known data set {known.name}, but has {len(names)} classes, not "
            f"{len(known.class_names)}: give the folder another name."
        )
    _refuse_equal_names(root, names)
    if info.get("example", names[0]) not in names:
        raise InputError(
            f"{root / 'dataset.yaml'}: example {info['example']!r} is no class.{suggest(info['example'], names)}"
        )
    return classes


def _listed_names(directory, folders, listed):
    """The names that dataset.yaml lists, in its order; it must list every folder and no other."""
    classes = {compose_name(folder): name for folder, name in listed.items()}
    for folder in classes:
        if folder not in folders:
            raise InputError(f"{directory / folder} is missing, but dataset.yaml lists it: add it or drop the line.")
    for folder in folders:
        if folder not in classes:
            raise InputError(f"{directory / folder} is not listed under 'classes' in dataset.yaml: add it there.")
    return classes


def _known_names(root, directory, folders, known):
    """A known data set's names in its label order; a folder may bear any of its class's names."""
    own = "for a data set of your own give the folder another name"
    folder_of = {}
    for folder in folders:
        label = known.label_of(folder)
        if label is None and folder not in known.facts.get("drop", ()):
            raise InputError(f"{directory / folder} is no class of {known.name}: {known.how_to(root)}; {own}.")
        if label in folder_of:
            both = f"{folder_of[label]!r} and {folder!r}"
            raise InputError(f"{directory} has two folders for one class, {both}: join them.")
        if label is not None:
            folder_of[label] = folder
    for label, name in enumerate(known.class_names):
        if label not in folder_of:
            raise InputError(f"{directory} has no folder for {name!r}: {known.how_to(root)}; {own}.")
    return {folder_of[label]: name for label, name in enumerate(known.class_names)}


def _folder_names(folders):
    """The folders' own names as words. A code before the name is dropped when every folder has one."""
    words = {folder: CODE.sub("", folder, count=1) for folder in folders if CODE.match(folder)}
    if len(words) < len(folders) or len(set(words.values())) < len(folders):
        words = {folder: folder for folder in folders}
    return {folder: name.replace("_", " ") for folder, name in words.items()}


def _refuse_equal_names(root, names):
    """InputError for an empty name, or for two that CLIP's tokenizer reads alike."""
    first = {}
    for name in names:
        form = " ".join(compose_name(name).lower().split())  # as CLIP's tokenizer sees it
        if not form:
            raise InputError(f"{root}: a class is called {name!r}: give it a name in dataset.yaml.")
        if form in first:
            other = "" if first[form] == name else f" and {first[form]!r}, the same to CLIP"
            raise InputError(f"{root}: two classes are called {name!r}{other}: give each its own name in dataset.yaml.")
        first[form] = name
