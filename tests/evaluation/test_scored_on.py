"""Sets and stores scored on other data than those that they were made of, and captions that several images share."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from oracles import recall
from ptmst import DistilledSet, EvaluateConfig, InputError, TrajectoryStore, cli, evaluate, evaluate_experts, schema
from ptmst.data import load_split, write_scenes
from ptmst.evaluation.baselines import random_pairs
from ptmst.evaluation.metrics import METRICS
from ptmst.evaluation.students import as_distilled, train_students
from ptmst.students.text_towers import text_tower
from ptmst.support import files
from tiny import tiny_store

SHORT = EvaluateConfig(students=2, epochs=1, lr_drop=1, every=1, batch_size=5, device="cpu")
CAPTIONS = ("a red disc", "a blue box", "a red disc", "a green bar", "a blue box", "a red disc", "a white frame")
"""Of the other data's test pictures; three discs and two boxes."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory)


@pytest.fixture
def distilled(store: TrajectoryStore) -> DistilledSet:
    return random_pairs(store, 10, 0.1, 0)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder of pictures of 24×20 pixels and captions, in columns of other names, without a training split."""
    folder = tmp_path / "other"
    folder.mkdir()
    for split, captions in (("test", CAPTIONS), ("val", CAPTIONS[3:])):
        rows = []
        for i, caption in enumerate(captions):
            pixels = np.random.default_rng(i + 100 * (split == "val")).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}{i}.png")
            rows.append((f"{split}{i}.png", caption))
        write(folder / f"{split}.csv", rows)
    return folder


def write(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("file", "text"), *rows])


def on(folder: Path, config: EvaluateConfig = SHORT, **changes: Any) -> EvaluateConfig:
    other = replace(config, on="csv:{split}.csv", on_root=folder, on_image_column="file", on_caption_column="text")
    return replace(other, **changes)


def elsewhere(made: DistilledSet) -> DistilledSet:
    """The set where its own data are gone."""
    return replace(made, settings={**made.settings, "data": {**made.settings["data"], "root": "/nowhere"}})


def by_hand(folder: Path, made: DistilledSet, config: EvaluateConfig, equal: bool = False) -> list[dict[str, float]]:
    """Scores of the students of a set on the pictures of `other`, read with Pillow and counted in float64."""
    (mean, std), size = made.normalization, made[0].images.shape[-1]
    pictures = [Image.open(folder / f"test{i}.png") for i in range(len(CAPTIONS))]
    resized = np.stack([np.array(p.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)) for p in pictures])
    images = torch.from_numpy(((resized / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)).float()
    texts = text_tower(made.recipe.encoder).embed(CAPTIONS)
    numbers = np.array([CAPTIONS.index(caption) for caption in CAPTIONS])
    found = []
    for number in range(config.students):
        key: tuple[int | str, ...] = (config.seed, "student", number)
        student = made.student(key)
        *_, (_, thetas) = train_students(student, student.flatten()[None], made, as_distilled(made, config), [key])
        embeds = student.embed_images(thetas[0], images), student.embed_texts(thetas[0], texts)
        normal_images, normal_texts = (F.normalize(e.detach()).double().numpy() for e in embeds)
        found.append(recall(normal_images, normal_texts, np.arange(len(CAPTIONS)), numbers if equal else None))
    return found


def test_students_are_scored_on_other_pictures(distilled: DistilledSet, other: Path) -> None:
    """Read in the size and with the mean and deviation of the set, whose own data are not needed."""
    scores = evaluate(elsewhere(distilled), on(other))
    for found, expected in zip(scores.students, by_hand(other, distilled, SHORT), strict=True):
        assert dict(found) == pytest.approx(expected, rel=1e-6)
    provenance = scores.provenance
    assert provenance["data"] == "scenes" and provenance["data_fingerprint"] == distilled.recipe.fingerprints.data
    assert provenance["scored"]["data"] == provenance["config"]["on"] == scores.scored_data == "csv:{split}.csv"
    assert (provenance["scored"]["images"], provenance["scored"]["captions"]) == (7, 7)
    assert "on_root" not in provenance["config"] and provenance["config"]["on_image_column"] == "file"


def test_a_set_scored_on_its_own_data_by_name_scores_as_ever(distilled: DistilledSet) -> None:
    root = Path(distilled.settings["data"]["root"])
    own, named = evaluate(distilled, SHORT), evaluate(elsewhere(distilled), replace(SHORT, on="scenes", on_root=root))
    assert named.students == own.students and named.provenance["scored"] == own.provenance["scored"]


def test_other_data_are_chosen_by_their_own_val(
    distilled: DistilledSet, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptmst.evaluation import evaluate as evaluation

    asked: list[tuple[str, str]] = []
    load = load_split

    def watched(data: Any, split: str) -> Any:
        asked.append((data.name, split))
        return load(data, split)

    monkeypatch.setattr(evaluation, "load_split", watched)
    evaluate(elsewhere(distilled), on(other, select="best-val"))
    assert asked == [("csv:{split}.csv", "test"), ("csv:{split}.csv", "val")]
    (other / "val.csv").unlink()
    with pytest.raises(InputError, match=r"val\.csv: expected a CSV file, found no such file"):
        evaluate(distilled, on(other, select="best-val"))


def test_experts_are_scored_on_other_pictures(store: TrajectoryStore, other: Path, tmp_path: Path) -> None:
    """Though their own data are gone: how many pairs they were trained on is in the store."""
    settings = {**store.settings, "data": {**store.settings["data"], "root": str(tmp_path / "nowhere")}}
    moved = replace(store, settings=settings)
    scores = evaluate_experts(moved, on(other))
    assert (scores.provenance["pairs"], scores.provenance["scored"]["data"]) == (48, "csv:{split}.csv")
    assert scores.provenance["config"]["on"] == "csv:{split}.csv"
    assert scores.students != evaluate_experts(store, SHORT).students
    # Of a store of an earlier release they are counted where they are.
    bare = {n: {k: v for k, v in entry.items() if k != "pairs"} for n, entry in store.experts.items()}
    moved = replace(moved, experts=bare)
    assert evaluate_experts(moved, on(other, root=Path(store.settings["data"]["root"]))).provenance["pairs"] == 48
    with pytest.raises(InputError, match=r"nowhere: expected the data that the experts were trained on, found no such"):
        evaluate_experts(moved, on(other))


def test_only_the_test_split_of_the_experts_data_is_needed(store: TrajectoryStore, tmp_path: Path) -> None:
    shutil.copytree(store.settings["data"]["root"], tmp_path / "data")
    (tmp_path / "data" / "scenes_train.json").unlink()
    found = evaluate_experts(store, replace(SHORT, root=tmp_path / "data"))
    assert found.students == evaluate_experts(store, SHORT).students and found.provenance["pairs"] == 48


def test_a_store_without_experts_is_refused(store: TrajectoryStore) -> None:
    with pytest.raises(InputError, match=r"store: expected at least one expert, found none; run `ptmst teach`"):
        evaluate_experts(replace(store, experts={}), SHORT)


@pytest.mark.parametrize("name", ["on_root", "on_image_column", "on_caption_column"])
def test_where_other_data_are_without_a_name_is_refused(store: TrajectoryStore, name: str) -> None:
    change: dict[str, Any] = {name: Path("x") if name == "on_root" else "x"}
    config = replace(SHORT, **change)
    message = f"^{name}: expected the data that it belongs to, found none; name them"
    with pytest.raises(InputError, match=message):
        evaluate(random_pairs(store, 6, 0.1, 0), config)
    with pytest.raises(InputError, match=message):
        evaluate_experts(store, config)


# Equal captions


def test_equal_captions_count_as_correct_where_they_are_to(distilled: DistilledSet, other: Path) -> None:
    apart, alike = (evaluate(distilled, on(other, count_equal_captions=equal)) for equal in (False, True))
    for found, expected in zip(alike.students, by_hand(other, distilled, SHORT, equal=True), strict=True):
        assert dict(found) == pytest.approx(expected, rel=1e-6)
    assert all(one[m] <= two[m] for one, two in zip(apart.students, alike.students, strict=True) for m in METRICS)
    assert apart.students != alike.students
    assert (apart.counts_equal_captions, alike.counts_equal_captions) == (False, True)
    assert alike.provenance["config"]["count_equal_captions"] is True


def test_equal_captions_of_experts(store: TrajectoryStore, other: Path) -> None:
    apart, alike = (evaluate_experts(store, on(other, count_equal_captions=equal)) for equal in (False, True))
    assert apart.mean() < alike.mean() and (apart.counts_equal_captions, alike.counts_equal_captions) == (False, True)


def test_captions_are_equal_once_they_are_clean(distilled: DistilledSet, other: Path) -> None:
    """In capitals, with a point, and cut to the words that are read."""
    plain = evaluate(distilled, on(other, count_equal_captions=True))
    told = [caption.upper() + "." if i % 2 else caption for i, caption in enumerate(CAPTIONS)]
    write(other / "test.csv", [(f"test{i}.png", caption) for i, caption in enumerate(told)])
    assert evaluate(distilled, on(other, count_equal_captions=True)).students == plain.students
    two = {**distilled.settings, "data": {**distilled.settings["data"], "max_words": 2}}
    write(other / "test.csv", [(f"test{i}.png", f"a red {i}") for i in range(7)])
    cut = evaluate(replace(distilled, settings=two), on(other, count_equal_captions=True))
    assert all(student["mean"] == 100 for student in cut.students)


# By the command line


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def here(distilled: DistilledSet, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the set and the other data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    distilled.save("set")
    return tmp_path


FLAGS = ["--students", "1", "--epochs", "0", "--batch-size", "5", "--device", "cpu"]
ON = ["--on", "csv:{split}.csv", "--on-root", "other", "--on-image-column", "file", "--on-caption-column", "text"]


def test_the_table_names_both_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "evaluate", "set", *FLAGS, *ON, "--out", "other.json", "--count-equal-captions")
    assert code == 0, err
    told = "1 student, scenes, scored on csv:{split}.csv test of 7 images, per-phase, selection last, loss wbce"
    assert f"{told}, equal captions correct" in " ".join(out.split())
    assert run(capsys, "report", "other.json", "--out", "t.csv")[0] == 0
    (record,) = csv.DictReader(io.StringIO(Path("t.csv").read_text()))
    found = {key: record[key] for key in ("data", "scored on", "split", "images", "equal captions")}
    expected = {"data": "scenes", "scored on": "csv:{split}.csv", "split": "test", "images": "7"}
    assert found == {**expected, "equal captions": "correct"}
    assert not Path("set/scores.json").exists()


def test_scores_of_the_set_itself_are_not_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "evaluate", "set", *FLAGS)[0] == 0
    before = Path("set/scores.json").read_bytes()
    for more, which in (([], "on other data"), (["--student", "convnet"], "of another tower and on other data")):
        code, _, err = run(capsys, "evaluate", "set", *FLAGS, *ON, *more)
        assert code == 2
        assert err == f"ptmst: out: expected a file for the scores {which}, found none; name one with --out\n"
    assert Path("set/scores.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--on", "csv:gone.csv"], "other/gone.csv: expected a CSV file, found no such file; check the path"),
        (["--on", "csv:train.csv"], "other/train.csv: expected rows of split test, found train; name the split of"),
        (["--on-caption-column", "words"], "other/test.csv: line 1: expected a header with one column each of file"),
        (["--on", "scenes"], "image_column and caption_column: expected data of csv, tsv, jsonl, parquet, found scene"),
    ],
)
def test_data_that_cannot_be_scored_on_are_told_in_one_line(
    here: Path, change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("other/val.csv", "other/train.csv")
    code, out, err = run(capsys, "evaluate", "set", *FLAGS, *ON, *change, "--out", "scores.json")
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"ptmst: {message}")
    assert not Path("scores.json").exists()


def test_a_name_of_no_data_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "evaluate", "set", *FLAGS, "--on", "flickr", "--out", "scores.json")
    assert code == 2 and err.startswith("ptmst: data set: expected ") and "did you mean flickr" in err


def test_rendered_data_without_a_test_split_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(here / "scenes", image_size=16, train=2, val=2, test=2, warmup=0)
    (here / "scenes" / "scenes_test.json").unlink()
    flags = ["--on", "scenes", "--on-root", "scenes", "--out", "scores.json"]
    code, _, err = run(capsys, "evaluate", "set", *FLAGS, *flags)
    assert code == 2 and err.startswith("ptmst: scenes/scenes_test.json: expected an annotation file, found none; ")


def test_settings_in_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = 'on_image_column = "file"\non_caption_column = "text"'
    text = f'[evaluate]\non = "csv:{{split}}.csv"\non_root = "other"\n{columns}\ncount_equal_captions = true\n'
    (here / "ours.toml").write_text(text)
    assert run(capsys, "evaluate", "set", *FLAGS, "--config", "ours.toml", "--out", "a.json")[0] == 0
    assert run(capsys, "evaluate", "set", *FLAGS, *ON, "--count-equal-captions", "--out", "b.json")[0] == 0
    one, other = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert one["students"] == other["students"] and one["provenance"]["config"] == other["provenance"]["config"]
    assert schema.from_json(EvaluateConfig, one["provenance"]["config"]).on == "csv:{split}.csv"
    assert files.read_json(here / "a.json", "score file", 1)
