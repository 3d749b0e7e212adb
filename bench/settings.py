"""The cases of the outer step on a device: towers with random weights, pairs, batches and a trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.baselines import Gradients, Waste, double_backward, unrolled
from bench.cases import Case
from ptmst import OuterStep, Student, SyntheticPairs
from ptmst.config import EncoderConfig
from ptmst.students.heads import ProjectionHead
from ptmst.students.image_towers import image_tower
from ptmst.students.losses import student_loss
from ptmst.synthetic.soft_labels import FullSimilarity
from ptmst.trajectories.shortcut import Displacement, Shortcut

TEXT_WIDTH, HEAD_WIDTH = 768, 2048
COSINE = {"fp32": 0.9999, "tf32": 0.99, "bf16": 0.98}
"""Least cosine with another implementation, in every leaf; at random directions, where errors are largest."""


@dataclass(frozen=True)
class Setting:
    """A case on a device."""

    student: Student
    general: Student
    """The same function of θ; a frozen tower is part of its image module."""
    trajectory: Shortcut
    pairs: SyntheticPairs
    batches: Tensor

    def step(self, step: OuterStep) -> Gradients:
        return step(self.trajectory.span(0, 1), self.pairs, self.batches).grads

    def opponent(self, gradient: Callable[..., Gradients]) -> Gradients:
        loss_of = student_loss(self.student, "wbce", 0.07)
        points = self.trajectory.point(0), self.trajectory.point(1)
        return gradient(loss_of, self.student.layers, *points, self.pairs, self.batches)

    def waste(self, case: Case, buffer: Path) -> Waste:
        """What the published loop does besides; `buffer` is the file of an expert's first six points."""
        tower, width = build_tower(case.tower, case.size)
        points = [self.trajectory.point(t).cpu() for t in range(6)]
        return Waste(tower, ((width, HEAD_WIDTH), (TEXT_WIDTH, HEAD_WIDTH)), buffer, points)


def build_tower(name: str, size: int) -> tuple[nn.Module, int]:
    """The tower that a command makes of that name and size, and the width of its features."""
    kind, _, width = name.partition("-")
    if kind == "convnet":
        return image_tower(EncoderConfig(image_width=int(width)), size)
    return image_tower(EncoderConfig(image_tower=f"timm:{name}"), size)


@cache
def setting(case: Case, device: torch.device) -> Setting:
    """The same numbers on every device."""
    torch.manual_seed(0)
    tower, width = build_tower(case.tower, case.size)
    if case.frozen:
        image_head, text_head = ProjectionHead(width, HEAD_WIDTH), ProjectionHead(TEXT_WIDTH, HEAD_WIDTH)
        student = Student.from_modules(image_head, text_head, tower=tower)
        general = Student.from_modules(nn.Sequential(tower, image_head), text_head).to(device)
    else:
        student = general = Student.from_modules(tower, ProjectionHead(TEXT_WIDTH, width))
    layers, theta = student.layers, student.flatten()
    # Some weights of towers start at zero, which would save work.
    theta += 1e-3 * torch.randn_like(theta)
    moved = Displacement.encode(1e-2 * torch.randn_like(theta), layers)
    on_device = Displacement(moved.values.to(device), moved.scale.to(device), moved.norms)
    beta = torch.linspace(0, 1, 6)[:, None].expand(6, layers.num_layers).contiguous()
    pairs = SyntheticPairs(
        torch.randn(case.pairs, 3, case.size, case.size).to(device),
        torch.randn(case.pairs, TEXT_WIDTH).to(device),
        FullSimilarity(torch.eye(case.pairs, device=device)),
        torch.full((2,), 0.1, device=device),
    )
    order = torch.cat([torch.randperm(case.pairs) for _ in range(-(-case.steps * case.batch // case.pairs))])
    batches = order[: case.steps * case.batch].view(case.steps, case.batch).to(device)
    return Setting(student.to(device), general, Shortcut(layers, theta.to(device), on_device, beta), pairs, batches)


@cache
def forward_operations(case: Case) -> int:
    """Operations of one forward pass of a batch through the tower."""
    tower, _ = build_tower(case.tower, case.size)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        tower.to("meta")(torch.empty(case.batch, 3, case.size, case.size))
    return int(counter.get_total_flops())


def cosines(gradients: Gradients, expected: Gradients) -> dict[str, float]:
    """By leaf."""
    pairs = {name: (gradients[name].double().flatten(), value.double().flatten()) for name, value in expected.items()}
    return {name: float(a @ b / (a.norm() * b.norm())) for name, (a, b) in pairs.items()}


def opponent(case: Case) -> Callable[..., Gradients]:
    return double_backward if case.gradient == "truncated" else unrolled
