"""How far distilled pictures are from the real ones: whether a set remembers or invents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmst.config import DataConfig, Places
from ptmst.data import Pairs
from ptmst.data.batches import IMAGES_AT_ONCE
from ptmst.data.sampling import random_subset
from ptmst.errors import InputError
from ptmst.support import progress
from ptmst.synthetic.distilled_set import DistilledSet


@dataclass(frozen=True)
class Nearest:
    """The nearest training picture of each of N distilled ones, over all phases.

    Distances float64 [N] are roots of the mean squared difference of the pixels that are seen, 0 … 255.
    """

    pictures: Tensor
    """uint8 [N, 3, H, W]"""
    captions: tuple[str, ...]
    """The first caption of each."""
    distance: Tensor
    starts: Starts | None
    """None where the set does not record what its pictures began as."""


@dataclass(frozen=True)
class Starts:
    """The real pictures that N distilled ones began as."""

    nearest: Tensor
    """bool [N], whether the nearest real picture is the one that it began as."""
    distance: Tensor
    """[N], from the distilled picture to it."""
    to_another: Tensor
    """[N], from it to the nearest other real picture: how far real pictures are from each other."""


class RealPictures:
    """The training pictures of distilled sets, which those of the same data share; `root` is where they have moved."""

    def __init__(self, root: Path | None = None) -> None:
        self._places, self._pairs = Places(root=root), dict[DataConfig, Pairs]()

    def nearest_to(self, distilled: DistilledSet) -> Nearest:
        """The nearest training pictures, all of which are read, to those of all phases.

        Raises InputError where the data are not there, have changed, or cannot be read.
        """
        recipe = distilled.recipe.at(self._places)
        if recipe.data not in self._pairs:
            self._pairs[recipe.data] = recipe.pairs("train")
        pairs = self._pairs[recipe.data]
        if pairs.fingerprint != recipe.fingerprints.data:
            raise InputError(
                f"{recipe.data.folder}: expected the pairs that the set was made of, found different ones; restore them"
            )
        images = torch.cat([distilled.pixels(phase) for phase in range(len(distilled))])
        return _nearest(images, _begun(distilled.provenance, len(images), pairs), pairs)


def _nearest(images: Tensor, begun: Tensor | None, pairs: Pairs) -> Nearest:
    """Of images uint8 [N, 3, H, W] that began as those of `begun` int64 [N]."""
    none = torch.full((len(images),), -1)
    if begun is None:
        nearest, starts = _search(images, none, pairs), None
    else:
        real = pairs.pixels(begun)
        # In one pass, since that decodes all pictures.
        nearest, other = _search(torch.cat([images, real]), torch.cat([none, begun]), pairs).chunk(2)
        starts = Starts(nearest == begun, _distance(images, real), _distance(real, pairs.pixels(other)))
    pictures = pairs.pixels(nearest)
    captions = dict(zip(reversed(pairs.image_of_text.tolist()), reversed(pairs.captions), strict=True))
    shown = tuple(captions[image] for image in nearest.tolist())
    return Nearest(pictures, shown, _distance(images, pictures), starts)


def _begun(provenance: Mapping[str, Any], count: int, pairs: Pairs) -> Tensor | None:
    """The images that distillation began with, int64 [count], one draw for all phases; None where none is recorded."""
    seed = provenance.get("config", {}).get("seed")
    return None if seed is None else pairs.image_of_text[random_subset(pairs, seed, count)]


def _search(queries: Tensor, but: Tensor, pairs: Pairs) -> Tensor:
    """The image nearest to each query uint8 [Q, 3, H, W], other than that of `but` int64 [Q]: int64 [Q]."""
    wanted, count = _flat(queries), len(pairs.image_names)
    best, nearest = torch.full((len(wanted),), torch.inf), torch.zeros(len(wanted), dtype=torch.int64)
    with progress.bar("nearest pictures", count) as bar:
        for index in torch.arange(count).split(IMAGES_AT_ONCE):
            real = _flat(pairs.pixels(index))
            # Less the query's own norm, which changes no order.
            far = real.square().sum(1) - 2 * wanted @ real.T
            far[but[:, None] == index] = torch.inf
            value, place = far.min(1)
            nearest = torch.where(value < best, index[place], nearest)
            best = torch.minimum(value, best)
            bar.advance(steps=len(index))
    return nearest


def _flat(pixels: Tensor) -> Tensor:
    """float32 [B, 3HW] around the middle gray, where sums round least."""
    return pixels.flatten(1).float() - 127.5


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).square().flatten(1).mean(1).sqrt()
