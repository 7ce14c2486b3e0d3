"""A data set: which pictures it has, of which classes, in which splits.

A data set is a folder with ``train/<class>/*.png`` and ``test/<class>/*.png`` (any picture format), optionally
``val/``; or with ``<class>/*.png`` directly, which is divided into 50 % train, 20 % val and 30 % test. The folder may
also have a ``dataset.yaml``, every key of which is optional:

    classes: {"0": zero, "1": one}     # folder: its name in prompts, in label order (default: the folder names)
    domain: satellite                  # one word for the template: "a satellite photo of a forest"
    definition: a digit                # definition of every class, for FakeIt's prompts
    definitions: {zero: a round digit} # definition of one class, by class name
    example: four                      # class name of the example figure

The tiny world's ``mnist5k`` and ``uci_digits`` are written in this form when they are first loaded. The paper's data
sets are known by name (``params/datasets/*.yaml``) and are read from their original archives or the hub.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from datadream_utils.data.archives import find_archive, read_archive
from datadream_utils.data.classes import name_classes, read_info
from datadream_utils.data.digits import WRITERS
from datadream_utils.data.folders import (
    class_folders,
    count_unread,
    find_splits,
    list_classes,
    list_pictures,
    refuse_links_out,
    safe_dir,
    subfolders,
)
from datadream_utils.data.hub import export_hub, export_parquet, has_parquet
from datadream_utils.data.known import known_names, read_known
from datadream_utils.data.splits import (
    HELD_OUT,
    OWN_SPLIT,
    SPLIT_NAMES,
    apply_split,
    hold_out,
    own_split,
    read_split_file,
)
from datadream_utils.errors import InputError, raise_together, suggest
from datadream_utils.files import check_plain
from datadream_utils.params import ROOT, resolve


@dataclass(frozen=True)
class Dataset:
    """A data set on disk. A label is an index into ``folders``; ``files[split][label]`` are sorted paths.

    folders: a key per class, its folder's name (for an archive the key in ``params/datasets``).
    """

    name: str
    root: Path
    folders: tuple[str, ...]
    class_names: tuple[str, ...]
    files: dict
    domain: str = ""
    definitions: dict = field(default_factory=dict)
    split: str = ""  # a description of the split and its origin
    licence: str = ""
    source: str = ""
    example: str = ""  # class name of the example figure
    published_test: str = "test"  # the split that the authors' released code tests on
    authors_names: tuple[str, ...] = ()  # the authors' own class names, in label order

    def class_dir(self, label):
        """A folder name for class ``label``'s outputs: safe on every file system, unique, never a path."""
        return safe_dir(label, self.class_names[label])

    def count_unread(self, label):
        """The number of files in the folders of class ``label`` that are no pictures by suffix, or in a subfolder."""
        return sum(map(count_unread, {path.parent for classes in self.files.values() for path in classes[label]}))


def load_dataset(dataset, data_root="data", split_file=""):
    """Find a data set by name or folder and list its files.

    dataset: "mnist5k", "uci_digits", a known name (``known_names()``), the name of a folder under ``data_root``, or the
    path of any folder. A known data set is read from ``data_root`` (exported folders, its original archive or parquet
    files; with a split file the archive comes first); if it is not there, it is exported from the hub. split_file: path
    or URL of a CSV or JSON file that assigns each picture to a split (``splits.read_split_file``). InputError if the
    data set is not there, lacks a split, or if the classes of its splits differ.
    """
    dataset = os.path.expandvars(os.path.expanduser(dataset))
    known = read_known(Path(dataset).name)
    root = _find_root(dataset, known, data_root)
    names_root = root  # the folder to which the file names in a split file are relative
    splits = find_splits(root)
    archive = find_archive(root, known) if known else None
    exported = "test" in splits or (splits and not known)
    if exported and not (archive and split_file):  # train/<class>/*.png and test/<class>/*.png
        data = _read_split_folders(root, splits, known)
    elif archive:  # the archive that its authors publish; a split file names its pictures
        names_root, files = read_archive(archive, known)
        data = _from_archive(root, files, known)
    elif has_parquet(root):  # downloaded from the hub
        names_root = export_parquet(root, known)
        data = _read_split_folders(names_root, find_splits(names_root), known)
    else:  # <class>/*.png
        data = _read_class_folders(root, known)
    data = replace(data, name=check_plain(root.name, "the data set's folder"))
    refuse_links_out(root, data.files)
    if split_file:
        content = read_split_file(split_file, data_root)
        keys = known.keys if data.authors_names else data.folders  # an exported folder is named otherwise
        return replace(data, files=apply_split(content, names_root, keys, data.files), split=str(content))
    if "all" in data.files:
        return replace(data, files=own_split(data.folders, data.files["all"]), split=OWN_SPLIT)
    return data


def _find_root(dataset, known, data_root):
    """The data set's folder, under ``data_root`` or anywhere; digits and known sets are written there when missing."""
    base = resolve(data_root)
    root = base / dataset if dataset.strip() and os.path.isdir(base / dataset) else None
    if root is None and os.path.isdir(resolve(dataset)) and dataset.strip():
        root = resolve(dataset)
    if root is None and dataset in WRITERS:
        return WRITERS[dataset](base / dataset)
    if root is None and (known is None or dataset != known.name):
        raise _no_data_set(dataset, base)
    if root is None or (known and not any(root.iterdir())):
        return export_hub(known, root or base / known.name)
    return root


