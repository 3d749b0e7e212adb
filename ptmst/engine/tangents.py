"""Whether derivatives go through functions that torch cannot look into: compiled parts, and functions with their own.

torch carries a derivative along a direction through its own operations. What a compiled module or an
`autograd.Function` says of it is taken as it is, and where nothing is said it may be lost without an error. So such
students are compared with finite differences once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ptmst.config import LossKind
from ptmst.students.losses import student_loss
from ptmst.students.student import Student

Along = Callable[[Student, Tensor, Tensor, Sequence[Tensor]], Sequence[Tensor]]
"""(student, θ [P], v [P], batch) ↦ ∂/∂u ⟨v, ∇_θ ℓ⟩ of each u: the batch, and θ where it is asked for."""
LOSS: LossKind = "wbce"
_STEPS = {torch.float64: (1e-4, 1e-6, 1e-8), torch.float32: (1e-2, 1e-3, 1e-4)}
"""Of the differences, relative to θ. Small ones cross no kink of a ReLU, which has no derivative there."""
_TOLERANCE = {torch.float64: 1e-2, torch.float32: 5e-2}


def opaque(student: Student, theta: Tensor, images: Tensor, texts: Tensor) -> bool:
    """Whether torch cannot look into all that it differentiates, tried at θ [P], images [B, 3, H, W], texts [B, D]."""
    if any(hasattr(part, "_orig_mod") for module in student.modules for part in module.modules()):
        return True
    with torch.enable_grad():
        embeds = student.embed(theta.detach().requires_grad_(), images, texts)
    todo: list[Any] = [embedded.grad_fn for embedded in embeds]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if isinstance(node, BackwardCFunction):
            return True
        for after, _ in node.next_functions if node is not None else ():
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return False


def why_lost(student: Student, along: Along, images: Tensor, texts: Tensor) -> str | None:
    """By how much `along` is off from finite differences of the gradient; None where it is not.

    Tried at other images and texts than these [B, 3, H, W], [B, D], of which only shape and device are taken.
    """
    try:
        return _why_lost(_in_float64(student), along, images.double(), texts.double())
    except (RuntimeError, TypeError, NotImplementedError):  # as some functions know float32 only
        return _why_lost(student, along, images.float(), texts.float())


def _why_lost(student: Student, along: Along, images: Tensor, texts: Tensor) -> str | None:
    draw = torch.Generator().manual_seed(0)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=draw, dtype=like.dtype).to(like)

    theta = student.flatten().to(images)
    batch = [normal(images), normal(texts), torch.eye(len(images)).to(images)]
    sizes = student.layers.layer_norms(theta) / torch.tensor(student.layers.sizes).sqrt()
    direction = normal(theta) * student.layers.expand_layers(sizes.clamp(min=1e-2)).to(theta)
    found = along(student, theta, direction, batch)
    errors = []
    for step in _STEPS[theta.dtype]:
        ahead, behind = (_gradients(student, theta + sign * step * direction, batch) for sign in (1, -1))
        expected = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
        errors.append(max(_error(a, b) for a, b in zip(found, expected, strict=False)))
    if min(errors) <= _TOLERANCE[theta.dtype]:
        return None
    return f"its derivative along a direction is off by {min(errors):.0%} from finite differences"


def _gradients(student: Student, theta: Tensor, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of the loss in each of the batch, and in θ."""
    leaves = [leaf.detach().requires_grad_() for leaf in (*batch, theta)]
    with torch.enable_grad():
        return torch.autograd.grad(student_loss(student, LOSS, 1.0)(leaves[-1], *leaves[:-1]), leaves)


def _error(found: Tensor, expected: Tensor) -> float:
    norm = float(expected.double().norm())
    off = float((found - expected).double().norm())
    return off / norm if norm > 0 else float(off > 0)


def _in_float64(student: Student) -> Student:
    image_module, text_module = (deepcopy(module).double() for module in student.modules[:2])
    return Student(image_module, text_module, student.layers)
