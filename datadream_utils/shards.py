"""Dividing a stage's work among processes: ``shard`` "2/4" is the second of four parts, "" all of it.

Whole groups of adapters and whole classes are divided, so what is made does not depend on the division.
"""

import re


def check_shard(shard):
    """``shard`` itself; ValueError unless it is "" or k/n with 1 <= k <= n."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    if shard and not (found and 1 <= int(found[1]) <= int(found[2])):
        raise ValueError(f"shard {shard!r} is no part of the work: write '2/4' for the second of four, '' for all")
    return shard


def part_of(items, shard):
    """The items that a shard works on: consecutive ones, shares equal up to one item, the first not the smallest."""
    items = list(items)
    part, parts = map(int, (shard or "1/1").split("/"))
    first, end = (-(-k * len(items) // parts) for k in (part - 1, part))  # rounded up
    return items[first:end]
