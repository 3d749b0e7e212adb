"""The one error a user can cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Input that cannot be used: the message names the thing, what was expected, what was found and what to do.

    The command line prints the message alone and exits with code 2.
    """


class Diverged(InputError):
    """A loss or gradient became non-finite; the message names the step, the student learning rate and the advice."""


@contextmanager
def said_of(path: Path) -> Iterator[None]:
    """Name the file that an InputError from inside is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
