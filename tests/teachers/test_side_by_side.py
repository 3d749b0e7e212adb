"""Experts that are trained side by side are those that are trained one by one, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ptmst.config import DataConfig, EncoderConfig, TeachConfig
from ptmst.data import load_split, write_scenes
from ptmst.errors import Diverged
from ptmst.recipe import Recipe
from ptmst.students.text_towers import text_tower
from ptmst.support import devices, parallel
from ptmst.teachers import side_by_side
from ptmst.teachers.side_by_side import Lesson
from ptmst.teachers.teach import train_teachers
from ptmst.teachers.training import Trial, trial
from ptmst.trajectories.store import TrajectoryStore

CPU = torch.device("cpu")
TRAINED = EncoderConfig(image_width=16, text_width=24)
FROZEN = replace(TRAINED, freeze_tower=True)
WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"encoder": FROZEN},
    "trained": {"encoder": replace(TRAINED, warmup_epochs=1)},
    "as published": {"augment": True, "dropout": 0.1, "drop_last": True},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder, image_size=16, train=24, val=4, test=4, warmup=12, captions=2)
    return folder


@pytest.fixture
def config(scenes: Path, tmp_path: Path) -> TeachConfig:
    data = DataConfig("scenes", scenes, 16)
    return TeachConfig(tmp_path / "store", data, TRAINED, 3, 2, 0.1, 10, endpoints=(1, 2), device="cpu")


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many workers were started for how many experts."""
    numbers: list[int] = []
    original = parallel.results

    def spy(function: Any, tasks: Any, workers: int, show: Any) -> Any:
        numbers.append(workers)
        return original(function, tasks, workers, show)

    monkeypatch.setattr(parallel, "results", spy)
    return numbers


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_how_many_at_a_time_changes_no_bit(
    config: TeachConfig, way: str, tmp_path: Path, started: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    config, threads = replace(config, **WAYS[way]), torch.get_num_threads()
    alone = train_teachers(replace(config, workers=1, out=tmp_path / "alone"))
    assert not started and torch.get_num_threads() == threads
    train_teachers(replace(config, workers=2))
    assert started == [2] and torch.get_num_threads() == threads
    assert contents(config.out) == contents(alone.path)
    assert "teach: 2 experts at a time, a process each" in capfd.readouterr().err


@pytest.mark.slow
def test_those_that_were_there_before_an_end_stay(config: TeachConfig, tmp_path: Path, started: list[int]) -> None:
    """The caller stops after the first that comes back; the next time, two are left."""
    whole = train_teachers(replace(config, out=tmp_path / "whole", workers=1))

    def stopped(store: TrajectoryStore, number: int, written: Any) -> None:
        adopt(store, number, written)
        raise KeyboardInterrupt

    adopt = TrajectoryStore.adopt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrajectoryStore, "adopt", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_teachers(replace(config, workers=2))
    assert len(TrajectoryStore.open(config.out)) == 1
    train_teachers(replace(config, workers=2))
    assert started == [2, 2] and contents(config.out) == contents(whole.path)


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_told(config: TeachConfig) -> None:
    with pytest.raises(Diverged, match=r"^expert \d, epoch \d: the loss is .* at lr 1e\+20; lower teach lr"):
        train_teachers(replace(config, lr=1e20, workers=2))
    assert len(TrajectoryStore.open(config.out)) == 0


GIB = 1 << 30


@pytest.mark.parametrize(
    ("missing", "seconds", "taken", "changed", "device", "expected"),
    [
        (6, 1.0, 0, {}, "cpu", 4),  # as many as cores
        (3, 1.0, 0, {}, "cpu", 3),  # as experts
        (6, 1.0, 3 * GIB, {}, "cpu", 2),  # as memory allows
        (6, 1.0, 30 * GIB, {}, "cpu", 1),
        (6, 1.0, 0, {"threads": 2}, "cpu", 2),
        (6, 1e-3, 0, {}, "cpu", 1),  # too short to pay
        (1, 1.0, 0, {}, "cpu", 1),
        (6, 1.0, 0, {}, "cuda", 1),
        (6, 1e-3, 0, {"workers": 5}, "cpu", 5),
        (6, 1.0, 0, {"workers": 9}, "cuda", 6),
    ],
)
def test_as_many_at_a_time_as_pay(
    config: TeachConfig,
    monkeypatch: pytest.MonkeyPatch,
    missing: int,
    seconds: float,
    taken: int,
    changed: dict[str, Any],
    device: str,
    expected: int,
) -> None:
    """Four cores, and ten GiB of which eight may be used."""
    monkeypatch.setattr(side_by_side, "trial", lambda *_: Trial(seconds, taken))
    monkeypatch.setattr(devices, "free_bytes", lambda device: 10 * GIB)
    monkeypatch.setattr(devices, "cores", lambda: 4)
    store, lesson = lesson_of(config)
    config = replace(config, **changed)
    assert side_by_side._workers(missing, store, config, lesson, torch.device(device)) == expected


def lesson_of(config: TeachConfig) -> tuple[TrajectoryStore, Lesson]:
    pairs, tower = load_split(config.data, "train"), text_tower(config.encoder)
    recipe = Recipe.of(config.data, config.encoder, pairs, tower, config)
    store = TrajectoryStore(config.out, recipe.student((0,)).layers, 2, (1, 2), recipe.to_json())
    return store, Lesson.of(store, config, pairs, tower, CPU)


@pytest.mark.parametrize("encoder", [TRAINED, FROZEN])
def test_a_trial_trains_nobody(config: TeachConfig, encoder: EncoderConfig) -> None:
    store, lesson = lesson_of(replace(config, encoder=encoder))
    student = store.student((0,))
    before = student.flatten()
    tried = trial(student, lesson.pairs, lesson.texts, replace(config, lr=1e20), lesson.features)
    assert 0 < tried.seconds < 10 and 0 <= tried.bytes < GIB
    assert torch.equal(student.flatten(), before)
