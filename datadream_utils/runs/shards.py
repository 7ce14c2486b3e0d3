"""Dividing a stage's work among processes: ``shard`` "2/4" is the second of four parts, "" all of it.

Whole groups of adapters and whole classes are divided, so what is made does not depend on the division.
"""


def part_of(items, shard):
    """The items that a shard works on: consecutive ones, shares equal up to one item, the first not the smallest."""
    items = list(items)
    part, parts = map(int, (shard or "1/1").split("/"))
    first, end = (-(-k * len(items) // parts) for k in (part - 1, part))  # rounded up
    return items[first:end]
