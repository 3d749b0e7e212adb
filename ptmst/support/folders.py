"""Who owns a folder: of what kind it is, one writer at a time, and where the cache is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ptmst.errors import InputError

_FORMAT = re.compile(rb'"format":\s*"ptmst-([\w-]+)"')
_HEAD = 1000
"""Bytes of a JSON file that are searched for its format, which is its first key."""
_KINDS: list[Kind] = []


@dataclass(frozen=True)
class Kind:
    """A kind of folder that we write: a folder is of one kind. Whoever writes it declares it, once, at import."""

    name: str
    """With its article, for messages."""
    index: tuple[str, ...] = ()
    """The files that show that a folder is of this kind."""
    beside: tuple[str, ...] = ()
    """Formats of further JSON of ours in such a folder, by which no folder is told."""

    def __post_init__(self) -> None:
        _KINDS.append(self)


def cache_folder() -> Path:
    """The folder for things that are computed once: $PTMST_CACHE, or ptmst in the user's cache folder."""
    if folder := os.environ.get("PTMST_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ptmst"


def refuse_taken(folder: Path, but: Kind | None = None) -> None:
    """Raise InputError where a folder is of any kind, or of any `but` this one."""
    for kind in _KINDS:
        if kind != but and any((folder / name).exists() for name in kind.index):
            raise _taken(folder, kind.name)
    # A kind whose module is not imported here is recognized by the format of its JSON.
    known = {name for kind in _KINDS for name in kind.index}
    others = {form.replace(" ", "-") for kind in _KINDS for form in kind.beside}
    for path in sorted(folder.glob("*.json")):
        if path.name not in known and (form := _format(path)) is not None and form not in others:
            raise _taken(folder, f"{'an' if form[0] in 'aeiou' else 'a'} {form.replace('-', ' ')}")


def _taken(folder: Path, name: str) -> InputError:
    return InputError(f"{folder}: holds {name} already; choose another --out")


def _format(path: Path) -> str | None:
    """The format of a JSON file of ours; None for any other file."""
    try:
        with open(path, "rb") as file:
            match = _FORMAT.search(file.read(_HEAD))
    except OSError:
        return None
    return match[1].decode() if match else None


@contextmanager
def claimed(folder: Path, kind: Kind, *, fresh: bool = False) -> Iterator[None]:
    """Be the only process that writes a folder, which is created if need be.

    Raises InputError where the folder is of another kind, or already of this one if it is to be `fresh`, and where
    another process has claimed it. The claim ends with this process, however it ends. Half-written files that an
    earlier process has left are removed.
    """
    # Before anything is made, and again when nobody else can make it.
    refuse_taken(folder, None if fresh else kind)
    with _locked(folder, kind):
        refuse_taken(folder, None if fresh else kind)
        yield


def _sweep(folder: Path) -> None:
    """Remove half-written files of processes that have ended."""
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
def _locked(folder: Path, kind: Kind) -> Iterator[None]:
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
                f"{folder}: another process is writing {kind.name} here; wait for its end, or choose another --out"
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
