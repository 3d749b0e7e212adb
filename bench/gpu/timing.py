"""Time by the device's own clock. A measurement has the device for itself: `with alone():`."""

from __future__ import annotations

import fcntl
import gc
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

LOCK = "PTMST_BENCH_LOCK"
"""Environment variable with the lock file of all processes of one call."""
_IN_GRAPH = 10
_KERNELS_SHOWN = 40
Call = Callable[[], Any]


@contextmanager
def alone() -> Iterator[None]:
    """Reserve the device for this process; others wait."""
    with open(Path(os.environ[LOCK]), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        torch.cuda.synchronize()
        yield
        torch.cuda.synchronize()
        release()


def release() -> None:
    """Free unused memory for other processes."""
    gc.collect()
    torch.cuda.empty_cache()


def timed(call: Call, rounds: int = 10, queued: int = 1, warm_up: int = 2) -> dict[str, float]:
    """Milliseconds per call: median, least and most of `rounds` of `queued` calls each, without waits of the host."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    for _ in range(warm_up):
        call()
    marks[0].record()
    for mark in marks[1:]:
        for _ in range(queued):
            call()
        mark.record()
    torch.cuda.synchronize()
    times = [before.elapsed_time(after) / queued for before, after in pairwise(marks)]
    return {"ms": statistics.median(times), "least ms": min(times), "most ms": max(times)}


def timed_in_graph(call: Call) -> dict[str, float]:
    """The same for a call as one of ten in a CUDA graph, where launches cost nothing."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_IN_GRAPH):
            call()
    return {name: value / _IN_GRAPH for name, value in timed(graph.replay).items()}


def profiled(call: Call) -> dict[str, Any]:
    """The kernels of a call: their number, total time, and the longest ones: [name, launches, milliseconds]."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    kernels = [(row.key[:120], row.count, row.self_device_time_total / 1000) for row in seen.key_averages()]
    kernels = sorted((row for row in kernels if row[2] > 0), key=lambda row: -row[2])
    return {
        "kernels": sum(count for _, count, _ in kernels),
        "ms": sum(ms for *_, ms in kernels),
        "longest": [[name, count, round(ms, 4)] for name, count, ms in kernels[:_KERNELS_SHOWN]],
    }
