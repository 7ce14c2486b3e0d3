"""Files: reading text that somebody else wrote, writing whole or not at all, checksums.

Text is read as UTF-8 and with a limit on its size. Names from it are checked before they are printed or joined to a
path.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import unicodedata
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

# Control characters (some change a terminal), line separators (they would break a list of lines), marks that reverse
# the direction of writing (a name would read as another), and bytes of a file name that are not UTF-8.
_UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check_plain(text, what, limit=200):
    """``text`` itself; InputError when it has a control character, shown escaped, or more than ``limit`` characters."""
    if unprinted := _UNPRINTED.search(text):
        raise InputError(f"{what} is {text[:limit]!r}: take the character {unprinted[0]!r} out of it.")
    if len(text) > limit:
        raise InputError(f"{what} is {text[:40]!r}... and has {len(text)} characters: {limit} are allowed.")
    return text


def compose_name(name):
    """A name in Unicode's composed form (NFC): systems write the same "café" in two ways."""
    return unicodedata.normalize("NFC", name)


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

    Aliases are refused: a few lines of them can expand to gigabytes, and no file of this project needs them.
    """
    try:
        text = read_bytes(path, MAX_YAML).decode("utf-8-sig")
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                raise yaml.YAMLError(f"line {token.start_mark.line + 1} has an alias, *{token.value}: write it out")
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML raises KeyError, AttributeError, RecursionError and more, depending on the tag
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as YAML: {reason}") from None


def read_json(path, fix, lines=False):
    """The dict in a JSON file; with ``lines`` the list of dicts in a file of one JSON value a line.

    InputError for a file that cannot be read or holds something else; its sentence ends with ``fix``, what to do.
    """
    try:
        text = read_bytes(path).decode()
        values = [json.loads(line) for line in text.split("\n") if line] if lines else [json.loads(text)]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): {fix}.") from None
    if not all(isinstance(value, dict) for value in values):
        raise InputError(f"{path} cannot be read (it holds something else than 'name: value'): {fix}.")
    return values if lines else values[0]


def join_inside(folder, name, source):
    """``folder / name`` for a name that ``source`` lists; InputError when it is no file name below ``folder``."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise InputError(f"{source}: {name!r} is no file below {folder}: remove the line.")
    return folder / check_plain(name, f"{source}: a file name", LONG)


@contextmanager
def atomic_write(path, keep_existing=False):
    """Give a temporary path beside ``path`` to make a file or folder at; it takes the name only when complete.

    What ``path`` was before is replaced; with keep_existing, a folder that another process has made there in the
    meantime stays and the new one is dropped. InputError, naming ``path`` and what to do, when the disk is full or may
    not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _rename(temporary, path, keep_existing)
    except (OSError, SafetensorError) as error:
        if (reason := _why_not_written(error, path)) is None:
            raise
        raise InputError(
            f"{path} cannot be written: {reason}, or set output_root (data_root, figures_dir) to another folder, and "
            "run this again; what is finished stays."
        ) from None
    finally:
        remove(temporary)


def _rename(temporary, path, keep_existing):
    """Give ``temporary`` the name ``path``. A folder does not replace one that holds something: that is deleted."""
    if temporary.is_dir() and path.is_dir() and not keep_existing:
        shutil.rmtree(path)
    try:
        os.replace(temporary, path)
    except OSError:
        if not (keep_existing and temporary.is_dir() and path.is_dir()):
            raise


def write_json(path, value):
    """Write a JSON value whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def remove(path):
    """Delete a file or a folder with all its content, if it is there and can be deleted."""
    with suppress(OSError):  # on a disk that has become read-only it stays; nothing reads it
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _why_not_written(error, path):
    """What is wrong with the disk and what helps, or None when ``error`` is about something else than writing there."""
    if isinstance(error, SafetensorError):
        number = re.search(r"os error (\d+)", str(error))
        return CANNOT_WRITE.get(int(number[1])) if number else None
    elsewhere = error.filename and not Path(error.filename).is_relative_to(path.parent)
    above = error.filename and path.is_relative_to(error.filename)
    return CANNOT_WRITE.get(error.errno) if not elsewhere or above else None


def sha256(path):
    """The sha256 of a file's content, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256s(paths):
    """The sha256 of each file, in order, None for a path that is no file. Several files are hashed at a time.

    InputError names a file that cannot be read.
    """
    paths = list(paths)
    size = 1 + len(paths) // (8 * os.cpu_count())  # many small files at a time: a task costs more than hashing one
    parts = [paths[i : i + size] for i in range(0, len(paths), size)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [value for values in pool.map(lambda part: [*map(_sha256_if_there, part)], parts) for value in values]


def _sha256_if_there(path):
    try:
        return sha256(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give it back, or delete it.") from None


def digest(paths):
    """One sha256 of the contents of many files, in order: it identifies what a stage was given."""
    return hashlib.sha256("".join(sha256s(paths)).encode()).hexdigest()
