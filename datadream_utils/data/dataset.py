"""Data sets as folders of images, and the few shots drawn from them.

A data set is a folder with ``train/<class>/*.png`` and ``test/<class>/*.png`` (any picture format), optionally
``val/``; or with ``<class>/*.png`` directly, which is divided 50/20/30. Beside them may stand a ``dataset.yaml``:

    classes: {"0": zero, "1": one}     # folder: the name a prompt uses, in label order (default: the folder names)
    domain: satellite                  # one word for the template: "a satellite photo of a forest"
    definition: a digit                # what every class is, for FakeIt's prompts
    definitions: {zero: a round digit} # what one class is
    example: seven                     # class name for the example figure

``mnist5k``, the tiny world's target, is written in this very form the first time it is asked for. The paper's data
sets are known by name (``params/datasets/*.yaml``) and read from their original archives or the hub.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from datadream_utils.data.archives import known_names, read_archive, read_known, safe_dir
from datadream_utils.data.folders import list_files, pictures_of, read_classes, read_info, refuse_links_out, subfolders
from datadream_utils.data.hub import export_hub, export_parquet, has_parquet
from datadream_utils.data.images import read_image
from datadream_utils.data.mnist import write_mnist5k
from datadream_utils.data.splits import (
    HELD_OUT,
    OWN_SPLIT,
    apply_split,
    by_name,
    hold_out,
    own_split,
    read_shots,
    read_split_file,
    stable_seed,
)
from datadream_utils.errors import InputError, suggest
from datadream_utils.files import atomic_write, plain
from datadream_utils.params import resolve


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
    split: str = ""  # in words: which split this is and where from
    licence: str = ""
    source: str = ""
    example: str = ""  # class name of the example figure
    published_test: str = "test"  # the split that the authors' released code tests on
    authors_names: tuple[str, ...] = ()  # the authors' own strings, in label order

    def class_dir(self, label):
        """A folder name for class ``label``'s outputs: safe on every file system, unique, never a path."""
        return safe_dir(label, self.class_names[label])


def load_dataset(dataset, data_root="data", split_file=""):
    """Find a data set by name or folder and list its files.

    dataset: "mnist5k", a known name (``known_names()``), the name of a folder under ``data_root``, or any folder's
    path. A known name is looked for under ``data_root``, as its original archive, exported folders or parquet files,
    and else exported from the hub. split_file: path or URL of a CSV or JSON that says which picture is in which
    split. Raises InputError when the data set is not there, lacks a split, or the classes of its splits differ.
    """
    known = read_known(Path(dataset).name)
    candidates = (resolve(data_root) / dataset, resolve(dataset)) if dataset.strip() else ()
    root = next((c for c in candidates if os.path.isdir(c)), None)
    if dataset == "mnist5k" and root is None:
        root = write_mnist5k(resolve(data_root) / "mnist5k")
    if root is None and (known is None or dataset != known.name):
        base = resolve(data_root)
        names = {"mnist5k", *known_names(), *(subfolders(base) if os.path.isdir(base) else ())}
        raise InputError(f"data set {dataset!r} is neither known nor a folder.{suggest(dataset, sorted(names))}")
    if root is None or (known and not any(root.iterdir())):
        root = export_hub(known, root or resolve(data_root) / known.name)
    data, images = _read(root, known)
    data = replace(data, name=plain(root.name, "the data set's folder"))
    refuse_links_out(root, data.files)
    if split_file:
        content = read_split_file(split_file, data_root)
        keys = known.keys if data.authors_names else data.folders  # an exported folder is not called as the archive's
        return replace(data, files=apply_split(content, images, keys, data.files), split=str(content))
    if "all" in data.files:
        return replace(data, files=own_split(data.folders, data.files["all"]), split=OWN_SPLIT)
    return data


def _read(root, known):
    """``(data set, folder that a split file's names are relative to)``, from whatever form ``root`` holds."""
    if (root / "test").is_dir() or (not known and (root / "train").is_dir() and subfolders(root / "train")):
        return _read_folders(root, known), root
    if found := known and read_archive(root, known):
        return _archive(root, *found, known), found[0]
    if has_parquet(root) or (root / "exported" / "dataset.yaml").is_file():
        exported = export_parquet(root, known)
        return _read_folders(exported, known), exported
    info = read_info(root)
    classes = read_classes(root, root, info, known)
    return _dataset(root, classes, {"all": [pictures_of(root / folder) for folder in classes]}, info, known), root


