"""Features of a frozen tower, and the way back to its images, against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oracles import relative_error
from ptmst.engine.frozen_tower import Features, drawn
from ptmst.students.heads import ProjectionHead
from ptmst.students.image_towers import ConvNet
from ptmst.students.student import Student
from tiny import TEXT_WIDTH, in_float64


def student() -> Student:
    torch.manual_seed(0)
    return in_float64(Student.from_modules(ProjectionHead(32, 8), ProjectionHead(TEXT_WIDTH, 8), tower=ConvNet(8)))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("block", [1, 2, 3, 4, 7, 12])
def test_features_and_the_way_back(block: int, keep: bool) -> None:
    frozen, images = student(), torch.randn(7, 3, 8, 8, dtype=torch.float64)
    assert frozen.tower is not None
    leaf = images.clone().requires_grad_()
    expected: Tensor = frozen.tower(leaf)
    given = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, leaf, given)
    before = images.clone()
    with torch.no_grad():
        features, back = Features(frozen, block, keep, None)(images)
        assert not features.requires_grad
        found = back(given)
    assert relative_error(features, expected.detach()) <= 1e-12
    assert relative_error(found, gradient) <= 1e-12
    assert torch.equal(images, before) and not images.requires_grad


@pytest.mark.parametrize("keep", [False, True])
def test_a_compiler_gets_the_tower_once_and_blocks_of_one_size(keep: bool) -> None:
    compiled: list[str] = []
    sizes: set[int] = set()

    def compiler(function):  # type: ignore[no-untyped-def]
        compiled.append(function.__name__)

        def call(images: Tensor) -> Tensor:
            sizes.add(len(images))
            found: Tensor = function(images)
            return found

        return call

    features = Features(student(), 3, keep, compiler)
    for rows in (1, 5, 6):
        found, back = features(torch.randn(rows, 3, 8, 8, dtype=torch.float64))
        assert len(back(torch.ones_like(found))) == len(found) == rows
    assert compiled == ["features"] and sizes == {3}


@pytest.mark.parametrize(("pairs", "rows"), [(3, 3), (6, 6), (7, 6), (40, 6)])
def test_as_few_rows_as_shapes_promise(pairs: int, rows: int) -> None:
    batches = torch.tensor([[0, 2, 1], [2, 2, 0]])
    chosen, slots = drawn(pairs, batches)
    assert chosen.shape == (rows,) and slots.shape == batches.shape
    assert chosen.dtype == slots.dtype == torch.int64
    # Each batch finds its own pairs among the rows.
    assert torch.equal(chosen[slots], batches)
    if pairs > 6:
        assert len(set(slots.flatten().tolist())) == 6
