"""Data sets in the hub's form (parquet files of images and labels), exported once to folders of image files.

The library ``datasets`` reads them as a stream, so that nothing is stored twice, and runs no code of theirs. The bytes
of every picture stay as they are.
"""

import io
import re
from contextlib import contextmanager
from pathlib import PurePosixPath

import yaml
from filelock import FileLock
from huggingface_hub import HfApi, RepoFile
from PIL import Image, UnidentifiedImageError

from datadream_utils.data.folders import list_pictures, safe_dir
from datadream_utils.data.images import FORMATS, SUFFIXES
from datadream_utils.data.splits import HELD_OUT, SPLIT_NAMES, hold_out
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write, check_plain

RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{i}" for device in ("com", "lpt") for i in range(10))}  # on Windows


def export_hub(known, target):
    """Fetch a known data set from the hub and write it to the folder ``target``: train, test, mostly val.

    Of several processes one fetches and the others wait. Returns ``target``. InputError when the hub does not give the
    data set: the sentence names the folder, the hub id and what to do.
    """
    import datasets

    hub = known.facts["hub"]
    with _had(known, target):
        loaded = datasets.load_dataset(hub["id"], revision=hub["revision"] or None, streaming=True)
    revision = f"revision {hub['revision']}" if hub["revision"] else "its newest revision, none being pinned"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if (target / "dataset.yaml").is_file():  # by another process, in the meantime
            return target
        return _export(loaded, target, known, f"hub data set {hub['id']}, {revision}")


def hub_bytes(known, target):
    """How many bytes ``export_hub`` will download, from the sizes of the hub page's files. InputError as there."""
    import datasets

    hub = known.facts["hub"]
    with _had(known, target):
        builder = datasets.load_dataset_builder(hub["id"], revision=hub["revision"] or None)
        page = HfApi().list_repo_tree(hub["id"], recursive=True, revision=hub["revision"] or None, repo_type="dataset")
        sizes = {file.path: file.size for file in page if isinstance(file, RepoFile)}
        urls = builder.config.data_files  # by the hub's split: hf://datasets/<id>@<commit>/<path>
    splits = _splits(urls, hub, f"hub data set {hub['id']}")
    return sum(sizes[url.partition("@")[2].partition("/")[2]] for name in splits.values() for url in urls[name])


@contextmanager
def _had(known, target):
    """Turn an error of the hub into the InputError that says what to put into the folder ``target`` instead."""
    try:
        yield
    except Exception as error:  # no connection, no access, no such revision: the library raises a dozen classes
        raise InputError(
            f"{known.name} is not at {target} and {known.facts['hub']['id']} cannot be had from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); "
            f"either get access to the hub, or {known.how_to(target)}."
        ) from error


def export_parquet(root, known):
    """Export the parquet files in ``root`` (one or more per split) to ``root/exported``, once; returns that folder."""
    import datasets

    target = root / "exported"
    if target.is_dir():
        return target
    try:
        loaded = datasets.load_dataset("parquet", data_dir=str(root), streaming=True)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{root}: its parquet files cannot be read ({error}): download them again.") from error
    return _export(loaded, target, known, f"parquet files in {root.name}")


def has_parquet(root):
    """Are there parquet files in ``root`` or in a folder of it, or what was exported from them?"""
    files = (path for pattern in ("*.parquet", "*/*.parquet") for path in root.glob(pattern))
    return any(True for _ in files) or (root / "exported" / "dataset.yaml").is_file()


def _export(loaded, target, known, origin):
    """Write a loaded data set as a folder data set. origin: where it is from, for errors and ``dataset.yaml``."""
    hub = known.facts["hub"] if known else {}
    columns = hub.get("image", "image"), hub.get("label", "label")
    splits = _splits(loaded, hub, origin)
    labels, names = _classes(loaded[splits["train"]], columns, known, origin)
    folders = [safe_dir(label, name) for label, name in enumerate(names)]
    words = "; ".join([origin, *(f"{ours} is its {theirs}" for ours, theirs in splits.items())])
    with atomic_write(target, keep_existing=True) as temporary:
        for ours, theirs in splits.items():
            _write_split(loaded[theirs], columns, temporary / ours, folders, labels, f"{origin}, {theirs}")
        if "val" not in splits and (not known or known.facts.get("hold_out", True)):
            _move_to_val(temporary, folders)
            words += f"; {HELD_OUT}"
        info = {"classes": dict(zip(folders, names, strict=True)), "split": words, "source": origin}
        text = yaml.safe_dump(info, sort_keys=False, allow_unicode=True)
        (temporary / "dataset.yaml").write_text(text, encoding="utf-8")
    return target


