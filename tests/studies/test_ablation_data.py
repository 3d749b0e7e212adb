"""An ablation on data of one's own, behind a frozen tower, on several axes, on val alone, and as tuned in another."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import ablation as table
from bench.spread import paired
from ptmst import DistilledSet, EvaluateConfig, TrajectoryStore, distill, evaluate
from ptmst.config import AblateConfig, Experiment, TeachConfig, WriteDataConfig
from ptmst.data import write_data
from ptmst.errors import InputError
from ptmst.evaluation.baselines import subset
from ptmst.schema import from_json
from ptmst.studies import ablation, tuning
from ptmst.studies.ablation import RESULTS, ablate
from ptmst.studies.runs import Run, _replaced, settings
from ptmst.support import parallel
from tiny import DISTILL, ENCODER

pytestmark = pytest.mark.slow

TINY = Experiment(
    teach=TeachConfig(
        encoder=replace(ENCODER, head_width=16, freeze_tower=True),
        experts=1,
        epochs=3,
        batch_size=16,
        endpoints="all",
    ),
    distill=replace(DISTILL, steps=2),
    evaluate=EvaluateConfig(students=2, epochs=2, lr_drop=1, batch_size=8),
)
METHODS = ("random", "lors", "st")


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures with two CSV files: of three splits, and without val."""
    folder = tmp_path_factory.mktemp("own")
    patch.setenv("PTMST_CACHE", str(folder / "cache"))
    patch.setattr(ablation, "experiment", lambda *_: TINY)
    patch.setattr(tuning, "REAL_LR", (0.03, 0.1))

    def completed(_: Any, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        return map(function, tasks)

    patch.setattr(parallel.Workers, "completed", completed)
    write_data(
        WriteDataConfig(name="scenes", root=folder, image_size=32, train=24, val=8, test=8, warmup=0, captions=1)
    )
    lines = {}
    for split in ("train", "val", "test"):
        entries = json.loads((folder / f"scenes_{split}.json").read_text())
        captions = ((one["image"], one["caption"]) for one in entries)
        lines[split] = [[image, text if isinstance(text, str) else text[0], split] for image, text in captions]
    for name, splits in {
        "all": ("train", "val", "test"),
        "no-val": ("train", "test"),
        "no-test": ("train", "val"),
    }.items():
        rows = [line for split in splits for line in lines[split]]
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["picture", "words", "split"], *rows])
    return folder


def own(pictures: Path, out: Path, name: str = "all", **more: Any) -> AblateConfig:
    config = AblateConfig(
        out=out,
        data=f"csv:{name}.csv",
        root=pictures,
        image_column="picture",
        caption_column="words",
        methods=METHODS,
        pairs=(8,),
        tune=("rates", "batch", "steps"),
        tuning_seeds=1,
        seeds=2,
    )
    return replace(config, **more)


