"""Dividing a stage's work among processes: ``shard`` "2/4" is the second of four parts, "" all of it.

Whole groups of adapters and whole classes are divided, so the division changes no result.
"""

import re

from datadream_utils.errors import InputError


def check_shard(shard):
    """``shard`` itself; InputError unless it is "" or k/n with 1 <= k <= n."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    if shard and not (match and 1 <= int(match[1]) <= int(match[2])):
        raise InputError(f"shard {shard!r} is no part of the work: write '2/4' for the second of four, '' for all.")
    return shard


def part_of(items, shard):
    """The items that a shard works on: contiguous slices whose sizes differ by at most one."""
    items = list(items)
    part, parts = map(int, (shard or "1/1").split("/"))
    first, end = (-(-k * len(items) // parts) for k in (part - 1, part))  # rounded up
    return items[first:end]
