"""Half-written files and folders: siblings of what they become, with names of their own, gone when they are whole.

Whoever writes one holds its lock. What nobody holds was left by a process that was killed, and is removed by the next
that writes the same thing or sweeps the folder.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ptmst.support import locks

_UNTOUCHED_S = 3600.0
"""Where a lock does not tell, as on another machine: left alone for so long, a part is taken for abandoned."""


def name(target: Path) -> Path:
    """A new name for a part of `target`."""
    return target.with_name(f".{target.name}.{locks.machine()}-{secrets.token_hex(4)}.part")


@contextmanager
def file(target: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces `target` at the end of the block, flushed; after an error nothing has changed."""
    sweep(target.parent, target.name)
    temporary = name(target)
    locks.HELD.add(temporary)
    try:
        with _created(temporary) as part:
            yield part
            part.flush()
            os.fsync(part.fileno())
            os.replace(temporary, target)
    finally:
        _remove(temporary)
        locks.HELD.discard(temporary)


@contextmanager
def folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target`, new or empty, at the end of the block; after an error it is gone."""
    sweep(target.parent, target.name)
    temporary = name(target)
    temporary.mkdir(parents=True)
    held = os.open(temporary, os.O_RDONLY)
    locks.HELD.add(temporary)
    try:
        locks.try_lock(held)
        yield temporary
        os.rename(temporary, target)
    finally:
        os.close(held)
        _remove(temporary)
        locks.HELD.discard(temporary)


def sweep(folder: Path, of: str = "*") -> None:
    """Remove the parts in a folder, of one name or all, that nobody writes any more."""
    for part in folder.glob(f".{glob.escape(of) if of != '*' else of}.*.part"):
        if _abandoned(part):
            _remove(part)


def _created(temporary: Path) -> BinaryIO:
    """A new file, locked. Between the two, somebody may take it for abandoned and remove it."""
    while True:
        part = open(temporary, "xb")  # noqa: SIM115
        locks.try_lock(part.fileno())
        if temporary.exists():
            return part
        part.close()


def _abandoned(part: Path) -> bool:
    try:
        held = os.open(part, os.O_RDONLY)
    except OSError:  # it is gone, or not ours to read
        return False
    try:
        locked = locks.try_lock(held)
        if locked and part.name.split(".")[-2].startswith(f"{locks.machine()}-"):
            return True
        return locked is not False and time.time() - os.fstat(held).st_mtime > _UNTOUCHED_S
    finally:
        os.close(held)


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError:  # a folder, or what cannot be removed
        shutil.rmtree(part, ignore_errors=True)
