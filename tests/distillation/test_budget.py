"""What is kept of an outer step where it is left open: against memory counted by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ptmst.config import Chunk, Compile, DistillConfig, Keep, KeepOrAuto, Phase
from ptmst.distillation import budget
from ptmst.distillation import distill as distillation
from ptmst.distillation.budget import Memory, settled, ways
from ptmst.distillation.checkpoints import Checkpoints
from ptmst.distillation.distill import distill
from ptmst.engine.outer_step import OuterStep
from ptmst.errors import InputError
from ptmst.students.student import Student
from ptmst.support import devices
from ptmst.support.files import read_json
from ptmst.trajectories.store import TrajectoryStore
from tiny import DISTILL, tiny_store

OPEN = replace(DISTILL, keep="auto", chunk="auto", batch_size=12, inner_steps=3, phases=(Phase(20, 2, (0, 1)),))
PATH, PRIMALS = Memory(1000, 0, 10), Memory(2000, 7, 9)
OF: dict[Keep, Memory] = {"path": PATH, "primals": PRIMALS}
P = 5
VECTORS = 4 * P * (3 + 2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory)


def test_a_line_goes_through_two_measurements() -> None:
    images, fixed, kept, most = (2, 4), 100, 3, 8
    found = Memory.line(images, (2 * kept, 4 * kept), (fixed + 2 * most, fixed + 4 * most))
    assert found == Memory(fixed, kept, most)


def test_the_ways_and_their_memory() -> None:
    found = [(way.keep, way.chunk, way.need - VECTORS) for way in ways(OPEN, P, False, OF)]
    # Three steps of twelve images, of one of which more is there while it is differentiated.
    primals = ("primals", None, 2000 + 3 * 12 * 7 + 12 * (9 - 7))
    assert found == [primals, *(("path", rows % 12 or None, 1000 + rows * 10) for rows in (12, 6, 4, 3, 2, 1))]


def test_behind_a_frozen_tower_primals_are_of_all_drawn_images() -> None:
    for pairs, drawn in ((20, 20), (200, 36)):
        config = replace(OPEN, phases=(Phase(13, 2, (0, 1)), Phase(pairs, 2, (0, 1))))
        [first, *_] = ways(config, P, True, OF)
        assert first.need == VECTORS + 2000 + drawn * 7 + 12 * (9 - 7)


@pytest.mark.parametrize(
    ("of", "chunk", "expected"),
    [
        ({"primals": PRIMALS}, "auto", [("primals", None)]),
        ({"path": PATH}, "auto", [("path", rows) for rows in (None, 6, 4, 3, 2, 1)]),
        ({"nothing": PATH}, "auto", [("nothing", rows) for rows in (None, 6, 4, 3, 2, 1)]),
        (OF, None, [("primals", None), ("path", None)]),
        (OF, 3, [("path", 3)]),
    ],
)
def test_a_chunk_that_is_set_stays(
    of: dict[Keep, Memory], chunk: Chunk, expected: list[tuple[str, int | None]]
) -> None:
    assert [(way.keep, way.chunk) for way in ways(replace(OPEN, chunk=chunk), P, False, of)] == expected


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["path", "nothing", "primals"])
def test_what_is_set_stays(store: TrajectoryStore, keep: KeepOrAuto) -> None:
    config = replace(OPEN, keep=keep, chunk=None)
    expected = replace(config, threads=torch.get_num_threads())
    assert settled(config, store, store.student((0,))) == expected
    assert settled(replace(config, threads=7), store, store.student((0,))).threads == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "room", "expected"),
    [
        ("auto", 1e9, ("primals", None)),
        ("auto", 0.99, ("path", None)),
        ("auto", 1e-3, ("path", 1)),
        ("nothing", 1e9, ("nothing", None)),
        ("nothing", 1e-3, ("nothing", 1)),
    ],
)
def test_on_a_cpu_it_is_what_fits(
    store: TrajectoryStore,
    keep: KeepOrAuto,
    room: float,
    expected: tuple[Keep, int | None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`room` is in what the primals need, of which the machine's share is 45 %."""
    student, config = store.student((0,)), replace(OPEN, keep=keep, batch_size=12, inner_steps=30)
    memory = budget._measured("primals", config, store, student)
    [primals, *_] = ways(replace(config, keep="auto"), student.layers.num_params, False, {"primals": memory})
    monkeypatch.setattr(devices, "total_bytes", lambda _: int(room * primals.need / 0.45))
    with caplog.at_level(logging.INFO, "ptmst"):
        found = settled(config, store, student)
    assert (found.keep, found.chunk) == expected
    [told] = caplog.messages
    assert told.startswith(f"distill: keep {expected[0]}, chunk {expected[1] or 'none'}; ") and "the machine's" in told


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["path", "primals"])
@pytest.mark.parametrize("frozen", [False, True])
def test_memory_on_a_cpu_is_that_of_a_whole_step(
    tmp_path_factory: pytest.TempPathFactory, keep: Keep, frozen: bool
) -> None:
    """What the line through two and four images says of twelve, beside twelve."""
    small = tiny_store(tmp_path_factory, frozen)
    student = small.student((0,))
    line = budget._measured(keep, OPEN, small, student)
    kept, most = budget._counted(keep, False, student, *budget._few(12, small, student))
    assert line.fixed + 12 * line.most == pytest.approx(most, rel=0.02)
    if keep == "primals":
        kept_of_two, _ = budget._counted(keep, False, student, *budget._few(2, small, student))
        assert kept - kept_of_two == pytest.approx(10 * line.kept, rel=0.02)


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, set[Keep]], None]:
    """A device of so many GB, and a tower of which those can be differentiated."""
    measured = {"path": Memory(0, 0, 1.2e9), "nothing": Memory(0, 0, 1.2e9), "primals": Memory(0, 0.8e9, 0.8e9)}

    def put(gigabytes: float, derivable: set[Keep]) -> None:
        def measure(keep: Keep, *_: object) -> Memory:
            assert keep in derivable
            return measured[keep]

        monkeypatch.setattr(
            budget, "why_not_differentiable", lambda _, keep, *__: None if keep in derivable else "it cannot"
        )
        monkeypatch.setattr(budget, "_few", lambda *_: ())
        monkeypatch.setattr(budget, "_measured", measure)
        monkeypatch.setattr(Student, "device", torch.device("cuda"))
        monkeypatch.setattr(devices, "total_bytes", lambda _: int(gigabytes * 1e9))

    return put


