"""Seconds of the parts of a procedure, by the clock on the wall and by the processor."""

import os
from contextlib import contextmanager, nullcontext
from time import perf_counter, process_time

import torch

around = {}  # part: a context to put around it, as ``limits`` does


@contextmanager
def timed(seconds, part):
    """Add the time of the block to ``seconds[part]`` and its processor time to ``seconds[part + " cpu"]``."""
    with around.get(part, nullcontext)():
        cpu_clock = lambda: process_time() + sum(os.times()[2:4])  # noqa: E731 - with the loaders that it waited for
        wall, cpu = perf_counter(), cpu_clock()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        for name, value in ((part, perf_counter() - wall), (f"{part} cpu", cpu_clock() - cpu)):
            seconds[name] = seconds.get(name, 0.0) + value
