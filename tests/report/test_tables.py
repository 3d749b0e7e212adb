"""Recalls as tables: each form read back by another reader."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ptmst import EvaluateConfig, TrajectoryStore, cli, evaluate, recipe
from ptmst.config import DataConfig, EncoderConfig
from ptmst.data import load_split
from ptmst.errors import InputError
from ptmst.evaluation.baselines import subset
from ptmst.evaluation.metrics import METRICS, TIES, ZERO_SHOT
from ptmst.evaluation.scores import Scores, write_scores
from ptmst.recipe import Recipe
from ptmst.report.tables import Row, _json, fraction_of_full, how, read_row, read_rows, recall_table, write_table
from ptmst.schema import to_json
from ptmst.students.image_towers import image_tower
from ptmst.studies import tuning
from ptmst.studies.runs import Run
from ptmst.support.files import sha256
from ptmst.synthetic.distilled_set import DistilledSet
from tiny import DISTILL, contents, tiny_store

MADE: dict[str, Any] = {
    "data": "scenes",
    "data_fingerprint": "of scenes",
    "encoder": {"image_tower": "convnet", "image_width": 32, "freeze_tower": False, "warmup_epochs": 3},
    "text_fingerprint": "hashed:32",
    "image_weights_sha256": None,
}


def scores(first: float, students: int, **changes: Any) -> Scores:
    values = tuple({metric: first + 2.5 * i + n for i, metric in enumerate(METRICS)} for n in range(students))
    config = to_json(EvaluateConfig(**{"loss": "wbce", **changes}))
    made = {**MADE, "encoder": {**MADE["encoder"], "image_tower": config["student"] or "convnet"}}
    return Scores(values, {"split": "test", "ties": TIES, "config": config, **made})


def rows() -> list[Row]:
    full = replace(
        scores(40.0, 2), provenance={"split": "test", "ties": TIES, "experts": [0, 1], "pairs": 1000, **MADE}
    )
    return [
        Row("50 % | of_them & more", scores(10.0, 3), 50),
        Row("ours", scores(20.0, 3, protocol="reference", select="best-test"), 1234),
        Row("elsewhere", scores(15.0, 3, student="timm:nf_resnet50"), 50),
        Row("all", full, 1000),
    ]


def expected(row: Row) -> list[tuple[float, float]]:
    values = [[student[metric] for student in row.scores.students] for metric in METRICS]
    return [(mean(v), stdev(v)) for v in values]


def written(tmp_path: Path, suffix: str) -> str:
    write_table(tmp_path / f"table{suffix}", rows())
    return (tmp_path / f"table{suffix}").read_text("utf-8")


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_records_hold_every_number_and_how_it_was_got(tmp_path: Path, suffix: str) -> None:
    text = written(tmp_path, suffix)
    found = list(csv.DictReader(io.StringIO(text))) if suffix == ".csv" else json.loads(text)
    assert [record["trained on"] for record in found] == [row.name for row in rows()]
    for record, row in zip(found, rows(), strict=True):
        for metric, (center, spread) in zip(METRICS, expected(row), strict=True):
            assert float(record[metric]) == pytest.approx(center)
            assert float(record[f"{metric} std"]) == pytest.approx(spread)
        share = expected(row)[-1][0] / expected(rows()[3])[-1][0]
        if row.name == "elsewhere":  # students of another tower than the experts'
            assert not record["percent of all real pairs"]
        else:
            assert float(record["percent of all real pairs"]) == pytest.approx(100 * share)
        assert (int(record["pairs"]), int(record["students"])) == (row.pairs, len(row.scores.students))
        assert record["split"] == "test"
    assert [record["protocol"] for record in found] == ["as-matched", "reference", "as-matched", "as trained"]
    assert [record["selection"] for record in found] == ["last", "best-test", "last", "last"]
    assert [record.get("tower", "") for record in found] == ["", "", "timm:nf_resnet50", ""]


def test_zero_shot_accuracy_has_a_column_where_there_is_any(tmp_path: Path) -> None:
    plain = rows()[1]
    some = tuple({**student, ZERO_SHOT: 30.0 + 2 * n} for n, student in enumerate(plain.scores.students))
    classed = replace(plain, name="classed", scores=replace(plain.scores, students=some))
    for suffix in (".csv", ".md"):
        write_table(tmp_path / f"table{suffix}", [plain, classed])
    first, second = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text("utf-8")))
    assert (first[ZERO_SHOT], second[ZERO_SHOT], second[f"{ZERO_SHOT} std"]) == ("", "32.0", "2.0")
    text = (tmp_path / "table.md").read_text("utf-8")
    head, _, *body = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    assert [line[head.index("zero-shot")] for line in body] == ["", "32.0 ± 2.0"]
    assert "Recall and zero-shot accuracy on test" in text


def test_markdown_is_a_table(tmp_path: Path) -> None:
    head, rule, *body = [line for line in written(tmp_path, ".md").splitlines() if line.startswith("|")]
    assert rule.count("|") == head.count("|") == 11 and len(body) == 4
    name, *cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", body[0])[1:-1]]
    assert name == r"50 % \| of_them & more"
    assert cells == ["50", *(f"{m:.1f} ± {s:.1f}" for m, s in expected(rows()[0])), "47 %"]
    for line in how(rows()):
        assert line in written(tmp_path, ".md")


def test_latex_is_escaped_and_whole(tmp_path: Path) -> None:
    text = written(tmp_path, ".tex")
    assert text.index(r"\begin{tabular}{lrrrrrrrrr}") < text.index(r"\end{tabular}")
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 5
    assert all(len(re.findall(r"(?<!\\)&", line)) == 9 for line in lines)
    assert lines[1].startswith(r"50 \% \textbar{} of\_them \& more & 50 & 11.0 $\pm$ 1.0 &")
    shown = [line for line in text.splitlines() if not line.startswith("%")]
    assert not any(re.search(r"(?<!\\)[%#_]", line) for line in shown)


def test_latex_has_what_an_ablation_tunes(tmp_path: Path) -> None:
    """In letters that LaTeX has by itself."""
    runs = (Run("ptm-st", 50, 0, factor=3.0), Run("random", 50, 0, lr=0.03))
    trials = [Run("ptm-st", 50, 1000), *(Run("random", 50, 1000, lr=lr) for lr in (0.01, 0.1))]
    tuned = [tuning.tuned(run, [*trials, *runs]) for run in runs]
    told = [replace(row, more={"tuned": how}) for row, how in zip(rows(), tuned, strict=False)]
    write_table(tmp_path / "table.tex", told)
    text = (tmp_path / "table.tex").read_text("utf-8")
    assert r"rates $\times$ 3 (edge)" in text and r"wbce, $\eta$ 0.03" in text
    assert all(line.isascii() for line in text.splitlines() if not line.startswith("%"))


def test_how_rows_were_evaluated_is_told() -> None:
    assert how(rows()[:1]) == ["3 students, scenes test, as-matched, selection last, loss wbce"]
    assert how(rows()) == [
        "50 % | of_them & more: 3 students, scenes test, as-matched, selection last, loss wbce",
        "ours: 3 students, scenes test, reference, selection best-test, loss wbce",
        "elsewhere: 3 students of timm:nf_resnet50 (warmed up for 3 epochs), scenes test, as-matched, selection last, "
        "loss wbce",
        "all: 2 experts, scenes test, as trained, selection last",
    ]
    assert recall_table(rows()).caption == "\n".join(how(rows()))
    # Sizes of one method have one name.
    assert how([*rows(), replace(rows()[1], pairs=9)]) == how(rows())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": "digits", "split": "val"}, "3 students, digits val, as-matched"),
        ({"seeds": [4, 5]}, "3 students of 2 seeds, scenes test, as-matched"),
        ({"image_weights_sha256": "0123456789abcdef"}, "3 students of timm:vit (weights 01234567), scenes test"),
        ({"encoder": {"image_tower": "timm:vit", "warmup_epochs": 0}}, "3 students of timm:vit (random weights), "),
        ({"config": {"epochs": 3, "weight_decay": 0.1}}, "selection last, loss wbce, epochs 3, weight_decay 0.1"),
        ({"scored": {"images": 1234}}, "3 students, scenes test of 1,234 images, as-matched"),
        ({"config": {"temperature": 0.05}}, "selection last, loss wbce, temperature 0.05."),
        ({"config": {"temperature": 0.07}}, "selection last, loss wbce."),
        ({"config": {"together": 2, "seed": 9}}, "3 students, scenes test, as-matched, selection last, loss wbce"),
        (
            {"scored": {"data": "stamps", "images": 9}, "config": {"on": "stamps"}},
            "3 students, scenes, scored on stamps test of 9 images, as-matched, selection last, loss wbce.",
        ),
        ({"scored": {"data": "scenes", "images": 9}}, "3 students, scenes test of 9 images, as-matched"),
        ({"config": {"count_equal_captions": True}}, "selection last, loss wbce, equal captions correct."),
    ],
)
def test_whatever_decides_a_number_is_told_beside_it(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    row = replace(rows()[0], name="one")
    provenance = {**row.scores.provenance, **change}
    student = "timm:vit" if "timm:vit" in told else None
    provenance["config"] = {**row.scores.provenance["config"], **change.get("config", {}), "student": student}
    row = replace(row, scores=replace(row.scores, provenance=provenance))
    for suffix in (".md", ".tex"):
        write_table(tmp_path / f"t{suffix}", [row])
        text = (tmp_path / f"t{suffix}").read_text("utf-8").splitlines()
        (line,) = (line for line in text if line.startswith("Recall on "))
        assert told in line.replace("\\_", "_")
    (record,) = json.loads(_json([row], ""))
    assert record["data"] == provenance["data"] and record["split"] == provenance["split"]
    assert record["scored on"] == provenance.get("scored", {}).get("data", provenance["data"])
    assert record["equal captions"] == ("correct" if "equal captions" in told else "wrong")
    assert record["seeds"] == ("4, 5" if "seeds" in change else str(provenance["config"]["seed"]))


def test_scores_that_count_ties_differently_are_not_compared(tmp_path: Path) -> None:
    ours, other, *_ = rows()
    old = replace(ours.scores, provenance={k: v for k, v in ours.scores.provenance.items() if k != "ties"})
    early = replace(ours, name="early", scores=old)
    for suffix in (".csv", ".json", ".md", ".tex"):
        with pytest.raises(InputError, match=r"^early: expected scores that count ties as expected"):
            write_table(tmp_path / f"a{suffix}", [early, other])
    with pytest.raises(InputError, match=r"run `ptmst evaluate` again$"):
        recall_table([other, early])
    # By themselves they are shown, and what they count is told.
    write_table(tmp_path / "a.md", [early, replace(early, name="late")])
    assert "ties in favor" in (tmp_path / "a.md").read_text()
    assert json.loads(_json([early], ""))[0]["ties"] == "in favor"
    assert not list(tmp_path.glob("a.[cjt]*"))


def scored(row: Row, name: str, **changes: Any) -> Row:
    """A row with other provenance."""
    return replace(row, name=name, scores=replace(row.scores, provenance={**row.scores.provenance, **changes}))


def on(data: str, images: int, captions: int, split: str = "test", **more: str) -> dict[str, Any]:
    scored = {"data": data, "split": split, "images": images, "captions": captions, **more}
    return {"split": split, "scored": scored}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            on("scenes", 500, 2500),
            on("stamps", 223, 224),
            r"^b: expected scores on scenes test \(500 images, 2,500 captions\), as of a, found ones on stamps test "
            r"\(223 images, 224 captions\); make a table for each data set$",
        ),
        (on("scenes", 500, 2500), on("stamps", 9, 9, "val"), r"^b: expected scores on scenes test .* on stamps val "),
        (
            on("scenes", 500, 2500),
            on("scenes", 499, 2500),
            r"^b: .* scenes test \(499 images, 2,500 captions\); make a",
        ),
        ({}, on("stamps", 9, 9), r"^b: expected scores on scenes test, as of a, found ones on stamps test"),
        (
            on("own", 9, 9, sha256="ab"),
            on("own", 9, 9, sha256="cd"),
            r"^b: expected scores on the images and captions of a, found ones on others of the same name \(own test "
            r"\(9 images, 9 captions\)\); make a table for each data set$",
        ),
    ],
)
def test_scores_on_different_data_are_not_compared(
    first: dict[str, Any], second: dict[str, Any], message: str, tmp_path: Path
) -> None:
    mixed = [scored(rows()[1], "a", **first), scored(rows()[1], "b", **second)]
    for suffix in (".csv", ".json", ".md", ".tex"):
        with pytest.raises(InputError, match=message):
            write_table(tmp_path / f"a{suffix}", mixed)
    with pytest.raises(InputError, match=message):
        recall_table(mixed)
    assert not list(tmp_path.iterdir())


def test_scores_on_one_data_set_are_compared(tmp_path: Path) -> None:
    """Made of whatever, and on two of its splits."""
    made = scored(rows()[1], "elsewhere", data="digits", **on("stamps", 223, 224))
    others = [
        scored(rows()[1], "here", data="stamps", **on("stamps", 223, 224)),
        scored(made, "b", **on("stamps", 9, 9, "val")),
    ]
    write_table(tmp_path / "t.md", [made, *others])
    with_hash = on("stamps", 223, 224)
    with_hash["scored"]["sha256"] = "ab"
    write_table(tmp_path / "t.md", [made, scored(others[0], "hashed", **with_hash)])
    assert "digits, scored on stamps test of 223 images" in (tmp_path / "t.md").read_text()


def test_scores_that_count_equal_captions_differently_are_not_compared(tmp_path: Path) -> None:
    ours, other, *_, full = rows()
    config = {**ours.scores.provenance["config"], "count_equal_captions": True}
    equal = scored(ours, "equal", config=config)
    experts = scored(full, "experts", config={"count_equal_captions": True})
    for mixed, name in (
        ([equal, other], "equal"),
        ([other, equal, experts], "equal, experts"),
        ([experts, other], "experts"),
    ):
        with pytest.raises(
            InputError, match=rf"^{name}: expected scores that count equal captions as wrong, as the oth"
        ):
            write_table(tmp_path / "t.md", mixed)
    write_table(tmp_path / "t.md", [equal, experts])
    assert (tmp_path / "t.md").read_text().count("equal captions correct") == 2
    assert fraction_of_full(equal, [equal, experts]) and fraction_of_full(other, [other, experts]) is None


def test_rows_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provenance = {**scores(10.0, 1).provenance, "pairs": 3}
    for name in ("a/set", "b/set", "c/other"):
        (tmp_path / name).parent.mkdir()
        write_scores(tmp_path / f"{name}.json", replace(scores(10.0, 1), provenance=provenance))
    monkeypatch.chdir(tmp_path)
    paths = [Path(f"{name}.json") for name in ("a/set", "b/set", "c/other")]
    assert [row.name for row in read_rows(paths)] == ["a/set.json", "b/set.json", "other"]


def test_a_fraction_needs_one_row_of_all_pairs() -> None:
    one, *_, full = rows()
    assert fraction_of_full(one, [one]) is None
    assert fraction_of_full(one, [one, full, full]) is None
    assert fraction_of_full(full, [one, full]) == 100.0
    encoder = MADE["encoder"]
    others: tuple[dict[str, Any], ...] = (
        {"split": "val"},
        {"scored": {"split": "test", "fingerprint": "of other images", "images": 1000, "captions": 5000}},
        {"scored": {"data": "stamps"}},
        {"data_fingerprint": "of other data"},
        {"text_fingerprint": "hashed:64"},
        {"image_weights_sha256": "others"},
        *({"encoder": {**encoder, **one}} for one in ({"freeze_tower": True}, {"image_width": 64})),
    )
    for other in others:
        elsewhere = replace(full, scores=replace(full.scores, provenance={**full.scores.provenance, **other}))
        assert fraction_of_full(one, [one, elsewhere]) is None
    assert fraction_of_full(rows()[2], rows()) is None  # students of another tower than the experts'
    # Early files do not name the data that they scored.
    same = {"split": "test", "fingerprint": "of images", "images": 8, "captions": 16}
    early, late = scored(one, "early", scored=same), scored(full, "late", scored={"data": "scenes", **same})
    assert fraction_of_full(early, [early, late])
    theirs = replace(full, scores=replace(full.scores, provenance={**full.scores.provenance, **made_of_other()}))
    assert fraction_of_full(rows()[2], [*rows(), theirs]) == pytest.approx(
        100 * expected(rows()[2])[-1][0] / expected(full)[-1][0]
    )
    nothing = replace(full, scores=replace(full.scores, students=(dict.fromkeys(METRICS, 0.0),)))
    assert fraction_of_full(one, [one, nothing]) is None


def made_of_other() -> dict[str, Any]:
    return {"encoder": {**MADE["encoder"], "image_tower": "timm:nf_resnet50"}}


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"table\.xls: expected a name that ends in \.csv, \.json, \.md, \.tex"):
        write_table(tmp_path / "table.xls", rows())
    assert not list(tmp_path.iterdir())


# By the command line


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory)


SHORT = ["--students", "2", "--epochs", "1", "--batch-size", "5", "--device", "cpu"]


@pytest.mark.slow
def test_sets_and_experts_are_written_up(
    store: TrajectoryStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptmst import distill

    monkeypatch.chdir(tmp_path)
    distill(replace(DISTILL, out=Path("ours"), steps=1), store)
    before = contents(store.path, "*.safetensors")
    assert cli.main(["evaluate", "--set", "ours", *SHORT]) == 0
    scores_of_store = store.path / "scores.json"
    try:
        assert cli.main(["evaluate", "--set", str(store.path), *SHORT]) == 0
        row = read_row(store.path)
        assert (row.name, row.pairs, row.is_full) == ("all real pairs (store)", 48, True)
        assert cli.main(["report", "ours", str(store.path), "--out", "table.csv"]) == 0
        said = scores_of_store.read_text()
    finally:
        scores_of_store.unlink()
    found = list(csv.DictReader(io.StringIO(Path("table.csv").read_text())))
    assert [record["trained on"] for record in found] == ["ours", "all real pairs (store)"]
    ours, theirs = (
        json.loads(text)["summary"]["mean"]["mean"] for text in (Path("ours/scores.json").read_text(), said)
    )
    assert float(found[0]["percent of all real pairs"]) == pytest.approx(100 * ours / theirs)
    assert float(found[1]["percent of all real pairs"]) == pytest.approx(100.0)
    assert contents(store.path, "*.safetensors") == before
    assert "table.csv: 2 rows" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"run `ptmst evaluate .*store` first"):
        read_row(store.path)


@pytest.mark.slow
def test_students_of_another_tower(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from ptmst import distill

    distilled: DistilledSet = distill(replace(DISTILL, steps=1), store)
    asked: list[str] = []
    made = Recipe.student

    def watched(self: Recipe, *rest: Any) -> Any:
        asked.append(self.encoder.image_tower)
        return made(self, *rest)

    monkeypatch.setattr(Recipe, "student", watched)
    short = EvaluateConfig(students=2, epochs=1, batch_size=5, device="cpu")
    own = evaluate(distilled, short)
    other = evaluate(distilled, replace(short, student="timm:test_nfnet"))
    assert asked == ["convnet"] * 2 + ["timm:test_nfnet"] * 2
    assert other.provenance["config"]["student"] == "timm:test_nfnet"
    assert own.students != other.students
    same = evaluate(distilled, replace(short, student="convnet"))
    assert same.students == own.students
    with pytest.raises(InputError, match=r"image_tower timm:nfnet_l: timm knows no such model; did you mean"):
        evaluate(distilled, replace(short, student="timm:nfnet_l"))
    with pytest.raises(InputError, match=r"^student_weights: expected the tower they belong to, found none"):
        evaluate(distilled, replace(short, student_weights=Path("w.safetensors")))


@pytest.mark.slow
def test_students_of_another_tower_see_the_same_pictures_as_it_wants_them(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real and synthetic ones, unless mean and deviation were set."""
    from ptmst.evaluation import evaluate as evaluation
    from ptmst.evaluation import students

    clip = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    half = (0.5, 0.5, 0.5)  # of timm:test_nfnet
    seen: list[tuple[Any, ...]] = []
    trained, load = students.train_students, load_split

    def watched(student: Any, thetas: Any, distilled: DistilledSet, *rest: Any) -> Any:
        seen.append(tuple(pairs.images for pairs in distilled))
        return trained(student, thetas, distilled, *rest)

    def loaded(data: DataConfig, split: str) -> Any:
        seen.append((data.mean, data.std, data.image_size))
        return load(data, split)

    made = subset(store, "random", 6, 0.1, 0)
    monkeypatch.setattr(evaluation, "train_students", watched)
    monkeypatch.setattr(recipe, "load_split", loaded)
    short = EvaluateConfig(students=1, epochs=0, lr_drop=0, batch_size=5, device="cpu", student="timm:test_nfnet")
    evaluate(made, short)
    (mean, std, size), (images,) = seen
    assert (mean, std, size) == (half, half, made[0].images.shape[-1])
    old, new = (torch.tensor(v, dtype=torch.float64).view(2, 3, 1, 1) for v in (clip, (mean, std)))
    assert torch.allclose(images.double(), (made[0].images * old[1] + old[0] - new[0]) / new[1], atol=1e-6)

    # A deviation that is not the set's own tower's was set by someone: it stays.
    data = {**store.settings["data"], "std": [0.2, 0.3, 0.4]}
    seen.clear()
    evaluate(replace(made, settings={**store.settings, "data": data}), short)
    assert seen[0] == (half, (0.2, 0.3, 0.4), size)

    seen.clear()
    evaluate(made, replace(short, student=None))
    assert seen[0] == (tuple(clip[0]), tuple(clip[1]), size) and bool((seen[1][0] == made[0].images).all())


