"""Folders of pictures: which of them are splits, which are classes, and what is read in them.

Hidden files and folders are never read, nor the folders that systems leave beside pictures (``JUNK``). Names are
compared in Unicode's composed form (NFC): the same "café" may be written in two ways, by the system that copied it.
"""

import errno
import os
import re

from datadream_utils.data.images import SUFFIXES
from datadream_utils.data.splits import SPLIT_NAMES
from datadream_utils.errors import InputError, for_all
from datadream_utils.files import check_plain, compose_name

JUNK = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}  # in lower case


def subfolders(folder):
    """The names of the folders in a folder, sorted, without hidden ones and ``JUNK``; InputError when unreadable."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_visible(entry.name) and entry.is_dir())
    except OSError as error:
        raise _unreadable(folder, error) from None


def _unreadable(folder, error):
    fixes = {errno.ENOENT: "give the path of a folder that is there", errno.ENOTDIR: "give the folder that it is in"}
    fix = fixes.get(error.errno, "allow reading it")
    return InputError(f"folder {folder} cannot be read ({error.strerror}): {fix}.")


def _is_visible(name):
    return name[0] != "." and name.lower() not in JUNK


def find_splits(root):
    """``{"train": folder, "val": folder, "test": folder}``, as many of them as there are in ``root``.

    A split's folder bears one of its ``SPLIT_NAMES`` in any case and holds folders. One that holds pictures is a class
    of that name; if other folders are in it too, it is one where there is no second split. InputError when two folders
    stand for one split.
    """
    splits = {}
    for split, names in SPLIT_NAMES.items():
        folders = [root / name for name in subfolders(root) if name.lower() in names and subfolders(root / name)]
        if len(folders) > 1:
            raise InputError(f"{folders[0]} and {folders[1]} both stand for {split}: remove or rename one.")
        if folders:
            splits[split] = folders[0]
    return {} if len(splits) == 1 and list_pictures(*splits.values()) else splits


def class_folders(directory):
    """``{composed name: folder}`` of the class folders in a directory, sorted.

    InputError when there are none, or for a name that cannot be printed or that two folders share.
    """
    folders = {}
    for name in subfolders(directory):
        key = compose_name(check_plain(name, f"a folder in {directory}"))
        if key in folders:
            raise InputError(f"{directory} has two folders called {key!r}, in two Unicode forms: join them.")
        folders[key] = directory / name
    if not folders:
        raise InputError(
            f"{directory} has no class folders: put each class's images in train/<class>/ and test/<class>/, "
            "or in <class>/ directly."
        )
    return dict(sorted(folders.items()))


def list_pictures(directory):
    """The paths of the pictures in a folder (by their suffix), sorted by name; hidden files are left out.

    InputError when the folder cannot be read, or for a link or folder that is called as a picture.
    """
    try:
        with os.scandir(directory) as entries:
            pictures = [e for e in entries if e.name.lower().endswith(SUFFIXES) and not e.name.startswith(".")]
        broken = next((entry for entry in pictures if not entry.is_file()), None)
    except OSError as error:
        raise _unreadable(directory, error) from None
    if broken:
        raise InputError(f"{directory}: {broken.name!r} is called as a picture but is no file: remove it.")
    return [directory / check_plain(name, f"a file in {directory}", 255) for name in sorted(e.name for e in pictures)]


def walk_pictures(directory):
    """The paths of all pictures in a folder and the folders below it, sorted; hidden files and ``JUNK`` are left out.

    InputError when the folder cannot be read.
    """
    names = [name for name in subfolders(directory) if not (directory / name).is_symlink()]
    return list_pictures(directory) + [path for name in names for path in walk_pictures(directory / name)]


def list_classes(directories):
    """``[[path, ...] per class]``, as ``list_pictures``; InputError for all classes without pictures together."""
    return for_all(_list_class, directories, "class folders cannot be read")


def _list_class(directory):
    """The pictures of one class; InputError, with what is there instead, when there are none."""
    if paths := list_pictures(directory):
        return paths
    reason = f"{directory} has no images ({', '.join(SUFFIXES)})"
    if subfolders(directory):
        raise InputError(f"{reason}, only folders: move the pictures out of them.")
    others = sorted({path.suffix.lower() for path in directory.iterdir() if path.name[0] != "."} - {""})
    if others:
        heic = " ('pip install pillow-heif' makes .heic readable)" if {".heic", ".heif"} & {*others} else ""
        raise InputError(f"{reason}, only {', '.join(others)}: convert them{heic} or remove the folder.")
    raise InputError(f"{reason}: add some or remove the folder.")


def count_unread(directory):
    """How many visible files of a class's folder are not read: of other suffixes, or in folders within it."""
    return count_files(directory) - len(list_pictures(directory))


def count_files(directory):
    """How many visible files are in a folder and the folders below it."""
    visible = 0
    for _, folders, files in os.walk(directory):
        folders[:] = filter(_is_visible, folders)
        visible += sum(map(_is_visible, files))
    return visible


def safe_dir(label, class_name):
    """A folder name for a class: safe on every file system, unique by its label, never a path."""
    return f"{label:04d}_{re.sub(r'[^A-Za-z0-9]+', '_', class_name).strip('_')[:60]}"


def refuse_links_out(root, files):
    """InputError for a picture or class folder that is a link out of ``root``. The folder ``root`` may be a link.

    A data set from somebody else could otherwise make a run read, and its figures show, any picture of this machine.
    files: ``{split: [[path, ...] per class]}``.
    """
    home, paths = root.resolve(), {path for classes in files.values() for of_class in classes for path in of_class}
    suspects = []
    for folder in sorted({path.parent for path in paths}):
        with os.scandir(folder) as entries:
            links = [folder / entry.name for entry in entries if entry.is_symlink()]
        suspects += [folder, *sorted(paths.intersection(links))]
    refuse_link_out(home, *suspects)


def refuse_link_out(home, *paths):
    """InputError when one of ``paths`` leads out of the resolved folder ``home``; it names the first, and how many."""
    if outside := [path for path in paths if not path.resolve().is_relative_to(home)]:
        first, more = outside[0], f" (and {len(outside) - 1} more)" if outside[1:] else ""
        raise InputError(f"{first} is a link to {first.resolve()}, out of the data set: put a copy in its place{more}.")
