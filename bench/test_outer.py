"""Seconds and memory of an outer step on a CPU, ours and others'; `python -m bench.outer` runs them.

No speed counts for a wrong answer: after its timing every result is compared with that of another implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.baselines import Gradients
from bench.cases import CLEAN, FORWARDS, GENERAL, GROWTH, OURS, OUTER, PUBLISHED, Case, Implementation
from bench.measure import copy_bandwidth, peak_memory, product_rate
from bench.settings import COSINE, cosines, forward_operations, opponent, setting
from ptmst import OuterStep

CPU = torch.device("cpu")


@cache
def rates() -> dict[str, float]:
    """Measured in the same run: bytes a second copied, operations a second of products."""
    return {"copied bytes/s": copy_bandwidth(CPU), "product FLOP/s": product_rate(CPU)}


def record(benchmark: BenchmarkFixture, case: Case, way: str, call: Callable[[], Gradients]) -> Gradients:
    """Time `call`, then measure its memory; returns its gradients."""
    gradients: Gradients = benchmark.pedantic(call, rounds=3, warmup_rounds=1)
    benchmark.extra_info |= {
        **case.described(),
        "way": way,
        "parameters": setting(case, CPU).student.layers.num_params,
        "peak MB": peak_memory(CPU, call) / 2**20,
    }
    return gradients


def agree(gradients: Gradients, expected: Gradients) -> None:
    for name, cosine in cosines(gradients, expected).items():
        assert cosine >= COSINE["fp32"], name


def measure_ours(benchmark: BenchmarkFixture, case: Case, way: Implementation) -> None:
    s = setting(case, CPU)
    step = OuterStep(
        s.general if way.general else s.student,
        adjoint=case.adjoint,
        keep=way.keep,
        compile="on" if way.compiled else "off",
    )
    gradients = record(benchmark, case, way.name, partial(s.step, step))
    if not case.frozen:
        measured = rates()
        floor = FORWARDS[case.gradient, way.keep] * case.steps * forward_operations(case) / measured["product FLOP/s"]
        benchmark.extra_info |= {"rates": measured, "floor s": floor}
        benchmark.extra_info["fraction of floor"] = floor / benchmark.stats.stats.median  # type: ignore[union-attr]
    agree(gradients, opponents_answer(case))


def measure_opponent(benchmark: BenchmarkFixture, case: Case, waste: Callable[[], None] | None = None) -> None:
    s = setting(case, CPU)

    def call() -> Gradients:
        if waste is not None:
            waste()
        return s.opponent(opponent(case))

    gradients = record(benchmark, case, PUBLISHED if waste else CLEAN, call)
    agree(gradients, s.step(OuterStep(s.student, adjoint=case.adjoint)))


@cache
def opponents_answer(case: Case) -> Gradients:
    return setting(case, CPU).opponent(opponent(case))


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


def test_outer_step(benchmark: BenchmarkFixture, case: Case, way: Implementation | str, tmp_path: Path) -> None:
    if isinstance(way, Implementation):
        measure_ours(benchmark, case, way)
    elif way == PUBLISHED:
        waste = setting(case, CPU).waste(case, tmp_path / "replay_buffer.pt")
        measure_opponent(benchmark, case, partial(waste, CPU))
    else:
        measure_opponent(benchmark, case)


@pytest.mark.parametrize("way", [OURS[0], CLEAN], ids=str)
def test_growth(benchmark: BenchmarkFixture, axis: str, case: Case, way: Implementation | str) -> None:
    benchmark.extra_info["axis"] = axis
    if isinstance(way, Implementation):
        measure_ours(benchmark, case, way)
    else:
        measure_opponent(benchmark, case)
