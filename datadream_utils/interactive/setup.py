"""What a notebook needs besides the method: quiet libraries, errors in a sentence, a progress line, shown sources."""

import inspect
import textwrap
import time
import warnings

import diffusers
import transformers
from IPython import get_ipython
from IPython.display import Markdown, display

from datadream_utils.errors import InputError

REFRESH = 0.5  # seconds between updates of a progress line
BOX = 78  # characters, the width of a message box


def quiet_libraries():
    """No bars, load reports and advice from the libraries between the cells; a user's mistake shows as a sentence."""
    for library in (transformers.utils.logging, diffusers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers|transformers|peft")
    if shell := get_ipython():
        shell.set_custom_exc((InputError, KeyboardInterrupt), _show_sentence)


def _show_sentence(shell, kind, error, _traceback, tb_offset=None):
    """IPython's handler of the exceptions that need no traceback; the cell still counts as failed."""
    if kind is KeyboardInterrupt:
        text = f"Interrupted{error and f' {error}'}. What is finished is kept: run this cell again to go on."
    else:
        text = f"{kind.__name__}: {error}"
    wrap = textwrap.TextWrapper(BOX - 2, break_long_words=False, break_on_hyphens=False)  # Lab breaks in mid-word
    bar, rule = "\x1b[1;31m│\x1b[0m ", "─" * BOX
    text = "\n".join(bar + line for paragraph in text.splitlines() for line in wrap.wrap(paragraph))
    lines = [f"\x1b[1;31m╭{rule}\x1b[0m", text, f"\x1b[1;31m╰{rule}\x1b[0m"]
    shell._showtraceback(kind, error, lines)  # the one way to make it the cell's error output
    return lines


def progress(iterable, total=None, label=""):
    """Yield from ``iterable`` under one updating line: bar, count, rate, time left.

    The line is an ordinary display update, so an executed notebook keeps its last state: 100 % when it finished. An
    interruption says how far it was.
    """
    started, shown, count = time.time(), 0.0, 0
    handle = display(_line(label, 0, total, 0.0), display_id=True)
    try:
        for count, item in enumerate(iterable, 1):
            yield item
            if time.time() - shown > REFRESH:
                shown = time.time()
                handle.update(_line(label, count, total, shown - started))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"at step {count} of {total}") from None
    handle.update(_line(label, count, total, time.time() - started))


class _line:  # noqa: N801 - a display object, named for how it reads above
    def __init__(self, label, count, total, seconds):
        share = count / total if total else 1.0
        bar = "█" * int(20 * share) + "░" * (20 - int(20 * share))
        left = f", {seconds * (1 / share - 1):.0f} s left" if 0 < share < 1 else ""
        self.text = f"{label:<24} {bar} {count}/{total if total is not None else count}  {seconds:.1f} s{left}"

    def __repr__(self):
        return self.text


def show_source(function):
    """Show a function's source, highlighted, as the cell's output."""
    display(Markdown(f"```python\n{inspect.getsource(function)}```"))
