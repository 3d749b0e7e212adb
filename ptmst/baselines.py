"""What a distilled set has to beat: as many real pairs, as a distilled set (METHOD §6)."""

from __future__ import annotations

import torch
from torch import Tensor

from ptmst.data import Pairs
from ptmst.distilled import DistilledPhase, DistilledSet, versions
from ptmst.errors import InputError
from ptmst.seeds import generator
from ptmst.similarity import FullSimilarity
from ptmst.store import TrajectoryStore
from ptmst.synthetic import SyntheticPairs
from ptmst.teachers import real_pairs, tower_weights


def random_pairs(store: TrajectoryStore, count: int, lr: float, seed: int) -> DistilledSet:
    """`count` random pairs of the store's data, matched one to one, with student learning rate `lr` in every group.

    Raises InputError where the data hold fewer images, or are no longer those of the store.
    """
    pairs, texts = real_pairs(store)
    chosen = random_subset(pairs, seed, count)
    rates = torch.full((store.layers.num_groups,), lr)
    images = pairs.images(pairs.image_of_text[chosen])
    synthetic = SyntheticPairs(images, texts[chosen].clone(), FullSimilarity.identity(count), rates)
    phase = DistilledPhase(synthetic, rates, tuple(pairs.captions[i] for i in chosen.tolist()))
    provenance = {"method": "random", "seed": seed, "store_sha256": store.fingerprint, "versions": versions()}
    return DistilledSet((phase,), provenance, store.settings, tower_weights(store))


def random_subset(pairs: Pairs, seed: int, count: int) -> Tensor:
    """Numbers of `count` texts of distinct images, one caption each: int64 [count]. A shorter one begins a longer."""
    images = len(pairs.image_paths)
    if count > images:
        raise InputError(f"pairs: expected at most the {images} images of {pairs.name} {pairs.split}, found {count}")
    captions_of: list[list[int]] = [[] for _ in range(images)]
    for text, image in enumerate(pairs.image_of_text.tolist()):
        captions_of[image].append(text)
    draw = generator(seed, "subset")
    order = torch.randperm(images, generator=draw)[:count].tolist()
    picks = torch.rand(images, generator=draw).tolist()
    return torch.tensor([captions_of[i][int(picks[i] * len(captions_of[i]))] for i in order])
