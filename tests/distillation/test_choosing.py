"""Phases that are left open: the rule where the right answer is known, the search by hand, runs that choose."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ptmst import DistilledSet, InputError, TrajectoryStore, distill
from ptmst.config import DistillConfig, OpenPhases, Phase
from ptmst.distillation import distill as module
from ptmst.distillation.choosing import NEAR, Choice, Trial, by_rule, choose, nearby
from ptmst.distillation.distill import averaged_and_last
from ptmst.distillation.optimizer import outer_update
from ptmst.distillation.tracking import Tracker
from ptmst.engine.outer_step import OuterStep
from ptmst.evaluation.scorer import RetrievalScorer
from ptmst.schema import from_json, to_json
from ptmst.trajectories.recorder import Recorder
from tiny import DISTILL, tiny_store, without_val

AUTO = replace(DISTILL, phases=(OpenPhases(8),))
SEARCH = replace(DISTILL, phases=(OpenPhases(8, by="search"),), steps=8)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory, frozen=True)


def line(folder: Path, like: TrajectoryStore, ways: Sequence[Sequence[float]]) -> tuple[TrajectoryStore, Tensor]:
    """Experts on one line, each at a share of the way at every epoch; and the line."""
    epochs = len(ways[0])
    made = TrajectoryStore(folder, like.layers, epochs, tuple(range(1, epochs + 1)), like.settings)
    start = like.student(("choosing",)).flatten()
    ahead = torch.randn(len(start), generator=torch.Generator().manual_seed(1))
    for number, way in enumerate(ways):
        recorder = Recorder(made.layers, made.endpoints)
        for share in (0.0, *way):
            recorder.record(start + share * ahead)
        made.add(number, recorder.expert(), {"losses": []})
    made.save_index()
    return made, ahead


@pytest.mark.parametrize(
    ("ways", "endpoint", "last"),
    [
        (((0.1, 0.3, 0.97, 0.99, 1.0), (0.1, 0.2, 0.96, 0.98, 1.0)), 3, 2),
        (((0.1, 0.3, 0.5, 0.8, 1.0), (0.2, 0.4, 0.6, 0.8, 1.0)), 5, 3),
        (((1.0, 0.9, 0.8, 0.7, 0.6), (1.0, 0.9, 0.8, 0.7, 0.6)), 1, 1),
        # Neither expert alone: their mean counts.
        (((0.2, 0.99, 1.0, 1.0, 1.0), (0.2, 0.5, 0.7, 0.95, 0.96)), 4, 2),
    ],
)
def test_the_end_point_is_where_experts_are_near_their_best(
    store: TrajectoryStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ways: Sequence[Sequence[float]],
    endpoint: int,
    last: int,
) -> None:
    """On trajectories whose recall is by construction the share of the way."""
    made, ahead = line(tmp_path / "store", store, ways)
    start = made.student(("choosing",)).flatten()

    def share(self: RetrievalScorer, student: object, theta: Tensor) -> dict[str, float]:
        return {"mean": 100 * float((theta - start) @ ahead / (ahead @ ahead))}

    monkeypatch.setattr(RetrievalScorer, "score", share)
    found = choose(AUTO, made, CPU, lambda config: pytest.fail("a rule runs nothing"))
    assert found.phases == (Phase(8, endpoint, (0, last)),)
    assert found.asked == "auto:8" and found.trials == ()
    for epoch, recall in found.recall:
        assert recall == pytest.approx(100 * sum(way[epoch - 1] for way in ways) / len(ways), rel=1e-3)


def test_spans_of_several_epochs_end_by_the_end_point() -> None:
    recalls = {1: 90.0, 2: 200.0, 3: 99.0, 4: 98.0}
    assert by_rule(recalls, 20, 3) == (Phase(20, 3, (0, 1)),)
    assert by_rule({5: 1.0, 7: 1.0}, 20, 3) == (Phase(20, 5, (0, 3)),)
    for phases in nearby(dict.fromkeys(range(2, 9), 100.0), 20, 2):
        (phase,) = phases
        assert phase.start[0] == 0 < phase.start[1] and phase.start[1] - 1 + 2 <= phase.endpoint
    assert 0.5 < NEAR < 1


def test_one_candidate_is_not_searched(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ptmst.distillation.choosing.expert_recalls", lambda *_: {1: 9.0, 2: 3.0, 3: 1.0})
    with caplog.at_level(logging.INFO, "ptmst"):
        found = choose(SEARCH, replace(store, endpoints=(1,)), CPU, lambda config: pytest.fail("nothing to compare"))
    assert found.phases == (Phase(8, 1, (0, 1)),) and found.trials == ()
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "distill: nothing to search: there is no other end point or start range"
    assert told[1].startswith("distill: phases 8:1:0-1, chosen by a rule; ")


def test_an_end_point_is_what_raw_trajectories_reach(store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    recalls = {1: 10.0, 2: 20.0, 3: 40.0, 5: 80.0, 10: 81.0}
    store = replace(store, endpoints=tuple(recalls))
    monkeypatch.setattr("ptmst.distillation.choosing.expert_recalls", lambda *_: recalls)
    raw = choose(replace(AUTO, trajectory="raw"), store, CPU, lambda config: 0.0)
    assert raw.phases == (Phase(8, 3, (0, 2)),)
    assert choose(AUTO, store, CPU, lambda config: 0.0).phases == (Phase(8, 5, (0, 3)),)
    message = r"^phases: expected every epoch from the first to be kept in .*, found 5, 7; teach with --endpoints all$"
    with pytest.raises(InputError, match=message):
        distill(replace(SEARCH, trajectory="raw"), replace(store, endpoints=(5, 7)))


def test_a_search_halves_what_it_tries(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Five candidates for a fourth of the steps, the three best for a half; of equals the one nearer to the rule."""
    recalls = {3: 50.0, 5: 99.0, 7: 100.0, 10: 98.0}
    monkeypatch.setattr("ptmst.distillation.choosing.expert_recalls", lambda *_: recalls)
    store = replace(store, endpoints=tuple(recalls))
    scores = {(5, 3): (3.0, 5.0), (3, 2): (2.0, 0.0), (7, 4): (4.0, 5.0), (5, 1): (9.0, 1.0), (5, 4): (3.0, 0.0)}
    asked = list[tuple[int, int, int]]()

    def recall_of(config: DistillConfig) -> float:
        (phase,) = config.phases
        assert phase.pairs == 8 and config.track_recall == 0
        asked.append((phase.endpoint, phase.start[1], config.steps))
        return scores[phase.endpoint, phase.start[1]][config.steps > 2]

    kept = list[int]()
    tracked = replace(SEARCH, track_recall=2)
    with caplog.at_level(logging.INFO, "ptmst"):
        found = choose(tracked, store, CPU, recall_of, keep=lambda trials: kept.append(len(trials)))
    assert [one[:2] for one in asked[:5]] == list(scores) and {one[2] for one in asked[:5]} == {2}
    assert asked[5:] == [(5, 1, 4), (7, 4, 4), (5, 3, 4)]
    assert kept == list(range(1, 9))
    assert found.phases == (Phase(8, 7, (0, 4)),)  # before (5, 3), by the round before
    assert [(trial.phases[0].endpoint, trial.steps, trial.recall) for trial in found.trials[:2]] == [
        (5, 2, 3.0),
        (3, 2, 2.0),
    ]
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "a search of 5 trials of 2 and 3 trials of 4, 22 outer steps in all before the 8 of the run" in told
    assert "8:7:0-4, chosen by 8 short runs; recall of experts on val is 100.0 at epoch 7, at best 100.0 at" in told
    # What is known is not asked again.
    asked.clear()
    assert choose(tracked, store, CPU, recall_of, found.trials[:6]) == found
    assert asked == [(7, 4, 4), (5, 3, 4)]


