"""What a study takes is told before it begins, from little work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ptmst import TrajectoryStore, schema
from ptmst.config import (
    AblateConfig,
    DistillConfig,
    EvaluateConfig,
    Experiment,
    LeafRates,
    OpenPhases,
    TeachConfig,
    WriteDataConfig,
)
from ptmst.data import write_data
from ptmst.students.image_towers import prepared
from ptmst.studies import ablation, cost
from ptmst.studies.cost import Between, total
from ptmst.support import parallel
from tiny import DISTILL, ENCODER, tiny_store

TINY = Experiment(
    data=WriteDataConfig(name="scenes", image_size=16, train=24, val=8, test=8, warmup=0, captions=2),
    teach=TeachConfig(encoder=replace(ENCODER, head_width=16), experts=1, epochs=3, batch_size=16, endpoints="all"),
    distill=replace(DISTILL, steps=2),
    evaluate=EvaluateConfig(students=2, epochs=2, lr_drop=1, batch_size=8),
)


def test_numbers_that_are_not_known_exactly_add_and_multiply_end_by_end() -> None:
    assert Between(1, 2) + Between(3, 5) == Between(4, 7) == total([Between(1, 2), Between(3, 5)])
    assert Between(1, 2) * Between(3, 5) == Between(3, 10) and Between(1, 2) * 3 == Between(3, 6)
    assert Between(1, 5).without(2) == Between(0, 3)
    assert f"{Between(1, 2):.0f} and {Between.exactly(3):.0f}" == "1 to 2 and 3"


def test_seconds_of_many_steps_come_from_one_and_three() -> None:
    seconds, done = 0.0, list[int]()

    def work(steps: int) -> None:
        nonlocal seconds
        seconds += (100.0 if not done else 5.0) + 2 * steps  # the first time takes longest
        done.append(steps)

    assert cost._extrapolated(work, 50, lambda: seconds) == pytest.approx(5 + 2 * 50)
    assert sum(done) <= 5


def test_a_long_step_is_put_together_from_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3 s, and for each of 8 inner steps 0.5 s and 0.25 s for each of 40 images; two phases, and 7 s before them."""

    def distilling(config: DistillConfig, *_: Any) -> float:
        of_a_step = 3 + config.inner_steps * (0.5 + 0.25 * config.batch_size)
        return 7 + 2 * config.steps * of_a_step

    monkeypatch.setattr(cost, "distilling", distilling)
    config, store = replace(DISTILL, steps=100, inner_steps=8, batch_size=40, chunk=10), cast(TrajectoryStore, None)
    expected = 2 * 100 * (3 + 8 * (0.5 + 0.25 * 40))
    assert cost.distilling_by_parts(config, store, time.perf_counter) == pytest.approx(expected)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers are this process, which is quicker."""

    def completed(_: Any, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        return map(function, tasks)

    monkeypatch.setattr(parallel.Workers, "completed", completed)
    monkeypatch.setattr(ablation, "experiment", lambda *_: TINY)
    monkeypatch.setenv("PTMST_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_store_of_noise_is_used_like_one_of_experts(here: None, tmp_path: Path) -> None:
    """Even with settings that diverge: what they cost is the same."""
    write_data(replace(TINY.data, name="scenes", root=tmp_path / "data"))
    data = prepared(replace(TINY.teach.data, name="scenes", root=tmp_path / "data", image_size=16), TINY.teach.encoder)
    teach = replace(TINY.teach, data=data, encoder=replace(TINY.teach.encoder, freeze_tower=True))
    store = cost.store_of_noise(teach, tmp_path / "noise")
    assert TrajectoryStore.open(tmp_path / "noise").recipe == store.recipe
    assert store.endpoints == (1, 2, 3) and len(store) == 1
    wild = replace(TINY.distill, rates=LeafRates(1e30, 1e30, 1e30, 1e30))
    assert 0 < cost.distilling(wild, store) < 60
    assert cost.students(8, TINY.evaluate, store) > 0 and cost.teaching(teach) > 0


@pytest.mark.slow
def test_a_search_costs_its_runs_and_their_students(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five runs of a fourth of the steps, three of a half, three students each."""
    store, plain = tiny_store(tmp_path_factory, frozen=True), replace(DISTILL, phases=(OpenPhases(8),), steps=40)
    searching = replace(plain, phases=(OpenPhases(8, by="search"),))
    monkeypatch.setattr(cost, "_extrapolated", lambda *_: 100.0)
    monkeypatch.setattr(cost, "_a_look", lambda *_: 2.0)
    assert cost.distilling(plain, store) == 100.0
    assert cost.distilling(searching, store) == 100.0 * (1 + (5 * 10 + 3 * 20) / 40) + 8 * 3 * 2.0

    def steps_of(config: DistillConfig, *_: Any) -> float:
        assert config.open_phases is None
        return float(config.steps)

    monkeypatch.setattr(cost, "distilling", steps_of)
    by_parts = [cost.distilling_by_parts(config, store, time.process_time) for config in (plain, searching)]
    assert by_parts[1] == pytest.approx(by_parts[0] * 150 / 40) and by_parts[0] > 0


@pytest.mark.slow
def test_an_ablation_tells_how_many_runs_are_left_and_how_long_they_take(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = 3600.0
    monkeypatch.setattr(cost, "teaching", lambda config: 10 * hour)
    monkeypatch.setattr(cost, "students", lambda *_: 2 * hour)
    monkeypatch.setattr(cost, "distilling", lambda config, _: config.batch_size * hour)
    monkeypatch.setattr(cost, "store_of_noise", lambda *_: None)
    config = AblateConfig(
        out=tmp_path / "grid", data="scenes", methods=("random", "st"), pairs=(8,), seeds=3, tuning_seeds=2
    )
    config = replace(config, tune=("rates", "batch", "steps"), workers=2)
    told = ablation.cost(config, "ptmst ablate")
    # Rates: 3 and perhaps one beyond; one batch more; twice the steps. A batch is 2 or 4 of 8 pairs. A test has two
    # evaluations, since the set is an average.
    least = 5 * 10 + 20 * 2 + 3 * 2 + 10 * (2 + 2) + 3 * (2 + 2 * 2)
    most = 5 * 10 + 20 * 2 + 3 * 2 + 12 * (4 + 2) + 3 * (2 * 4 + 2 * 2)
    assert told.startswith(
        f"5 stores of experts, 30 to 32 runs to tune, 6 on test: {least} to {most} CPU hours, "
        f"{least / 2:.0f} to {most / 2:.0f} hours with 2 at a time"
    )
    assert not list((tmp_path / "grid").glob("store-*"))


def test_data_that_are_not_drawn_by_us_have_no_settings_of_the_experiment() -> None:
    config = AblateConfig(data="emoji")
    schema.check(ablation._rendered(config, TINY))
    assert ablation._rendered(replace(config, data="digits"), TINY) == replace(
        TINY.data, name="digits", root=config.out / "data"
    )
