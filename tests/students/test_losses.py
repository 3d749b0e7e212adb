"""The six losses against float64, their derivatives of both modes, and the module form."""

from __future__ import annotations

import typing

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jvp

from oracles import contrastive, relative_error
from ptmst.config import LossKind
from ptmst.students.losses import (
    SoftContrastiveLoss,
    contrastive_logits,
    contrastive_loss,
    hard_label_loss,
    student_loss,
)
from ptmst.students.student import Student

KINDS: tuple[LossKind, ...] = typing.get_args(LossKind)
each_loss = pytest.mark.parametrize("kind", KINDS)


def batch(size: int, spread: float) -> tuple[Tensor, Tensor]:
    """Logits and soft labels on both sides of 0.5, float64."""
    logits = spread * torch.randn(size, size, dtype=torch.float64)
    return logits, torch.eye(size, dtype=torch.float64) + 0.3 * torch.randn(size, size, dtype=torch.float64)


@each_loss
@pytest.mark.parametrize("size", [1, 5, 32])
@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_against_float64(kind: LossKind, size: int, spread: float) -> None:
    logits, similarity = batch(size, spread)
    expected = contrastive(kind, logits, similarity)
    if size == 1 and kind in ("infonce", "kl", "cwcl"):
        assert contrastive_loss(kind, logits, similarity) == expected == 0
        return
    assert relative_error(contrastive_loss(kind, logits, similarity), expected) <= 1e-12
    assert relative_error(contrastive_loss(kind, logits.float(), similarity.float()), expected) <= 2e-5


@each_loss
def test_gradients(kind: LossKind) -> None:
    logits, similarity = (v.requires_grad_() for v in batch(6, 2.0))
    ours = torch.autograd.grad(contrastive_loss(kind, logits, similarity), (logits, similarity))
    exact = torch.autograd.grad(contrastive(kind, logits, similarity), (logits, similarity))
    for found, expected in zip(ours, exact, strict=True):
        assert relative_error(found, expected) <= 1e-11
    torch.autograd.gradcheck(lambda a, b: contrastive_loss(kind, a, b), (logits, similarity))


@each_loss
def test_saturated_logits_stay_finite(kind: LossKind) -> None:
    """Cosines of ±1 at temperature 0.07, and far beyond."""
    for size in (1 / 0.07, 300.0):
        logits = torch.full((4, 4), -size).fill_diagonal_(size)
        for values in (logits, -logits):
            gradients = grad(lambda a: contrastive_loss(kind, a, torch.eye(4)))(values)
            assert torch.isfinite(contrastive_loss(kind, values, torch.eye(4)))
            assert torch.isfinite(gradients).all()


def test_wbce_without_a_side() -> None:
    logits = torch.randn(3, 3, dtype=torch.float64)
    for similarity in (torch.zeros_like(logits), torch.ones_like(logits)):
        expected = contrastive("wbce", logits, similarity)
        assert relative_error(contrastive_loss("wbce", logits, similarity), expected) <= 1e-12


@pytest.mark.slow
@each_loss
def test_tangents_of_gradients(kind: LossKind) -> None:
    """Forward over reverse through a student against differences of its gradient: a lost tangent would be zero."""
    image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 5))
    student = Student.from_modules(image.double(), nn.Linear(6, 5).double())
    loss_of = student_loss(student, kind, 0.5)
    theta = student.flatten()
    direction = torch.randn_like(theta)
    data = (torch.randn(3, 3, 4, 4, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64), batch(3, 1.0)[1])
    for argument in range(4):

        def gradient(at: Tensor, argument: int = argument) -> Tensor:
            found: Tensor = grad(loss_of, argnums=argument)(at, *data)
            return found

        _, tangent = jvp(gradient, (theta,), (direction,))  # type: ignore[misc]
        difference = (gradient(theta + 1e-6 * direction) - gradient(theta - 1e-6 * direction)) / 2e-6
        assert relative_error(tangent, difference) <= 1e-6


def test_logits_are_cosines() -> None:
    images, texts = torch.randn(3, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    expected = torch.tensor([[torch.dot(a, b) / a.norm() / b.norm() / 0.2 for b in texts] for a in images])
    assert relative_error(contrastive_logits(images, texts, 0.2), expected.double()) <= 1e-6
    assert torch.allclose(contrastive_logits(images, texts, 0.2), contrastive_logits(3 * images, 0.1 * texts, 0.2))


@each_loss
def test_module_form(kind: LossKind) -> None:
    images, texts = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    similarity = batch(5, 1.0)[1]
    logits = contrastive_logits(images, texts, 0.3)
    module = SoftContrastiveLoss(kind, temperature=0.3)
    assert relative_error(module(images, texts, similarity), contrastive(kind, logits, similarity)) <= 1e-12
    matched = contrastive(kind, logits, torch.eye(5, dtype=torch.float64))
    assert relative_error(module(images, texts), matched) <= 1e-12


def test_module_defaults_are_the_papers() -> None:
    module = SoftContrastiveLoss()
    assert (module.kind, module.temperature) == ("wbce", 0.07)


def test_hard_labels() -> None:
    logits = torch.randn(6, 6, dtype=torch.float64)
    rows = [-torch.log(torch.exp(row[i]) / torch.exp(row).sum()) for i, row in enumerate(logits)]
    columns = [-torch.log(torch.exp(row[i]) / torch.exp(row).sum()) for i, row in enumerate(logits.T)]
    assert relative_error(hard_label_loss(logits), sum([*rows, *columns], torch.zeros(())) / 12) <= 1e-12
