"""A recorded outer step against the step itself, with a recorder that a CPU can play back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ptmst.engine.cuda_graph import Captured, Tensors
from ptmst.engine.outer_step import OuterStep
from ptmst.students.student import Student
from ptmst.synthetic.soft_labels import LowRankSimilarity
from ptmst.trajectories.shortcut import Displacement, Expert, Trajectory
from ptmst.trajectories.spans import Span
from tiny import OuterCase, outer_case, three_layers

pytestmark = pytest.mark.slow


class Recorder:
    """As a CUDA graph: outputs are written by a repetition, not by the recording, and always to the same place."""

    def __init__(self) -> None:
        self.recordings = self.repetitions = 0

    def __call__(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        self.recordings += 1
        outputs = {name: torch.full_like(value, torch.nan) for name, value in function().items()}

        def repeat() -> None:
            self.repetitions += 1
            for name, value in function().items():
                outputs[name].copy_(value)

        return repeat, outputs


def doubled(inputs: Tensors) -> Tensors:
    return {name: 2.0 * value for name, value in inputs.items()}


def test_inputs_are_copied_and_outputs_stay_in_place() -> None:
    seen: list[dict[str, int]] = []

    def watched(inputs: Tensors) -> Tensors:
        seen.append({name: value.data_ptr() for name, value in inputs.items()})
        return doubled(inputs)

    captured, given = Captured(Recorder()), {"a": torch.randn(3), "b": torch.randn(2, 2)}
    expected = doubled(given)
    found = captured(watched, given)
    assert found.keys() == given.keys() and all(torch.equal(found[name], expected[name]) for name in given)
    kept = {name: value.data_ptr() for name, value in found.items()}
    for value in given.values():
        value.fill_(7.0)
    assert all(torch.equal(found[name], expected[name]) for name in given)
    again = captured(watched, {name: value + 1 for name, value in given.items()})
    assert all(bool((value == 16.0).all()) for value in again.values())
    assert {name: value.data_ptr() for name, value in again.items()} == kept
    assert len(seen) == 3 and all(place == seen[0] for place in seen)
    assert not set(seen[0].values()) & {value.data_ptr() for value in given.values()}


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.ones(4)},
        {"a": torch.ones(3, 1)},
        {"a": torch.ones(3, dtype=torch.float64)},
        {"b": torch.ones(3)},
        {"a": torch.ones(3), "b": torch.ones(3)},
    ],
)
def test_other_inputs_are_recorded_anew(other: Tensors) -> None:
    record = Recorder()
    captured = Captured(record)
    for _ in range(2):
        assert torch.equal(captured(doubled, {"a": torch.ones(3)})["a"], torch.full((3,), 2.0))
    assert (record.recordings, record.repetitions) == (1, 2)
    for _ in range(2):
        found = captured(doubled, other)
        assert found.keys() == other.keys()
        assert all(
            torch.equal(found[name], 2 * value) and found[name].dtype == value.dtype for name, value in other.items()
        )
    assert (record.recordings, record.repetitions) == (2, 4)


def test_the_old_recording_is_dropped_first() -> None:
    """Its memory is there for the new one."""
    alive: list[bool] = []

    def record(function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        alive.append(captured._replay is not None or bool(captured._outputs))
        return Recorder()(function)

    captured = Captured(record)
    for size in (3, 4, 5):
        captured(doubled, {"a": torch.ones(size)})
    assert alive == [False] * 3


def test_a_recording_that_fails_is_made_again() -> None:
    attempts = iter([True, False])

    def record(function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        if next(attempts):
            raise RuntimeError("out of memory")
        return Recorder()(function)

    captured = Captured(record)
    with pytest.raises(RuntimeError, match="out of memory"):
        captured(doubled, {"a": torch.ones(3)})
    assert torch.equal(captured(doubled, {"a": torch.ones(3)})["a"], torch.full((3,), 2.0))


# An outer step


def recorded(step: OuterStep, record: Recorder) -> OuterStep:
    step._captured = Captured(record)
    return step


def experts(student: Student, kind: str) -> list[Callable[[int], Span]]:
    """Two experts' spans by their start."""
    layers = student.layers

    def by_start(way: Trajectory) -> Callable[[int], Span]:
        return lambda start: way.span(start, start + 1)

    found = []
    for number in range(2):
        draw = torch.Generator().manual_seed(number)
        base = student.flatten() + 0.02 * torch.randn(layers.num_params, generator=draw)
        delta = torch.randn(2, layers.num_params, generator=draw)
        kept = {t: Displacement.encode(0.05 * t * value, layers) for t, value in enumerate(delta, start=1)}
        expert = Expert(layers, base, kept, torch.rand(2, layers.num_layers, generator=draw) + 0.5)
        found.append(by_start(expert.raw() if kind == "raw" else expert.shortcut(2)))
    return found


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("raw", "low-rank"),
        ("shortcut", "full"),
        pytest.param("raw", "full", marks=pytest.mark.exhaustive),
        pytest.param("shortcut", "low-rank", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("how", [{}, {"keep": "primals", "adjoint": 1.0}, {"chunk": 2, "adjoint": 0.5}])
@pytest.mark.parametrize("blended", [False, True])
def test_a_recorded_step_gives_the_same_bits(
    how: dict[str, Any], frozen: bool, kind: str, form: str, blended: bool
) -> None:
    student, record, at = three_layers(frozen), Recorder(), iter(range(100))
    step = recorded(OuterStep(student, **how), record)
    plain, spans = OuterStep(student, **how), experts(student, kind)
    for phase, pairs in enumerate((6, 9)):
        places: set[tuple[int, ...]] = set()
        for expert, start in ((0, 0), (1, 1), (0, 1), (0, 0)):
            c = drawn(student, form, pairs, next(at))
            span = spans[expert](start)
            mixing = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(len(places) + start))
            with torch.no_grad():
                found = step._replayed(span, c.pairs, c.batches, mixing if blended else None)
            expected = plain(span, c.pairs, c.batches, mixing if blended else None)
            assert found.grads.keys() == expected.grads.keys()
            assert torch.equal(found.loss, expected.loss) and torch.equal(found.per_group, expected.per_group)
            assert torch.equal(found.theta_final, expected.theta_final)
            assert all(torch.equal(found.grads[name], value) for name, value in expected.grads.items())
            places.add((found.loss.data_ptr(), *(value.data_ptr() for value in found.grads.values())))
        assert len(places) == 1
        # A phase has its own number of pairs, and so its own recording.
        assert record.recordings == phase + 1
    assert record.repetitions == 8


