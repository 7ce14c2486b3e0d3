"""Values as people write them: what can only mean one thing is taken, and an error says what to write instead.

YAML reads 1e-4 as text and no as false, papermill gives false as text and 101 as a number, a notebook may hold a Path.
"""

import datetime
import os
import re
from numbers import Integral
from typing import Annotated, Literal, get_args, get_origin
from urllib.parse import urlsplit
from urllib.request import url2pathname

SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
FIXES = {  # pydantic's type of an error: what to write, from the error's context
    "int_type": "write a whole number",
    "float_type": "write a number, such as 0.5 or 1e-4",
    "bool_type": "write true or false",
    "string_type": "write text, in a YAML file in quotes",
    "finite_number": "write a finite number",
    "greater_than": "write more than {gt}",
    "greater_than_equal": "write {ge} or more",
    "less_than": "write less than {lt}",
    "less_than_equal": "write {le} or less",
    "literal_error": "write {expected}",
    "string_pattern_mismatch": "use only letters without accents, digits and . = _ -",
    "string_too_short": "name a folder",
    "string_too_long": "use {max_length} characters or fewer",
    "too_short": "list one or more",
    "list_type": "write a list, such as [0, 1]",
    "dict_type": "write 'name: value' lines",
    "model_type": "write 'name: value' lines",
}


def read_value(value, wanted):
    """``value`` as the type ``wanted``, if it can only mean one thing; else ``value`` as it is.

    wanted: int, float, bool, str, a Literal of words, or a list or dict of these; of any other type a value stays.
    """
    kind, parts = get_origin(wanted) or wanted, get_args(wanted)
    if kind is Annotated:
        return read_value(value, parts[0])
    if kind is list:  # one value is a list of one
        values = [value] if isinstance(value, str | int | float) else value
        return [read_value(one, parts[0]) for one in values] if isinstance(values, list) else value
    if kind is dict and isinstance(value, dict):
        return {read_value(key, parts[0]): read_value(one, parts[1]) for key, one in value.items()}
    if kind is Literal:
        return _as_word(value, parts)
    readers = {bool: _as_switch, int: _as_whole, float: _as_number, str: _as_text}
    return readers[kind](value) if kind in readers else value


def explain(error):
    """What to write instead of the value that one of pydantic's errors is about."""
    if error["type"] == "float_type" and re.fullmatch(r"-?\d+,\d+", str(error["input"])):
        return f"write {error['input'].replace(',', '.')}, with a point"
    fix = FIXES.get(error["type"])
    return fix.format(**error.get("ctx", {})) if fix else error["msg"]


def _as_switch(value):
    return SWITCHES.get(str(value).strip().lower(), value) if isinstance(value, str | int) else value


def _as_whole(value):
    if isinstance(value, Integral) and not isinstance(value, bool):  # NumPy's whole numbers too
        return int(value)
    number = _number_in(value)
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return value if isinstance(number, float) else number


def _as_number(value):
    """The whole numbers too become floats: 4 and 4.0 are one value."""
    number = _number_in(value)
    try:
        return float(number) if isinstance(number, Integral) and not isinstance(number, bool) else number
    except OverflowError:
        return value


def _number_in(value):
    """The number that a text is, such as "1e-4"; any other value as it is."""
    for read in (int, float):
        try:
            return read(value) if isinstance(value, str) else value
        except ValueError:
            continue
    return value


def _as_text(value):
    """A name; ``file:///home/me/photos`` is the path. True and None are no names: their text would be a guess."""
    if isinstance(value, str) and value.lower().startswith("file://"):
        return url2pathname(urlsplit(value).path)
    if isinstance(value, int | float | datetime.date) and not isinstance(value, bool):
        return str(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _as_word(value, words):
    """One of a few words, in any case. YAML reads yes as true and no as false, papermill None as nothing: "no"."""
    text = str(value).strip().lower()
    text = {"true": "yes", "false": "no", "none": "no"}.get(text, text)
    return next((word for word in words if word.lower() == text), value)
