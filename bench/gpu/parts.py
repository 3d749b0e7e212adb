"""The parts of `python -m bench.gpu` in order of importance, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.cases import CONTRASTIVE, FLAT, Case
from ptmst.config import Precision

Stage = Literal["checks", "measures"]
STAGES: tuple[Stage, ...] = ("checks", "measures")
CORES = 16
"""CPU cores of the machine that the estimates are for, which has an H100 or H200."""
_IMPORTS = 15
"""Seconds until a process is ready."""


@dataclass(frozen=True)
class Part:
    """The work of one process."""

    name: str
    stage: Stage
    function: str
    """MODULE.FUNCTION of this package; it takes a Sheet first."""
    arguments: tuple[Any, ...]
    first: float
    """Estimated seconds until its first row."""
    seconds: float
    """Estimated seconds in all, without waiting for the device."""
    cores: int = 1
    gigabytes: int = 2
    """Memory of the device that it keeps; a part takes more while it measures."""


NFNET = Case("nfnet_l0", 224, 40, pairs=200)
_TRUNCATED = (
    (NFNET, 300),
    (Case("vit_small_patch16_224", 224, 40, pairs=200), 120),
    (Case("resnet50_gn", 224, 40, pairs=200), 180),
    (replace(NFNET, batch=20, pairs=100), 300),
)
"""Cases, and estimated seconds to compile one."""
_EXACT = tuple((replace(case, gradient="exact"), seconds) for case, seconds in _TRUNCATED[:2])
_CONVOLUTIONAL: tuple[tuple[Precision, ...], ...] = (("fp32", "tf32"), ("bf16",))
"""Compiled together: with TF32 only in convolutions, the code is that for float32."""
_OTHERS: tuple[tuple[Precision, ...], ...] = (("tf32",), ("bf16",), ("fp32",))
_GRADIENTS = (Case("convnet-64", 32, 25, pairs=50), Case("nfnet_l0", 96, 8, pairs=20, steps=2))
_TESTS = ("tests/test_gpu.py",)
_LANES = tuple(f"tests/kernels/test_{name}.py" for name in ("kernels", "contrast", "ops", "triton"))


def parts(dry: bool) -> tuple[Part, ...]:
    """All parts; with `dry`, the same on small cases: a test that they run, not a measurement."""
    if not dry:
        return (*_checks(), *_measures())
    return tuple(replace(part, first=0, seconds=0, cores=1, gigabytes=0) for part in _dry())


def _checks() -> list[Part]:
    return [
        Part("kernels", "checks", "checks.kernels_run", (), _IMPORTS, 20),
        Part("demo-scenes", "checks", "checks.demo", ("scenes", True), 120, 120, cores=2),
        Part("demo-emoji", "checks", "checks.demo", ("emoji", False), 200, 200, cores=3),
        *_tests("tests", _TESTS, "", shares=4, seconds=90, cores=2),
        Part("gradients", "checks", "checks.gradients", (_GRADIENTS, 1000), 40, 100, cores=2),
        *_tests("lane", _LANES, "triton", shares=3, seconds=60),
    ]


def _tests(
    name: str, files: tuple[str, ...], words: str, shares: int, seconds: float = 0, cores: int = 1
) -> Iterator[Part]:
    for share in range(shares):
        arguments = (files, words, share, shares)
        yield Part(f"{name}-{share + 1}", "checks", "checks.tests", arguments, 45, seconds, cores, gigabytes=4)


def _measures() -> list[Part]:
    (first, compiling), *others = _TRUNCATED
    contrastive = tuple(case for case in CONTRASTIVE if case.kind in ("infonce", "wbce"))
    measures = [
        *(_captured(first, together, compiling) for together in _forms(first)),
        _opponents(first),
        Part("flat", "measures", "kernels.flat", (FLAT,), 25, 120, gigabytes=4),
        Part("contrastive", "measures", "kernels.contrastive", (contrastive,), 30, 180),
        Part("teach", "measures", "runs.teach", ("timm:nfnet_l0", 224, 2048, 128), 40, 80, gigabytes=4),
        Part("students", "measures", "runs.students", ("timm:nfnet_l0", 224, 2), 40, 120, gigabytes=4),
    ]
    for case, compiling in (*others, *_EXACT):
        measures += [_captured(case, _forms(case)[0], compiling), _opponents(case)]
    return measures + [_captured(case, form, compiling) for case, compiling in others for form in _forms(case)[1:]]


def _forms(case: Case) -> tuple[tuple[Precision, ...], ...]:
    return _OTHERS if case.tower.startswith("vit") else _CONVOLUTIONAL


def _dry() -> list[Part]:
    """Each function, and each kind of argument, once."""
    small = Case("convnet-8", 16, 4, pairs=8, steps=2)
    exact = replace(small, gradient="exact")
    flat = tuple(replace(case, parameters=100_000) for case in FLAT[:2])
    return [
        Part("kernels", "checks", "checks.kernels_run", (), 0, 0),
        Part("demo-scenes", "checks", "checks.demo", ("scenes", True), 0, 0),
        *_tests("tests", (*_TESTS, *_LANES), "recorded or tables", shares=1),
        Part("gradients", "checks", "checks.gradients", ((small,), 60), 0, 0),
        _captured(small, _CONVOLUTIONAL[0], 0),
        _opponents(small),
        Part("flat", "measures", "kernels.flat", (flat,), 0, 0),
        Part("contrastive", "measures", "kernels.contrastive", (CONTRASTIVE[:1],), 0, 0),
        Part("teach", "measures", "runs.teach", ("convnet", 16, 16, 8), 0, 0),
        Part("students", "measures", "runs.students", ("convnet", 16, 2), 0, 0),
        _captured(exact, ("bf16",), 0),
        _opponents(exact),
    ]


def _captured(case: Case, precisions: tuple[Precision, ...], compiling: float) -> Part:
    name = f"outer-{_short(case)}-{'-'.join(precisions)}"
    first = _IMPORTS + compiling
    return Part(name, "measures", "outer.captured", (case, precisions), first, first + 35 * len(precisions), 4, 12)


def _opponents(case: Case) -> Part:
    # They wait for the host most of the time, which others would slow down.
    return Part(f"opponents-{_short(case)}", "measures", "outer.opponents", (case,), 45, 120, cores=CORES)


def _short(case: Case) -> str:
    tower = case.tower.split("_")[0]
    return f"{tower}-b{case.batch}{'-exact' if case.gradient == 'exact' else ''}"
