"""Seconds of the students of one evaluation; `python -m bench.students` runs it."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.stacks import EPOCHS, PAIRS, SIZE, STUDENTS, encoder, trained


@pytest.mark.parametrize("together", [1, STUDENTS])
@pytest.mark.parametrize("frozen", [False, True])
def test_students(benchmark: BenchmarkFixture, frozen: bool, together: int) -> None:
    cpu = torch.device("cpu")
    arguments = encoder(frozen), SIZE, STUDENTS
    thetas = benchmark.pedantic(trained, args=(*arguments, together, cpu), rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {
        "students": STUDENTS,
        "together": together,
        "frozen": frozen,
        "pairs": PAIRS,
        "epochs": EPOCHS,
    }
    other = trained(*arguments, 1 if together > 1 else STUDENTS, cpu)
    assert float((thetas - other).norm() / other.norm()) < 1e-4
