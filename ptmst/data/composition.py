"""Symbolic scenes of a few colored things on a grid, and captions that tell part of what is to be seen.

A caption names some things, some of their attributes, one relation or one place: several images fit most captions
a little and one fits best, which keeps retrieval on these small sets from saturating.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

GRID = 3
"""Rows and columns of the grid, one thing at most in each cell."""
COLORS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (245, 225, 50),
    "green": (50, 170, 60),
    "cyan": (70, 215, 225),
    "blue": (45, 85, 230),
    "purple": (150, 60, 190),
    "white": (245, 245, 245),
}
SYNONYMS = {
    "red": ("red", "crimson"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise"),
    "purple": ("purple", "violet"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big"),
}
RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath"),
}
PLACES = (
    ("in the top left corner", "at the upper left"),
    ("at the top centre", "in the middle of the top row"),
    ("in the top right corner", "at the upper right"),
    ("at the middle left", "halfway down the left side"),
    ("in the centre", "in the very middle"),
    ("at the middle right", "halfway down the right side"),
    ("in the bottom left corner", "at the lower left"),
    ("at the bottom centre", "in the middle of the bottom row"),
    ("in the bottom right corner", "at the lower right"),
)
"""Words for each cell, row by row."""
OPENINGS = ("", "", "a picture of ", "an image with ", "here we see ")
NUMBERS = ("no", "one", "two", "three")


@dataclass(frozen=True, order=True)
class Shape:
    """One object of a scene."""

    kind: str
    color: str
    size: str
    cell: tuple[int, int]
    """Row and column, from the top left."""


Scene = frozenset[Shape]


@dataclass(frozen=True)
class Vocabulary:
    """The kinds of things in a data set, and the words for them."""

    generic: str
    """What any of them may be called."""
    kinds: Mapping[str, Sequence[str]]
    """Words for each kind."""


def compose(vocabulary: Vocabulary, counts: Mapping[str, int], seed: np.random.SeedSequence) -> dict[str, list[Scene]]:
    """`counts[split]` scenes of two or three things for each split; no scene occurs twice, in any split."""
    rng = np.random.default_rng(seed)
    seen: set[Scene] = set()
    splits: dict[str, list[Scene]] = {}
    for split, count in counts.items():
        scenes = splits[split] = list[Scene]()
        while len(scenes) < count:
            scene = _draw_scene(vocabulary, rng)
            if scene not in seen:
                seen.add(scene)
                scenes.append(scene)
    return splits


def describe(scene: Scene, vocabulary: Vocabulary, count: int, rng: np.random.Generator) -> list[str]:
    """`count` different captions of a scene, each true; the kinds of caption take turns in random order."""
    speaker = _Speaker(sorted(scene), vocabulary, rng)
    styles = (speaker.everything, speaker.everything, speaker.relation, speaker.place, speaker.gist)
    captions: dict[str, None] = {}
    while len(captions) < count:
        for i in rng.permutation(len(styles)):
            captions[styles[i]()] = None
    return list(captions)[:count]


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, each as likely; far cheaper than Generator.choice on a short sequence."""
    return choices[int(rng.integers(len(choices)))]


def _draw_scene(vocabulary: Vocabulary, rng: np.random.Generator) -> Scene:
    cells = rng.permutation(GRID * GRID)[: rng.integers(2, 4)]
    kinds, colors = tuple(vocabulary.kinds), tuple(COLORS)
    return frozenset(
        Shape(pick(rng, kinds), pick(rng, colors), pick(rng, ("small", "large")), (cell // GRID, cell % GRID))
        for cell in cells.tolist()
    )


class _Speaker:
    """Words for one scene: each method is a kind of caption, and draws its wording again."""

    def __init__(self, things: Sequence[Shape], vocabulary: Vocabulary, rng: np.random.Generator):
        self.things, self.vocabulary, self.rng = things, vocabulary, rng

    def everything(self) -> str:
        return self._pick(OPENINGS) + self._listing([self._noun(thing) for thing in self._shuffled()])

    def relation(self) -> str:
        one, other, *_ = self._shuffled()
        return self._pick(OPENINGS) + self._relation(one, other, self._noun)

    def place(self) -> str:
        thing = self._pick(self.things)
        row, column = thing.cell
        place = self._pick(PLACES[row * GRID + column])
        return f"{self._noun(thing)} {place}" if self._chance(0.5) else f"{place} is {self._noun(thing)}"

    def gist(self) -> str:
        return self._kinds() if self._chance(0.5) else self._colors()

    def _kinds(self) -> str:
        names = self._listing([_with_article(self._pick(self.vocabulary.kinds[t.kind])) for t in self._shuffled()])
        return f"{NUMBERS[len(self.things)]} {self.vocabulary.generic}s: {names}" if self._chance(0.5) else names

    def _colors(self) -> str:
        one, other, *_ = self._shuffled()
        return self._relation(one, other, lambda thing: f"something {self._word(thing.color)}")

    def _relation(self, one: Shape, other: Shape, name: Callable[[Shape], str]) -> str:
        (row, column), (other_row, other_column) = one.cell, other.cell
        true = []
        if column != other_column:
            true.append("left" if column < other_column else "right")
        if row != other_row:
            true.append("above" if row < other_row else "below")
        return f"{name(one)} {self._pick(RELATIONS[self._pick(true)])} {name(other)}"

    def _noun(self, thing: Shape) -> str:
        named = self._chance(0.95)
        words = [self._word(thing.size)] if self._chance(0.4) else []
        if not named or self._chance(0.9):
            words.append(self._word(thing.color))
        words.append(self._pick(self.vocabulary.kinds[thing.kind]) if named else self.vocabulary.generic)
        return _with_article(" ".join(words))

    def _listing(self, names: Sequence[str]) -> str:
        return f"{', '.join(names[:-1])} and {names[-1]}"

    def _word(self, attribute: str) -> str:
        return self._pick(SYNONYMS.get(attribute, (attribute,)))

    def _shuffled(self) -> list[Shape]:
        return [self.things[i] for i in self.rng.permutation(len(self.things))]

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _pick(self, choices: Sequence[T]) -> T:
        return pick(self.rng, choices)


def _with_article(words: str) -> str:
    vowel = words[0] in "aeiou" and not words.startswith("one")
    return f"{'an' if vowel else 'a'} {words}"
