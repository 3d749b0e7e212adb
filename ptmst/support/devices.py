"""Which device a run uses, and with which arithmetic."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmst.config import Device, Precision
from ptmst.errors import InputError

_CONTAINER = Path("/sys/fs/cgroup")


def pick(name: Device) -> torch.device:
    """The device of a config. Raises InputError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a CUDA device, found none; use --device cpu, or see `ptmst doctor`")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Matrix products and convolutions in the precision asked for, by algorithms that repeat their bits.

    torch's own default is TF32 for convolutions on CUDA, float32 for matrix products, and whatever algorithm is
    fastest. What was set before is put back, whether it was set by torch's older names or by its newer ones.
    """
    backends: Any = torch.backends  # whose newer names have no types
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    named = matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn
    # The older names cannot be read where the newer ones were used; writing them sets both.
    before, algorithms = [part.fp32_precision for part in named], (cudnn.deterministic, cudnn.benchmark)
    fast = precision == "tf32"
    _older_names("high" if fast else "highest", fast)
    for part in (matmul, cudnn.conv, cudnn.rnn):
        part.fp32_precision = "tf32" if fast else "ieee"
    cudnn.deterministic, cudnn.benchmark = True, False
    # Attention that is differentiated twice has its products in float32 otherwise, whatever its tensors are.
    halves = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(precision == "bf16")
    try:
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(halves)
        products = "highest" if before[0] != "tf32" else "medium" if before[1] == "bf16" else "high"
        _older_names(products, before[2] == "tf32")
        for part, value in zip(named, before, strict=True):
            part.fp32_precision = value
        cudnn.deterministic, cudnn.benchmark = algorithms


def _older_names(products: str, convolutions: bool) -> None:
    """Matrix products at torch's "highest", "high" or "medium" precision, and whether cuDNN may use TF32."""
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def cores() -> int:
    """That this process may use: a container's quota counts too."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such quota, or no Linux
        quota, period = (_CONTAINER / "cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


@contextmanager
def threads(number: int | None, device: torch.device) -> Iterator[None]:
    """So many threads for each operation on a CPU meanwhile; as many as before for None, and on other devices."""
    before = torch.get_num_threads()
    if number is not None and device.type == "cpu":
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; from the host to CUDA by way of page-locked memory, so that nobody waits for what runs."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def total_bytes(device: torch.device) -> int:
    """Memory of a CUDA device, or of the host, where a container's limit counts too."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError):  # no such limit, or no Linux
        total.append(int((_CONTAINER / "memory.max").read_text()))
    return min(total)


def free_bytes(device: torch.device) -> int:
    """Memory that is free: of a CUDA device, or of the host, where a container's limit counts too."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        available = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
        free = [1024 * int(available[0].split()[1])]
        limit, used, stat = ((_CONTAINER / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        # Files that were read are kept until somebody wants their memory, but count as used.
        file_lines = (line.split() for line in stat.splitlines() if line.startswith(("active_file ", "inactive_file ")))
        free.append(int(limit) - int(used) + sum(int(size) for _, size in file_lines))
    except (OSError, ValueError, IndexError):  # no such limit, or no Linux
        pass
    return max(0, min(free))
