"""What is told before an experiment runs, beside what it then takes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ptmst import cli
from ptmst.config import EvaluateConfig, Experiment, OpenPhases, TeachConfig
from ptmst.data import write_scenes
from ptmst.distillation import distill as distillation
from ptmst.distillation.distill import distill
from ptmst.errors import InputError
from ptmst.studies import cost, estimate
from ptmst.studies.estimate import Stage, shown
from ptmst.teachers.teach import train_teachers
from tiny import DISTILL, ENCODER, data_config


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    write_scenes(tmp_path / "data", image_size=16, train=24, val=8, test=6, warmup=0, captions=2)
    return Experiment(
        teach=TeachConfig(tmp_path / "store", data_config(tmp_path), ENCODER, 3, 3, batch_size=16, endpoints=(2, 3)),
        distill=replace(DISTILL, steps=2, out=tmp_path / "set"),
        evaluate=EvaluateConfig(students=2, epochs=4, batch_size=8),
    )


def on_disk(folder: Path, but: str = "") -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != but)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_stages_and_their_size(
    experiment: Experiment, frozen: bool, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not quick:
        monkeypatch.setattr(estimate, "_QUICK_S", 0.0)
    teach = replace(experiment.teach, encoder=replace(ENCODER, freeze_tower=frozen))
    stages = {stage.name: stage for stage in estimate.estimate(replace(experiment, teach=teach))}
    assert list(stages) == ["teach", "distill", "evaluate"] and not teach.out.exists()
    assert all(0 < stage.seconds < 60 and 1e8 < stage.memory < 1e11 for stage in stages.values())
    assert stages["teach"].what == "3 experts × 3 epochs"
    assert stages["evaluate"].what == "2 students × 4 epochs, 6 images"
    store = train_teachers(teach)
    # Beside what is in them, files have heads; the cache has features or pixels.
    kept = 24 * 64 * 4 if frozen else 24 * 3 * 16 * 16
    assert stages["teach"].disk - kept == pytest.approx(on_disk(store.path, but="store.json"), rel=0.02)
    cached = Path(os.environ["PTMST_CACHE"]).glob("features-*" if frozen else "pixels-*")
    assert max(path.stat().st_size for path in cached) == pytest.approx(kept, rel=0.1)
    distilled = distill(experiment.distill, store)
    assert distilled.num_pairs == 18
    tensors = sum(leaf.nbytes for pairs in distilled for leaf in pairs.leaves().values())
    assert stages["distill"].disk == pytest.approx(tensors, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("quick", [False, True])
def test_a_search_for_phases_is_counted(experiment: Experiment, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not quick:
        monkeypatch.setattr(estimate, "_QUICK_S", 0.0)
    searching = replace(experiment.distill, phases=(OpenPhases(8, by="search"),), steps=40)
    monkeypatch.setattr(distillation, "choose", lambda *_: pytest.fail("an estimate chooses nothing"))
    _, stage, _ = estimate.estimate(replace(experiment, distill=searching))
    # Five runs of a fourth, three of a half.
    assert stage.what.startswith("8 pairs, 40 outer steps, up to 110 more to choose phases, keep ")
    _, plain, _ = estimate.estimate(replace(experiment, distill=replace(searching, phases=(OpenPhases(8),))))
    assert plain.what.startswith("8 pairs, 40 outer steps, keep ") and plain.disk == stage.disk


def test_it_is_said_in_words() -> None:
    assert shown(Stage("teach", 119.4, 2.06e9, 47.04e6, "")) == ("119 s", "2.1 GB", "47.0 MB")
    assert shown(Stage("teach", 3600, 9e8, 0, "")) == ("60 min", "900.0 MB", "–")
    assert shown(Stage("teach", 3600 * 26.04, 9e8, 0, ""))[0] == "26.0 h"


@pytest.mark.slow
def test_the_command_tells_a_table(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ptmst.presets.experiment", lambda *_: experiment)
    assert cli.main(["estimate", "scenes", "--root", str(tmp_path / "data"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("teach", "distill", "evaluate", "keep", "3 experts × 3 epochs", "MB"))
    assert cli.main(["estimate", "scenes", "--root", str(tmp_path / "none")]) == 2
    assert "ptmst: " in capsys.readouterr().err


def test_settings_that_cannot_be_used_are_refused(experiment: Experiment) -> None:
    with pytest.raises(InputError, match="steps: expected a positive number"):
        list(estimate.estimate(replace(experiment, distill=replace(experiment.distill, steps=0))))
    assert cost.Between(0, 0) == cost.total([])
