"""`ptmst run`: a folder of pictures and a CSV file in, a page out; what is told before, what is refused, resuming."""

from __future__ import annotations

import csv
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ptmst import DistilledSet, InputError, TrajectoryStore, cli, load_student
from ptmst.config import DataConfig, Experiment, RunConfig
from ptmst.data import load_split
from ptmst.presets import experiment
from ptmst.schema import check
from ptmst.studies import own_data, whole
from ptmst.studies import run as module
from ptmst.studies.own_data import made_ready
from ptmst.studies.run import run
from ptmst.support.files import sha256
from tiny import micro

pytestmark = pytest.mark.slow


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 40 pictures of a color each, and a CSV file beside it."""
    folder, draw = tmp_path / "mine", np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for number in range(40):
        color = draw.integers(0, 256, 3)
        Image.fromarray(np.tile(color.astype(np.uint8), (20, 24, 1))).save(folder / "pictures" / f"{number}.png")
        split = "train" if number < 24 else "val" if number < 32 else "test"
        rows.append((f"pictures/{number}.png", f"a picture of {'red' if color[0] > 127 else 'blue'} {number}", split))
    write(folder / "pairs.csv", rows)
    monkeypatch.setattr(module, "experiment", micro)
    monkeypatch.chdir(folder)
    return folder


def write(path: Path, rows: list[tuple[str, str, str]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("filepath", "title", "split"), *rows])


def asked(**changes: Any) -> RunConfig:
    return replace(RunConfig(pairs=6, device="cpu", out=Path("out")), **changes)


def plan(config: RunConfig) -> Experiment:
    return module.planned(config, made_ready(config))


def files_of(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()) for path in found}


def test_all_is_made_and_told(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--pairs", "6", "--device", "cpu", "--out", "out"]) == 0
    said = capsys.readouterr()
    told = said.err + said.out
    for stage in ("teach: about", "distill: about", "evaluate: about", "of disk (1 experts × 2 epochs"):
        assert stage in told, stage
    assert "csv:pairs.csv: 1 experts on all real pairs with a small image tower that is trained and texts by" in told
    store, made = TrajectoryStore.open(pictures / "out" / "store"), DistilledSet.load(pictures / "out" / "set")
    assert len(store) == 1 and made.num_pairs == 6 and made.inner_batch == 3
    assert made.provenance["choice"]["asked"] == "auto:6"
    (phase,) = made.provenance["choice"]["phases"]
    assert f"auto:6 chose the phases 6:{phase['endpoint']}:0-{phase['start'][1]}" in told
    # The lines that are shown can be followed.
    lines = [line for line in told.splitlines() if line.startswith("    ")][-3:]
    best, full = (load_student(pictures / "out" / "students" / name) for name in ("best", "all"))
    assert best.width == full.width and "ptmst query out/students/best FOLDER" in told
    exec("import ptmst, torch\n" + "\n".join(line.removeprefix("    ") for line in lines), {})
    assert "out/report.html" in told and (pictures / "out" / "report.html").read_text().count("<h2>distilled</h2>") == 1


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_run = run(asked(out=Path("whole")), "ptmst run")
    stages = (("train_teachers", 1), ("_distilled", 1), ("_score_random", 1), ("write_report", 1))
    for name, _ in stages:
        with monkeypatch.context() as patch:

            def stopped(*_: Any, **__: Any) -> Any:
                raise KeyboardInterrupt

            patch.setattr(whole, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                run(asked(), "ptmst run")
    with monkeypatch.context() as patch:
        patch.setattr(module, "estimate", lambda _: pytest.fail("told already"))
        found = run(asked(), "ptmst run")
    assert [row.scores.students for row in found] == [row.scores.students for row in whole_run]
    one, other = (files_of(pictures / folder) for folder in ("out", "whole"))
    same = [name for name in one if name.endswith(".safetensors")]
    assert len(same) >= 3 and all(one[name] == other[name] for name in same)
    with pytest.raises(InputError, match=r"^out: expected the run asked for, found one of other settings"):
        run(asked(pairs=5), "ptmst run")


def test_the_plan_fits_the_data_and_the_machine(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "experiment", experiment)
    monkeypatch.setattr(module, "installed", lambda name: True)
    found = plan(asked(steps=7, seed=3))
    check(found)
    assert found.teach.encoder == experiment("run").teach.encoder and found.teach.encoder.freeze_tower
    assert (found.teach.batch_size, found.distill.steps, found.distill.pairs) == (3, 7, 6)
    assert found.teach.seed == found.distill.seed == found.evaluate.seed == 3
    monkeypatch.setattr(module, "installed", lambda name: False)
    small = plan(asked())
    assert small.teach.encoder == replace(experiment("run-small").teach.encoder, text_tower="hashed")
    assert (found.distill.track_recall, small.distill.track_recall) == (0, 100)
    assert [plan(asked(track_recall=every)).distill.track_recall for every in (0, 7)] == [0, 7]
    own = plan(asked(image_tower="timm:resnet18", image_weights=Path("resnet.pt"), text_tower="hashed"))
    encoder = own.teach.encoder
    assert (encoder.image_tower, encoder.image_weights, encoder.freeze_tower) == (
        "timm:resnet18",
        Path("resnet.pt"),
        True,
    )
    assert own.teach.data.image_size is None  # the tower's own


def test_pictures_are_read_at_the_size_of_the_tower(pictures: Path) -> None:
    config = asked(image_tower="timm:test_resnet", image_weights=Path("tower.pt"), text_tower="hashed")
    settings = plan(config)
    job = whole.Job(module.FOLDER, 1, made_ready(config), settings, {}, Path("out"))
    assert whole._data(job).image_size == 160


@pytest.mark.exhaustive
def test_a_tower_of_ones_own_sees_pictures_of_its_own_size(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(name: str) -> Experiment:
        tiny = micro(name)
        return replace(tiny, teach=replace(tiny.teach, encoder=replace(tiny.teach.encoder, freeze_tower=True)))

    monkeypatch.setattr(module, "experiment", frozen)
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), "tower.pt")
    rows = run(asked(image_tower="timm:test_resnet", image_weights=Path("tower.pt"), text_tower="hashed"), "ptmst run")
    made = rows[1].distilled
    assert made is not None and made[0].images.shape[2:] == (160, 160) and made.recipe.encoder.freeze_tower


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": 30}, "pairs: expected at most the 24 training images, found 30; lower it"),
        ({"pairs": 1}, "pairs: expected at least 2, found 1; raise it"),
        ({"data": "csv:none.csv"}, "none.csv: "),
        ({"image_tower": "timm:resnet18"}, "image_tower timm:resnet18: expected weights for it, found none; name them"),
        ({"image_weights": Path("a.pt")}, "image_weights: expected the tower they belong to, found none; name it with"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_is_made(
    pictures: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(asked(**change), "ptmst run")
    assert message in str(caught.value) and not (pictures / "out").exists()


def test_a_table_without_splits_is_given_some(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole_table = load_split(DataConfig("csv:pairs.csv", image_size=16), "train")
    lines = (pictures / "pairs.csv").read_text().splitlines()
    (pictures / "pairs.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines))
    source = made_ready(asked(seed=3))
    found = {split: load_split(replace(source, image_size=16), split) for split in ("train", "val", "test")}
    assert {split: len(pairs.image_names) for split, pairs in found.items()} == {"train": 32, "val": 4, "test": 4}
    names = [name for pairs in found.values() for name in pairs.image_names]
    assert len({*names}) == 40 and {*whole_table.image_names} < {*names}
    captions = dict(zip(whole_table.image_names, whole_table.captions, strict=True))
    for pairs in found.values():
        for text, image in zip(pairs.captions, pairs.image_of_text.tolist(), strict=True):
            name = pairs.image_names[image]
            assert captions.get(name, text) == text
    path = (pictures / "out/pairs.csv").absolute()
    said = "csv:pairs.csv: names no splits; drew 32 for train, 4 for val, 4 for test of its 40 pictures by seed 3"
    assert f"{said}: {path}" in capsys.readouterr().err
    before = path.read_bytes()
    assert made_ready(asked(seed=3)) == source and path.read_bytes() == before
    assert made_ready(asked(seed=4)) == source and path.read_bytes() != before
    rows = run(asked(out=Path("other"), track="tensorboard"), "ptmst run")
    assert rows[1].distilled is not None and rows[-1].pairs == 32
    assert len([*Path("other/set/tensorboard").iterdir()]) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (9, "csv:pairs.csv: expected splits, or at least 10 pictures to draw some of, found 9; add more, or a column"),
        (0, "pairs.csv: expected rows of split train, found no rows"),
        (None, "pairs.csv: expected every image it names under ., found 1 missing, the first none.png"),
    ],
)
def test_a_table_that_no_splits_can_be_drawn_of_is_told_by_its_name(
    pictures: Path, rows: int | None, message: str
) -> None:
    lines = [f"pictures/{number}.png,a picture" for number in range(rows)] if rows is not None else ["none.png,a"]
    (pictures / "pairs.csv").write_text("\n".join(["filepath,title", *lines]))
    with pytest.raises(InputError) as caught:
        run(asked(), "ptmst run")
    assert message in str(caught.value) and not (pictures / "out").exists()


def test_sets_of_ours_are_written_first(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = list[Any]()
    monkeypatch.setattr(own_data, "write_data", asked_for.append)
    assert made_ready(asked(data="scenes")) == DataConfig("scenes", Path("out/data"))
    assert [(one.name, one.root) for one in asked_for] == [("scenes", Path("out/data"))]
    assert made_ready(asked(data="scenes", root=Path("mine"))) == DataConfig("scenes", Path("mine"))
    assert len(asked_for) == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_missing_is_told_before_anything_is_made(
    name: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f"^track {name}: expected the package {name}, found none"):
        run(asked(track=name), "ptmst run")
    assert not (pictures / "out").exists()


def test_bad_tables_are_told(pictures: Path) -> None:
    good = (pictures / "pairs.csv").read_text()
    cases = {
        "": "pairs.csv: ",
        good.replace(",val", ",train"): "val",
        good.replace(",test", ",val"): "test",
    }
    for text, message in cases.items():
        (pictures / "pairs.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            run(asked(), "ptmst run")
    (pictures / "pairs.csv").write_bytes(good.replace("red", "grün").encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        run(asked(), "ptmst run")
    (pictures / "pairs.csv").write_text(good)
    shutil.rmtree(pictures / "pictures")
    with pytest.raises(InputError, match=r"pairs.csv: expected every image it names .* found 24 missing, the first"):
        run(asked(), "ptmst run")
    assert not (pictures / "out").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 0, 1000))
    with pytest.raises(InputError, match=r"^out: expected .* MB of free disk, found 0\.0; choose another --out$"):
        run(asked(), "ptmst run")
    assert not (pictures / "out").exists()
