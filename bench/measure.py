"""Peak memory and rates of a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def peak_memory(device: torch.device, call: Callable[[], object]) -> int:
    """Most bytes of tensors that `call` holds at once, without those that exist before it.

    For a CUDA graph it must be the call that records the graph, since a replay allocates nothing. Raises ValueError for
    a call on CUDA that does not allocate.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        if (most := torch.cuda.max_memory_allocated() - before) <= 0:
            raise ValueError("peak_memory: expected a call that allocates, found none; measure the one that records")
        return most
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes, the best of several."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(device, lambda: target.copy_(source))


def product_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a large matrix product, in the current precision; the best of several."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / _best(device, lambda: a @ b)


def _best(device: torch.device, call: Callable[[], Tensor]) -> float:
    """Seconds."""
    if device.type == "cuda":
        return _best_on_cuda(call)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _best_on_cuda(call: Callable[[], Tensor]) -> float:
    call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(11)]
    for mark in marks:
        call()
        mark.record()
    torch.cuda.synchronize()
    return float(min(before.elapsed_time(after) for before, after in pairwise(marks))) / 1000
