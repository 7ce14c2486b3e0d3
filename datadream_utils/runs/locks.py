"""One process at a time in a stage's folder, or in each part of it.

The lock belongs to the process: the operating system takes it back however that process ends, even by SIGKILL.
"""

import os
import platform
from contextlib import suppress

from filelock import FileLock, Timeout

from datadream_utils.errors import InputError

PATIENCE = 2.0  # seconds; a process that was just killed takes a moment to go, and others look in for one


def lock(folder, part=""):
    """Keep every other process out of ``folder``, or out of one ``part`` ("2-of-4"), until ``release``: the locks.

    The whole folder and a part of it exclude each other; different parts do not. InputError names the process that is
    there. Within one process a lock can be taken again, so a notebook's cell can be run again.
    """
    whole = folder / ".lock"
    (folder / "shards" if part else folder).mkdir(parents=True, exist_ok=True)
    if part:
        own = _lock(folder / "shards" / f".{part}.lock", folder)
        _lock(whole, folder).release()
        return [own]
    locks = []
    try:
        for path in [whole, *sorted(folder.glob("shards/.*.lock"))]:
            locks.append(_lock(path, folder))
    except InputError:
        release(locks)
        raise
    return locks


def release(locks):
    for one in locks:
        one.release(force=True)


def is_locked(folder):
    """Whether a process works in ``folder``, or in a part of it."""
    for path in [folder / ".lock", *folder.glob("shards/.*.lock")]:
        if path.exists():
            try:
                FileLock(path, fallback_to_soft=False).acquire(timeout=0).lock.release()
            except Timeout:
                return True
    return False


def _lock(path, folder):
    file_lock = FileLock(path, is_singleton=True, fallback_to_soft=False)
    try:
        file_lock.acquire(timeout=PATIENCE)
    except Timeout:
        holder = ""
        with suppress(OSError):
            holder = path.read_text(encoding="utf-8")
        raise InputError(
            f"{folder} is being worked on by {holder or 'another process'}: wait until it has finished, or stop it "
            "(restart the kernel of its notebook)."
        ) from None
    with suppress(OSError):  # Windows lets nobody read or write a locked file
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    return file_lock