def test_a_choice_survives_json() -> None:
    phases = (Phase(8, 5, (0, 3)),)
    choice = Choice("search:8", phases, ((5, 31.25), (7, 1 / 3)), (Trial(phases, 2, 1 / 7),))
    assert from_json(Choice, json.loads(json.dumps(to_json(choice)))) == choice


@pytest.mark.slow
@pytest.mark.parametrize("config", [AUTO, SEARCH], ids=["auto", "search"])
def test_a_run_with_open_phases_is_the_run_with_those_that_it_chose(
    store: TrajectoryStore, tmp_path: Path, config: DistillConfig
) -> None:
    found = distill(replace(config, out=tmp_path / "out"), store)
    choice = found.provenance["choice"]
    (phase,) = (Phase(**{**one, "start": tuple(one["start"])}) for one in choice["phases"])
    named = distill(replace(config, phases=(phase,)), store)
    for name, leaf in found[0].leaves().items():
        assert torch.equal(leaf, named[0].leaves()[name])
    # The set says which phases it has, and why.
    assert found.provenance["config"] == named.provenance["config"]
    assert "choice" not in named.provenance
    assert choice["asked"] == ("auto:8" if config is AUTO else "search:8")
    assert [epoch for epoch, _ in choice["recall"]] == [1, 2, 3]
    assert len(choice["trials"]) == (0 if config is AUTO else 2)
    again = DistilledSet.load(tmp_path / "out").provenance["choice"]
    assert again == json.loads(json.dumps(choice))
    step = OuterStep.of(store.student((0, "student")), replace(config, keep="primals", chunk=None))
    made, _ = averaged_and_last(step, replace(config, keep="primals", chunk=None), store)
    assert made.provenance["choice"] == choice and torch.equal(made[0].texts, named[0].texts)


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SEARCH, out=tmp_path / "out")
    whole = distill(replace(config, out=None), store)
    recall, asked = Tracker.recall, list[int]()

    def stops_at(call: int) -> Any:
        def judge(self: Tracker, *pairs: Any) -> float:
            asked.append(call)
            if len(asked) == call:
                raise KeyboardInterrupt
            return recall(self, *pairs)

        return judge

    monkeypatch.setattr(Tracker, "recall", stops_at(2))
    with pytest.raises(KeyboardInterrupt):
        distill(config, store)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert len(record["trials"]) == 1 and record["settled"]["keep"] == "primals" and "choice" not in record
    with pytest.raises(InputError, match="holds a distillation already"):
        distill(config, store)
    monkeypatch.setattr(Tracker, "recall", stops_at(-1))
    asked.clear()
    found = distill(config, store, resume=True)
    assert len(asked) == len(whole.provenance["choice"]["trials"]) - 1
    assert found.provenance == whole.provenance
    assert torch.equal(found[0].images, whole[0].images)


