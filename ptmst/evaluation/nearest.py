"""How far distilled pictures are from the real ones: whether a set remembers or invents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmst.config import DataConfig, Places
from ptmst.data import Pairs
from ptmst.data.batches import IMAGES_AT_ONCE
from ptmst.data.sampling import random_subset
from ptmst.errors import InputError
from ptmst.students.features import kept_features
from ptmst.support import progress
from ptmst.synthetic.distilled_set import DistilledSet


@dataclass(frozen=True)
class Nearest:
    """The nearest training picture of each of N distilled ones, over all phases.

    Distances float64 [N] are roots of the mean squared difference of the pixels that are seen, 0 … 255; of features
    that stand for pictures, 1 − their cosine.
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
    pictures: Tensor
    """uint8 [N, 3, H, W]"""
    captions: tuple[str, ...]
    """Of the texts that theirs began as."""
    texts: tuple[int, ...]
    """Their numbers in the training split."""


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
        space = _Pixels(pairs) if distilled.in_pixels else _Features(distilled, pairs)
        queries = torch.cat([space.of(distilled, phase) for phase in range(len(distilled))])
        return _nearest(queries, _begun(distilled.provenance, len(queries), pairs), pairs, space)


class _Space(Protocol):
    """Where pictures are compared: rows float32 [B, M], of which those are near whose difference is short."""

    def of(self, distilled: DistilledSet, phase: int) -> Tensor:
        """The rows of a phase's pictures."""

    def real(self, index: Tensor) -> Tensor:
        """The rows of real pictures, int64 [B]."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Between rows and rows, float64 [B]."""


class _Pixels:
    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def of(self, distilled: DistilledSet, phase: int) -> Tensor:
        return _flat(distilled.pixels(phase))

    def real(self, index: Tensor) -> Tensor:
        return _flat(self._pairs.pixels(index))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.double() - b.double()).square().mean(1).sqrt()


class _Features:
    def __init__(self, distilled: DistilledSet, pairs: Pairs) -> None:
        self._all = F.normalize(kept_features(distilled.student(("nearest",)), pairs, torch.device("cpu")))

    def of(self, distilled: DistilledSet, phase: int) -> Tensor:
        return F.normalize(distilled[phase].images)

    def real(self, index: Tensor) -> Tensor:
        return self._all[index]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.double() - b.double()).square().sum(1) / 2


def _nearest(queries: Tensor, begun: Tensor | None, pairs: Pairs, space: _Space) -> Nearest:
    """Of rows [N, M] of pictures that began as those of the texts `begun` int64 [N]."""
    none = torch.full((len(queries),), -1)
    if begun is None:
        nearest, starts = _search(queries, none, pairs, space), None
    else:
        images = pairs.image_of_text[begun]
        real = space.real(images)
        # In one pass, since that decodes all pictures.
        nearest, other = _search(torch.cat([queries, real]), torch.cat([none, images]), pairs, space).chunk(2)
        starts = Starts(
            nearest=nearest == images,
            distance=space.distance(queries, real),
            to_another=space.distance(real, space.real(other)),
            pictures=pairs.pixels(images),
            captions=tuple(pairs.captions[text] for text in begun.tolist()),
            texts=tuple(begun.tolist()),
        )
    captions = dict(zip(reversed(pairs.image_of_text.tolist()), reversed(pairs.captions), strict=True))
    shown = tuple(captions[image] for image in nearest.tolist())
    return Nearest(pairs.pixels(nearest), shown, space.distance(queries, space.real(nearest)), starts)


def _begun(provenance: Mapping[str, Any], count: int, pairs: Pairs) -> Tensor | None:
    """The texts that distillation began with, int64 [count], one draw for all phases; None where none is recorded."""
    seed = provenance.get("config", {}).get("seed")
    return None if seed is None else random_subset(pairs, seed, count)


def _search(wanted: Tensor, but: Tensor, pairs: Pairs, space: _Space) -> Tensor:
    """The image nearest to each row of Q, other than that of `but` int64 [Q]: int64 [Q]."""
    count = len(pairs.image_names)
    best, nearest = torch.full((len(wanted),), torch.inf), torch.zeros(len(wanted), dtype=torch.int64)
    with progress.bar("nearest pictures", count) as bar:
        for index in torch.arange(count).split(IMAGES_AT_ONCE):
            real = space.real(index)
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
