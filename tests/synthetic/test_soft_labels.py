"""Soft labels: a batch is a block of the dense matrix, and gradients reach every leaf."""

from __future__ import annotations

import pytest
import torch

from oracles import dense, relative_error
from ptmst.errors import InputError
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity, LowRankSimilarity, Similarity, similarity_from_leaves

N, RANK = 7, 3


def both() -> list[Similarity]:
    return [
        FullSimilarity(torch.randn(N, N)),
        LowRankSimilarity(torch.randn(N), torch.randn(N, RANK), torch.randn(N, RANK), alpha=0.3),
    ]


@pytest.mark.parametrize("index", [[3], [6, 0, 2], list(range(N)), [4, 1, 4, 4]])
def test_a_batch_is_a_block(index: list[int]) -> None:
    for similarity in both():
        expected = dense({name: leaf.double() for name, leaf in similarity.leaves().items()}, alpha=0.3)
        assert relative_error(similarity.dense(), expected) <= 1e-6
        batch = similarity.batch(torch.tensor(index))
        assert relative_error(batch, expected[index][:, index]) <= 1e-6


def test_gradients_reach_every_leaf() -> None:
    index, weight = torch.tensor([5, 2, 5]), torch.randn(3, 3, dtype=torch.float64)
    for similarity in both():
        leaves = {name: leaf.double().requires_grad_() for name, leaf in similarity.leaves().items()}
        ours = torch.autograd.grad((weight * similarity.replace(leaves).batch(index)).sum(), list(leaves.values()))
        plain = (weight * dense(leaves, alpha=0.3)[index][:, index]).sum()
        for found, expected in zip(ours, torch.autograd.grad(plain, list(leaves.values())), strict=True):
            assert relative_error(found, expected) <= 1e-12


def test_identity() -> None:
    draw = torch.Generator().manual_seed(3)
    low_rank = LowRankSimilarity.identity(N, RANK, 2.0, draw)
    assert torch.equal(FullSimilarity.identity(N).dense(), torch.eye(N))
    assert torch.equal(low_rank.dense(), torch.eye(N))
    assert low_rank.left.std() > 0.5


def test_from_leaves() -> None:
    for similarity in both():
        again = similarity_from_leaves(similarity.leaves(), alpha=0.3)
        assert type(again) is type(similarity)
        assert torch.equal(again.dense(), similarity.dense())


@pytest.mark.parametrize("leaf", ["texts", "similarity", "diag", "left", "right"])
def test_leaves_of_other_lengths_are_refused(leaf: str) -> None:
    full, low_rank = both()
    similarity = full if leaf == "similarity" else low_rank
    pairs = SyntheticPairs(torch.zeros(N, 3, 2, 2), torch.zeros(N, 5), similarity, torch.ones(2))
    short = {**pairs.leaves(), leaf: pairs.leaves()[leaf][1:]}
    with pytest.raises(InputError, match=f"{leaf}: expected 7 pairs, as images has, found 6; cut them alike"):
        pairs.replace(short)
