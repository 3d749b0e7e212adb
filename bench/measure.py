"""What a benchmark needs of a device: waiting for it, its peak memory, its rates, its names."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmst.doctor import machine


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(device: torch.device, call: Callable[[], object]) -> int:
    """Most bytes of tensors that `call` holds at once, beside those that are there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes, the best of several."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(device, lambda: target.copy_(source))


def product_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a large matrix product, in the arithmetic now set; the best of several."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / _best(device, lambda: a @ b)


def environment(device: torch.device) -> dict[str, Any]:
    """Names and versions to stand beside the numbers."""
    script = Path(sys.argv[0])
    program = f"python -m bench.{script.stem}" if script.parent == Path(__file__).parent else "pytest"
    found: dict[str, Any] = {"command": shlex.join([*program.split(), *sys.argv[1:]])}
    found |= {"torch": torch.__version__, **machine()}
    if device.type == "cuda":
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        found |= {"cuda": torch.version.cuda, "driver": driver, "cudnn": torch.backends.cudnn.version()}
    return found


def _best(device: torch.device, call: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(6):
        synchronise(device)
        began = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return min(times)
