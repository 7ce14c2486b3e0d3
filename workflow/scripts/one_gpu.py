"""Run a command with one GPU that no other command of the same folder has: for several GPUs without Slurm.

    python workflow/scripts/one_gpu.py 4 .snakemake/gpus COMMAND ...

The GPUs are those of CUDA_VISIBLE_DEVICES, else the first 4 of the machine. A lock in the folder says which are taken;
the command waits for one and sees it alone. With more places (here 4) than GPUs several commands share one.
"""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout


def take_gpu(places, folder):
    """``(name, lock)`` of a free GPU, as CUDA_VISIBLE_DEVICES names it; waits until one of ``places`` is free."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(places)]
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for place in range(places):
            lock = FileLock(folder / f"{platform.node()}-{place}.lock", fallback_to_soft=False)
            try:
                lock.acquire(timeout=0)
                return gpus[place % len(gpus)].strip(), lock
            except Timeout:
                continue
        time.sleep(0.5)


if __name__ == "__main__":
    gpu, lock = take_gpu(int(sys.argv[1]), Path(sys.argv[2]))
    signal.signal(signal.SIGINT, lambda *_: None)  # the command gets it too, and ends in its own way
    code = subprocess.call(sys.argv[3:], env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu})
    lock.release()
    sys.exit(code if code >= 0 else 128 - code)
