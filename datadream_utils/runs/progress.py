"""What a cell shows while it works: one line of progress, and no bars or advice of the libraries."""

import time
import warnings
from contextlib import contextmanager

from IPython import get_ipython
from IPython.display import display

from datadream_utils.errors import Interrupted
from datadream_utils.libraries import diffusers, transformers

REFRESH = 0.5  # seconds between updates of the line


def quiet_libraries():
    """Turn off the libraries' own bars, load reports and advice."""
    for library in (transformers.utils.logging, diffusers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers|transformers|peft")


def calm_interruptions():
    """In a notebook: show an interruption of any cell as ``Interrupted``, also where there is no line of progress."""
    if shell := get_ipython():
        shell.set_custom_exc((KeyboardInterrupt,), _show_interruption)


def _show_interruption(shell, kind, error, trace, tb_offset=None):
    error = error if isinstance(error, Interrupted) else Interrupted()
    shell.showtraceback((type(error), error, trace))


@contextmanager
def show_progress(total, label):
    """Show one updating line (bar, count, time left) while the block runs; gives ``advance(n=1)`` to call.

    The line is an ordinary display update, so an executed notebook keeps its last state. An interruption becomes
    ``Interrupted``, which says how far the work was.
    """
    started, shown, count = time.monotonic(), -REFRESH, 0
    handle = display(_Line(label, 0, total, 0.0), display_id=True)

    def advance(n=1):
        nonlocal shown, count
        count += n
        if time.monotonic() - shown > REFRESH:
            shown = time.monotonic()
            handle.update(_Line(label, count, total, shown - started))

    try:
        yield advance
    except KeyboardInterrupt:
        raise Interrupted(f"at step {count} of {total}") from None
    handle.update(_Line(label, count, total, time.monotonic() - started))


class _Line:
    """The line as a display object."""

    def __init__(self, label, count, total, seconds):
        done = count / total if total else 1.0
        bar = "█" * int(20 * done) + "░" * (20 - int(20 * done))
        left = f", {seconds * (1 / done - 1):.0f} s left" if 0 < done < 1 else ""
        self.text = f"{label:<24} {bar} {count}/{total}  {seconds:.1f} s{left}"

    def __repr__(self):
        return self.text


@contextmanager
def no_progress(total, label):
    """Show nothing: for programs that are not watched."""
    yield lambda n=1: None