def drawn(student: Student, form: str, pairs: int, seed: int) -> OuterCase:
    """Leaves and batches that no two steps share."""
    draw = torch.Generator().manual_seed(seed)
    batches = torch.stack([torch.randperm(pairs, generator=draw)[:4] for _ in range(2)])
    c = outer_case(student, 8, form, batches, pairs=pairs)
    leaves = {
        name: leaf * (1 + 0.1 * torch.rand(leaf.shape, generator=draw)) for name, leaf in c.pairs.leaves().items()
    }
    return replace(c, pairs=c.pairs.replace(leaves))


def test_a_span_of_another_kind_is_recorded_anew() -> None:
    student = three_layers()
    step, c = recorded(OuterStep(student), Recorder()), drawn(student, "full", 6, 0)
    for kind in ("raw", "shortcut"):
        span = experts(student, kind)[0](0)
        with torch.no_grad():
            found = step._replayed(span, c.pairs, c.batches, None)
        assert torch.equal(found.loss, OuterStep(student)(span, c.pairs, c.batches).loss)


def test_another_alpha_is_recorded_anew() -> None:
    """It is no tensor, so no copy into the recording's inputs could bring it."""
    student = three_layers()
    record, c = Recorder(), drawn(student, "low-rank", 6, 0)
    step, span = recorded(OuterStep(student), record), experts(student, "raw")[0](0)
    assert isinstance(c.pairs.similarity, LowRankSimilarity)
    other = replace(c.pairs, similarity=replace(c.pairs.similarity, alpha=2 * c.pairs.similarity.alpha))
    for pairs in (c.pairs, other, other):
        with torch.no_grad():
            found = step._replayed(span, pairs, c.batches, None)
        assert torch.equal(found.loss, OuterStep(student)(span, pairs, c.batches).loss)
    assert record.recordings == 2