@pytest.mark.parametrize(
    ("gigabytes", "compile", "expected"),
    [
        (80.0, "off", ("primals", None)),
        (40.0, "off", ("path", None)),
        (20.0, "off", ("path", 6)),
        (20.0, "on", ("path", None)),
        (1.0, "on", ("path", 1)),
    ],
)
def test_on_cuda_it_is_what_fits(
    store: TrajectoryStore,
    on_cuda: Callable[[float, set[Keep]], None],
    gigabytes: float,
    compile: Compile,
    expected: tuple[str, int | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of 45 %: primals 3 · 12 · 0.8 GB, the path 12 · 1.2 GB, and compiled 12 · 0.42 GB."""
    student = store.student((0,))
    on_cuda(gigabytes, {"path", "primals"})
    with caplog.at_level(logging.INFO, "ptmst"):
        found = settled(replace(OPEN, compile=compile), store, student)
    assert (found.keep, found.chunk) == expected
    [told] = caplog.messages
    assert told.startswith(f"distill: keep {expected[0]}, chunk {expected[1] or 'none'}; the inner steps need about ")


@pytest.mark.parametrize(
    ("keep", "chunk", "derivable", "expected"),
    [
        ("auto", "auto", {"primals"}, ("primals", None)),
        ("auto", "auto", {"path"}, ("path", None)),
        ("auto", 3, {"path", "primals"}, ("path", 3)),
        ("path", "auto", {"path"}, ("path", None)),
        ("nothing", "auto", {"nothing"}, ("nothing", None)),
        ("path", 3, {"path"}, ("path", 3)),
    ],
)
def test_on_cuda_what_cannot_be_differentiated_is_not_measured(
    store: TrajectoryStore,
    on_cuda: Callable[[float, set[Keep]], None],
    keep: KeepOrAuto,
    chunk: Chunk,
    derivable: set[Keep],
    expected: tuple[str, int | None],
) -> None:
    student = store.student((0,))
    on_cuda(40.0, derivable)
    found = settled(replace(OPEN, keep=keep, chunk=chunk, adjoint=0.0), store, student)
    assert (found.keep, found.chunk) == expected


@pytest.mark.parametrize(
    ("keep", "chunk", "said"),
    [
        ("path", "auto", r"keep path can differentiate, .* \(it cannot\); try keep primals, or choose another"),
        ("path", None, r"keep path can differentiate, .* \(it cannot\); try keep primals, or choose another"),
        ("primals", "auto", r"keep primals can differentiate, .* \(it cannot\); choose another"),
        ("auto", 3, r"keep path can differentiate, .* \(it cannot\); try keep primals, or choose another"),
        ("auto", "auto", r"keep path or primals can differentiate, .* \(it cannot\); choose another"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_tower_that_cannot_be_differentiated_is_refused(
    store: TrajectoryStore,
    on_cuda: Callable[[float, set[Keep]], None],
    keep: KeepOrAuto,
    chunk: Chunk,
    said: str,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = store.student((0,))
    on_cuda(40.0, set())
    monkeypatch.setattr(Student, "device", torch.device(device))
    with pytest.raises(InputError, match=f"^image_tower convnet: expected a tower that {said}"):
        settled(replace(OPEN, keep=keep, chunk=chunk, adjoint=0.0), store, student)


@pytest.mark.slow
def test_what_was_settled_is_recorded_and_stays_on_resuming(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that would choose another way by now."""
    config = replace(DISTILL, keep="auto", chunk="auto", checkpoint_minutes=0.0)
    expected, original_settled = distill(replace(config, keep="path", chunk=None, threads=3), store), settled
    monkeypatch.setattr(distillation, "settled", lambda config, *_: replace(config, keep="path", chunk=None, threads=3))
    original, threads = OuterStep.__call__, list[int]()

    def stopping(step: OuterStep, *inputs: object) -> object:
        threads.append(torch.get_num_threads())
        if len(threads) == 4:
            raise KeyboardInterrupt
        return original(step, *inputs)  # type: ignore[arg-type]

    before = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(OuterStep, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            distill(replace(config, out=tmp_path / "out"), store)
    assert read_json(tmp_path / "out" / "run.json", "distillation run", 1)["settled"] == {
        "keep": "path",
        "chunk": None,
        "threads": 3,
    }
    monkeypatch.setattr(distillation, "settled", original_settled)
    monkeypatch.setattr(OuterStep, "__call__", stopping)
    found = distill(replace(config, out=tmp_path / "out"), store, resume=True)
    assert set(threads) == {3} and torch.get_num_threads() == before
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images)
    assert found.provenance["config"]["keep"] == "path"


def test_threads_that_are_asked_for_are_taken_on_resuming(store: TrajectoryStore, tmp_path: Path) -> None:
    config = replace(DISTILL, keep="path", chunk=None, out=tmp_path / "out", threads=2)
    checkpoints = Checkpoints(config.out, config, store, resume=False)
    checkpoints.settle(config)
    checkpoints.begin()
    for asked, expected in ((None, 2), (5, 5)):
        again = Checkpoints(config.out, replace(config, threads=asked), store, resume=True).settled
        assert again is not None and again.threads == expected


def test_an_outer_step_wants_it_settled(store: TrajectoryStore) -> None:
    with pytest.raises(InputError, match=r"^keep, chunk: expected a choice, found auto; settle it first"):
        OuterStep.of(store.student((0,)), DistillConfig())
