"""Retrieval recall and zero-shot accuracy (docs/method.md §6)."""

from __future__ import annotations

from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmst.errors import InputError
from ptmst.support.seeds import generator

METRICS = ("ir1", "ir5", "ir10", "tr1", "tr5", "tr10", "mean")
"""Of retrieval, which every data set has."""
ZERO_SHOT = "zero-shot"
"""Of data sets with classes: the accuracy of zero-shot classification."""
TIES = "expected"
"""How equal scores count, as score files record it."""
_SCORES_AT_ONCE = 1 << 24


def retrieval_recall(
    image_embeds: Tensor, text_embeds: Tensor, image_of_text: Tensor, caption_of_text: Tensor | None = None
) -> dict[str, float]:
    """Recall@1/5/10 in percent: IR finds a text's image, TR any text of an image; `mean` is the mean of the six.

    image_embeds [N, H] and text_embeds [T, H] are compared by inner product: normalize them for cosines.
    image_of_text int64 [T] names each text's image. caption_of_text int64 [T] numbers the captions, where equal ones
    are to count as correct: a text is then right for every image that has a text of its number, and such an image for
    the text. Equal scores count by their expectation, over all orders of the tied. Memory stays bounded whatever N and
    T. Images without a text count as not found.

    Raises InputError for embeddings that are not finite, and where `image_of_text` does not name an image, or
    `caption_of_text` a caption, for each text.
    """
    images, texts = len(image_embeds), len(text_embeds)
    if image_of_text.shape != (texts,):
        raise InputError(f"image_of_text: expected one image for each of {texts} texts, found {image_of_text.shape}")
    if not images or not texts or int(image_of_text.min()) < 0 or int(image_of_text.max()) >= images:
        raise InputError(f"image_of_text: expected numbers of {images} images, found other numbers; pass the set's own")
    if caption_of_text is not None and caption_of_text.shape != (texts,):
        raise InputError(
            f"caption_of_text: expected one caption for each of {texts} texts, found {caption_of_text.shape}"
        )
    if not bool(torch.isfinite(image_embeds).all() and torch.isfinite(text_embeds).all()):
        raise InputError("retrieval_recall: expected finite embeddings, found NaN or infinity; lower the student's η")
    device = image_embeds.device
    image_of_text = image_of_text.to(device)
    if caption_of_text is not None:
        caption_of_text = torch.unique(caption_of_text.to(device), return_inverse=True)[1]
    against_images, against_texts = _Candidates(image_embeds), _Candidates(text_embeds)

    at_once = max(1, _SCORES_AT_ONCE // (images if caption_of_text is None else max(images, texts)))
    of_texts = []
    for index in torch.arange(texts, device=device).split(at_once):
        # Rows of texts, each with every text that is right where it is.
        rows, equal = torch.arange(len(index), device=device), index
        if caption_of_text is not None:
            rows, equal = (caption_of_text[index, None] == caption_of_text).nonzero(as_tuple=True)
        right = torch.zeros(len(index), images, dtype=torch.bool, device=device)
        right[rows, image_of_text[equal]] = True
        of_texts.append(_ranked(against_images.scores(text_embeds[index]), right))
    of_images = []
    for index in torch.arange(images, device=device).split(max(1, _SCORES_AT_ONCE // texts)):
        right = image_of_text == index[:, None]
        if caption_of_text is not None:
            rows, own = right.nonzero(as_tuple=True)
            has = torch.zeros_like(right)  # [B, C], of which there are T at most
            has[rows, caption_of_text[own]] = True
            right = has[:, caption_of_text]
        of_images.append(_ranked(against_texts.scores(image_embeds[index]), right))

    recall: dict[str, float] = {}
    for name, parts in (("ir", of_texts), ("tr", of_images)):
        ranks = _Ranks(*map(torch.cat, zip(*parts, strict=True)))
        # Without ties whole numbers in float64: exact to the last digit shown.
        recall |= {f"{name}{k}": 100.0 * float(ranks.within(k).sum()) / len(ranks.better) for k in (1, 5, 10)}
    return recall | {"mean": mean(recall.values())}


class _Candidates:
    """Embeddings [C, H] that queries are compared with.

    Equal ones score equally, to the bit: each is multiplied once, since a product's last bits depend on the place of a
    row among the others.
    """

    def __init__(self, embeds: Tensor) -> None:
        self._embeds, self._which = _distinct(embeds)

    def scores(self, queries: Tensor) -> Tensor:
        """Inner products, [Q, C]."""
        products = queries @ self._embeds.T
        return products if self._which is None else products[:, self._which]


def _distinct(embeds: Tensor) -> tuple[Tensor, Tensor | None]:
    """The distinct rows, and which of them each row is; the rows themselves, and None, where all are distinct."""
    # By two weighted sums of each row, which run alike in every row, so that no more than these go to the host.
    weights = torch.rand(2, embeds.shape[1], generator=generator("distinct rows")).to(embeds)
    keys = torch.stack([(embeds * weight).sum(1) for weight in weights], dim=1).cpu().numpy()
    _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    if len(first) == len(embeds):
        return embeds, None
    numbers = torch.from_numpy(which.reshape(-1)).to(embeds.device)
    rows = embeds[torch.from_numpy(first).to(embeds.device)]
    return (rows, numbers) if torch.equal(rows[numbers], embeds) else (embeds, None)


class _Ranks(NamedTuple):
    """Of queries [Q], int64: how many candidates score higher than the best right one, how many right ones score as
    high as that one, and how many candidates do."""

    better: Tensor
    right: Tensor
    level: Tensor

    def within(self, k: int) -> Tensor:
        """The share of all orders of equal scores in which a right one is among the first k: float64 [Q].

        With j places left for the tied it is 1 − C(level − right, j) / C(level, j).
        """
        places = k - self.better
        missed = torch.ones(places.shape, dtype=torch.float64, device=places.device)
        for taken in range(k):
            wrong, left = (self.level - self.right - taken).clamp(min=0), (self.level - taken).clamp(min=1)
            missed = torch.where(taken < places, missed * wrong / left, missed)
        return 1 - missed


def _ranked(scores: Tensor, right: Tensor) -> _Ranks:
    """Ranks of queries by the scores of candidates [Q, C], and which of them are right, bool [Q, C]."""
    best = scores.masked_fill(~right, float("-inf")).amax(1, keepdim=True)
    level = scores == best
    better = (scores > best).sum(1).masked_fill(~right.any(1), torch.iinfo(torch.int64).max)
    return _Ranks(better, (level & right).sum(1), level.sum(1))


def zero_shot_accuracy(image_embeds: Tensor, prompt_embeds: Tensor, class_of_prompt: Tensor, labels: Tensor) -> float:
    """Share of images, in percent, whose own class is nearer than any other (Radford et al. 2021).

    image_embeds [N, H] and prompt_embeds [T, H] are normalized; a class is the mean of its prompts, normalized again.
    class_of_prompt int64 [T] and labels int64 [N] name classes from 0; -1 is an image that does not count. Of n classes
    that are equally near each counts as 1/n.
    """
    # A product, since a scattered sum has an order of its own every time on CUDA.
    centers = F.normalize(F.one_hot(class_of_prompt).T.to(prompt_embeds) @ prompt_embeds, dim=1)
    counted = labels >= 0
    scores = image_embeds[counted] @ centers.T
    own = scores.gather(1, labels[counted, None])
    ranks = _Ranks((scores > own).sum(1), torch.ones_like(labels[counted]), (scores == own).sum(1))
    return 100.0 * float(ranks.within(1).sum()) / len(scores)
