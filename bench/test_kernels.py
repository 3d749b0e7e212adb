"""Seconds and memory of every kernel family on a CPU, ours and others'; `python -m bench.kernels` runs them.

No speed counts for a wrong answer: after its timing every result is compared with the definition in float64.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import COMPILED, CONTRASTIVE, FLAT, OPEN_CLIP, OURS_KERNEL, PLAIN, Contrastive, Flat
from bench.measure import copy_bandwidth, peak_memory, product_rate
from bench.providers import (
    applies,
    contrastive_call,
    contrastive_check,
    contrastive_expected,
    embeddings,
    flat_call,
    flat_check,
    lacking_memory,
    vectors,
)
from ptmst import kernels

CPU = torch.device("cpu")


@cache
def rate() -> float:
    return product_rate(CPU)


@pytest.mark.parametrize("provider", [PLAIN, COMPILED, OURS_KERNEL])
@pytest.mark.parametrize("case", FLAT, ids=str)
def test_flat(benchmark: BenchmarkFixture, case: Flat, provider: str) -> None:
    torch.compiler.reset()
    call = flat_call(case, provider, vectors(case, CPU))
    # Before and after: on a shared machine it changes from minute to minute.
    before = copy_bandwidth(CPU)
    benchmark.pedantic(call, rounds=20, warmup_rounds=3)
    seconds, copied = benchmark.stats.stats.median, max(before, copy_bandwidth(CPU))  # type: ignore[union-attr]
    benchmark.extra_info |= {
        "kernel": case.kernel,
        "provider": provider,
        "parameters": case.parameters,
        "bytes": case.bytes,
        "copied bytes/s": copied,
        "times the floor": seconds * copied / case.bytes,
        "runs": kernels.active()[case.kernel],
    }
    flat_check(case, provider, CPU)
    vectors.cache_clear()


@pytest.mark.parametrize("provider", [PLAIN, COMPILED, OPEN_CLIP, OURS_KERNEL])
@pytest.mark.parametrize("case", CONTRASTIVE, ids=str)
def test_contrastive(benchmark: BenchmarkFixture, case: Contrastive, provider: str) -> None:
    if not applies(case, provider):
        pytest.skip("open_clip has this loss with hard labels only")
    if (reason := lacking_memory(case, provider, CPU)) is not None:
        pytest.skip(reason)
    torch.compiler.reset()
    call = contrastive_call(case, provider, CPU)
    call()
    peak = peak_memory(CPU, call)
    answer = benchmark.pedantic(call, rounds=20 if case.pairs <= 1024 else 5 if case.pairs <= 8192 else 1)
    benchmark.extra_info |= {
        "kernel": f"soft_contrastive {case.kind}, {case.labels} labels",
        "provider": provider,
        "pairs": case.pairs,
        "width": case.width,
        "peak MB": peak / 2**20,
        "product FLOP/s": rate(),
        "floor s": 6 * case.pairs**2 * case.width / rate(),
        "runs": kernels.active()["soft_contrastive"],
    }
    contrastive_check(case, provider, answer, CPU)
    embeddings.cache_clear()
    contrastive_expected.cache_clear()
