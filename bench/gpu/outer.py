"""The captured outer step in every precision, and its opponents."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from bench.baselines import Gradients
from bench.cases import FORWARDS, Case
from bench.gpu.rows import Sheet, Wrong
from bench.gpu.timing import alone, profiled, release, timed
from bench.measure import copy_bandwidth, peak_memory, product_rate
from bench.result import Row
from bench.settings import COSINE, cosines, forward_operations, opponent, setting
from ptmst.config import Precision
from ptmst.engine.cuda_graph import Captured, Tensors, cuda_graph
from ptmst.engine.outer_step import OuterStep
from ptmst.support.devices import arithmetic

CUDA = torch.device("cuda", 0)
_PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
_ALONE = 0.9
"""Share of the device's memory that must be free for an out-of-memory error to count as a result."""


class Recorded(OuterStep):
    """A captured step that can be recorded again without compiling again."""

    def again(self, tf32: bool) -> None:
        """Discard the recording and its memory. The next call records again, with TF32 in convolutions if `tf32`."""
        self._captured = Captured(_record_in_tf32 if tf32 else cuda_graph)

    def replay(self) -> None:
        """Repeat the last call without copying its inputs."""
        assert self._captured._replay is not None
        self._captured._replay()


def _record_in_tf32(function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
    with _convolutions_in_tf32():
        return cuda_graph(function)


@contextmanager
def _convolutions_in_tf32() -> Iterator[None]:
    """TF32 in convolutions while float32 is set. Compiled code does not depend on it, so nothing is compiled again."""
    cudnn: Any = torch.backends.cudnn
    cudnn.allow_tf32, cudnn.conv.fp32_precision = True, "tf32"
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.conv.fp32_precision = False, "ieee"


def captured(sheet: Sheet, case: Case, precisions: tuple[Precision, ...]) -> None:
    """The captured step, compiled once for the first precision; TF32 in convolutions is recorded again after fp32."""
    measured = _Measured(case, precisions[0])
    sheet.row("compile", 0, measured.compile_time)
    for precision in reversed(precisions):
        sheet.row(precision, 20, partial(measured.step, precision))
        sheet.row(f"{precision}, profile", 10, partial(measured.profile, precision))


class _Measured:
    """One compiled step of a case."""

    def __init__(self, case: Case, compiled_for: Precision) -> None:
        self._case, self._compiled_for = case, compiled_for
        self._made: Recorded | None = None
        self._first: Row = {}

    def compile_time(self) -> Row:
        """Seconds until the first outer step is complete, including the recording."""
        self._recorded(self._compiled_for)
        return {"case": str(self._case), "precision": self._compiled_for, **self._first}

    def step(self, precision: Precision) -> Row:
        case, s = self._case, setting(self._case, CUDA)
        step, graphs = self._recorded(precision), _compiled("unique_graphs")
        with alone():
            peak = peak_memory(CUDA, partial(s.step, step))
            compared = compare(s.step(step), expected(case), precision)
            times, replay = timed(partial(s.step, step)), timed(step.replay)
            with arithmetic("tf32" if precision == "tf32" else "fp32"):
                rate = product_rate(CUDA, torch.bfloat16 if precision == "bf16" else torch.float32)
            copied = copy_bandwidth(CUDA)
        floor = 1000 * FORWARDS[case.gradient, "path"] * case.steps * forward_operations(case) / rate
        return {
            **case.described(),
            "way": f"ptmst captured, {precision}",
            **times,
            "replay ms": replay["ms"],
            "peak MB": peak / 2**20,
            "floor ms": floor,
            "fraction of floor": floor / times["ms"],
            "product FLOP/s": rate,
            "copied bytes/s": copied,
            "compiled again": _compiled("unique_graphs") > graphs,
            "cosine": compared,
        }

    def profile(self, precision: Precision) -> Row:
        step = self._recorded(precision)
        with alone():
            setting(self._case, CUDA).step(step)
            kernels = profiled(step.replay)
        if not kernels["kernels"]:
            raise Wrong("expected the profiler to see kernels, found none")
        return {"case": str(self._case), "precision": precision, **kernels}

    def _recorded(self, precision: Precision) -> Recorded:
        """The step; its next call records it in this precision."""
        if self._made is None:
            s = setting(self._case, CUDA)
            self._made = Recorded(s.student, compile="on", precision=self._compiled_for, adjoint=self._case.adjoint)
            began = time.perf_counter()
            s.step(self._made)
            torch.cuda.synchronize()
            self._first = {
                "compile s": time.perf_counter() - began,
                "graphs": _compiled("unique_graphs"),
                "graphs from the cache": _compiled("fxgraph_cache_hit", "inductor"),
            }
        self._made.again(tf32=(self._compiled_for, precision) == ("fp32", "tf32"))
        return self._made


def opponents(sheet: Sheet, case: Case) -> None:
    """What is used today, and our step without a compiler."""
    clean = "double backward" if case.gradient == "truncated" else "unrolled"
    theirs = partial(setting(case, CUDA).opponent, opponent(case))
    # torch's own arithmetic, as published: TF32 in convolutions.
    sheet.row(clean, 30, partial(_theirs, case, clean, theirs))
    sheet.row(f"{clean}, fp32", 30, partial(_theirs_in_float32, case, f"{clean}, fp32", theirs))
    for precision in _PRECISIONS:
        sheet.row(f"ptmst eager, {precision}", 20, partial(_eager, case, precision))
    if case.gradient == "truncated":
        sheet.row("published loop", 30, partial(_published, case, theirs))


def _theirs(case: Case, name: str, call: Callable[[], Gradients]) -> Row:
    about = case.described() | {"way": name}
    with alone():
        try:
            peak = peak_memory(CUDA, call)
            compared = compare(call(), expected(case), "tf32")
            return {**about, **timed(call, rounds=5, warm_up=1), "peak MB": peak / 2**20, "cosine": compared}
        except torch.OutOfMemoryError as error:
            full = str(error).splitlines()[0]
        # Only now: the error held the results.
        release()
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(CUDA))
    if free < _ALONE * total:
        raise Wrong(f"expected the device for itself, found {free:.0f} of {total:.0f} GiB free: {full}")
    return {**about, "out of memory": full}


