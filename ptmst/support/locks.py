"""Locks that end with the process that holds them, however it ends; and what there is where a file system has none."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

CLAIM = ".claim"
"""The file by which a folder is claimed; it is there as long as somebody writes the folder."""
_NONE_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What a file system without locks answers: Lustre without the mount option flock, NFS without its lock service."""
_UNKNOWN = 0
HELD: set[Path] = set()
"""What this process claims, and the parts that it writes: files that it will remove if it is not killed."""


class Claimed(Exception):
    """Another process holds what was asked for."""

    def __init__(self, where: str, left: Path | None = None) -> None:
        super().__init__(where)
        self.where = where
        """Which process that is, as far as it is known, to be put behind the word process."""
        self.left = left
        """The file that stays if that process was killed; None where the claim ends with it."""


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder until it is closed. Whether that was possible; None where nothing can be locked."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NONE_HERE:
            return None
        raise
    return True


@cache
def machine() -> str:
    """Names the kernel that this process runs on, until it boots again: locks are exact within one."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        kernel = platform.node()
    return hashlib.sha256(kernel.encode()).hexdigest()[:8]


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Be the only process inside this block for a folder that exists and can be written.

    By a lock on a file in it; where the file system has none, by the file itself, which a killed process leaves: it is
    taken over where that process was of this machine. Raises Claimed, and OSError where the file cannot be made.
    """
    path = folder / CLAIM
    held = _held(path)
    try:
        os.ftruncate(held, 0)
        os.pwrite(held, json.dumps(_this_process()).encode(), 0)
        HELD.add(path)
        yield
    finally:
        HELD.discard(path)
        with suppress(OSError):
            path.unlink()
        os.close(held)


def _held(path: Path) -> int:
    while True:
        try:
            descriptor, made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                descriptor, made = os.open(path, os.O_RDWR), False
            except FileNotFoundError:  # it was given back meanwhile
                continue
        try:
            if _is_ours(path, descriptor, made):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_ours(path: Path, descriptor: int, made: bool) -> bool:
    """Whether the claim is this process's now; False: to be tried again. Raises Claimed."""
    locked = try_lock(descriptor)
    if locked is None:
        if made:
            return True
        holder = _holder(descriptor)
        if holder is None or not _ended(holder):
            raise Claimed(_named(holder), path)
        path.unlink(missing_ok=True)
        return False
    if not locked:
        raise Claimed(_named(_holder(descriptor)))
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:  # its holder gave it back before we locked it
        return False


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": platform.node(), "machine": machine(), "room": _room(), "began": _began(pid)}


def _holder(descriptor: int) -> dict[str, Any] | None:
    """Whoever has written the claim; None where it has not done so yet, or was killed before."""
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
    except ValueError:
        return None
    return holder if isinstance(holder, dict) and {"pid", "host"} <= holder.keys() else None


def _named(holder: dict[str, Any] | None) -> str:
    return f"{holder['pid']} on {holder['host']}" if holder else ""


def _ended(holder: dict[str, Any]) -> bool:
    """Whether a process is known to have ended: of another machine, or container, nothing is known."""
    if (holder.get("machine"), holder.get("room")) != (machine(), _room()):
        return False
    began = _began(holder["pid"])
    return began is None or _UNKNOWN != began != holder.get("began")


def _room() -> str:
    """What process numbers count within: a container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return ""


def _began(pid: int) -> int | None:
    """When a process was started, in ticks since boot: numbers are used again. None where there is none of it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # somebody else's
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # not Linux, or hidden
        return _UNKNOWN
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18])
