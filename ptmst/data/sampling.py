"""Random pairs of distinct images."""

from __future__ import annotations

import torch
from torch import Tensor

from ptmst.data import Pairs
from ptmst.errors import InputError
from ptmst.support.seeds import generator


def random_subset(pairs: Pairs, seed: int, count: int) -> Tensor:
    """Numbers of `count` texts of distinct images, one caption each: int64 [count]. A shorter one begins a longer."""
    images = len(pairs.image_names)
    refuse_more(count, pairs)
    captions_of: list[list[int]] = [[] for _ in range(images)]
    for text, image in enumerate(pairs.image_of_text.tolist()):
        captions_of[image].append(text)
    rng = generator(seed, "subset")
    order = torch.randperm(images, generator=rng)[:count].tolist()
    picks = torch.rand(images, generator=rng).tolist()
    return torch.tensor([captions_of[i][int(picks[i] * len(captions_of[i]))] for i in order])


def refuse_more(count: int, pairs: Pairs) -> None:
    images = len(pairs.image_names)
    if count > images:
        raise InputError(f"pairs: expected at most the {images} images of {pairs.name} {pairs.split}, found {count}")
