"""What a cell shows while it works: one line of progress, and no bars or advice of the libraries."""

import math
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
    # With fp16 the first step is often skipped, and the schedule then seems to come before the optimizer
    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)


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
    ``Interrupted``, which says how far the work was. The time left is measured from the first update after the first
    one: what a checkpoint brings back is counted at once, and says nothing about speed.
    """
    started, shown, count, measured = time.monotonic(), -math.inf, 0, []
    handle = display(_Line(label, 0, total, 0.0), display_id=True)

    def advance(n=1):
        nonlocal shown, count
        count += n
        if time.monotonic() - shown > REFRESH:
            shown = time.monotonic()
            measured.append((shown, count))
            handle.update(_Line(label, count, total, shown - started, _time_left(measured, total)))
            del measured[2:]

    try:
        yield advance
    except KeyboardInterrupt:
        raise Interrupted(f"at step {count} of {total}") from None
    handle.update(_Line(label, count, total, time.monotonic() - started))


def _time_left(measured, total):
    """Seconds until ``total``, at the speed since the second of ``measured`` (time, count); None before a third."""
    if len(measured) < 3:
        return None
    (begin, first), (now, count) = measured[1], measured[-1]
    return (now - begin) * (total - count) / (count - first) if count > first else None


class _Line:
    """The line as a display object."""

    def __init__(self, label, count, total, seconds, left=None):
        done = count / total if total else 1.0
        bar = "█" * int(20 * done) + "░" * (20 - int(20 * done))
        left = f", {left:.0f} s left" if left is not None and count < total else ""
        self.text = f"{label:<24} {bar} {count}/{total}  {seconds:.1f} s{left}"

    def __repr__(self):
        return self.text


@contextmanager
def no_progress(total, label):
    """Show nothing: for programs that are not watched."""
    yield lambda n=1: None
