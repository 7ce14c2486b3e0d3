"""Data sets in the hub's form (parquet files of images and labels), exported once to folders of image files.

The library ``datasets`` reads them, as a stream, so that nothing is stored twice; it runs no code of the data set's.
The bytes of every picture stay as they are.
"""

import io
import re
from pathlib import PurePosixPath

import yaml
from filelock import FileLock
from PIL import Image, UnidentifiedImageError

from datadream_utils.data.archives import list_pictures, safe_dir
from datadream_utils.data.images import FORMATS, SUFFIXES
from datadream_utils.data.splits import HELD_OUT, hold_out
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_folder, plain

RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{i}" for device in ("com", "lpt") for i in range(10))}  # on Windows
THEIRS = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}


def export_hub(known, target):
    """Fetch a known data set from the hub and write it to the folder ``target``: train, test, mostly val.

    Of several processes one fetches, the others wait. InputError when it cannot be had: the sentence names the folder,
    the hub id and what to do.
    """
    import datasets

    hub = known.facts["hub"]
    try:
        loaded = datasets.load_dataset(hub["id"], revision=hub["revision"] or None, streaming=True)
    except Exception as error:  # no connection, no access, no such revision: the library has a dozen kinds
        raise InputError(
            f"{known.name} is not at {target} and {hub['id']} cannot be had from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); "
            f"either get access to the hub, or {known.how_to(target)}."
        ) from error
    revision = f"revision {hub['revision']}" if hub["revision"] else "its newest revision, none being pinned"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if (target / "dataset.yaml").is_file():  # by another process, in the meantime
            return target
        return _export(loaded, target, known, f"hub data set {hub['id']}, {revision}")


def export_parquet(root, known):
    """Export parquet files in ``root`` (the hub's layout, one or more per split) to ``root/exported``."""
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
    """Are there parquet files in ``root`` or in a folder of it?"""
    return any(True for pattern in ("*.parquet", "*/*.parquet") for _ in root.glob(pattern))


def _export(loaded, target, known, origin):
    hub = known.facts["hub"] if known else {}
    columns = hub.get("image", "image"), hub.get("label", "label")
    splits = _splits(loaded, hub, origin)
    folders, names, labels = _classes(loaded[splits["train"]], columns, known, origin)
    words = "; ".join([origin, *(f"{ours} is its {theirs}" for ours, theirs in splits.items())])
    with atomic_folder(target) as temporary:
        for ours, theirs in splits.items():
            _write_split(loaded[theirs], columns, temporary / ours, folders, labels, f"{origin}, {theirs}")
        if "val" not in splits and (not known or known.facts.get("hold_out", True)):
            _, val = hold_out(folders, [list_pictures(temporary / "train" / folder) for folder in folders])
            for folder, paths in zip(folders, val, strict=True):
                (temporary / "val" / folder).mkdir(parents=True)
                for path in paths:
                    path.rename(temporary / "val" / folder / path.name)
            words += f"; {HELD_OUT}"
        info = {"classes": dict(zip(folders, names, strict=True)), "split": words, "source": origin}
        (temporary / "dataset.yaml").write_text(
            yaml.safe_dump(info, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    return target


def _splits(loaded, hub, origin):
    """``{"train": the hub's name for it, ...}``. A set with train and validation only is tested on validation."""
    found = {ours: theirs for ours, names in THEIRS.items() for theirs in names if theirs in loaded}
    splits = dict(hub.get("splits", found))
    if splits.get("val", "") not in loaded:  # a copy without it: val is then held out of train, as ``split`` says
        splits.pop("val", None)
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    for ours in ("train", "test"):
        if splits.get(ours) not in loaded:
            raise InputError(f"{origin} has no split for {ours}: its splits are {', '.join(loaded)}.")
    return splits


def _classes(rows, columns, known, origin):
    """``(folder names, class names, {label number in the rows: position, None to drop})``."""
    features = rows.features or {}
    for column in columns:
        if column not in features:
            raise InputError(f"{origin} has no column {column!r}: its columns are {', '.join(features) or 'unknown'}.")
    theirs = getattr(features[columns[1]], "names", None)
    if known and known.facts["hub"].get("labels") == "order":
        theirs = theirs or known.class_names
        labels = dict(enumerate(range(len(theirs))))
    elif theirs is None:
        raise InputError(f"{origin}: column {columns[1]!r} names no classes: it must be a ClassLabel.")
    elif known:
        labels = {i: known.label_of(name) for i, name in enumerate(theirs)}
        dropped = set(map(str.lower, known.facts.get("drop", ())))
        for i, name in enumerate(theirs):
            if labels[i] is None and name.lower() not in dropped:
                raise InputError(f"{origin}: class {name!r} is none of {known.name}'s: it is another data set.")
    else:
        labels = {i: i for i in range(len(theirs))}
    own = () if known else [plain(name.replace("_", " "), f"{origin}: a class") for name in theirs]
    names = list(known.class_names if known else own)
    kept = [label for label in labels.values() if label is not None]
    if sorted(kept) != list(range(len(names))):
        raise InputError(f"{origin} has {len(set(kept))} classes where {known.name} has {len(names)}.")
    return [safe_dir(i, name) for i, name in enumerate(names)], names, labels


def _write_split(rows, columns, folder, folders, labels, origin):
    """Write one split's pictures under ``folder/<class>/``, under their own names where the rows have them."""
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
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return ".jpeg" if picture.format == "MPO" else f".{picture.format.lower()}"  # MPO: JPEG with more behind
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"{where} cannot be read as a picture ({error}): download it again.") from None
