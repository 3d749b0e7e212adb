"""A page of what a trained student finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptmst.data.annotations import ImageBytes
from ptmst.data.images import decode
from ptmst.report.templates import picture_address, write_page
from ptmst.retrieval.gallery import Found, Gallery
from ptmst.support import progress

_TEMPLATE = "query.html.jinja"
_THUMBNAIL = 160
"""Most pixels of a side of a picture."""


def write_query_page(
    out: Path, title: str, gallery: Gallery, found: Sequence[Found], command: str | None = None
) -> None:
    """Write one self-contained HTML page. Raises InputError where `out` cannot be written."""
    write_page(out, _TEMPLATE, title, command, queries=[_query(gallery, one) for one in found])


def _query(gallery: Gallery, one: Found) -> dict[str, Any]:
    items = [
        {
            "name": progress.printable(gallery.shown(item)),
            "picture": _thumbnail(gallery.pictures[item]) if gallery.pictures else None,
            "cosine": f"{cosine:.3f}",
        }
        for item, cosine in zip(one.items, one.cosines, strict=True)
    ]
    picture = _thumbnail(Path(one.query)) if one.of_picture else None
    return {"text": progress.printable(one.query), "picture": picture, "found": items}


def _thumbnail(path: Path) -> str:
    return picture_address(decode(ImageBytes(path), path).upright, _THUMBNAIL)
