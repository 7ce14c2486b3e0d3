"""Checksums of the files that a stage has made: the list ``checksums.txt``, and its digest in the stage's manifest.

The list has the format of ``sha256sum``, so ``sha256sum -c checksums.txt`` in the stage's folder checks it too.
"""

import hashlib
import os
import re
from pathlib import Path

from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write, join_inside, sha256s

LIST = "checksums.txt"
RECORDS = {"parameters.json", "manifest.json", LIST}  # bookkeeping files, not outputs
PASSING = {"shards", "checkpoints", "rows"}  # folders with the notes of a stage at work, not outputs


def made_files(folder):
    """A stage's outputs, as sorted names relative to its folder; without hidden and bookkeeping files."""
    folder, names = str(folder), []
    for root, folders, files in os.walk(folder):
        inner = os.path.relpath(root, folder).replace(os.sep, "/")
        top = inner == "."
        folders[:] = [name for name in folders if name[0] != "." and not (top and name in PASSING)]
        kept = [name for name in files if name[0] != "." and not (top and name in RECORDS)]
        names += kept if top else [f"{inner}/{name}" for name in kept]
    return sorted(names)


def write_checksums(folder):
    """Write the list of a stage's outputs and return the list's digest, for the manifest."""
    text = _list_text(folder)
    with atomic_write(Path(folder) / LIST) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return _digest(text.encode())


def read_checksums(folder):
    """``({file name: sha256}, digest of the list)`` of a stage; ``(None, digest)`` for a list with a damaged line.

    InputError for a name that leads out of the folder.
    """
    path = Path(folder) / LIST
    content = path.read_bytes() if path.is_file() else b""
    lines = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in content.decode(errors="replace").splitlines()]
    listed = {line[2]: line[1] for line in lines} if all(lines) else None
    for name in listed or ():
        join_inside(Path(folder), name, path)
    return listed, _digest(content)


def changed_files(folder, noted, names=None):
    """The files (of ``names``, or all) that have changed or gone since the list's digest was ``noted``, sorted.

    ``[LIST]`` when only the list is damaged. InputError when the list is damaged and files are too, so that nobody can
    tell which.
    """
    listed, digest = read_checksums(folder)
    if digest == noted:
        return _differing(folder, listed, names)
    if _digest(_list_text(folder).encode()) == noted or (listed and not _differing(folder, listed)):
        return [LIST]  # every file is as it was; the list, or its digest in the manifest, is not
    raise InputError(
        f"{Path(folder) / LIST} is missing or has changed, and so has what it lists: nobody can tell which files of "
        f"{folder} are still good. Delete that folder and run its notebook again."
    )


def torn_files(folder):
    """The files of a stage without manifest that differ from its list, if it has one; ``[LIST]`` for a damaged list."""
    listed, _ = read_checksums(folder)
    return [LIST] if listed is None else _differing(folder, listed)


def _differing(folder, listed, names=None):
    """The names (of ``names``, or all) whose files are not those of ``listed``, sorted."""
    wanted = sorted(name for name in listed if names is None or name in names)
    digests = sha256s([Path(folder) / name for name in wanted])
    return [name for name, digest in zip(wanted, digests, strict=True) if digest != listed[name]]


def _list_text(folder):
    names = made_files(folder)
    digests = sha256s([Path(folder) / name for name in names])
    return "".join(f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))


def _digest(content):
    return hashlib.sha256(content).hexdigest()
