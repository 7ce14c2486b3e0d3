"""Files: reading text that somebody else wrote, writing a file completely or not at all, checksums.

Text is read as UTF-8 and with a limit on its size. Names in it are checked before they are printed or joined to a path.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

import yaml
from safetensors import SafetensorError

from datadream_utils.errors import InputError

MAX_YAML = 4 * 2**20  # bytes; ImageNet-21k's class names take a third of it
MAX_BYTES = 256 * 2**20  # of a list or split file: CoOp's largest has 11 MB
MAX_LINES = 4 * 2**30  # bytes of a list of generated images: a million images take a quarter of a gigabyte
LONG = 1000  # the most characters of a sentence or a path
CANNOT_WRITE = {  # system error: what is wrong, and what to do
    errno.ENOSPC: "the disk is full. Make room there",
    errno.EDQUOT: "your disk quota is used up. Make room there",
    errno.EROFS: "the disk is read-only. Make it writable",
    errno.EACCES: "permission is denied. Allow writing there",
    errno.EPERM: "it is not permitted. Allow writing there",
    errno.EFBIG: "it is larger than files may be here. Allow larger ones (ulimit -f)",
    errno.EISDIR: "a folder has that name. Give the name of a file",
    errno.ENOTDIR: "a file stands where a folder must. Move that file",
    errno.EEXIST: "a file stands where a folder must. Move that file",
    errno.ENAMETOOLONG: "its name is too long. Shorten it",
    errno.EIO: "the disk does not answer. Look after it",
}

# Control characters (some change a terminal), line separators (they would break a list of lines), marks that reverse
# the direction of writing (one name would look like another), and bytes of a file name that are not UTF-8.
_UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check_plain(text, what, limit=200):
    """``text`` itself; InputError if it has a character that is not safe to print, or more than ``limit`` characters.

    what: the name of the text in the error, such as "parameter 'method'".
    """
    if not text.isascii() and (encoding := sys.getfilesystemencoding()).lower() != "utf-8":
        raise InputError(
            f"{what} is {text[:limit]!a}, and Python reads file names as {encoding} here, not as UTF-8: set "
            "PYTHONUTF8=1 in the environment, and start Python or Jupyter again."
        )
    if unprinted := _UNPRINTED.search(text):
        raise InputError(f"{what} is {text[:limit]!r}: take the character {unprinted[0]!r} out of it.")
    if len(text) > limit:
        raise InputError(f"{what} is {text[:40]!r}... and has {len(text)} characters: {limit} are allowed.")
    return text


def compose_name(name):
    """A name in Unicode's composed form (NFC): operating systems store the same "café" in two ways."""
    return unicodedata.normalize("NFC", name)


def read_bytes(path, limit=MAX_BYTES):
    """A file's content. OSError if it cannot be read, ValueError if it is no file or has more than ``limit`` bytes."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no file")
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit // 2**20} MB")
    return content


def read_yaml(path):
    """The values in a YAML file, None if it is empty. InputError names the file and what is wrong.

    Aliases are refused: a few lines of them can expand to gigabytes, and no file of this project needs them. So is a
    name that stands twice, of which YAML would silently take the last.
    """
    try:
        text = read_bytes(path, MAX_YAML).decode("utf-8-sig")
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                raise yaml.YAMLError(f"line {token.start_mark.line + 1} has an alias, *{token.value}: write it out")
        _refuse_double_names(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not in UTF-8 (byte {error.start}): save it again, with the encoding UTF-8."
        ) from None
    except Exception as error:  # PyYAML raises KeyError, AttributeError, RecursionError and more, depending on the tag
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as YAML: {reason}") from None


def _refuse_double_names(node):
    """YAMLError, with both lines, for a name that stands twice in one mapping of a YAML document."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_double_names(child)
    elif isinstance(node, yaml.MappingNode):
        lines = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(f"{name!r} stands there twice (lines {lines[name]} and {line}): keep one")
            lines[name] = line
            _refuse_double_names(value)


def read_json(path, fix, lines=False):
    """The dict in a JSON file; with ``lines`` the list of dicts in a file with one JSON value per line.

    InputError for a file that cannot be read or holds something else. ``fix`` is the end of its sentence: what to do.
    """
    try:
        text = read_bytes(path, MAX_LINES if lines else MAX_BYTES).decode()
        values = [json.loads(line) for line in text.split("\n") if line] if lines else [json.loads(text)]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): {fix}.") from None
    if not all(isinstance(value, dict) for value in values):
        raise InputError(f"{path} cannot be read (it holds something else than 'name: value'): {fix}.")
    return values if lines else values[0]


def join_inside(folder, name, source):
    """``folder / name`` for a name that the file ``source`` lists; InputError if that is no path below ``folder``."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise InputError(f"{source}: {name!r} is no file below {folder}: remove the line.")
    return folder / check_plain(name, f"{source}: a file name", LONG)


@contextmanager
def atomic_write(path, keep_existing=False):
    """Yield a temporary path beside ``path``, for the block to make a file or folder there; then rename it to ``path``.

    An existing file or folder is replaced. With keep_existing, a folder that another process has made in the meantime
    stays, and the new one is deleted. InputError, with ``path`` and what to do, if the disk is full or cannot be
    written.
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
    """Rename ``temporary`` to ``path``. The system refuses to replace a folder with content, so that is deleted."""
    if temporary.is_dir() and path.is_dir() and not keep_existing:
        shutil.rmtree(path)
    try:
        os.replace(temporary, path)
    except OSError:
        if not (keep_existing and temporary.is_dir() and path.is_dir()):
            raise


def write_json(path, value):
    """Write a JSON value to a file, completely or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def remove(path):
    """Delete a file or a folder with all its content, if it is there and can be deleted."""
    with suppress(OSError):  # on a disk that has become read-only it stays, which does no harm
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _why_not_written(error, path):
    """The entry of ``CANNOT_WRITE`` for ``error``; None if it is not about writing at ``path``."""
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
    """The sha256 of each file, in order; None for a path that is no file. Files are hashed in parallel.

    InputError names a file that cannot be read.
    """
    paths = list(paths)
    size = 1 + len(paths) // (8 * os.cpu_count())  # files of a task: starting one costs more than hashing a small file
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
    """One sha256 of the contents of many files, in order: it identifies what a stage read or made.

    InputError names a file that is not there.
    """
    paths = list(paths)
    sums = sha256s(paths)
    if None in sums:
        raise InputError(f"{paths[sums.index(None)]} is not there any more: put it back, and run this again.")
    return hashlib.sha256("".join(sums).encode()).hexdigest()
