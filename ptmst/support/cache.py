"""What the cache folder holds: things that are computed once and can be computed again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

from ptmst.support import folders, parts

Kind = Literal["texts", "features", "pixels", "facts", "compiled"]
_WHAT: dict[Kind, tuple[str, str]] = {
    "texts": ("texts-*.safetensors", "captions embedded by text towers"),
    "features": ("features-*.safetensors", "features of images behind frozen towers"),
    "pixels": ("pixels-*.safetensors", "decoded images"),
    "facts": ("fact-*.json", "what towers are, so that they need not be built"),
    "compiled": ("compiled/*", "compiled outer steps"),
}
"""Pattern and description of each kind."""


@dataclass(frozen=True)
class Kept:
    """All files of a kind."""

    kind: Kind
    what: str
    files: int
    bytes: int
    used: float | None
    """When the one that was used last was, in seconds since the epoch; None where there are none."""


def contents() -> Iterator[Kept]:
    """What the cache holds, kind by kind."""
    for kind in get_args(Kind):
        pattern, what = _WHAT[kind]
        stats = []
        for path in folders.cache_folder().glob(pattern):
            for file in path.rglob("*") if path.is_dir() else (path,):
                with suppress(OSError):  # gone meanwhile
                    if file.is_file():
                        stats.append(file.stat())
        used = max((stat.st_mtime for stat in stats), default=None)
        yield Kept(kind, what, len(stats), sum(stat.st_size for stat in stats), used)


def clear(kind: Kind) -> None:
    """Remove all files of a kind, and what killed processes left. Raises OSError for one that cannot be removed."""
    parts.sweep(folders.cache_folder())
    for path in folders.cache_folder().glob(_WHAT[kind][0]):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
