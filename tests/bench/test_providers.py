"""The definitions that benchmarks compare with are those of `ptmst.kernels.reference`."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.cases import OURS_KERNEL, PLAIN, Contrastive, Flat
from bench.providers import (
    _DECAY,
    _LR,
    _MOMENTUM,
    _TEMPERATURE,
    contrastive_call,
    contrastive_check,
    embeddings,
    flat_call,
    flat_check,
    flat_expected,
    infonce_in_blocks,
    vectors,
)
from oracles import relative_error
from ptmst.kernels import reference

CPU = torch.device("cpu")
FLAT = [
    Flat(name, 40_000) for name in ("shortcut_point", "matching_residual", "vector_residual", "flat_sgd_", "sgd_ema_")
]


def inputs(case: Flat) -> dict[str, Tensor]:
    """In float64, but for what is stored in half precision, and to be changed freely."""
    kept = ("displacement", "offsets", "groups")
    v = {name: value.clone() if name in kept else value.double() for name, value in vectors(case, CPU).items()}
    return v | {"lr": torch.full((2,), _LR, dtype=torch.float64)}


def by_reference(case: Flat, v: dict[str, Tensor]) -> list[Tensor]:
    """The vectors that the reference returns or changes, then sums by group."""
    stored = v["base"], v["displacement"], v["scale"], v["offsets"]
    if case.kernel == "shortcut_point":
        return [reference.shortcut_point(*stored, v["beta_target"])]
    if case.kernel == "matching_residual":
        betas = v["beta_start"], v["beta_target"]
        return list(reference.matching_residual(v["theta"], *stored, v["groups"], *betas, 2))
    if case.kernel == "vector_residual":
        return list(reference.vector_residual(v["theta"], v["base"], v["grad"], v["offsets"], v["groups"], 2))
    if case.kernel == "flat_sgd_":
        reference.flat_sgd_(v["theta"], v["grad"], v["lr"], v["offsets"], v["groups"])
        return [v["theta"]]
    reference.sgd_ema_(v["theta"], v["grad"], v["buffer"], v["base"], _LR, _MOMENTUM, _DECAY)
    return [v["theta"], v["buffer"], v["base"]]


@pytest.mark.parametrize("case", FLAT, ids=str)
def test_the_float64_answer_is_the_references(case: Flat) -> None:
    expected = by_reference(case, inputs(case))
    v, ends = inputs(case), vectors(case, CPU)["offsets"].tolist()
    layers = [flat_expected(case, v, n, slice(*of)) for n, of in enumerate(pairwise(ends))]
    made = [torch.cat(parts) for parts in zip(*(made for made, _ in layers), strict=True)]
    for n, value in enumerate(made):
        assert relative_error(value, expected[n]) <= 1e-12
    for n, value in enumerate(expected[len(made) :]):
        sums = torch.zeros(2, dtype=torch.float64)
        for group, (_, terms) in zip(v["groups"].tolist(), layers, strict=True):
            sums[group] += terms[n]
        assert relative_error(sums, value) <= 1e-12


@pytest.mark.parametrize("provider", [PLAIN, OURS_KERNEL])
@pytest.mark.parametrize("case", FLAT, ids=str)
def test_a_provider_computes_it(case: Flat, provider: str) -> None:
    flat_check(case, provider, CPU)


@pytest.mark.parametrize("case", FLAT, ids=str)
def test_a_wrong_answer_is_seen(case: Flat, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(case: Flat, provider: str, v: dict[str, Tensor]) -> Any:
        call = flat_call(case, provider, v)

        def off() -> Any:
            answer = call()
            first = answer[0] if isinstance(answer, tuple) else answer
            first[0] += 1
            return answer

        return off

    monkeypatch.setattr("bench.providers.flat_call", wrong)
    with pytest.raises(AssertionError):
        flat_check(case, OURS_KERNEL, CPU)


def test_infonce_in_blocks_is_the_references() -> None:
    case = Contrastive("infonce", 100, width=16)
    units = (torch.nn.functional.normalize(v.double()) for v in embeddings(case, CPU)[:2] if v is not None)
    images, texts = (v.requires_grad_() for v in units)
    value = reference.soft_contrastive(images, texts, kind="infonce", temperature=_TEMPERATURE)
    (gradient,) = torch.autograd.grad(value, images)
    found = infonce_in_blocks(images.detach(), texts.detach(), first=7, rows=32)
    for mine, expected in zip(found, (value.detach(), gradient[:7]), strict=True):
        assert relative_error(mine, expected) <= 1e-12


@pytest.mark.parametrize("kind", ["infonce", "wbce", "kl"])
def test_a_contrastive_loss_is_checked(kind: Any) -> None:
    case = Contrastive(kind, 48, "dense", width=16)
    answer = contrastive_call(case, OURS_KERNEL, CPU)()
    check = partial(contrastive_check, case, OURS_KERNEL, device=CPU)
    check(answer)
    with pytest.raises(AssertionError):
        check([answer[0], 1.01 * answer[1], *answer[2:]])