def test_students_of_another_tower_begin_as_the_sets_own_did(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warmed up for as long on the same split; or with weights that are named, and then not."""
    from ptmst.evaluation import evaluate as evaluation
    from ptmst.evaluation import students

    encoder = {**store.settings["encoder"], "warmup_epochs": 2}
    made = replace(subset(store, "random", 6, 0.1, 0), settings={**store.settings, "encoder": encoder, "seed": 5})
    plain, _ = image_tower(EncoderConfig(image_tower="timm:test_nfnet"), 64)
    start = {name: torch.full_like(value, 0.01) for name, value in plain.state_dict().items()}
    asked: list[tuple[Any, ...]] = []

    def warmed(config: EncoderConfig, pairs: Any, seed: int, device: torch.device) -> dict[str, torch.Tensor]:
        asked.append((config.image_tower, config.warmup_epochs, pairs, seed))
        return start

    seen: list[torch.Tensor] = []
    trained = students.train_students

    def watched(student: Any, thetas: torch.Tensor, *rest: Any) -> Any:
        seen.append(thetas.clone())
        return trained(student, thetas, *rest)

    monkeypatch.setattr(recipe, "warm_tower", warmed)

    def loaded(data: DataConfig, split: str) -> Any:
        return (data.name, split) if split == "warmup" else load_split(data, split)

    monkeypatch.setattr(recipe, "load_split", loaded)
    monkeypatch.setattr(evaluation, "train_students", watched)
    short = EvaluateConfig(students=1, epochs=0, lr_drop=0, batch_size=5, device="cpu", student="timm:test_nfnet")
    found = evaluate(made, short)
    assert asked == [("timm:test_nfnet", 2, ("scenes", "warmup"), 5)]
    size = sum(value.numel() for value in plain.parameters())
    assert bool((seen[0][0, :size] == 0.01).all())
    assert "warmed up for 2 epochs" in how([Row("one", found, 6)])[0]
    weights = tmp_path / "weights.safetensors"
    save_file({name: torch.full_like(value, 0.02) for name, value in start.items()}, weights)
    found = evaluate(made, replace(short, student_weights=weights))
    assert len(asked) == 1 and bool((seen[1][0, :size] == 0.02).all())
    assert f"weights {sha256(weights.read_bytes())[:8]}" in how([Row("one", found, 6)])[0]
