"""Watchers: what they are told of every step, that they change nothing, and experiment trackers that are watchers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ptmst import InputError, Moment, TrajectoryStore, distill
from ptmst.distillation import distill as module
from ptmst.distillation.optimizer import outer_update
from ptmst.engine.recursion import OuterGradient
from tiny import DISTILL, tiny_store

STEPS = DISTILL.steps
LOOKED = replace(DISTILL, track_recall=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory, False)


@pytest.mark.slow
def test_a_watcher_is_told_of_every_step_and_changes_nothing(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = distill(LOOKED, store)
    norms = list[dict[str, float]]()

    def noted(state: Any, gradient: OuterGradient, config: Any) -> Any:
        norms.append({name: float(grad.double().square().sum().sqrt()) for name, grad in gradient.grads.items()})
        return outer_update(state, gradient, config)

    monkeypatch.setattr(module, "outer_update", noted)
    told, averages = list[Moment](), list[dict[str, Tensor]]()

    def watch(moment: Moment) -> None:
        told.append(moment)
        averages.append({name: leaf.clone() for name, leaf in moment.pairs.leaves().items()})

    made = distill(LOOKED, store, watch=watch)
    for ours, theirs in zip(made, plain, strict=True):
        assert all(torch.equal(ours.leaves()[name], leaf) for name, leaf in theirs.leaves().items())
    assert [(one.phase, one.step) for one in told] == [(phase, step) for phase in (0, 1) for step in range(STEPS + 1)]
    taken = [one for one in told if one.step]
    for phase in (0, 1):
        mine, history = [one for one in taken if one.phase == phase], made.phases[phase].history
        assert torch.tensor([[one.loss["image"], one.loss["text"]] for one in mine]).equal(history["loss"])
        # History has η after a step, a watcher that with which the step was taken.
        after = torch.tensor([[one.lr["image"], one.lr["text"]] for one in mine[1:]])
        assert after.equal(history["lr"][:-1])
        assert [one.recall for one in mine if one.recall is not None] == pytest.approx(history["recall"].tolist())
        assert [one.step for one in mine if one.recall is not None] == [2, 4]
        end = made.phases[phase].at_end
        assert end is not None
        last = averages[(phase + 1) * (STEPS + 1) - 1]
        assert all(torch.equal(last[name], leaf) for name, leaf in end.leaves().items())
    assert [one.gradient for one in taken] == [pytest.approx(of_step, rel=1e-5) for of_step in norms]
    assert all(one.loss == one.gradient == one.scalars() == {} and one.recall is None for one in told if not one.step)


@pytest.mark.slow
def test_a_resumed_run_begins_where_it_goes_on(store: TrajectoryStore, tmp_path: Path) -> None:
    config, told = replace(DISTILL, out=tmp_path / "set", checkpoint_minutes=0.0), list[tuple[int, int, bool]]()

    def watch(moment: Moment) -> None:
        told.append((moment.phase, moment.step, bool(moment.loss)))
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(config, store, watch=watch)
    assert told == [(0, 0, False), (0, 1, True), (0, 2, True)]
    distill(config, store, resume=True, watch=watch)
    assert told[3:6] == [(0, 1, False), (0, 2, True), (0, 3, True)]
    assert told[-1] == (1, STEPS, True)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}


@pytest.mark.slow
def test_tensorboard_has_each_step_once(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    config = replace(LOOKED, out=tmp_path / "set", track="tensorboard", checkpoint_minutes=1e3)
    taken = iter(range(100))

    def stopped(*args: Any) -> Any:
        if next(taken) == STEPS + 2:
            raise MemoryError
        return outer_update(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "outer_update", stopped)
        with pytest.raises(MemoryError):
            distill(config, store)
    made = distill(config, store, resume=True)
    found = scalars(tmp_path / "set" / "tensorboard")
    for phase in (0, 1):
        history, first = made.phases[phase].history, phase * STEPS
        for group, name in enumerate(("image", "text")):
            steps, values = zip(*found[f"phase {phase + 1}/loss {name}"], strict=True)
            assert steps == tuple(range(first + 1, first + STEPS + 1))
            assert values == pytest.approx(history["loss"][:, group].tolist(), rel=1e-6)
        assert [step for step, _ in found[f"phase {phase + 1}/recall"]] == [first + 2, first + 4]
    assert {name for name in found if name.startswith("phase 1/gradient ")} == {
        f"phase 1/gradient {leaf}" for leaf in made[0].leaves()
    }


@pytest.mark.slow
def test_wandb_gets_each_step(store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = pytest.importorskip("wandb.sdk.wandb_run").Run
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged, log = list[tuple[int, dict[str, float]]](), kind.log

    def noted(self: Any, data: dict[str, float], step: int) -> None:
        logged.append((step, data))
        log(self, data, step=step)

    monkeypatch.setattr(kind, "log", noted)
    made = distill(replace(DISTILL, out=tmp_path / "set", track="wandb"), store)
    assert [step for step, _ in logged] == list(range(1, 2 * STEPS + 1))
    assert logged[STEPS][1]["phase 2/loss text"] == pytest.approx(float(made.phases[1].history["loss"][0, 1]))
    (file,) = (tmp_path / "set" / "wandb").rglob("*.wandb")
    assert file.stat().st_size > 1000


def test_nobody_is_logged_in(store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    message = "^track wandb: expected a login, found none; run `wandb login`, or set WANDB_MODE=offline to log here$"
    with pytest.raises(InputError, match=message):
        distill(replace(DISTILL, out=tmp_path / "set", track="wandb"), store)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_done(
    name: Any, store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    message = rf"^track {name}: expected the package {name}, found none; install ptmst\[{name}\], or leave it out$"
    with pytest.raises(InputError, match=message):
        distill(replace(DISTILL, out=tmp_path / "set", track=name), store)
    assert not (tmp_path / "set").exists()


def test_a_tracker_needs_a_folder(store: TrajectoryStore) -> None:
    message = "^track wandb: expected a folder for the set, found none; name one with out$"
    with pytest.raises(InputError, match=message):
        distill(replace(DISTILL, track="wandb"), store)
