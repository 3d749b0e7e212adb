"""The best recall where images share captions: tried out, order by order."""

from __future__ import annotations

import random
from itertools import combinations, product
from statistics import mean

import numpy as np
import pytest

from oracles import expected_hit, recall
from ptmst.data.ceilings import best_recalls, shared_captions

Data = tuple[tuple[str, ...], tuple[int, ...]]
"""Captions, and the image of each."""
ONE: Data = ("a", "a", "b", "b", "a", "c"), (0, 1, 1, 2, 2, 2)
MANY: Data = tuple("a" * 7 + "b" * 6 + "cc"), (0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 1, 2, 6, 3, 3)
"""Seven images share a caption; another is three times with one of them."""
LEVELS: Data = tuple("x" * 5 + "y" * 20), (0, 1, 2, 3, 4, *[0] * 5, *range(5, 20))
"""Image 0 has one of five captions that are alike, and five of twenty: which one comes first depends on k."""


def drawn(seed: int) -> Data:
    draw = random.Random(seed)
    captions, images = draw.randint(1, 3), draw.randint(1, 5)
    pairs = [(draw.choice("abc"[:captions]), draw.randrange(images)) for _ in range(draw.randint(images, 14))]
    pairs += [(draw.choice("abc"[:captions]), image) for image in range(images)]
    return tuple(caption for caption, _ in pairs), tuple(image for _, image in pairs)


def tried(captions: tuple[str, ...], image_of_text: tuple[int, ...], k: int) -> tuple[float, float]:
    """IR@k and TR@k of the best of all models: every choice of the first images for a caption, and all levels
    of the captions for an image, ties included."""
    text, image = np.array(captions), np.array(image_of_text)
    kinds, images = sorted(set(captions)), max(image_of_text) + 1
    found = 0
    for kind in kinds:
        asking = image[text == kind].tolist()
        first = combinations(sorted(set(asking)), min(k, len(set(asking))))
        found += max(sum(one in some for one in asking) for some in first)
    hits = []
    for one in range(images):
        levels = product(range(len(kinds)), repeat=len(kinds))
        scored = (np.array([level[kinds.index(caption)] for caption in captions], dtype=float) for level in levels)
        hits.append(max(expected_hit(scores, image == one, k) for scores in scored))
    return 100 * found / len(captions), 100 * float(mean(hits))


@pytest.mark.parametrize("data", [ONE, MANY, LEVELS, *map(drawn, range(12))])
def test_no_model_is_better_and_one_is_as_good(data: Data) -> None:
    best = best_recalls(*data)
    for k in (1, 5, 10):
        assert (best[f"ir{k}"], best[f"tr{k}"]) == pytest.approx(tried(*data, k), rel=1e-12), k
    assert best["mean"] == pytest.approx(mean(value for name, value in best.items() if name != "mean"))


@pytest.mark.slow
def test_every_table_of_scores_is_within_it() -> None:
    """All scores of three captions and three images, as recall counts them."""
    captions, image_of_text = ONE
    best, reached = best_recalls(*ONE), dict.fromkeys(best_recalls(*ONE), 0.0)
    kinds = sorted(set(captions))
    texts = np.eye(3)[[kinds.index(caption) for caption in captions]]
    for scores in product(range(2), repeat=9):
        found = recall(np.array(scores, dtype=float).reshape(3, 3), texts, np.array(image_of_text))
        reached = {name: max(value, found[name]) for name, value in reached.items()}
    assert reached["tr1"] == pytest.approx(best["tr1"]) and reached["tr5"] == pytest.approx(best["tr5"])
    assert all(value <= best[name] + 1e-9 for name, value in reached.items())


def test_where_nothing_is_shared_all_can_be_found() -> None:
    data = (("a", "b", "b", "c"), (0, 1, 1, 2))
    assert set(best_recalls(*data).values()) == {100.0} and shared_captions(*data) == []
    assert shared_captions(*ONE) == ["a", "a", "b", "b", "a"]
