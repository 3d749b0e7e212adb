"""Fresh heads: drawn by key alone, with the spread that torch gives its linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import pytest
import torch

from ptmst.config import EncoderConfig
from ptmst.students.heads import ProjectionHead, drawn_head, make_student
from ptmst.support.seeds import uniform

SHAPES = [(4, 9), (4,), (4, 4), (4,), (4,), (4,)]


def test_a_head_is_drawn_by_its_key() -> None:
    found, numbers = drawn_head(SHAPES, (1, "text")), uniform(60, "heads", 1, "text")
    assert found is not None and found.dtype == torch.float32
    parts = [numbers[:40] / 3, numbers[40:] / 2, torch.ones(4), torch.zeros(4)]
    assert torch.equal(found, torch.cat([part.float() for part in parts]))
    # As written down here, so that no release can change it unseen.
    assert [value.hex() for value in found[:2].tolist()] == KNOWN


KNOWN = ["-0x1.f0ba260000000p-3", "-0x1.54d7fe0000000p-2"]


@pytest.mark.parametrize("frozen", [False, True])
def test_students_start_with_them(frozen: bool) -> None:
    config = EncoderConfig(image_width=8, freeze_tower=frozen, head_width=8)
    before = torch.random.get_rng_state()
    student = make_student(config, 16, 6, (5, "expert", 0))
    assert torch.equal(torch.random.get_rng_state(), before)
    table, theta = student.layers, student.flatten().split(student.layers.group_sizes)
    for number, group in enumerate(("image", "text")):
        first, end = table.layers_of_group[number]
        drawn = drawn_head(table.shapes[first:end], (5, "expert", 0, group))
        assert (drawn is None) == (group == "image" and not frozen)
        assert drawn is None or torch.equal(theta[number], drawn)
    other = make_student(config, 16, 6, (5, "expert", 1)).flatten().split(table.group_sizes)
    assert not torch.equal(other[1], theta[1])


def test_the_spread_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = drawn_head([tuple(p.shape) for p in ProjectionHead(64, 256).parameters()], ("spread",))
    assert ours is not None
    theirs = torch.cat([p.detach().flatten() for p in ProjectionHead(64, 256).parameters()])
    first = 64 * 256
    for part in (slice(0, first), slice(first, first + 256), slice(first + 256, first + 256 + 256**2)):
        for of in (torch.min, torch.max, torch.std):
            assert float(of(ours[part])) == pytest.approx(float(of(theirs[part])), rel=0.1)
    assert float(ours[:first].abs().max()) <= 1 / sqrt(64)
    assert torch.equal(ours[-512:], theirs[-512:])


@pytest.mark.parametrize(
    "shapes",
    [SHAPES[:-1], [(4, 9), (4,), (4, 3), (4,), (4,), (4,)], [(4, 9), (4,), (4, 4), (4,), (5,), (4,)], [], [()] * 6],
)
def test_what_is_no_head_is_not_drawn(shapes: Sequence[tuple[int, ...]]) -> None:
    assert drawn_head(shapes, (0,)) is None
