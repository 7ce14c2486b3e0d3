"""What a notebook needs besides the method: quiet libraries, a progress line, interruptions in a sentence, sources."""

import inspect
import time
import warnings

import diffusers
import transformers
from IPython.display import Markdown, display

from datadream_utils.errors import boxed

REFRESH = 0.5  # seconds between updates of a progress line


class Interrupted(KeyboardInterrupt):
    """An interruption of ``progress``; the message says at which step."""

    def _render_traceback_(self):
        """What IPython shows instead of a traceback; the cell still counts as failed."""
        return boxed(f"Interrupted {self}. What is finished is kept: run this cell again to go on.")


def quiet_libraries():
    """No bars, load reports and advice from the libraries between the cells."""
    for library in (transformers.utils.logging, diffusers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers|transformers|peft")


def progress(iterable, total=None, label=""):
    """Yield from ``iterable`` under one updating line: bar, count, rate, time left.

    The line is an ordinary display update, so an executed notebook keeps its last state: 100 % when it finished. An
    interrupt from the keyboard becomes ``Interrupted``.
    """
    started, shown, count = time.time(), 0.0, 0
    handle = display(_Line(label, 0, total, 0.0), display_id=True)
    try:
        for count, item in enumerate(iterable, 1):
            yield item
            if time.time() - shown > REFRESH:
                shown = time.time()
                handle.update(_Line(label, count, total, shown - started))
    except KeyboardInterrupt:
        raise Interrupted(f"at step {count} of {total}") from None
    handle.update(_Line(label, count, total, time.time() - started))


class _Line:
    """The progress line as a display object."""

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
