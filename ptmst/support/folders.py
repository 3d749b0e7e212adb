"""Who owns a folder: of what kind it is, one writer at a time, and where the cache is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ptmst.errors import InputError
from ptmst.support import locks, parts

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
    """The folder for things that are computed once: $PTMST_CACHE, or ptmst in the user's cache folder.

    Raises InputError where there is neither, as for a user without a home.
    """
    try:
        if folder := os.environ.get("PTMST_CACHE"):
            return Path(folder).expanduser()
        if folder := os.environ.get("XDG_CACHE_HOME"):
            return Path(folder).expanduser() / "ptmst"
        return Path.home() / ".cache" / "ptmst"
    except RuntimeError as error:
        raise InputError(
            "cache: expected a home folder to keep it in, found none; name a folder with PTMST_CACHE=FOLDER"
        ) from error


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
    try:
        refuse_taken(folder, None if fresh else kind)
    except InputError:
        tidy(folder)
        raise
    with _locked(folder, kind):
        refuse_taken(folder, None if fresh else kind)
        yield


def tidy(folder: Path) -> None:
    """Remove the claim and the half-written files that a killed process has left, where its work is done already."""
    if (folder / locks.CLAIM).exists() or any(folder.glob(".*.part")):
        with suppress(locks.Claimed, OSError), locks.claim(folder):  # somebody writes it, or it cannot be written
            parts.sweep(folder)


@contextmanager
def _locked(folder: Path, kind: Kind) -> Iterator[None]:
    made = not folder.exists()
    try:
        with ExitStack() as held:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locks.claim(folder))
            except locks.Claimed as error:
                by = f" ({error.where})" if error.where else ""
                left = f", delete {error.left} if it has ended" if error.left is not None else ""
                raise InputError(
                    f"{folder}: another process is writing {kind.name} here{by}; wait for its end{left}, or choose "
                    "another --out"
                ) from error
            except OSError as error:
                reason = error.strerror or str(error)
                raise InputError(f"{folder}: cannot be used ({reason}); choose another output folder") from error
            parts.sweep(folder)
            yield
    except BaseException:
        if made:
            with suppress(OSError):  # it holds something
                folder.rmdir()
        raise
