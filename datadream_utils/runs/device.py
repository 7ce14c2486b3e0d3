"""The device that computes: choosing it, CPU threads, numerical precision, and memory that may run out."""

import os
import sys
import traceback
from contextlib import contextmanager

import psutil
import torch
from accelerate.utils.memory import clear_device_cache

from datadream_utils.errors import InputError
from datadream_utils.runs.stage import cpu_name

try:
    import resource
except ImportError:  # Windows
    resource = None

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Words in torch's errors: of CUDA, MPS and drivers; of the CPU's allocator; of cuBLAS and cuDNN at their first call.
OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")


def choose_device(device):
    """``device`` itself, or for "auto" the first available of "cuda", "mps" (Apple) and "cpu".

    Of several GPUs one is named by its number, "cuda:1", and becomes torch's current one. InputError for a device that
    is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name in available if available[name])
    kind, _, number = device.partition(":")
    if not available.get(kind):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = f" (CUDA_VISIBLE_DEVICES is {visible!r})" if kind == "cuda" and visible is not None else ""
        raise InputError(f"device {device!r} is not available here{seen}: use 'auto' or 'cpu'.")
    if number:
        if not number.isdigit() or int(number) >= (count := torch.cuda.device_count()):
            seen = "cuda:0 alone" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise InputError(f"device {device!r} is not available here: this process sees {seen}.")
        torch.cuda.set_device(int(number))
    return device


def device_name(device):
    """The model of the device. Two devices with the same name round alike, so they make the same bytes."""
    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{device} ({cpu_name()}, {torch.backends.cpu.get_cpu_capability()})"


def set_threads(num_threads):
    """Limit torch's CPU threads (0: no limit). A fixed number gives the same bytes whatever the number of cores."""
    if num_threads:
        torch.set_num_threads(num_threads)


def weight_dtype(mixed_precision, device):
    """The dtype of frozen weights: float32, float16 or bfloat16. InputError for fp16 on a CPU."""
    if mixed_precision == "fp16" and device == "cpu":
        raise InputError("mixed_precision 'fp16' needs a GPU: use 'no' or 'bf16' on a CPU.")
    return DTYPES[mixed_precision]


def peak_memory(device):
    """``{"peak_memory_mb": ..., "peak_gpu_memory_mb": ...}`` (10^6 bytes) of this process; the second on CUDA only."""
    if resource is None:
        peak_bytes = psutil.Process().memory_info().peak_wset
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, kilobytes elsewhere
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = {"peak_memory_mb": round(peak_bytes / 1e6)}
    if str(device).startswith("cuda"):
        peak["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6)
    return peak


def is_out_of_memory(error):
    """Whether an error means that memory is full: torch.OutOfMemoryError, or a RuntimeError, which MPS raises."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


def free_memory(error):
    """Free the memory that the frames of ``error`` still refer to."""
    traceback.clear_frames(error.__traceback__)
    clear_device_cache(garbage_collection=True)


def suggest_smaller(params, *names):
    """Which of the parameters ``names`` to change so that a stage needs less: "lower adapt_batch_size (8) or ...".

    Switches that are false can be set to true, which changes no result, and numbers above 1 can be lowered. "" if there
    is nothing to change.
    """
    values = {name: getattr(params, name) for name in names}
    changes = [f"set {name} to true (no result changes)" for name, value in values.items() if value is False]
    changes += [f"lower {name} ({value})" for name, value in values.items() if value is not True and value > 1]
    return " or ".join(changes)


@contextmanager
def advise_on_memory(params, *names):
    """Turn an out-of-memory error of the block into an InputError that says which of ``names`` to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        free_memory(error)
        fix = suggest_smaller(params, *names) or "use a device with more"
        raise InputError(
            f"the memory of the device is full: {fix}, and run this again. "
            "What is finished stays; if a parameter changes the result, choose another 'variant'."
        ) from None
