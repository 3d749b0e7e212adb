"""Which emoji the data set has, what each is called, and which belong together."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from bench.emoji.packages import Packages
from ptmst.data.drawn import different, words

_PEOPLE = "man woman men women person people boy girl child male female mrs mr mx s"
_COLORS = "red orange yellow green blue purple pink brown black white grey gray light dark"
_SIZES = "large small medium heavy"
_SIDES = "up down left right north south east west upper lower leftwards rightwards upwards downwards facing tilted"
_ALIKE = frozenset(f"{_PEOPLE} {_COLORS} {_SIZES} {_SIDES} face with and of the a".split())
"""Words that make no other thing: a blue heart is a heart, the face of a cat a cat."""
_SPOKEN = re.compile(r"(?!u?[0-9a-f]{4,5}$)[^\W\d][\w’' -]*[^\W_]")
"""Keywords that are no smiley, no code point and no torn quotation."""
_SERIES = {
    "clock": r"o’clock|thirty",
    "moon": r"\bmoon\b",
    "zodiac": r"^(aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius|pisces|ophiuchus)$",
    "family": r"^family",
    "couple": r"^(couple|kiss)",
}
"""Emoji of many members that look alike."""


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
            ", ".join(map(words, packages.tags.get(code, []))),
        ]
    )
    return [caption for caption in said if re.search(r"\w\w", caption)]


def short_name(packages: Packages, code: str) -> str:
    return packages.names[code]["tts"][0]


def group(packages: Packages, code: str) -> str:
    """The thing that an emoji shows; all of one thing go to one split."""
    name = short_name(packages, code).lower()
    for series, pattern in _SERIES.items():
        if re.search(pattern, name):
            return series
    kept = sorted({_singular(word) for word in re.findall(r"[a-z0-9]+", name)} - _ALIKE)
    return " ".join(kept) or name


def _singular(word: str) -> str:
    return re.sub(r"(?<=[a-z]{3})(?<!s)s$", "", word)


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
