"""The Open Clip Art Library: SVG by hundreds of people, each with what its author wrote about it, public domain."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ptmst.data.drawn import different, words
from ptmst.data.installed import Found, Package, listed

PACKAGE = Package("openclipart-svg", Path("/usr/share/openclipart/svg"))
LICENSE = "CC-PDDC"
CREDIT = "Open Clip Art Library, by its contributors, public domain (CC-PDDC), https://openclipart.org"
_LEFT_OUT = (
    *("computer/buttons/", "computer/icons/", "shapes/stars/", "signs_and_symbols/flags/", "signs_and_symbols/led/"),
    "special/",
)
"""Themes of icons and series of shapes, whose titles tell nothing, and flags, which ask for geography."""
_GPL = "creativecommons.org/licenses/GPL"
_TEXT = re.compile(r"<(svg:)?(text|flowRoot)\b")
"""Letters look as the fonts of a machine do."""
_OFTEN = 12
"""A title that more pictures have is that of a collection."""
_MISNAMED = "Clipart by Nicu Buculei"
"""Titles of this collection are those of other pictures; the files' names are right."""
_FILLER = re.compile(
    r"\bhash\b(\s*\(0x\w+\))?|(clipart by )?nicu buculei( -)?|architetto francesco rollandin|\.svg$"
    r"|^unsorted$|^signs and symbols$",
    re.I,
)
"""In titles and keywords: what a program wrote, an author, a folder."""
_NO_CAPTION = re.compile(
    r"@|https?:|inkscape|created with|^part of|converted from|submission|collection$|contact|illustrator|theme$", re.I
)
_LONGEST = 300


class _Told(NamedTuple):
    """What an SVG's metadata tell."""

    title: str
    description: str
    keywords: tuple[str, ...]


def found(folder: Path) -> list[Found]:
    """The pictures of a folder that have a title of their own, with title, description and keywords as captions.

    Files that are under the GPL by their own metadata are left out, as are those with text.
    """
    told = {path: _told(svg) for path, svg in _public(folder)}
    often = {title for title, count in Counter(one.title for one in told.values()).items() if count > _OFTEN}
    named = (
        (path, _title(path, one, often), one)
        for path, one in told.items()
        if not path.relative_to(folder).as_posix().startswith(_LEFT_OUT)
    )
    return [
        Found(path.relative_to(folder).with_suffix(".png").as_posix(), path, tuple(_captions(title, one)))
        for path, title, one in named
        if re.search(r"[^\W\d_]{2}", title)
    ]


def _public(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in listed(folder, ".svg"):
        svg = path.read_text("utf-8", errors="replace")
        if _GPL not in svg and not _TEXT.search(svg):
            yield path, svg


def _title(path: Path, told: _Told, often: set[str]) -> str:
    """What a picture is called; empty where only its collection has a name."""
    title = told.title
    if title.startswith(_MISNAMED):
        title = path.stem
    elif title in often or _NO_CAPTION.search(title):
        return ""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words(title))
    return words(_FILLER.sub("", re.sub(r"\s*#?\d+$", "", spaced)))


def _captions(title: str, told: _Told) -> list[str]:
    about = told.description
    if _NO_CAPTION.search(about) or len(about.split()) < 3 or len(about) > _LONGEST:
        about = ""
    spoken = dict.fromkeys(
        words(_FILLER.sub("", words(one))) for one in told.keywords if not re.search(r"\d{4}|@", one)
    )
    keywords = [word for word in spoken if word]
    return different([title, words(about), ", ".join(keywords) if len(keywords) > 1 else ""])


def _told(svg: str) -> _Told:
    found = re.search(r"<rdf:RDF.*?</rdf:RDF>", svg, re.DOTALL)
    rdf = found[0] if found else ""
    subject = _inside("dc:subject", rdf)
    return _Told(
        _plain(_inside("dc:title", rdf)),
        _plain(_inside("dc:description", rdf)),
        tuple(_plain(one) for one in re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", subject, re.DOTALL)),
    )


def _inside(tag: str, xml: str) -> str:
    found = re.search(rf"<{tag}[^>]*>(.*?)</{tag}>", xml, re.DOTALL)
    return found[1] if found else ""


def _plain(xml: str) -> str:
    """The text of an element; many were escaped twice, and some decoded as Latin-1."""
    text = html.unescape(html.unescape(xml))
    try:
        text = text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        pass
    return words(re.sub(r"<[^>]+>", " ", text))