def _splits(loaded, hub, origin):
    """``{"train": the hub's name for it, ...}``. A set with train and validation only is tested on validation."""
    by_name = {ours: theirs for ours, names in SPLIT_NAMES.items() for theirs in names if theirs in loaded}
    splits = dict(hub.get("splits", by_name))
    if splits.get("val", "") not in loaded:  # a copy without it: val is then held out of train, as ``split`` says
        splits.pop("val", None)
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    for ours in ("train", "test"):
        if splits.get(ours) not in loaded:
            raise InputError(f"{origin} has no split for {ours}: its splits are {', '.join(loaded)}.")
    return splits


def _classes(rows, columns, known, origin):
    """``({number of a class in the rows: our label, None to drop}, class names in label order)``."""
    features = rows.features or {}
    for column in columns:
        if column not in features:
            raise InputError(f"{origin} has no column {column!r}: its columns are {', '.join(features) or 'unknown'}.")
    theirs = getattr(features[columns[1]], "names", None)
    same_order = known and known.facts["hub"].get("labels") == "order"
    if theirs is None and not same_order:
        raise InputError(f"{origin}: column {columns[1]!r} names no classes: it must be a ClassLabel.")
    if not known:
        names = [check_plain(name.replace("_", " "), f"{origin}: a class") for name in theirs]
        return {label: label for label in range(len(names))}, names
    if same_order:
        labels = dict(enumerate(range(len(theirs or known.class_names))))
    else:
        labels = _labels_by_name(theirs, known, origin)
    kept = sorted(label for label in labels.values() if label is not None)
    if kept != list(range(len(known.class_names))):
        raise InputError(f"{origin} has {len({*kept})} classes where {known.name} has {len(known.class_names)}.")
    return labels, list(known.class_names)


def _labels_by_name(theirs, known, origin):
    """``{number: our label, None to drop}`` for the hub's class names ``theirs``."""
    labels, dropped = {}, {name.lower() for name in known.facts.get("drop", ())}
    for number, name in enumerate(theirs):
        labels[number] = known.label_of(name)
        if labels[number] is None and name.lower() not in dropped:
            raise InputError(f"{origin}: class {name!r} is none of {known.name}'s: it is another data set.")
    return labels


def _move_to_val(folder, folders):
    """Move 20 % of each class from ``folder/train`` to ``folder/val``."""
    _, val = hold_out(folders, [list_pictures(folder / "train" / name) for name in folders])
    for name, paths in zip(folders, val, strict=True):
        (folder / "val" / name).mkdir(parents=True)
        for path in paths:
            path.rename(folder / "val" / name / path.name)


def _write_split(rows, columns, folder, folders, labels, origin):
    """Write one split's pictures to ``folder/<class>/``, under their own names where the rows have safe ones."""
    import datasets

    image, label = columns
    rows = rows.cast_column(image, datasets.Image(decode=False)).select_columns([image, label])
    used = set()
    for name in folders:
        (folder / name).mkdir(parents=True)
    for number, row in enumerate(rows):
        if row[label] not in labels:
            raise InputError(f"{origin}, row {number}: label {row[label]!r} is none of its {len(labels)} classes.")
        if labels[row[label]] is None:
            continue
        content, path = row[image]["bytes"], row[image]["path"] or ""
        if not content:
            raise InputError(f"{origin}, row {number} holds no image bytes: use a copy with the images in it.")
        directory, name = folder / folders[labels[row[label]]], PurePosixPath(path.replace("\\", "/")).name
        if not _usable(name) or (directory, name.lower()) in used:
            name = f"row_{number:07d}{_suffix(content, f'{origin}, row {number}')}"
        used.add((directory, name.lower()))
        (directory / name).write_bytes(content)


def _usable(name):
    """May a picture keep this name: safe on every file system, and none that ``_write_split`` gives itself?"""
    safe = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_ .,()+=@&'-]{0,150}", name) and name.lower().endswith(SUFFIXES)
    return bool(safe) and name.lower().split(".")[0].strip() not in RESERVED and not name.lower().startswith("row_")


def _suffix(content, where):
    """The suffix for a picture's bytes, by their format."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return {"MPO": ".jpeg", "HEIF": ".heic"}.get(picture.format, f".{picture.format.lower()}")  # MPO: of JPEGs
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"{where} cannot be read as a picture ({error}): download it again.") from None
