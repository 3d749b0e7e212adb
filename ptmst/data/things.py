"""Which thing a name tells of: names of one thing differ in its color, its size, or in who is seen with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_PEOPLE = "man woman men women person people boy girl child male female mrs mr mx s"
_COLORS = "red orange yellow green blue purple pink brown black white gray light dark"
_SIZES = "large small medium heavy"
_SIDES = "up down left right north south east west upper lower leftwards rightwards upwards downwards facing tilted"
_ALIKE = frozenset(f"{_PEOPLE} {_COLORS} {_SIZES} {_SIDES} face with and of the a an some another".split())
"""Words that make no other thing: a blue heart is a heart, the face of a cat a cat."""
_SERIES = {
    "clock": r"o’clock|thirty",
    "moon": r"\bmoon\b",
    "zodiac": r"^(aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius|pisces|ophiuchus)$",
    "family": r"^family",
    "couple": r"^(couple|kiss)",
}
"""Things of many members that look alike."""


def thing(name: str) -> str:
    """The thing that a name tells of: its words, sorted, that make it another thing than others."""
    name = re.sub(r"\bgr[ae]y\b", "gray", name.lower())
    for series, pattern in _SERIES.items():
        if re.search(pattern, name):
            return series
    kept = sorted({_singular(word) for word in re.findall(r"[a-z0-9]+", name)} - _ALIKE)
    return " ".join(kept) or name


def joined(things: Sequence[str], same: Iterable[tuple[int, int]]) -> list[str]:
    """The group of each picture, by the things that they show; `same` are pictures, by number, that show one thing."""
    above = {thing: thing for thing in things}

    def top(thing: str) -> str:
        while above[thing] != thing:
            thing = above[thing]
        return thing

    for one, other in same:
        above[top(things[other])] = top(things[one])
    return [top(thing) for thing in things]


def _singular(word: str) -> str:
    return re.sub(r"(?<=[a-z]{3})(?<!s)s$", "", word)
