"""Several phases as one: their pairs side by side, matched within each phase alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity, LowRankSimilarity, Similarity


def union(phases: Sequence[SyntheticPairs]) -> SyntheticPairs:
    """The pairs of all phases in their order, with the last one's η; S is 0 between pairs of different phases.

    Soft labels of all phases have one form, and one rank and alpha where they are low-rank.
    """
    images, texts = (torch.cat([getattr(pairs, name) for pairs in phases]) for name in ("images", "texts"))
    return SyntheticPairs(images, texts, _together([pairs.similarity for pairs in phases]), phases[-1].lr)


def _together(parts: Sequence[Similarity]) -> Similarity:
    if isinstance(parts[-1], FullSimilarity):
        return FullSimilarity(torch.block_diag(*(part.dense() for part in parts)))
    first = parts[-1]
    low_rank = [part for part in parts if isinstance(part, LowRankSimilarity)]
    diag = torch.cat([part.diag for part in low_rank])
    left, right = (torch.block_diag(*(getattr(part, name) for part in low_rank)) for name in ("left", "right"))
    # The low-rank part is divided by the rank, which is now that of all.
    return LowRankSimilarity(diag, left, right, first.alpha * len(parts))


def of_the_last(leaves: Mapping[str, Tensor], last: SyntheticPairs) -> dict[str, Tensor]:
    """What belongs to the last phase of leaves of a union, or of their gradients, in that phase's shapes."""
    own = {}
    for name, leaf in last.leaves().items():
        value = leaves[name]
        if name != "lr":
            value = value[-len(last) :]
        own[name] = value[:, -leaf.shape[1] :] if name in ("similarity", "left", "right") else value
    return own
