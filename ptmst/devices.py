"""Which device a run uses, and with which arithmetic."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ptmst.config import Device, Precision
from ptmst.errors import InputError


def pick(name: Device) -> torch.device:
    """The device of a config. Raises InputError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a CUDA device, found none; use --device cpu, or see `ptmst doctor`")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Matrix products and convolutions on CUDA in the precision asked for, by algorithms that repeat their bits.

    torch's own default is TF32 for convolutions, float32 for matrix products, and whatever algorithm is fastest.
    """
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32, conv.deterministic, conv.benchmark
    fast = precision == "tf32"
    matmul.allow_tf32, conv.allow_tf32, conv.deterministic, conv.benchmark = fast, fast, True, False
    try:
        yield
    finally:
        matmul.allow_tf32, conv.allow_tf32, conv.deterministic, conv.benchmark = before


def free_bytes(device: torch.device) -> int:
    """Memory that is free: of a CUDA device, or of the host, where a container's limit counts too."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        available = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
        free = [1024 * int(available[0].split()[1])]
        limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
        free.append(int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError, IndexError):  # no such limit, or no Linux
        pass
    return max(0, min(free))
