"""Recall on the way: what looks see, which leaves are kept, and that a run says when it turns."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ptmst import DistilledSet, EvaluateConfig, InputError, TrajectoryStore, distill, evaluate
from ptmst.config import LeafRates
from ptmst.distillation import distill as module
from ptmst.distillation import optimizer
from ptmst.distillation.distill import averaged_and_last
from ptmst.distillation.tracking import Tracker
from ptmst.engine.outer_step import OuterStep
from ptmst.synthetic.pairs import SyntheticPairs
from tiny import DISTILL, tiny_store, without_val

TRACKED = replace(DISTILL, steps=5, track_recall=2)
"""Looks after steps 2, 4 and 5."""
PEAKS = [[1.0, 9.0, 4.0], [7.0, 7.0, 2.0]]
"""Recalls of the looks of two phases; of equal ones the first is kept."""


@pytest.fixture(scope="module", params=[False, True], ids=["trained", "frozen"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory, request.param)


class Judge:
    """In place of a student: recalls by script, and what it was asked about."""

    def __init__(self, script: list[list[float]], patch: pytest.MonkeyPatch) -> None:
        self.script, self.asked = iter([value for phase in script for value in phase]), list[list[Tensor]]()
        patch.setattr(Tracker, "recall", self)

    def __call__(self, before: list[SyntheticPairs], pairs: SyntheticPairs) -> float:
        self.asked.append([one.texts.clone() for one in [*before, pairs]])
        return next(self.script)


def leaves(pairs: SyntheticPairs | None) -> dict[str, Tensor]:
    assert pairs is not None
    return pairs.leaves()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_the_best_leaves_are_kept_beside_the_last(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at = {steps: distill(replace(DISTILL, steps=steps), store) for steps in (2, 4, 5)}
    # η without averaging is that of the same step.
    assert not torch.equal(at[4].phases[0].last_lr, at[5].phases[0].last_lr)
    judge = Judge(PEAKS, monkeypatch)
    found = distill(replace(TRACKED, out=tmp_path / "set"), store)
    for made in (found, DistilledSet.load(tmp_path / "set")):
        for number, (kept, recalls) in enumerate(zip((4, 2), PEAKS, strict=True)):
            phase = made.phases[number]
            # A run of other steps has the same ones up to there.
            assert equal(leaves(phase.pairs), leaves(at[kept][number]))
            assert equal(leaves(phase.at_end), leaves(at[5][number]))
            assert torch.equal(phase.last_lr, at[kept].phases[number].last_lr)
            assert phase.history["recall"].tolist() == recalls
        assert made.provenance["select"] == {
            "split": "val",
            "protocol": "as-matched",
            "every": 2,
            "steps": [4, 2],
        }
    # A student learns from the best leaves of the phases before.
    assert [len(texts) for texts in judge.asked] == [1, 1, 1, 2, 2, 2]
    assert all(torch.equal(texts[0], at[4][0].texts) for texts in judge.asked[3:])
    assert torch.equal(judge.asked[4][1], at[4][1].texts)


@pytest.mark.slow
def test_without_looks_nothing_is_kept_beside(store: TrajectoryStore) -> None:
    plain = distill(DISTILL, store)
    assert all(phase.at_end is None and "recall" not in phase.history for phase in plain.phases)
    assert "select" not in plain.provenance


@pytest.mark.slow
@pytest.mark.parametrize("stop", [3, 7])
def test_a_stopped_run_remembers_its_looks(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stop: int
) -> None:
    with monkeypatch.context() as patch:
        Judge(PEAKS, patch)
        expected = distill(TRACKED, store)
    update, steps = optimizer.outer_update, iter(range(100))

    def stopped(*arguments: Any) -> Any:
        state = update(*arguments)
        if next(steps) == stop:
            # As if a signal had come: the loop takes a checkpoint, and stops.
            import signal

            signal.raise_signal(signal.SIGINT)
        return state

    config = replace(TRACKED, out=tmp_path / "set")
    with monkeypatch.context() as patch:
        judge = Judge(PEAKS, patch)
        patch.setattr(module, "outer_update", stopped)
        with pytest.raises(KeyboardInterrupt):
            distill(config, store)
        patch.setattr(module, "outer_update", update)
        found = distill(config, store, resume=True)
    assert len(judge.asked) == 6
    for ours, theirs in zip(found.phases, expected.phases, strict=True):
        assert equal(leaves(ours.pairs), leaves(theirs.pairs)) and equal(leaves(ours.at_end), leaves(theirs.at_end))
        assert torch.equal(ours.last_lr, theirs.last_lr)
        assert ours.history["recall"].tolist() == theirs.history["recall"].tolist()


@pytest.mark.slow
def test_a_look_is_a_students_recall(store: TrajectoryStore) -> None:
    """As `evaluate` has it of a set, with the same draws."""
    config = replace(TRACKED, rates=LeafRates(0.0, 0.0, 0.0, 0.0), seed=3)
    still = distill(config, store)
    tracker = Tracker(config, store, torch.device("cpu"))
    found = still.phases[1].history["recall"].tolist()
    assert found == pytest.approx([tracker.recall([still[0]], still[1])] * 3)
    # With the draws of another student.
    (score,) = evaluate(still, EvaluateConfig(students=1, split="val", seed=8)).students
    other = Tracker(config, store, torch.device("cpu"), [(8, "student", 0)]).recall([still[0]], still[1])
    assert other == pytest.approx(score["mean"]) != pytest.approx(found[0])
    both = Tracker(config, store, torch.device("cpu"), [(8, "student", 0), (3, "tracked")])
    assert both.recall([still[0]], still[1]) == pytest.approx((score["mean"] + found[0]) / 2)


@pytest.mark.slow
def test_a_student_that_diverges_has_no_recall(store: TrajectoryStore) -> None:
    config = replace(TRACKED, rates=LeafRates(0.0, 0.0, 0.0, 0.0), student_lr=1e20)
    pairs = distill(replace(config, track_recall=0, student_lr=0.1), store)[0]
    wild = pairs.replace({**pairs.leaves(), "lr": torch.full((2,), 1e20)})
    assert Tracker(config, store, torch.device("cpu")).recall([], wild) == 0.0


@pytest.mark.slow
def test_a_run_says_when_recall_has_turned(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Judge([[9.0, 8.0, 7.0, 6.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]], monkeypatch)
    with caplog.at_level(logging.INFO, "ptmst"):
        distill(replace(DISTILL, steps=5, track_recall=1), store)
    told = [line for line in caplog.messages if "phase" in line]
    assert told == [
        "distill: phase 1, outer step 4: recall on val was best after step 1, 9.0, and is 6.0 now",
        "distill: phase 1 keeps the leaves after 1 of 5 outer steps, recall 9.0 on val; the last ones have 5.0",
    ]


def test_data_without_val_are_refused(store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    without_val(monkeypatch)
    with pytest.raises(InputError, match="track_recall: expected a split val to score students on, found none: val"):
        distill(TRACKED, store)


@pytest.mark.slow
def test_the_last_leaves_of_a_run_are_not_tracked(store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    Judge(PEAKS, monkeypatch)
    step = OuterStep.of(store.student((0,)), replace(TRACKED, keep="path", chunk=None))
    kept, last = averaged_and_last(step, replace(TRACKED, keep="path", chunk=None), store)
    assert "select" in kept.provenance and "select" not in last.provenance
    plain = distill(replace(DISTILL, steps=5, ema=0.0, keep="path", chunk=None), store)
    for number, phase in enumerate(last.phases):
        assert phase.at_end is None and "recall" not in phase.history
        assert equal(leaves(phase.pairs), leaves(plain[number]))
