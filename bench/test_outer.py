"""Seconds and memory of an outer step on a CPU, ours and others'; `python -m bench.outer` runs them.

No speed counts for a wrong answer: after its timing every result is compared with that of another way of computing it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.baselines import Gradients, Waste, double_backward, unrolled
from bench.cases import CLEAN, FORWARDS, GENERAL, GROWTH, OURS, OUTER, PUBLISHED, Case, Way
from bench.measure import copy_bandwidth, environment, peak_memory, product_rate
from ptmst import OuterStep, Student, SyntheticPairs
from ptmst.students.heads import ProjectionHead
from ptmst.students.image_towers import ConvNet
from ptmst.students.losses import student_loss
from ptmst.synthetic.soft_labels import FullSimilarity
from ptmst.trajectories.shortcut import Displacement, Shortcut

TEXT_WIDTH, HEAD_WIDTH = 768, 2048
CPU = torch.device("cpu")
COSINE = {"fp32": 0.9999, "tf32": 0.99, "bf16": 0.98}
"""With the other way of computing it, in every leaf; at random directions, where errors are at their largest."""


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


def build_tower(name: str, size: int) -> tuple[nn.Module, int]:
    """The tower and the width of its features."""
    if name.startswith("convnet-"):
        width = int(name.removeprefix("convnet-"))
        return ConvNet(width), 4 * width
    import timm

    timm.layers.set_fused_attn(False)
    sized: dict[str, Any] = {"img_size": size} if name.startswith("vit") else {}
    tower: Any = timm.create_model(name, num_classes=0, **sized).eval()
    return tower, tower.num_features


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
    # Towers start with some weights at zero, which would leave work undone.
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
def rates() -> dict[str, float]:
    """Measured in the same run: bytes a second copied, operations a second of products."""
    return {"copied bytes/s": copy_bandwidth(CPU), "product FLOP/s": product_rate(CPU)}


@cache
def forward_operations(case: Case) -> int:
    """Operations of one forward pass of a batch through the tower."""
    tower, _ = build_tower(case.tower, case.size)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        tower.to("meta")(torch.empty(case.batch, 3, case.size, case.size))
    return int(counter.get_total_flops())


def record(benchmark: BenchmarkFixture, case: Case, way: str, call: Callable[[], Gradients]) -> Gradients:
    """Time `call`, then measure its memory; returns what it found."""
    found: Gradients = benchmark.pedantic(call, rounds=3, warmup_rounds=1)
    benchmark.extra_info |= {
        **case.described(),
        "way": way,
        "parameters": setting(case, CPU).student.layers.num_params,
        "peak MB": peak_memory(CPU, call) / 2**20,
        "environment": environment(CPU),
    }
    return found


def cosines(found: Gradients, expected: Gradients) -> dict[str, float]:
    """By leaf."""
    pairs = {name: (found[name].double().flatten(), value.double().flatten()) for name, value in expected.items()}
    return {name: float(a @ b / (a.norm() * b.norm())) for name, (a, b) in pairs.items()}


def agree(found: Gradients, expected: Gradients) -> None:
    for name, cosine in cosines(found, expected).items():
        assert cosine >= COSINE["fp32"], name


def measure_ours(benchmark: BenchmarkFixture, case: Case, way: Way) -> None:
    s = setting(case, CPU)
    step = OuterStep(
        s.general if way.general else s.student,
        adjoint=case.adjoint,
        keep=way.keep,
        compile="on" if way.compiled else "off",
    )
    found = record(benchmark, case, way.name, partial(s.step, step))
    if not case.frozen:
        measured = rates()
        floor = FORWARDS[case.gradient, way.keep] * case.steps * forward_operations(case) / measured["product FLOP/s"]
        benchmark.extra_info |= {"rates": measured, "floor s": floor}
        benchmark.extra_info["fraction of floor"] = floor / benchmark.stats.stats.median  # type: ignore[union-attr]
    agree(found, opponents_answer(case))


def measure_opponent(benchmark: BenchmarkFixture, case: Case, waste: Callable[[], None] | None = None) -> None:
    s = setting(case, CPU)

    def call() -> Gradients:
        if waste is not None:
            waste()
        return s.opponent(opponent(case))

    found = record(benchmark, case, PUBLISHED if waste else CLEAN, call)
    agree(found, s.step(OuterStep(s.student, adjoint=case.adjoint)))


@cache
def opponents_answer(case: Case) -> Gradients:
    return setting(case, CPU).opponent(opponent(case))


def opponent(case: Case) -> Callable[..., Gradients]:
    return double_backward if case.gradient == "truncated" else unrolled


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The cases in order of importance."""
    if metafunc.function is test_outer_step:
        all_ways: list[Any] = [CLEAN, *reversed(OURS), PUBLISHED]
        chosen = [
            (case, way)
            for case in OUTER
            for way in (*all_ways, *(GENERAL if case.frozen else ()))
            if _applies(case, way)
        ]
        metafunc.parametrize(("case", "way"), chosen, ids=str)
    if metafunc.function is test_growth:
        # Each axis passes through the same case once.
        grown = [(axis, case) for axis, along in GROWTH.items() for case in along]
        metafunc.parametrize(("axis", "case"), grown, ids=str)


def _applies(case: Case, way: Any) -> bool:
    """The published loop is shown for truncated gradients of trained towers, which is what it computes."""
    return way != PUBLISHED or (case.gradient == "truncated" and not case.frozen)


def test_outer_step(benchmark: BenchmarkFixture, case: Case, way: Way | str, tmp_path: Path) -> None:
    if isinstance(way, Way):
        measure_ours(benchmark, case, way)
    elif way == PUBLISHED:
        points = [setting(case, CPU).trajectory.point(t) for t in range(6)]
        waste = Waste(lambda: build_tower(case.tower, case.size)[0], tmp_path / "replay_buffer.pt", points)
        measure_opponent(benchmark, case, partial(waste, CPU))
    else:
        measure_opponent(benchmark, case)


@pytest.mark.parametrize("way", [OURS[0], CLEAN], ids=str)
def test_growth(benchmark: BenchmarkFixture, axis: str, case: Case, way: Way | str) -> None:
    benchmark.extra_info["axis"] = axis
    if isinstance(way, Way):
        measure_ours(benchmark, case, way)
    else:
        measure_opponent(benchmark, case)
