"""``torch.compile`` for the blocks that a model repeats, while a stage runs: the parameter ``compile``.

"auto" compiles on a GPU alone, and only a stage that is long enough. Compiled kernels round otherwise than torch's own,
as those of another device do, so ``compile`` is a parameter of the machine: a run is the same run with and without it,
and its results are the same up to rounding. Whether "auto" compiles depends on the whole stage, not on what is left of
it, so a resumed run rounds as an uninterrupted one. On a CPU the bytes never change unless ``compile`` is "yes".

Only the blocks are compiled, not the whole model: blocks of one shape are compiled once, in seconds. A batch of another
size than the usual one, such as the last of a class, would be compiled anew; it runs uncompiled (``uncompiled``).
"""

from contextlib import contextmanager, nullcontext

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from datadream_utils.errors import InputError

HOW = dict(options={"fallback_random": True})  # dropout draws what it draws uncompiled


@contextmanager
def compiled(blocks, choice, pays, trial):
    """While the block runs, the modules ``blocks`` are compiled in place; yields whether they are.

    choice: the parameter ``compile``; pays: whether "auto" compiles. trial: a function that runs the blocks once as
    they will run, so that a compiler that fails does it here. Then "auto" prints a line and goes on without; InputError
    for "yes".
    """
    if not (blocks and (choice == "yes" or (choice == "auto" and pays))):
        yield False
        return
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False, **HOW)
    try:
        yield _compiles(blocks, choice, trial)
    finally:
        _undo(blocks)


def uncompiled(wanted):
    """A context in which compiled modules run uncompiled, if ``wanted``."""
    return torch.compiler.set_stance("force_eager") if wanted else nullcontext()


def _compiles(blocks, choice, trial):
    try:
        trial()
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        cause = getattr(error, "inner_exception", error)
        reason = f"{type(cause).__name__}: {str(cause).strip()}".splitlines()[0]
        if choice == "yes":
            raise InputError(
                f"torch.compile fails on this machine ({reason}): set compile to 'no', or install what it needs (a C++ "
                "compiler, on a GPU Triton)."
            ) from error
        print(f"torch.compile fails on this machine ({reason}): going on without.")
        _undo(blocks)
        return False
    return True


def _undo(blocks):
    for block in blocks:
        block._compiled_call_impl = None  # torch has no public way back
    torch.compiler.reset()
