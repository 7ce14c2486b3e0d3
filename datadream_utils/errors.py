"""The one error that a user's mistake raises, and the suggestion it makes."""

import difflib


class InputError(ValueError):
    """Something the user gave cannot be used: the message names the file or value, and the fix."""


def suggest(wrong, known):
    """`` Did you mean 'x'?`` with the nearest known word, or the list of what there is when nothing is near."""
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(wrong), known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}."


def nearest(wrong, known):
    """The nearest known word, or None."""
    near = difflib.get_close_matches(str(wrong), [str(k) for k in known], n=1, cutoff=0.6)
    return near[0] if near else None
