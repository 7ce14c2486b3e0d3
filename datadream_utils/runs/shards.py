"""Dividing a stage's work among processes: ``shard`` "2/4" is the second of four parts, "" all of it.

Whole groups of adapters and whole classes are divided, so the division changes no result.
"""


def part_of(items, shard):
    """The items that a shard works on: contiguous slices whose sizes differ by at most one."""
    items = list(items)
    part, parts = map(int, (shard or "1/1").split("/"))
    first, end = (-(-k * len(items) // parts) for k in (part - 1, part))  # rounded up
    return items[first:end]
