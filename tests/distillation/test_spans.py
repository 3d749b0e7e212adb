"""Outer steps on several spans: whose they are, and that their gradient is the mean of what each would give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ptmst import InputError, TrajectoryStore, distill
from ptmst.config import Phase
from ptmst.distillation import distill as module
from ptmst.distillation.draws import expert_of
from ptmst.distillation.optimizer import outer_update
from ptmst.engine.outer_step import OuterStep
from ptmst.engine.recursion import OuterGradient
from ptmst.schema import check
from tiny import DISTILL, tiny_store

THREE = replace(DISTILL, phases=(Phase(8, 2, (0, 2)),), spans_per_step=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory, False)


@pytest.mark.parametrize("experts", [1, 2, 5])
def test_each_expert_comes_once_before_any_comes_again(experts: int) -> None:
    numbers = [10 + number for number in range(experts)]
    for step in range(20):
        drawn = [expert_of(numbers, 3, 1, step, part)[0] for part in range(2 * experts)]
        assert sorted(drawn[:experts]) == sorted(drawn[experts:]) == numbers
    firsts = {expert_of(numbers, 3, 1, step)[0] for step in range(60)}
    assert firsts == {*numbers}
    seconds = {expert_of(numbers, 3, 1, step, 1)[0] for step in range(60)}
    assert seconds == {*numbers}


def test_parts_draw_apart() -> None:
    values = [float(torch.rand((), generator=expert_of([0], 3, 1, 2, part)[1])) for part in range(4)]
    assert len({*values}) == 4


class Seen:
    """An outer step that notes what it is taken on, and what it gives."""

    def __init__(self, store: TrajectoryStore, patch: pytest.MonkeyPatch) -> None:
        self.gradients, self.spans, self.updates = list[OuterGradient](), list[Any](), list[OuterGradient]()
        call = OuterStep.__call__

        def noted(step: OuterStep, span: Any, *more: Any) -> OuterGradient:
            found = call(step, span, *more)
            self.gradients.append(found.kept())
            self.spans.append(span.start.clone())
            return found

        def updated(state: Any, gradient: OuterGradient, config: Any) -> Any:
            self.updates.append(gradient.kept())
            return outer_update(state, gradient, config)

        patch.setattr(OuterStep, "__call__", noted)
        patch.setattr(module, "outer_update", updated)


@pytest.mark.slow
def test_a_step_takes_the_mean_of_its_spans(store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(store, monkeypatch)
    made = distill(THREE, store)
    assert len(seen.updates) == THREE.steps and len(seen.gradients) == 3 * THREE.steps
    for step, taken in enumerate(seen.updates):
        parts = seen.gradients[3 * step : 3 * step + 3]
        for name, grad in taken.grads.items():
            mean = torch.stack([part.grads[name].double() for part in parts]).mean(0)
            torch.testing.assert_close(grad.double(), mean, rtol=1e-5, atol=1e-7)
            assert not torch.allclose(grad, parts[0].grads[name], rtol=1e-3)
        losses = torch.stack([part.per_group.double() for part in parts]).mean(0)
        torch.testing.assert_close(made.phases[0].history["loss"][step].double(), losses, rtol=1e-5, atol=0)


@pytest.mark.slow
def test_the_first_span_is_that_of_a_step_with_one(store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        one = Seen(store, patch)
        distill(replace(THREE, spans_per_step=1, steps=1), store)
    with monkeypatch.context() as patch:
        three = Seen(store, patch)
        distill(replace(THREE, steps=1), store)
    assert torch.equal(one.gradients[0].grads["images"], three.gradients[0].grads["images"])
    assert len(one.gradients) == 1 and len(three.gradients) == 3


@pytest.mark.slow
@pytest.mark.parametrize("progressive", [False, True])
def test_a_stopped_run_goes_on_to_the_same_bits(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progressive: bool
) -> None:
    config = replace(DISTILL, spans_per_step=2, progressive=progressive, checkpoint_minutes=0.0)
    whole = distill(config, store)
    with monkeypatch.context() as patch:
        seen = Seen(store, patch)

        def stopped(state: Any, gradient: OuterGradient, config: Any) -> Any:
            if len(seen.updates) == DISTILL.steps + 2:
                raise MemoryError
            seen.updates.append(gradient)
            return outer_update(state, gradient, config)

        patch.setattr(module, "outer_update", stopped)
        with pytest.raises(MemoryError):
            distill(replace(config, out=tmp_path / "set"), store)
    again = distill(replace(config, out=tmp_path / "set"), store, resume=True)
    for ours, theirs in zip(again, whole, strict=True):
        assert all(torch.equal(ours.leaves()[name], leaf) for name, leaf in theirs.leaves().items())


def test_no_span_is_refused() -> None:
    with pytest.raises(InputError, match=r"^spans_per_step: expected a positive number, found 0"):
        check(replace(DISTILL, spans_per_step=0))