def _archive(root, images, files, known):
    """A known data set in its original archive's layout."""
    info = read_info(root)
    if "classes" in info:
        raise InputError(
            f"{root / 'dataset.yaml'}: {known.name} has its classes in params/datasets: change them there."
        )
    split = known.facts["archive"].get("official", "")
    if set(files) == {"train", "test"} and known.facts.get("hold_out", True):
        train, val = hold_out(known.keys, files["train"])
        files, split = files | {"train": train, "val": val}, f"{split}; {HELD_OUT}"
    classes = dict(zip(known.keys, known.class_names, strict=True))
    return _dataset(root, classes, files, {"split": split} | info, known)


def _read_folders(root, known):
    """A folder with ``train/``, ``test/`` and perhaps ``val/``, each with a folder per class."""
    info = read_info(root)
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise InputError(
                f"{root} has no '{split}' folder: a data set is train/<class>/*.png and test/<class>/*.png, "
                "or <class>/*.png without either."
            )
    classes = read_classes(root, root / "train", info, known)
    splits = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    files = {split: list_files(root, split, classes) for split in splits}
    return _dataset(root, classes, files, {"split": f"the folder's own {', '.join(splits)}"} | info, known)


def _dataset(root, classes, files, info, known):
    """Put a data set together: what ``info`` says comes before what is known."""
    facts = (known.facts if known else {}) | info
    names = tuple(classes.values())
    return Dataset(
        name=root.name,
        root=root,
        folders=tuple(classes),
        class_names=names,
        files=files,
        domain=str(facts.get("domain") or ""),
        definitions=(dict.fromkeys(names, str(facts["definition"])) if facts.get("definition") else {})
        | {str(k): str(v) for k, v in (facts.get("definitions") or {}).items()},
        split=str(facts.get("split") or ""),
        licence=str(facts.get("licence") or ""),
        source=str(facts.get("source") or ""),
        example=str(facts.get("example") or ""),
        published_test=facts.get("published_test", "test"),
        authors_names=known.authors_names if known and names == known.class_names else (),
    )


def few_shot(data, n_shot, seed, shots_file=""):
    """The few real images: a list per class of ``n_shot`` paths from ``train``.

    The k-shot set is the first k of one fixed permutation per (seed, class), so the sets are nested. The permutation
    is of the sorted file names: nothing else on the machine matters. With a ``shots_file`` (see ``write_shots``) the
    first ``n_shot`` that it lists of each class are taken instead. InputError for a class with too few images.
    """
    if shots_file:
        return read_shots(shots_file, data, n_shot)
    shots = []
    for label, folder in enumerate(data.folders):
        files = data.files["train"][label]
        if len(files) < n_shot:
            raise InputError(
                f"{data.root}: train class {folder!r} has {len(files)} images, fewer than n_shot={n_shot}: "
                f"add images or set n_shot to {len(files)} or less."
            )
        generator = torch.Generator().manual_seed(stable_seed("few_shot", seed, folder))
        order = torch.randperm(len(files), generator=generator)[:n_shot]
        shots.append([files[i] for i in order])
    return shots


def write_shots(data, shots, path):
    """Write few shots as a text file that ``few_shot(..., shots_file=path)`` reads: ``<class folder>/<file>`` lines."""
    known_as = by_name(data.root, data.folders, {"train": data.files["train"]})
    lines = [f"# few shots of {data.name}: n_shot={len(shots[0])} for each of {len(shots)} classes"]
    lines += [f"# {line}" for line in f"split: {data.split}".splitlines()]
    for label, (folder, files) in enumerate(zip(data.folders, shots, strict=True)):
        for file in files:
            short = f"{folder}/{file.name}"
            name = short if known_as.get(short) == (file, label) else file.relative_to(data.root).as_posix()
            lines.append(f"./{name}" if name[0] == "#" or name != name.strip() else name)
    with atomic_write(resolve(path)) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_images(paths):
    """Read every picture once, so that a broken one stops the run before a model is loaded (InputError)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read_image, paths):
            pass


def flatten(files_per_class):
    """``[[path, ...], ...]`` per class as ``(paths, labels)`` in one order."""
    paths = [path for files in files_per_class for path in files]
    return paths, [label for label, files in enumerate(files_per_class) for _ in files]
