"""Which emoji the data set has, what each is called, and which belong together."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from bench.emoji.packages import Packages
from ptmst.data.drawn import different, words
from ptmst.data.things import thing

_CODE = re.compile("u[0-9a-f]{4,5}")
_SPOKEN = re.compile(r"(?!u[0-9a-f]{4,5}$)[^\W\d][\w’' -]*[^\W_]")
"""Keywords that are no smiley, no code point and no torn quotation."""


def listed(packages: Packages) -> list[str]:
    """Codes of the emoji that CLDR names, sorted, without flags, keycaps and skin tones."""
    return sorted(
        code
        for code, group in packages.groups.items()
        if group != "Flags" and "20e3" not in code and packages.names.get(code, {}).get("tts")
    )


def captions(packages: Packages, code: str) -> list[str]:
    """What an emoji is called: its short name, keywords and formal name, each way of saying it once."""
    formal = unicodedata.name(chr(int(code, 16)), "").lower() if "-" not in code else ""
    spoken = [words(word) for word in packages.keywords.get(code, []) if _SPOKEN.fullmatch(word)]
    said = different(
        [
            short_name(packages, code),
            ", ".join(packages.names[code].get("default", [])),
            formal,
            ", ".join(spoken),
            ", ".join(words(tag) for tag in packages.tags.get(code, []) if not _CODE.fullmatch(tag)),
        ]
    )
    return [caption for caption in said if re.search(r"\w\w", caption)]


def short_name(packages: Packages, code: str) -> str:
    return packages.names[code]["tts"][0]


def group(packages: Packages, code: str) -> str:
    """The thing that an emoji shows; all of one thing go to one split."""
    return thing(short_name(packages, code))


def by_name(packages: Packages, codes: Iterable[str]) -> dict[str, str]:
    """Codes by what a team may call them: short or formal names, squeezed."""
    found: dict[str, str] = {}
    for code in codes:
        found.setdefault(squeezed(short_name(packages, code)), code)
    for code in codes:
        if "-" not in code and (formal := unicodedata.name(chr(int(code, 16)), "")):
            found.setdefault(squeezed(formal), code)
    return found


def squeezed(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "", plain)
