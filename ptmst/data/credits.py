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


@dataclass(frozen=True)
class Credits:
    """The license of a data set, and who is to be named with it."""

    license: str
    """An SPDX expression, or the license's name."""
    credits: tuple[str, ...] = ()
    """A line for each work: its name, who made it, its license."""

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Raises InputError for a value that is none."""
        whole = isinstance(value, Mapping) and isinstance(value.get("license"), str)
        lines = value.get("credits", []) if whole else None
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise InputError('credits: expected {"license": text, "credits": [texts]}, found something else; fix it')
        return cls(value["license"], tuple(lines))

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
    value = files.read_json(path, _KIND, _VERSION)
    try:
        return Credits.from_json(value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def write_credits(root: Path, credits: Credits) -> None:
    files.write_json(root / FILE, {"format": f"ptmst-{_KIND}", "version": _VERSION, **credits.to_json()})