@pytest.fixture(scope="module")
def grid(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> AblateConfig:
    config = own(pictures, tmp_path_factory.mktemp("ablation") / "grid")
    ablate(config, "ptmst ablate")
    return config


def recorded(config: AblateConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((config.out / RESULTS).read_text())["rows"]
    return rows


def runs(config: AblateConfig) -> list[Run]:
    return [from_json(Run, row["run"]) for row in recorded(config)]


def test_data_of_ones_own_are_read_where_they_are(grid: AblateConfig) -> None:
    assert not (grid.out / "data").exists()
    for row in recorded(grid):
        assert row["provenance"]["data"] == "csv:all.csv" and row["provenance"]["scored"]["images"] == 8
    store = TrajectoryStore.open(grid.out / "store-0-frozen")
    assert (store.recipe.data.image_column, store.recipe.data.caption_column) == ("picture", "words")
    assert store.recipe.data.root == grid.root


def test_behind_a_frozen_tower_nothing_else_is_taught(grid: AblateConfig) -> None:
    stores = sorted(path.name for path in grid.out.glob("store-*"))
    assert stores == ["store-0-frozen", "store-1-frozen", "store-1000-frozen"]
    assert {run.method for run in runs(grid)} == {*METHODS, "all real pairs, heads alone"}
    (row,) = (r for r in recorded(grid) if (r["run"]["method"], r["run"]["seed"]) == ("random", 1))
    run = from_json(Run, row["run"])
    made = subset(TrajectoryStore.open(grid.out / "store-1-frozen"), "random", 8, run.lr, seed=1)
    config = replace(TINY.evaluate, students=1, seed=2, loss=run.loss, device="cpu", epochs=5, lr_drop=3)
    assert dict(evaluate(made, config).students[0]) == row["students"][0]


def test_a_cell_is_run_as_tuned_and_scored_with_and_without_its_average(grid: AblateConfig, tmp_path: Path) -> None:
    """Without: as a distillation whose average has no decay."""
    (row,) = (r for r in recorded(grid) if (r["run"]["method"], r["run"]["seed"]) == ("st", 1))
    run = from_json(Run, row["run"])
    assert run.batch in (0.25, 0.5)
    config = replace(settings(TINY, run).distill, seed=1, device="cpu")
    assert config.ema > 0
    store = TrajectoryStore.open(grid.out / "store-1-frozen")
    scored = {
        "average": evaluate(distill(config, store), _evaluation(1)),
        "last": evaluate(distill(replace(config, ema=0.0), store), _evaluation(1)),
    }
    assert dict(scored["average"].students[0]) == row["students"][0]
    assert dict(scored["last"].students[0]) == row["last leaves"]["students"][0]
    assert row["settings"]["batch_size"] == config.batch_size and row["settings"]["steps"] == config.steps
    assert row["seconds"] > 0 and row["evaluation seconds"] > 0
    # LoRS has no average, and trials are not scored twice.
    assert {r["run"]["method"] for r in recorded(grid) if "last leaves" in r} == {"st"}
    assert not any("last leaves" in r for r in recorded(grid) if r["run"]["seed"] == 1000)
    kept = DistilledSet.load(grid.out / "sets" / "st-8-1")
    assert dict(evaluate(kept, _evaluation(1)).students[0]) == row["students"][0]
    assert len(list((grid.out / "sets").iterdir())) == len(METHODS) * 2
    # A run of other settings takes its place, if only with nothing.
    _replaced(tmp_path / "set", kept)
    assert DistilledSet.load(tmp_path / "set").num_pairs == kept.num_pairs
    _replaced(tmp_path / "set", None)
    assert not (tmp_path / "set").exists()


def _evaluation(seed: int) -> EvaluateConfig:
    return replace(TINY.evaluate, students=1, seed=2 * seed, loss="wbce", device="cpu", epochs=5, lr_drop=3)


def test_the_table_tells_what_was_tuned(grid: AblateConfig) -> None:
    """And a finished ablation has nothing left to do."""
    random, lors, st, _ = ablate(grid, "ptmst ablate")
    assert (random.more["trials"], "last leaves" in random.more) == (4, False)
    for row in (lors, st):
        assert (
            int(row.more["trials"]) in (5, 6)
            and "batch" in str(row.more["tuned"])
            and "steps" in str(row.more["tuned"])
        )
    assert float(st.more["last leaves"]) == pytest.approx(
        _mean([v for r in recorded(grid) if "last leaves" in r for v in table.recalls([r["last leaves"]])]), abs=0.05
    )
    assert ablation.cost(grid, "ptmst ablate") == "nothing is left to do"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_one_that_is_stopped_goes_on_to_the_same_end(
    grid: AblateConfig, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was at: its rows are kept one by one, and tuning takes the same way again."""
    config = own(pictures, tmp_path / "grid", methods=("lors",), seeds=1)
    done: list[Run] = []

    def completed(_: Any, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            runs = [part for part in task if isinstance(part, Run)]
            if runs and len(done) % 3 == 2:
                done.extend(runs)  # so that the next time it is measured
                raise KeyboardInterrupt
            done.extend(runs)
            yield function(task)

    monkeypatch.setattr(parallel.Workers, "completed", completed)
    stopped = 0
    while True:
        try:
            ablate(config, "ptmst ablate")
            break
        except KeyboardInterrupt:
            stopped += 1
    assert stopped >= 2 and len(runs(config)) == len(done) - stopped
    whole = {row["run"]["seed"]: row for row in recorded(grid) if row["run"]["method"] == "lors"}
    (row,) = (row for row in recorded(config) if row["run"]["method"] == "lors" and row["run"]["seed"] == 0)
    assert row["run"] == whole[0]["run"] and row["students"] == whole[0]["students"]


def test_methods_run_as_tuned_in_another_ablation(grid: AblateConfig, pictures: Path, tmp_path: Path) -> None:
    config = own(pictures, tmp_path / "more", methods=("lors", "st"), pairs=(4, 12), seeds=1, tuned_in=grid.out)
    config = replace(config, seed=5)
    ablate(config, "ptmst ablate")
    tuned = {run.method: run for run in runs(grid) if run.seed == 0}
    expected = {replace(tuned[method], pairs=n, seed=5) for method in ("lors", "st") for n in (4, 12)}
    assert {run for run in runs(config) if run.pairs} == expected
    assert [path.name for path in config.out.glob("store-*")] == ["store-5-frozen"]
    with pytest.raises(
        InputError, match=r"grid: expected an ablation of lors, base, found none of base; leave those out"
    ):
        ablate(replace(config, methods=("lors", "base"), out=tmp_path / "none"), "ptmst ablate")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("no-val", "test", "csv:no-val.csv: expected a val split, found none (.*); divide some off: methods are tuned"),
        (
            "no-test",
            "test",
            "csv:no-test.csv: expected a test split, found none (.*); name one, or compare with --split",
        ),
    ],
)
def test_data_without_a_split_are_refused_and_nothing_is_written(
    pictures: Path, tmp_path: Path, name: str, split: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        ablate(own(pictures, tmp_path / "out", name, split=split), "ptmst ablate")
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_sizes_are_bounded_by_the_images_there_are(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pairs: expected 4 to 24, found 25; choose another number"):
        ablate(own(pictures, tmp_path / "out", pairs=(8, 25)), "ptmst ablate")
    assert not (tmp_path / "out").exists()


def test_data_without_test_are_compared_on_val(pictures: Path, tmp_path: Path) -> None:
    """On seeds that nothing was tuned on."""
    config = own(pictures, tmp_path / "ablation-own", "no-test", split="val", methods=("random",), seeds=2)
    random, full = ablate(config, "ptmst ablate")
    assert (random.scores.provenance["split"], full.scores.provenance["split"]) == ("val", "val")
    assert {run.seed for run in runs(config) if not run.tunes} == {0, 1} and {run.split for run in runs(config)} == {
        "val"
    }
    (tmp_path / "ablation-own.json").write_bytes((config.out / RESULTS).read_bytes())
    shown = table.methods(tmp_path, "own")
    assert "2 seeds × 2 students" in shown and shown.endswith("one thread a run; " + shown.rpartition("; ")[2])
    assert "Mean recall on val in percent" in shown
    assert f"| {random.scores.mean():.1f} ± {random.scores.std():.1f} |" in shown.replace("**", "")


def test_differences_are_told_to_the_best_and_of_averages_to_their_last_leaves(
    grid: AblateConfig, tmp_path: Path
) -> None:
    file = json.loads((grid.out / RESULTS).read_text())
    for row in file["rows"]:
        for student in row.get("last leaves", {"students": []})["students"]:
            student["mean"] -= 3 + row["run"]["seed"]  # of so few steps an average is nearly the last
    (tmp_path / "ablation-own.json").write_text(json.dumps(file))
    seeds: dict[str, dict[int, float]] = {}
    for row in file["rows"]:
        run = from_json(Run, row["run"])
        if not run.tunes and run.pairs:
            seeds.setdefault(run.method, {})[run.seed] = _mean([s["mean"] for s in row["students"]])
            if "last leaves" in row:
                last = _mean([s["mean"] for s in row["last leaves"]["students"]])
                seeds.setdefault(f"{run.method} last", {})[run.seed] = last
    best = max(METHODS, key=lambda name: _mean(list(seeds[name].values())))
    lines = table.against(tmp_path, "own").splitlines()
    assert f"8 pairs, to {best}" in lines[0]
    for method in METHODS:
        (line,) = (line for line in lines if line.startswith(f"| {method} "))
        difference = _mean(paired(seeds[method], seeds[best]))
        assert line == f"| {method} | |" if method == best else f"| {difference:+.1f} [" in line
    (line,) = (line for line in lines if "last leaves" in line and line.startswith("| st:"))
    assert f"| {_mean(paired(seeds['st'], seeds['st last'])):+.1f} [" in line
    assert "to lors" in table.against(tmp_path, "own", to="lors").splitlines()[0]
    shown = table.methods(tmp_path, "own").splitlines()
    (number,) = (number for number, line in enumerate(shown) if line.startswith("| st |"))
    assert shown[number + 1].startswith("| – its last leaves |") and "| trials |" in shown[0]
    assert table.against(tmp_path, "elsewhere") == table.methods(tmp_path, "elsewhere") == "Not measured yet."
