"""Files: reading text that somebody else wrote, writing whole or not at all, checksums.

Text is read with a bound on its size and as UTF-8. Names in it are safe to print, to show and to join to a path.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

import yaml
from safetensors import SafetensorError

from datadream_utils.errors import InputError

MAX_YAML = 4 * 2**20  # bytes; ImageNet-21k's class names take a third of it
MAX_BYTES = 256 * 2**20  # of a list or split file: CoOp's largest has 11 MB
LONG = 1000  # characters of a sentence or a path
CANNOT_WRITE = {
    errno.ENOSPC: "the disk is full. Make room there",
    errno.EDQUOT: "your disk quota is used up. Make room there",
    errno.EROFS: "the disk is read-only. Make it writable",
    errno.EACCES: "permission is denied. Allow writing there",
    errno.EPERM: "it is not permitted. Allow writing there",
}

# Control characters (terminals obey some), line separators (lists are lines), marks that turn the direction of
# writing round (a name would read as another), and what is left of a file name that is not UTF-8.
_UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text, what, limit=200):
    """``text`` itself; InputError, with the character escaped, when it has a control character or is too long."""
    if found := _UNPRINTED.search(text):
        raise InputError(f"{what} is {text[:limit]!r}: take the character {found[0]!r} out of it.")
    if len(text) > limit:
        raise InputError(f"{what} is {text[:40]!r}... and has {len(text)} characters: {limit} are allowed.")
    return text


def read_bytes(path, limit=MAX_BYTES):
    """The whole file; OSError when it cannot be read, ValueError when it is a pipe or has more than ``limit`` bytes."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no file")
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit // 2**20} MB")
    return content


def read_yaml(path):
    """A YAML file as plain values, None when it is empty; InputError names the file and what is wrong.

    Aliases are refused: a few lines of them can stand for gigabytes, and nothing here needs them.
    """
    try:
        text = read_bytes(path, MAX_YAML).decode("utf-8-sig")
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                raise yaml.YAMLError(f"line {token.start_mark.line + 1} has an alias, *{token.value}: write it out")
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML lets KeyError, AttributeError, RecursionError and more out, by the tag
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as YAML: {reason}") from None


def read_json(path, fix, lines=False):
    """The object in a JSON file, with ``lines`` a list of those in its lines. InputError ends with ``fix``."""
    try:
        text = read_bytes(path).decode()
        found = [json.loads(line) for line in (text.split("\n") if lines else [text]) if line or not lines]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): {fix}.") from None
    if not all(isinstance(value, dict) for value in found):
        raise InputError(f"{path} cannot be read (it holds something else than 'name: value'): {fix}.")
    return found if lines else found[0]


def inside(folder, name, source):
    """``folder / name`` for a name that ``source`` lists; InputError when it is no file name below ``folder``."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise InputError(f"{source}: {name!r} is no file below {folder}: remove the line.")
    return folder / plain(name, f"{source}: a file name", LONG)


@contextmanager
def atomic_write(path):
    """Give a temporary path beside ``path`` to write a file or folder to; it takes the name only when complete.

    InputError, naming ``path`` and what to do, when the disk is full or may not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir() and temporary.is_dir():  # a folder does not replace one that holds something
            shutil.rmtree(path)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        if (reason := _why_not_written(error, path)) is None:
            raise
        raise InputError(
            f"{path} cannot be written: {reason}, or set output_root (data_root, figures_dir) to another folder, and "
            "run this again; what is finished stays."
        ) from None
    finally:
        remove(temporary)


@contextmanager
def atomic_folder(path):
    """Give a temporary folder beside ``path`` to fill; it takes the name only when complete.

    When another process was first, its folder stays and this one is dropped.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path, value):
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def remove(path):
    """Delete a file or a folder with all it holds, if it is there and can be."""
    with suppress(OSError):  # on a disk that has become read-only it stays; nothing reads it
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _why_not_written(error, path):
    """What is wrong with the disk and what helps, or None when ``error`` is about something else than writing there."""
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        return CANNOT_WRITE.get(int(found[1])) if found else None
    elsewhere = error.filename and not Path(error.filename).is_relative_to(path.parent)
    above = error.filename and path.is_relative_to(error.filename)
    return CANNOT_WRITE.get(error.errno) if not elsewhere or above else None


def sha256(path):
    """The sha256 of a file's content, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256s(paths):
    """The sha256 of each file, in order, on all cores (hashing leaves the interpreter free); None where there is none.

    InputError names a file that cannot be read.
    """
    paths = list(paths)
    size = 1 + len(paths) // (8 * os.cpu_count())  # many small files at a time: a task costs more than hashing one
    parts = [paths[i : i + size] for i in range(0, len(paths), size)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [found for part in pool.map(lambda part: [*map(_sha256_if_there, part)], parts) for found in part]


def _sha256_if_there(path):
    try:
        return sha256(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give it back, or delete it.") from None


def digest(paths):
    """One sha256 of the contents of many files, in order: what a stage was given."""
    return hashlib.sha256("".join(sha256s(paths)).encode()).hexdigest()
