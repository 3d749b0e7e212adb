"""Whose pictures and captions a data set is made of: read from its folder, and carried by all that is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ptmst.errors import InputError
from ptmst.support import files

FILE = "credits.json"
"""In the root folder of a data set."""
_KIND, _VERSION = "credits", 1
_FORM = '{"license": text, "credits": [texts]}'


@dataclass(frozen=True)
class Credits:
    """The license of a data set, and who is to be named with it."""

    license: str
    """An SPDX expression, or the license's name."""
    credits: tuple[str, ...] = ()
    """A line for each work: its name, who made it, its license."""

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Of {"license": text, "credits": [texts]}, each text a line; raises InputError for another value."""
        license, credits = (value.get("license"), value.get("credits", [])) if isinstance(value, Mapping) else ("", [])
        if not isinstance(license, str) or not isinstance(credits, list) or not all(map(_is_line, (license, *credits))):
            raise InputError(f"credits: expected {_FORM}, each text a line, found something else; fix it")
        return cls(license, tuple(credits))

    def to_json(self) -> dict[str, Any]:
        return {"license": self.license, "credits": list(self.credits)}

    @property
    def line(self) -> str:
        """All of it in a line."""
        return "; ".join((*self.credits, f"license: {self.license}"))


def read_credits(root: Path) -> Credits | None:
    """The credits of the data set in a folder; None where it tells none. Raises InputError for a broken file."""
    path = root / FILE
    if not path.is_file():
        return None
    try:
        value = files.read_json(path, _KIND, _VERSION)
    except InputError as error:
        raise InputError(f"{error}; docs/data.md shows what is in it") from error
    try:
        return Credits.from_json(value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def write_credits(root: Path, credits: Credits) -> None:
    files.write_json(root / FILE, {"format": f"ptmst-{_KIND}", "version": _VERSION, **credits.to_json()})


def _is_line(text: object) -> bool:
    """Whether it is a text that can stand in a list, or in the head of a dataset card."""
    return isinstance(text, str) and bool(text.strip()) and len(text.splitlines()) == 1
