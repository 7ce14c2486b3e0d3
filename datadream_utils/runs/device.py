"""Memory: what a stage took at most, and what to lower when there is not enough."""

import resource
import sys
import traceback
from contextlib import contextmanager

import torch
from accelerate.utils.memory import clear_device_cache

from datadream_utils.errors import InputError


def peak_memory(device):
    """``{"peak_memory_mb": ..., "peak_gpu_memory_mb": ...}`` of this process so far; the second on CUDA only."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, kilobytes elsewhere
    peak = {"peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)}
    if str(device).startswith("cuda"):
        peak["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    return peak


# How torch says it: CUDA, MPS and driver errors; the CPU's allocator; cuBLAS and cuDNN at their first call.
FULL = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")


def is_full(error):
    """Whether an error says that memory is full: torch.OutOfMemoryError, a RuntimeError too, which MPS raises bare."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in FULL)


def clear(error):
    """Give back the memory that ``error``, which says that it is full, was raised in."""
    traceback.clear_frames(error.__traceback__)  # they hold what filled it
    clear_device_cache(garbage_collection=True)


def begun_again(start, parameters, spare):
    """The rows of the generator ``start()``; of another one after ``spare()`` where the first does not fit into memory.

    parameters: what it changes, to be put back; ``spare()``: whether there is a way to need less.
    """
    kept = [(parameter, parameter.detach().clone()) for parameter in parameters if parameter.requires_grad]
    rows = start()
    try:
        first = next(rows)
    except (RuntimeError, MemoryError) as error:
        if not is_full(error) or not spare():
            raise
        clear(error)
        for parameter, value in kept:
            parameter.data.copy_(value)
        rows = start()
        first = next(rows)
    kept.clear()
    yield first
    yield from rows


@contextmanager
def enough_memory(p, *names):
    """Turn "out of memory" within into an InputError that says which of the parameters ``names`` to change.

    A number is to be lowered (1 is as low as it gets), a switch to be set to true.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full(error):
            raise
        clear(error)
        values = {name: getattr(p, name) for name in names}
        fixes = [f"lower {name} ({value})" for name, value in values.items() if value is not True and value > 1]
        fixes += [f"set {name} to true" for name, value in values.items() if value is False]
        raise InputError(
            f"the memory of the device is full: {' or '.join(fixes) or 'use a device with more'}, and run this again. "
            "What is finished stays; parameters that change the result want another 'variant'."
        ) from None
