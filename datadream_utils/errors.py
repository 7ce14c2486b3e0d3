"""The one error that a user's mistake raises, how a notebook shows it, and the suggestion that it makes."""

import difflib
import textwrap

BOX = 78  # characters, the width of a message box in a notebook
TOGETHER = 10  # mistakes of one kind that one message lists
LISTED = 40  # names; a longer list helps nobody


class InputError(ValueError):
    """Something the user gave cannot be used: the message names the file or value, and the fix."""

    def _render_traceback_(self):
        """What IPython shows instead of a traceback; the cell still counts as failed."""
        return box(f"{type(self).__name__}: {self}")


class Interrupted(KeyboardInterrupt):
    """The user stopped a computation; the message says how far it was, "at step 3 of 10", or is empty."""

    def _render_traceback_(self):
        where = f" {self}" if str(self) else ""
        return box(f"Interrupted{where}. What is finished is kept: run this cell again to go on.")


def raise_together(errors, what):
    """Raise InputErrors as one: a single one as it is, of several the first ten after ``what`` ("3 of 5 pictures ...").

    Nothing happens when there are none.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        more = f"\n... and {len(errors) - TOGETHER} more." if len(errors) > TOGETHER else ""
        lines = "\n".join(str(error) for error in errors[:TOGETHER])
        raise InputError(f"{what}:\n{lines}{more}")


def for_all(function, items, what):
    """``[function(item), ...]``; the InputErrors of all items together (``raise_together``).

    what: what is wrong with them, as in "3 of 5 class folders cannot be read".
    """
    results, errors = [], []
    for item in items:
        try:
            results.append(function(item))
        except InputError as error:
            errors.append(error)
    raise_together(errors, f"{len(errors)} of {len(items)} {what}")
    return results


def name_few(counts):
    """ "class 'cat' has 1 image", of ``{class: images}``; of several also the next ones, and how many there are."""
    (first, count), *others = counts.items()
    text = f"class {first!r} has {count} image{'' if count == 1 else 's'}"
    if not others:
        return text
    listed = ", ".join(f"{name!r} {images}" for name, images in others[: TOGETHER - 1])
    rest = f" and {len(others) - TOGETHER + 1} more" if len(others) >= TOGETHER else ""
    return f"{text} (too few are also in {listed}{rest})"


def box(text):
    """``text`` in a red box, as the lines of a cell's error output: top, content, bottom."""
    wrapper = textwrap.TextWrapper(BOX - 2, break_long_words=False, break_on_hyphens=False)  # Lab breaks within words
    bar, rule = "\x1b[1;31m│\x1b[0m ", "─" * BOX
    lines = [bar + line for paragraph in text.splitlines() for line in wrapper.wrap(paragraph)]
    return [f"\x1b[1;31m╭{rule}\x1b[0m", "\n".join(lines), f"\x1b[1;31m╰{rule}\x1b[0m"]


def suggest(wrong, known):
    """`` Did you mean 'x'?`` with the nearest known word; without one, the known words if they are few, else ""."""
    known = [str(word) for word in known]
    near = difflib.get_close_matches(str(wrong), known, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(known)}." if 0 < len(known) <= LISTED else ""
