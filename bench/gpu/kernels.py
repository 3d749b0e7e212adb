"""The kernels on the device: queued one by one, and in a CUDA graph, compared with the bandwidth of a copy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bench.cases import COMPILED, OPEN_CLIP, OURS_KERNEL, PLAIN, Contrastive, Flat
from bench.gpu.rows import Sheet, Wrong
from bench.gpu.timing import alone, timed, timed_in_graph
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
from bench.result import Row
from ptmst import kernels

CUDA = torch.device("cuda", 0)
_QUEUED = 20
_SHORT = 2048
"""With up to so many pairs a call is short, and several are timed together."""


def flat(sheet: Sheet, cases: tuple[Flat, ...]) -> None:
    """Milliseconds, and the share of them that a copy of as many bytes would take."""
    for case in cases:
        for provider in (OURS_KERNEL, COMPILED, PLAIN):
            sheet.row(f"{case}, {provider}", 15, partial(_flat, case, provider))


def _flat(case: Flat, provider: str) -> Row:
    torch.compiler.reset()
    call = flat_call(case, provider, vectors(case, CUDA))
    call()
    with alone():
        queued, graphed, copied = timed(call, queued=_QUEUED), timed_in_graph(call), copy_bandwidth(CUDA)
        del call
        _check(partial(flat_check, case, provider, CUDA))
    vectors.cache_clear()
    floor = 1000 * case.bytes / copied
    return {
        "kernel": case.kernel,
        "parameters": case.parameters,
        "provider": provider,
        "bytes": case.bytes,
        "runs": kernels.active()[case.kernel],
        **queued,
        "graph ms": graphed["ms"],
        "copied bytes/s": copied,
        "of a copy": floor / queued["ms"],
        "of a copy, in a graph": floor / graphed["ms"],
    }


def contrastive(sheet: Sheet, cases: tuple[Contrastive, ...]) -> None:
    """Value and gradients. A graph has a separate row, so that a call that cannot be recorded is still timed."""
    for case in cases:
        for provider in (OURS_KERNEL, OPEN_CLIP, COMPILED, PLAIN):
            if applies(case, provider):
                sheet.row(f"{case}, {provider}", 15, partial(_contrastive, case, provider, _queued))
                sheet.row(f"{case}, {provider}, in a graph", 10, partial(_contrastive, case, provider, _graphed))
        embeddings.cache_clear()


def _contrastive(case: Contrastive, provider: str, measure: Callable[..., Row]) -> Row:
    about = {
        "loss": case.kind,
        "labels": case.labels,
        "pairs": case.pairs,
        "provider": provider,
        "runs": kernels.active()["soft_contrastive"],
    }
    if (lacking := lacking_memory(case, provider, CUDA)) is not None:
        return {**about, "out of memory": lacking}
    torch.compiler.reset()
    call = contrastive_call(case, provider, CUDA)
    call()
    with alone():
        measured = measure(case, call)
        _check(lambda: contrastive_check(case, provider, call(), CUDA))
    contrastive_expected.cache_clear()
    return {**about, **measured}


def _queued(case: Contrastive, call: Callable[[], object]) -> Row:
    product = product_rate(CUDA)
    return {
        "peak MB": peak_memory(CUDA, call) / 2**20,
        **timed(call, queued=_QUEUED if case.pairs <= _SHORT else 1),
        "floor ms": 1000 * 6 * case.pairs**2 * case.width / product,
        "product FLOP/s": product,
    }


def _graphed(_: Contrastive, call: Callable[[], object]) -> Row:
    return {"graph ms": timed_in_graph(call)["ms"]}


def _check(check: Callable[[], None]) -> None:
    """No speed counts for a wrong answer. Raises Wrong."""
    try:
        check()
    except AssertionError as error:
        raise Wrong(f"expected the answer in float64, found a different one: {error}") from error
