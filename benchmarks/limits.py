"""How far a stage is from what the machine can do: achieved FLOP/s against measured matmul, and where the rest goes."""

from contextlib import contextmanager
from time import perf_counter, process_time

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks import clock

SHARE = 0.03  # of the time: operations with less are put together
# Enough of each stage to see where time goes, and few enough events for the profiler.
SHORT = {"adapt_epochs": 2, "train_epochs": 2}
# torch's counter knows attention on a GPU only; its kernels for the CPU do the same sums.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}
PART = {"generate": {"shard": "1/5"}}  # of the work: a fifth of the classes


def matmul_peak(device, dtype):
    """FLOP/s of the fastest of the square matrix products of a second, with side 1,024, or 8,192 on a GPU.

    On a CPU per second of processor time, as ``inspect``.
    """
    side = 1024 if device == "cpu" else 8192
    clock_of = process_time if device == "cpu" else perf_counter
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, until = float("inf"), perf_counter() + 1
    while perf_counter() < until:
        started = clock_of()
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, clock_of() - started)
    return 2 * side**3 / best


def inspect(run, job, device, dtype):
    """Do ``run(job)``'s work plain, counting FLOPs and under the profiler; a dict for the table of limits.

    On a CPU the speed is per second of processor time, so that a busy machine does not look like slow code.
    """
    job = job | {"changes": job["changes"] | SHORT} | PART.get(job.get("stage"), {})
    unit = "work cpu" if device == "cpu" else "work"
    seconds = run(job | {"folder": f"{job['folder']}/plain"})[unit]
    counter, profile = FlopCounterMode(display=False, custom_mapping=ATTENTION), {}
    try:
        clock.around["work"] = lambda: counter
        run(job | {"folder": f"{job['folder']}/flops"})
        clock.around["work"] = lambda: _profiled(device, profile)
        run(job | {"folder": f"{job['folder']}/profile"})
    finally:
        clock.around.clear()
    peak = matmul_peak(device, dtype)
    return {"flops_per_second": counter.get_total_flops() / seconds, "matmul_peak": peak, "operations": profile["rows"]}


@contextmanager
def _profiled(device, profile):
    """Put ``[(operation, share of the time, calls)]`` of the block into ``profile["rows"]``, largest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        started = perf_counter()
        yield
        total = (perf_counter() - started) * 1e6  # the profiler counts microseconds
    time_of = lambda e: e.self_device_time_total if device != "cpu" else e.self_cpu_time_total  # noqa: E731
    events = sorted(profiler.key_averages(), key=time_of, reverse=True)
    rows = [(e.key, time_of(e) / total, e.count) for e in events if time_of(e) >= SHARE * total]
    small = sum(time_of(e) for e in events) / total - sum(share for _, share, _ in rows)
    rest = "outside torch: python, pictures, files" if device == "cpu" else "device idle"
    rows += [("smaller operations", small, None)]
    profile["rows"] = [*rows, (rest, 1 - sum(share for _, share, _ in rows), None)]
