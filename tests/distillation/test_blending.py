"""Blended batches (RepBlend): gradients against autograd through the unrolled loop, and the law of the draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from oracles import dense, relative_error
from ptmst import distill, outer_gradient
from ptmst.distillation.draws import draw_mixing
from ptmst.students.losses import student_loss
from ptmst.support.seeds import generator
from tiny import ALPHA, DISTILL, LEAVES, OuterCase, in_float64, outer_case, three_layers, tiny_store

BATCHES = torch.tensor([[0, 1, 2], [3, 1, 0], [2, 2, 1]])


def mixing(case: OuterCase) -> Tensor:
    """Any matrices will do."""
    draw = torch.Generator().manual_seed(4)
    return torch.rand(len(case.batches), 3, 3, generator=draw, dtype=torch.float64)


def unrolled(case: OuterCase, mixed: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Autograd through the inner loop, features embedded and blended at every step."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in case.pairs.leaves().items()}
    loss_of = student_loss(case.student.heads, case.kind, 0.07)
    theta, similarity = case.start.clone().requires_grad_(), dense(leaves, ALPHA)
    for index, matrix in zip(case.batches, mixed, strict=True):
        images = case.student.features(leaves["images"][index])
        seen = torch.einsum("ab,b...->a...", matrix, images), matrix @ leaves["texts"][index]
        value = loss_of(theta, *seen, similarity[index][:, index])
        (g,) = torch.autograd.grad(value, theta, create_graph=True)
        theta = theta - case.oracle.rate(leaves["lr"]) * g
    loss = case.oracle.loss(theta)
    return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("form", LEAVES)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("how", [{}, {"keep": "primals"}])
def test_the_exact_gradient_of_a_blended_loop(form: str, frozen: bool, how: dict[str, Any]) -> None:
    case = outer_case(in_float64(three_layers(frozen)), 8, form, BATCHES)
    matrices = mixing(case)
    found = case.step(adjoint=1.0, **how)(case.span, case.pairs, case.batches, matrices)
    loss, expected = unrolled(case, matrices)
    assert relative_error(found.loss, loss) <= 1e-12
    for name, value in expected.items():
        assert relative_error(found.grads[name], value) <= 1e-9, name
    plain = case.gradient(adjoint=1.0)
    assert relative_error(plain.loss, loss) > 1e-3


def test_identities_blend_nothing() -> None:
    case = outer_case(three_layers(), 8, "full", BATCHES)
    found = outer_gradient(
        case.student, case.start, case.target, case.pairs, case.batches, mixing=torch.eye(3).expand(3, 3, 3)
    )
    plain = case.gradient(adjoint=0.0)
    assert relative_error(found.loss, plain.loss) <= 1e-6
    assert all(relative_error(found.grads[name], value) <= 1e-5 for name, value in plain.grads.items())


@pytest.mark.slow
@pytest.mark.parametrize("blend", [0.3, 1.0, 4.0])
def test_the_law_of_the_draws(blend: float) -> None:
    steps, batch = 4000, 5
    found = draw_mixing(batch, steps, blend, generator(0, "test"))
    assert torch.equal(found, draw_mixing(batch, steps, blend, generator(0, "test")))
    assert torch.allclose(found.sum(1), torch.ones(steps, batch)) and torch.allclose(found.sum(2), found.sum(1))
    # A row that the permutation moves has λ on the diagonal and 1 − λ elsewhere, and nothing besides.
    assert int((found > 0).sum(2).max()) == 2 and found.dtype == torch.float32
    moved = (found.diagonal(dim1=1, dim2=2) < 1 - 1e-6).any(1)
    lam = found.diagonal(dim1=1, dim2=2).amin(1)[moved]
    assert abs(lam.mean() - 0.5) < 4 * lam.std() / len(lam) ** 0.5
    assert abs(lam.var() * 4 * (2 * blend + 1) - 1) < 0.1  # of Beta(a, a): 1 / (4 (2 a + 1))
    # A permutation of five leaves each row where it is once in five times.
    still = (found.diagonal(dim1=1, dim2=2) > 1 - 1e-6).float().mean()
    assert abs(still - 0.2) < 0.02


@pytest.mark.slow
def test_blending_is_a_setting_of_distillation(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    store = tiny_store(tmp_path_factory)
    blended = replace(DISTILL, steps=3, blend=1.0)
    plain, once, again = (distill(config, store) for config in (replace(blended, blend=0.0), blended, blended))
    for before, one, other in zip(plain, once, again, strict=True):
        assert torch.equal(one.images, other.images)
        assert not torch.equal(one.images, before.images)
