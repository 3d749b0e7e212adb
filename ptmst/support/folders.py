"""Who owns a folder: what kind it is, one writer at a time, and where the cache is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ptmst.errors import InputError

FOLDERS: Mapping[str, tuple[str, ...]] = {
    "a trajectory store": ("store.json",),
    "a distilled set": ("distilled.json", "run.json"),
    "an ablation": ("ablation.json",),
    "a demo": ("demo.json",),
    "rendered data": (),
}
"""What a folder of ours holds, and the files that tell: one kind a folder."""


def cache_folder() -> Path:
    """Where things are kept that are computed once: $PTMST_CACHE, or ptmst in the user's cache folder."""
    if folder := os.environ.get("PTMST_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ptmst"


def refuse_taken(folder: Path, but: str | None = None) -> None:
    """Raise InputError where a folder holds one of FOLDERS, `but` for this one."""
    for kind, names in FOLDERS.items():
        if kind != but and any((folder / name).exists() for name in names):
            raise InputError(f"{folder}: holds {kind} already; choose another --out")


@contextmanager
def claimed(folder: Path, kind: str, *, fresh: bool = False) -> Iterator[None]:
    """Write a folder of this kind, of FOLDERS, alone; it is made where there is none.

    Raises InputError where it holds another kind (or, if it is to be `fresh`, this one), and where another process of
    ours has it. The claim ends with this process, however it ends; what an earlier one left half-written is removed.
    """
    # Before anything is made, and again when nobody else can make it.
    refuse_taken(folder, None if fresh else kind)
    with _locked(folder, kind):
        refuse_taken(folder, None if fresh else kind)
        yield


def _sweep(folder: Path) -> None:
    """Remove what writers that are gone left half-written."""
    for torn in folder.glob(".*.part"):
        if not _alive(torn.name.split(".")[-2]):
            torn.unlink(missing_ok=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


@contextmanager
def _locked(folder: Path, kind: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not on this system
        folder.mkdir(parents=True, exist_ok=True)
        yield
        return
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder}: cannot be used ({error.strerror}); choose another output folder") from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another process is writing {kind} here; wait for its end, or choose another --out"
            ) from error
        _sweep(folder)
        yield
    except BaseException:
        if made:
            with suppress(OSError):  # it holds something
                folder.rmdir()
        raise
    finally:
        os.close(held)
