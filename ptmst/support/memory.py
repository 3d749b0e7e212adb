"""Large tensors on a CPU without page faults: for processes that are ours, such as the command line's.

glibc gives every large block back to the system when it is freed, and the system clears each page of the next one.
An outer step frees and takes gigabytes: a fifth to a quarter of its time went there (bench/results/outer-*-cpu.json).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = -1
_GROW_BY = 256 * 2**20
_USERS = ("LD_PRELOAD", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, in huge pages; to be called before torch is imported. Whether it was done.

    Not done where the C library is not glibc, nor where the user's environment settles it already. Results are the
    same bits. The process stays as large as it once was.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _USERS):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _GROW_BY))
    global _kept
    _kept = bool(sum(mallopt(name, value) for name, value in settings) == len(settings))
    return _kept


def is_kept() -> bool:
    """Whether this process keeps freed memory by `keep_freed_memory`."""
    return _kept


_kept = False


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Most bytes of memory that this process holds inside the block, all that was there before included.

    They are the list's one entry after the block; none where the system does not tell (it is not Linux). What was
    freed before, and kept, is given back first.
    """
    peak: list[int] = []
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        yield peak
        return
    yield peak
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    peak.append(1024 * int(line.split()[1]))