@pytest.mark.slow
def test_a_run_that_was_stopped_keeps_its_choice(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(AUTO, out=tmp_path / "out")
    whole = distill(replace(config, out=None), store)
    steps = list[int]()

    def stops(state: Any, *rest: Any) -> Any:
        steps.append(state.step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return outer_update(state, *rest)

    monkeypatch.setattr(module, "outer_update", stops)
    with pytest.raises(KeyboardInterrupt):
        distill(config, store)
    monkeypatch.setattr(module, "choose", lambda *_: pytest.fail("chosen again"))
    monkeypatch.setattr(module, "outer_update", outer_update)
    found = distill(config, store, resume=True)
    assert found.provenance == whole.provenance
    assert torch.equal(found[0].images, whole[0].images)


def test_data_without_val_are_refused(store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_val(monkeypatch)
    message = "^phases: expected a split val to choose them on, found none: val: .*; name phases, such as 99:5:0-2$"
    for config in (AUTO, SEARCH):
        with pytest.raises(InputError, match=message):
            distill(replace(config, out=tmp_path / "out"), store)
        assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    for config in (AUTO, SEARCH):
        too_many = replace(config, phases=(OpenPhases(25, by=config.open_phases.by),))  # type: ignore[union-attr]
        with pytest.raises(InputError, match=r"^pairs: expected at most the 24 images of .*, found 25$"):
            distill(replace(too_many, out=tmp_path / "out"), store)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"^expert_epochs: expected spans within the kept epochs, up to 3, found 4"):
        distill(replace(AUTO, expert_epochs=4), store)


@pytest.mark.slow
def test_a_share_of_a_batch_is_the_batch(store: TrajectoryStore) -> None:
    one = distill(replace(DISTILL, batch_share=0.5, batch_size=1000), store)
    other = distill(replace(DISTILL, batch_size=4), store)
    assert one.inner_batch == 4 and one.provenance["config"] == other.provenance["config"]
    assert torch.equal(one[1].images, other[1].images)