def _no_data_set(dataset, base):
    """The InputError for a name or path that stands for no data set, with what it may have meant."""
    if any(os.path.isfile(place) for place in (base / dataset, resolve(dataset))):
        return InputError(f"data set {dataset!r} is a file: unpack it and give the folder that holds its classes.")
    if "://" in dataset:
        return InputError(f"data set {dataset!r} is an address: download and unpack it, and give the folder's path.")
    if "/" in dataset or os.sep in dataset:
        missing = resolve(dataset)
        while not missing.parent.is_dir():
            missing = missing.parent
        hint = suggest(missing.name, subfolders(missing.parent))
        return InputError(f"data set {dataset!r}: there is no {missing.name!r} in {missing.parent}.{hint}")
    if dataset.strip() and os.path.isdir(here := Path.cwd() / dataset):
        return InputError(
            f"data set {dataset!r} is no folder in {ROOT}, where relative paths start: write {str(here)!r}."
        )
    names = {*WRITERS, *known_names(), *(subfolders(base) if os.path.isdir(base) else ())}
    return InputError(f"data set {dataset!r} is neither known nor a folder.{suggest(dataset, sorted(names))}")


def _read_split_folders(root, splits, known):
    """A ``Dataset`` from a folder per split, each with a folder per class. splits: ``{split: folder}``.

    If there are only train and validation, validation serves as test.
    """
    words = f"the folder's own {', '.join(folder.name for folder in splits.values())}"
    if "test" not in splits and "val" in splits:
        words += f"; test is its {splits['val'].name}"
        splits = {("test" if split == "val" else split): folder for split, folder in splits.items()}
    for split in ("train", "test"):
        if split not in splits:
            raise InputError(
                f"{root} has no '{split}' folder with class folders in it: a data set is train/<class>/*.png and "
                "test/<class>/*.png, or <class>/*.png without either."
            )
    info, folders = read_info(root), {split: class_folders(folder) for split, folder in splits.items()}
    classes = name_classes(root, splits["train"], folders["train"], info, known)
    errors = []
    for split, of_split in folders.items():
        for name, folder in of_split.items():
            if name not in classes:
                errors.append(InputError(f"{folder} has no counterpart in {splits['train']}: add it or remove it."))
        for name in classes:
            if name not in of_split:
                missing = f"class folder {splits[split] / name} is missing"
                errors.append(InputError(f"{missing}: every class of train needs one in {split}."))
    raise_together(errors, f"{root} has {len(errors)} class folders without a counterpart")
    files = {split: list_classes([of_split[name] for name in classes]) for split, of_split in folders.items()}
    return _assemble(root, classes, files, {"split": words} | info, known)


def _from_archive(root, files, known):
    """A known data set from the files of its original archive; 20 % of train become val if it has no val."""
    info = read_info(root)
    if "classes" in info:
        raise InputError(
            f"{root / 'dataset.yaml'}: {known.name} has its classes in params/datasets: change them there."
        )
    words = known.facts["archive"].get("official", "")
    if set(files) == {"train", "test"} and known.facts.get("hold_out", True):
        train, val = hold_out(known.keys, files["train"])
        files, words = files | {"train": train, "val": val}, f"{words}; {HELD_OUT}"
    classes = dict(zip(known.keys, known.class_names, strict=True))
    return _assemble(root, classes, files, {"split": words} | info, known)


def _read_class_folders(root, known):
    """A ``Dataset`` from a folder with a folder per class and no splits: all files are in the split "all"."""
    info, folders = read_info(root), class_folders(root)
    first = next(iter(folders.values()))
    if len(folders) == 1 and subfolders(first) and not list_pictures(first):
        raise InputError(f"{root} holds one folder of folders: did you mean the data set {str(first)!r}?")
    if all(any(name.lower() in names for names in SPLIT_NAMES.values()) for name in folders):
        raise InputError(
            f"{root} holds {' and '.join(folders)} without class folders in them: put each class's images in "
            "train/<class>/ and test/<class>/."
        )
    classes = name_classes(root, root, folders, info, known)
    return _assemble(root, classes, {"all": list_classes([folders[name] for name in classes])}, info, known)


def _assemble(root, classes, files, info, known):
    """A ``Dataset``; the values in ``info``, the folder's own dataset.yaml, override those of the known data set."""
    facts = (known.facts if known else {}) | info
    names = tuple(classes.values())
    definitions = dict.fromkeys(names, str(facts["definition"])) if facts.get("definition") else {}
    return Dataset(
        name=root.name,
        root=root,
        folders=tuple(classes),
        class_names=names,
        files=files,
        domain=str(facts.get("domain") or ""),
        definitions=definitions | {str(k): str(v) for k, v in (facts.get("definitions") or {}).items()},
        split=str(facts.get("split") or ""),
        licence=str(facts.get("licence") or ""),
        source=str(facts.get("source") or ""),
        example=str(facts.get("example") or ""),
        published_test=facts.get("published_test", "test"),
        authors_names=known.authors_names if known and names == known.class_names else (),
    )


def flatten(files_per_class):
    """``[[path, ...] per class]`` as two lists of equal length, ``(paths, labels)``."""
    paths = [path for files in files_per_class for path in files]
    return paths, [label for label, files in enumerate(files_per_class) for _ in files]
