"""Text that somebody else wrote: of bounded size, in UTF-8; names that are safe to print, show and join to a path."""

import json
import os
import re
import stat
from pathlib import PurePosixPath, PureWindowsPath

import yaml

from datadream_utils.errors import InputError

MAX_YAML = 4 * 2**20  # bytes; ImageNet-21k's class names take a third of it
MAX_BYTES = 256 * 2**20  # of a list or split file: CoOp's largest has 11 MB
LONG = 1000  # characters of a sentence or a path

# Control characters (terminals obey some), line separators (lists are lines), marks that turn the direction of
# writing round (a name would read as another), and what is left of a file name that is not UTF-8.
_UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

TEX = str.maketrans({c: rf"\{c}" for c in "_%&#${}"} | {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"})
# HTML's own codes begin no markup; a dollar in a tag of its own begins no formula.
MARKDOWN = str.maketrans({c: f"&#{ord(c)};" for c in "&<>|\\`*[]~!"} | {"$": "<span>$</span>"})


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


def markdown(name):
    """A name as Markdown shows it literally, in one table cell."""
    text = " ".join(name.split()).translate(MARKDOWN)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", text)  # within a word it begins no emphasis


def table_texts(frame):
    """A data frame as csv and Markdown, by kind; missing numbers stay empty."""
    lines = ["| " + " | ".join(map(markdown, frame.columns)) + " |", "|---" * len(frame.columns) + "|"]
    for row in frame.itertuples(index=False):
        cells = [
            "" if value != value else markdown(f"{value:g}" if isinstance(value, float) else str(value))
            for value in row
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return {"csv": frame.to_csv(index=False, lineterminator="\n"), "md": "\n".join(lines) + "\n"}


def latex(text):
    """A text as LaTeX prints it literally, in one table cell."""
    return " ".join(text.split()).translate(TEX)


def literal(text):
    """A name as a figure of matplotlib shows it literally: no dollar in it begins a formula."""
    return text.replace("$", r"\$")