def _theirs_in_float32(case: Case, name: str, call: Callable[[], Gradients]) -> Row:
    with arithmetic("fp32"):
        return _theirs(case, name, call)


def _published(case: Case, call: Callable[[], Gradients]) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        waste = setting(case, CUDA).waste(case, Path(folder) / "replay_buffer.pt")

        def loop() -> Gradients:
            waste(CUDA)
            return call()

        return _theirs(case, "published loop", loop)


def _eager(case: Case, precision: Precision) -> Row:
    s = setting(case, CUDA)
    step = OuterStep(s.student, precision=precision, adjoint=case.adjoint)
    with alone():
        peak = peak_memory(CUDA, partial(s.step, step))
        compared = compare(s.step(step), expected(case), precision)
        times = timed(partial(s.step, step), rounds=5, warm_up=1)
    return {
        **case.described(),
        "way": f"ptmst eager, {precision}",
        **times,
        "peak MB": peak / 2**20,
        "cosine": compared,
    }


@cache
def expected(case: Case) -> Gradients:
    """Gradients of our eager step in float32, which the checks compare with a CPU's; in chunks, to fit into memory."""
    s = setting(case, CUDA)
    gradients = s.step(OuterStep(s.student, adjoint=case.adjoint, chunk=case.batch // 4))
    torch.cuda.empty_cache()
    return gradients


def compare(gradients: Gradients, right: Gradients, precision: Precision) -> dict[str, float]:
    """Cosines by leaf. Raises Wrong if one is too small."""
    seen = cosines(gradients, right)
    # Also if it is not a number.
    if off := {name: cosine for name, cosine in seen.items() if not cosine >= COSINE[precision]}:
        raise Wrong(f"cosine with eager float32: expected at least {COSINE[precision]}, found {off}")
    return seen


def _compiled(what: str, of: str = "stats") -> int:
    """torch's count of what this process has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters[of][what])
