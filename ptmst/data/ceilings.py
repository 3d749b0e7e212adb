"""The recall that is left to reach where images share captions, which no model can tell apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import comb
from statistics import mean

_K = (1, 5, 10)


def shared_captions(captions: Sequence[str], image_of_text: Sequence[int]) -> list[str]:
    """Those of T captions, each as often as it is there, that more than one image has; `image_of_text` names images."""
    images: dict[str, set[int]] = defaultdict(set)
    for caption, image in zip(captions, image_of_text, strict=True):
        images[caption].add(image)
    return [caption for caption in captions if len(images[caption]) > 1]


def best_recalls(captions: Sequence[str], image_of_text: Sequence[int]) -> dict[str, float]:
    """The largest values of `retrieval_recall`, by its names, in percent; `mean` is the mean of the six.

    T captions, of which equal ones have equal scores, and the image of each. Each value is reached by some model; all
    of them together need not be.
    """
    captions_of_image: dict[int, Counter[str]] = defaultdict(Counter)
    images_of_caption: dict[str, Counter[int]] = defaultdict(Counter)
    for caption, image in zip(captions, image_of_text, strict=True):
        captions_of_image[image][caption] += 1
        images_of_caption[caption][image] += 1
    best = {}
    for k in _K:
        # A caption ranks the images in one way whichever image asks: the first k are found.
        found = (sum(sorted(asking.values(), reverse=True)[:k]) for asking in images_of_caption.values())
        best[f"ir{k}"] = 100 * sum(found) / len(captions)
    level = {caption: asking.total() for caption, asking in images_of_caption.items()}
    for k in _K:
        # Equal captions are on one level. That one of an image's own decides which comes first: there is a hit in it
        # before there is room for another, and several captions on one level are no better than the best of them.
        hits = (max(_hit(own[c], level[c], k) for c in own) for own in captions_of_image.values())
        best[f"tr{k}"] = 100 * sum(hits) / len(captions_of_image)
    return best | {"mean": mean(best.values())}


def _hit(right: int, level: int, k: int) -> float:
    """The chance that one of the right ones is among k of a level, in random order (docs/method.md §6)."""
    taken = min(k, level)
    return 1 - comb(level - right, taken) / comb(level, taken)
