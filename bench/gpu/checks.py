"""Whether results on the device are right: tests that need one, the demo, and gradients compared with a CPU's."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.cases import Case
from bench.gpu.rows import Sheet, Wrong
from bench.result import RESULTS, Row
from bench.settings import setting
from ptmst import kernels
from ptmst.config import Compile, DistillConfig
from ptmst.data import write_data
from ptmst.distillation.distill import distill_with
from ptmst.engine.outer_step import OuterStep
from ptmst.engine.recursion import OuterGradient
from ptmst.presets import applied, experiment
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.teachers.teach import train_teachers
from ptmst.trajectories.spans import Span
from ptmst.trajectories.store import TrajectoryStore

ROOT = Path(__file__).parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
_POINTS = 3.0
"""Points of mean recall, percent: rounding alone changes 385 steps of training and distillation."""
_RELATIVE = 1e-4
_SECONDS_A_TEST = 30


def kernels_run(sheet: Sheet) -> None:
    """Triton runs every kernel."""
    for name, how in kernels.active().items():
        sheet.row(name, 1, partial(_is_triton, name, how))


def _is_triton(name: str, how: str) -> Row:
    if "Triton on CUDA" not in how:
        raise Wrong(f"{name}: expected Triton to run it, found {how}")
    return {"runs": how}


class Tests:
    """A pytest plugin: runs this part's share of the tests, each of them a row."""

    def __init__(self, sheet: Sheet, share: int, of: int) -> None:
        self._sheet, self._share, self._of = sheet, share, of

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items[self._share :: self._of] if self._sheet.wants(item.nodeid)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """True if it is not run."""
        return None if self._sheet.begin(item.nodeid, _SECONDS_A_TEST) else True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = str(crash.message if crash else report.longrepr).splitlines()[0]
            self._sheet.answer(report.nodeid, failed=f"{report.when}: {message}\n{report.longreprtext[-1500:]}")
            if self._sheet.spoilt() is not None:
                pytest.exit("the device accepts no more work")
        elif report.skipped:
            self._sheet.answer(report.nodeid, skipped=report.longreprtext)
        elif report.when == "call":
            self._sheet.answer(report.nodeid, seconds=round(report.duration, 2))


def tests(sheet: Sheet, files: tuple[str, ...], words: str, share: int, of: int) -> None:
    """One of several shares of the matching tests of some files.

    Raises Spoilt, and RuntimeError if pytest cannot run them.
    """
    paths = [str(ROOT / file) for file in files]
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}"]
    code = pytest.main([*options, *(["-k", words] if words else []), *paths], plugins=[Tests(sheet, share, of)])
    sheet.check_device()
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest: expected it to run {', '.join(files)}, found exit code {code!r}")


def demo(sheet: Sheet, data: str, quick: bool) -> None:
    """A demo, end to end, beside the results of the same on a CPU."""
    options = ["--data", data, *(["--quick"] if quick else [])]
    sheet.row(" ".join(["ptmst demo", *options]), 120, partial(_demo, options, f"demo-{data}{'-quick' * quick}.json"))


def _demo(options: list[str], on_a_cpu: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        command = [sys.executable, "-m", "ptmst", "demo", *options, "--out", str(out)]
        last = ""
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for last in process.stdout:
                print(last, end="")
        if process.returncode:
            raise Wrong(f"expected it to run to its end, found exit code {process.returncode}: {last.strip()}")
        results = json.loads((out / "results.json").read_text())
    return same_means(results, json.loads((RESULTS / on_a_cpu).read_text()))


def same_means(results: Mapping[str, Any], on_a_cpu: Mapping[str, Any]) -> Row:
    """Mean recalls of a demo, row by row. Raises Wrong if one is too far from the CPU's."""
    means, expected = _means(results), _means(on_a_cpu)
    if off := {name: mean for name, mean in means.items() if not abs(mean - expected[name]) <= _POINTS}:
        raise Wrong(f"mean recall: expected {expected} within {_POINTS} points, found {off}")
    return {"minutes": results["minutes"], "mean recall": means, "on a CPU": expected}


def _means(results: Mapping[str, Any]) -> dict[str, float]:
    return {row["name"]: row["recall"]["mean"]["mean"] for row in results["rows"]}


def gradients(sheet: Sheet, cases: tuple[Case, ...], images: int) -> None:
    """The first outer step of the demo, also with LoRS, and of other towers, in float32."""
    for case in cases:
        sheet.row(str(case), 30, partial(_of_case, case))
    with tempfile.TemporaryDirectory() as folder:
        store = cache(partial(_one_expert, Path(folder), images))
        for method in ("ptm-st", "lors"):
            for compile in ("off", "on"):
                name = f"first outer step, {method}, {'captured' if compile == 'on' else 'eager'}"
                sheet.row(name, 40, partial(_of_first_step, method, compile, store))


def _of_case(case: Case) -> Row:
    gradients, expected = (
        setting(case, device).step(OuterStep(setting(case, device).student, adjoint=case.adjoint))
        for device in (CUDA, CPU)
    )
    return close(gradients, expected)


def _one_expert(folder: Path, images: int) -> TrajectoryStore:
    """One expert of the quick demo."""
    quick = experiment("scenes-quick")
    write_data(replace(quick.data, root=folder / "data", train=images, warmup=images))
    data = replace(quick.teach.data, root=folder / "data")
    return train_teachers(replace(quick.teach, out=folder / "store", data=data, experts=1))


class _FirstStep(OuterStep):
    """Keeps the inputs and the gradient of the first outer step, and ends the distillation there."""

    class Done(Exception):
        pass

    inputs: tuple[Span, SyntheticPairs, Tensor]
    gradient: OuterGradient

    def __call__(
        self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None = None
    ) -> OuterGradient:
        self.inputs, self.gradient = (span, pairs, batches), super().__call__(span, pairs, batches, mixing)
        raise self.Done


def _of_first_step(method: str, compile: Compile, store: Any) -> Row:
    quick: DistillConfig = applied(method, experiment("scenes-quick")).distill
    config = replace(quick, keep="path", chunk=None, compile=compile, device="auto")
    student = store().student((config.seed, "student"))
    step = _FirstStep.of(student.to(CUDA), config)
    try:
        distill_with(step, config, store())
    except _FirstStep.Done:
        pass
    gradients = {name: gradient.cpu() for name, gradient in step.gradient.grads.items()}
    span, pairs, batches = step.inputs
    on_a_cpu = OuterStep.of(student.to(CPU), replace(config, compile="off"))(
        span.replace({name: value.cpu() for name, value in span.tensors().items()}),
        pairs.replace({name: value.cpu() for name, value in pairs.leaves().items()}),
        batches.cpu(),
    )
    return close(gradients, on_a_cpu.grads)


def close(gradients: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Row:
    """Relative distances by leaf. Raises Wrong if one is too large."""
    distances = {name: _distance(gradients[name].cpu(), value) for name, value in expected.items()}
    if off := {name: distance for name, distance in distances.items() if not distance <= _RELATIVE}:
        raise Wrong(f"relative distance from the CPU's gradient: expected at most {_RELATIVE}, found {off}")
    return {"relative distance": distances}


def _distance(gradient: Tensor, expected: Tensor) -> float:
    """0 if both are 0, as is the gradient of a low-rank factor at the first step."""
    off = (gradient.double() - expected.double()).norm()
    return float(off / expected.double().norm()) if off else 0.0
