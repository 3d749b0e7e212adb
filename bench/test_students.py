"""Students of one evaluation, one at a time and as one stack: `pytest bench/test_students.py --benchmark-json FILE`."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.measure import environment, synchronise
from ptmst import DistilledSet, EncoderConfig, EvaluateConfig, Student, SyntheticPairs
from ptmst.distilled import DistilledPhase
from ptmst.encoders import make_student
from ptmst.evaluation import train_students
from ptmst.similarity import FullSimilarity

STUDENTS, PAIRS, SIZE, TEXT_WIDTH, EPOCHS = 4, 100, 32, 256, 3
DRAWS = [(0, "student", number) for number in range(STUDENTS)]


def students(frozen: bool, device: torch.device) -> tuple[Student, torch.Tensor]:
    encoder = EncoderConfig(image_width=64, freeze_tower=frozen)
    made = [make_student(encoder, SIZE, TEXT_WIDTH, draw) for draw in DRAWS]
    return made[0].to(device), torch.stack([student.flatten() for student in made]).to(device)


def distilled() -> DistilledSet:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(PAIRS, 3, SIZE, SIZE, generator=draw)
    lr = torch.full((2,), 0.05)
    pairs = SyntheticPairs(images, torch.randn(PAIRS, TEXT_WIDTH, generator=draw), FullSimilarity.identity(PAIRS), lr)
    return DistilledSet((DistilledPhase(pairs, lr, ("",) * PAIRS, {}),), {}, {}, None)


def trained(frozen: bool, together: int, device: torch.device) -> torch.Tensor:
    """θ [K, P] after all epochs."""
    student, thetas = students(frozen, device)
    config = EvaluateConfig(epochs=EPOCHS - 1)
    parts = []
    for first in range(0, STUDENTS, together):
        some = slice(first, first + together)
        *_, (_, theta) = train_students(student, thetas[some], distilled(), config, DRAWS[some])
        parts.append(theta)
    synchronise(device)
    return torch.cat(parts)


@pytest.mark.parametrize("together", [1, STUDENTS])
@pytest.mark.parametrize("frozen", [False, True])
def test_students(benchmark: BenchmarkFixture, frozen: bool, together: int, device: torch.device) -> None:
    found = benchmark.pedantic(trained, args=(frozen, together, device), rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {
        "students": STUDENTS,
        "together": together,
        "frozen": frozen,
        "pairs": PAIRS,
        "epochs": EPOCHS,
        "environment": environment(device),
    }
    other = trained(frozen, 1 if together > 1 else STUDENTS, device)
    assert float((found - other).norm() / other.norm()) < 1e-4
