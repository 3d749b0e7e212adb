"""Retrieval examples of a page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ptmst.report.sets import picture_of
from ptmst.retrieval.examples import Example
from ptmst.support.progress import printable


def shown_examples(examples: Iterable[Example]) -> list[dict[str, Any]]:
    """What the page's template takes of them."""
    return [
        {
            "caption": printable(one.caption),
            "picture": picture_of(one.picture),
            "students": [
                {
                    "name": printable(name),
                    "pictures": [{"picture": picture_of(pixels), "right": right} for pixels, right in found],
                    "captions": [{"text": printable(text), "right": right} for text, right in one.captions[name]],
                }
                for name, found in one.pictures.items()
            ],
        }
        for one in examples
    ]
