"""The one error that a user's mistake raises, and the suggestion that it makes."""

import difflib
import textwrap

BOX = 78  # characters, the width of a message box in a notebook


class InputError(ValueError):
    """Something the user gave cannot be used: the message names the file or value, and the fix."""

    def _render_traceback_(self):
        """What IPython shows instead of a traceback."""
        return box(f"{type(self).__name__}: {self}")


class Interrupted(KeyboardInterrupt):
    """The user stopped a long computation; the message says how far it was."""

    def _render_traceback_(self):
        return box(f"Interrupted {self}. What is finished is kept: run this cell again to go on.")


def box(text):
    """``text`` in a box for a terminal or a notebook, as a list of lines."""
    wrap = textwrap.TextWrapper(BOX - 2, break_long_words=False, break_on_hyphens=False)
    bar, rule = "\x1b[1;31m│\x1b[0m ", "─" * BOX
    lines = [bar + line for paragraph in text.splitlines() for line in wrap.wrap(paragraph)]
    return [f"\x1b[1;31m╭{rule}\x1b[0m", "\n".join(lines), f"\x1b[1;31m╰{rule}\x1b[0m"]


def suggest(wrong, known):
    """`` Did you mean 'x'?`` with the nearest known word, or the list of what there is when nothing is near."""
    known = [str(word) for word in known]
    near = difflib.get_close_matches(str(wrong), known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}."
