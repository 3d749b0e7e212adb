"""A grid of methods: every cell like for like, resumable, each number from the runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from bench import ablation as table
from ptmst import DistilledSet, EvaluateConfig, Scores, TrajectoryStore, cli, distill, evaluate
from ptmst.config import AblateConfig, Experiment, LeafRates, Phase, Protocol, TeachConfig, WriteDataConfig
from ptmst.errors import Diverged, InputError
from ptmst.evaluation.baselines import subset
from ptmst.presets import experiment, methods
from ptmst.report.tables import fraction_of_full, how
from ptmst.schema import from_json, to_json
from ptmst.studies import ablation, runs, tuning
from ptmst.studies.ablation import COLUMNS, RESULTS, ablate
from ptmst.studies.runs import Run, evaluation, measure, settings
from ptmst.studies.tuning import REAL_LOSSES
from ptmst.support import files, parallel
from tiny import DISTILL, ENCODER

pytestmark = pytest.mark.slow

NOBODY: Any = None
"""Workers of a grid that measures nothing."""

TINY = Experiment(
    data=WriteDataConfig(name="scenes", image_size=16, train=24, val=8, test=8, warmup=0, captions=2),
    teach=TeachConfig(encoder=replace(ENCODER, head_width=16), experts=1, epochs=3, batch_size=16, endpoints="all"),
    distill=replace(DISTILL, steps=2),
    evaluate=EvaluateConfig(students=2, epochs=2, lr_drop=1, batch_size=8),
)


@pytest.mark.parametrize("name", ["mtt-vl", "tesla", "lors", "repblend", "ptm", "st", "ptm-st"])
@pytest.mark.parametrize("pairs", [7, 20, 101])
def test_every_method_has_the_same_pairs_batches_and_outer_steps(name: str, pairs: int) -> None:
    base = experiment("ablation")
    found = settings(base, Run(name, pairs, 0, factor=3.0)).distill
    assert found.pairs == pairs
    assert found.steps * len(found.phases) == base.distill.steps * len(base.distill.phases)
    assert found.batch_size == min(20, pairs // 2)
    assert found.rates.images == pytest.approx(3 * base.distill.rates.images)
    assert found.rates.lr == base.distill.rates.lr
    assert found.rates.similarity in (0.0, pytest.approx(3 * base.distill.rates.similarity))


def test_phases_are_cut_to_the_pairs() -> None:
    found = settings(experiment("ablation"), Run("ptm-st", 7, 0)).distill
    assert found.phases == (Phase(4, 5, (0, 2)), Phase(3, 7, (1, 3)))


@pytest.mark.parametrize("pairs", [7, 20, 101, 499, 3000])
def test_students_take_as_many_steps_on_one_phase_as_on_two(pairs: int) -> None:
    base = experiment("ablation")

    def steps(sizes: list[int]) -> tuple[int, int]:
        config = evaluation(base, sizes)
        batches = sum(-(-size // config.batch_size) for size in sizes)
        return batches * (config.epochs + 1), batches * (config.lr_drop + 1)

    halves = [pairs - pairs // 2, pairs // 2]
    assert evaluation(base, halves) == base.evaluate
    for one, two in zip(steps([pairs]), steps(halves), strict=True):
        assert abs(one - two) <= -(-pairs // 128) / 2


FACTORS, REAL_LR = (1 / 3, 1.0, 3.0), (0.03, 0.1)
"""Fewer than are tried in earnest, for the tests' time."""


@pytest.fixture(scope="module", autouse=True)
def few_rates() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "FACTORS", FACTORS)
        patch.setattr(tuning, "REAL_LR", REAL_LR)
        yield


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> AblateConfig:
    folder = tmp_path_factory.mktemp("ablation")
    methods = ("herding", "lors", "repblend", "ptm-st")
    config = AblateConfig(out=folder, data="scenes", methods=methods, pairs=(8,), seeds=2, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTMST_CACHE", str(folder / "cache"))
        patch.setattr(ablation, "experiment", lambda *_: TINY)
        ablate(config, "ptmst ablate")
    return config


def recorded(config: AblateConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((config.out / RESULTS).read_text())["rows"]
    return rows


def test_every_cell_is_run_once(grid: AblateConfig) -> None:
    runs = [from_json(Run, row["run"]) for row in recorded(grid)]
    tuning = [run for run in runs if run.split == "val"]
    assert len(runs) == len(set(runs)) == len(tuning) + 2 + 2 + 4 * 2
    for seed in (1000, 1001):
        assert [r.factor for r in tuning if (r.method, r.seed) == ("lors", seed)] == list(FACTORS)
        real = [(r.loss, r.lr) for r in tuning if (r.method, r.seed) == ("herding", seed)]
        assert len(real) == len(set(real)) == len(REAL_LOSSES) * len(REAL_LR)
    assert {run.seed for run in tuning}.isdisjoint(run.seed for run in runs if run.split == "test")
    for row in recorded(grid):
        assert len(row["students"]) + row["lost"] == (2 if row["run"]["method"] in grid.methods else 1)
        if row["run"]["method"] in grid.methods:
            assert row["provenance"]["config"]["split"] == row["provenance"]["split"] == row["run"]["split"]
            first = 2 * row["run"]["seed"]
            assert row["seconds"] > 0 and row["peak bytes"] > 100e6 and row["student seeds"] == [first, first + 1]


def test_a_distillation_that_diverges_counts_as_students_that_recall_nothing(
    grid: AblateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTMST_CACHE", str(grid.out / "cache"))
    wild = replace(TINY, distill=replace(TINY.distill, student_lr=1e38))
    run, row = runs.measure((grid.out, wild, Run("lors", 8, 0), "cpu"))
    assert (row["lost"], row["students"]) == (2, []) and "non-finite" in row["why"] and run == Run("lors", 8, 0)


def test_the_best_rates_on_val_are_used(grid: AblateConfig) -> None:
    """Best over the students of both seeds."""
    for method in grid.methods:
        recalls: dict[tuple[Any, ...], list[float]] = {}
        used = set()
        for row in (row for row in recorded(grid) if row["run"]["method"] == method):
            rates = tuple(row["run"][key] for key in ("factor", "loss", "lr"))
            if row["run"]["split"] == "test":
                used.add(rates)
            else:
                recalls.setdefault(rates, []).extend(student["mean"] for student in row["students"])
        assert {len(students) for students in recalls.values()} == {2 * 2}
        best = max(map(mean, recalls.values()))
        equal = [rates for rates, values in recalls.items() if mean(values) > best - 1e-9]
        # Of equal trials what there was before is kept, else it is the first.
        before = (1.0, "wbce", 0.0)
        assert used == {before if before in equal else equal[0]}


def test_a_cell_is_what_one_would_run_by_hand(grid: AblateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTMST_CACHE", str(grid.out / "cache"))
    (row,) = (r for r in recorded(grid) if (r["run"]["method"], r["run"]["seed"]) == ("herding", 1))
    run = from_json(Run, row["run"])
    store = TrajectoryStore.open(grid.out / "store-1")
    made = subset(store, "herding", 8, run.lr, seed=1)
    for number, student in enumerate(row["students"]):
        # Twice as long, as TINY's two phases take.
        config = replace(TINY.evaluate, students=1, seed=2 + number, loss=run.loss, device="cpu", epochs=5, lr_drop=3)
        assert dict(evaluate(made, config).students[0]) == student


@pytest.mark.parametrize(
    ("method", "seed", "epochs"),
    # Students of one phase train for twice as long as those of TINY's two phases.
    [("lors", 1, (5, 3)), ("ptm-st", 0, (2, 1)), ("lors", 1000, (5, 3))],
)
def test_a_distilled_cell_is_what_one_would_run_by_hand(
    grid: AblateConfig, method: str, seed: int, epochs: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the factor, seed and split that it says."""
    monkeypatch.setenv("PTMST_CACHE", str(grid.out / "cache"))
    row = next(r for r in recorded(grid) if (r["run"]["method"], r["run"]["seed"]) == (method, seed))
    factor, split = row["run"]["factor"], row["run"]["split"]
    assert split == ("val" if seed == 1000 else "test")
    plain = settings(TINY, Run(method, 8, 0)).distill
    rates = LeafRates(
        images=factor * plain.rates.images,
        texts=factor * plain.rates.texts,
        similarity=factor * plain.rates.similarity,
        lr=plain.rates.lr,
    )
    store = TrajectoryStore.open(grid.out / f"store-{seed}")
    made = distill(replace(plain, rates=rates, seed=seed, device="cpu"), store)
    for number, student in enumerate(row["students"]):
        config = replace(TINY.evaluate, students=1, seed=2 * seed + number, loss=plain.loss, split=split, device="cpu")
        config = replace(config, epochs=epochs[0], lr_drop=epochs[1])
        assert dict(evaluate(made, config).students[0]) == student


@pytest.mark.slow
@pytest.mark.parametrize("method", ["herding", "lors"])
def test_students_that_see_some_pairs_at_a_time_are_what_one_would_run_by_hand(
    grid: AblateConfig, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real pairs by half, distilled ones in their inner batches; as many steps as at once."""
    monkeypatch.setenv("PTMST_CACHE", str(grid.out / "cache"))
    protocol: Protocol | None = None if method == "herding" else "as-matched"
    run = Run(method, 8, 1000, lr=0.1, split="val", batch=1 / 2 if method == "herding" else 0.0, protocol=protocol)
    _, row = measure((grid.out, TINY, run, "cpu"))
    assert row["provenance"]["config"]["protocol"] == "as-matched"
    store = TrajectoryStore.open(grid.out / "store-1000")
    if method == "herding":
        made = subset(store, "herding", 8, 0.1, seed=1000)
        made = replace(made, provenance={"config": {"batch_size": 4}})
    else:
        made = distill(replace(settings(TINY, run).distill, seed=1000, device="cpu"), store)
    for number, student in enumerate(row["students"]):
        config = replace(TINY.evaluate, students=1, seed=2000 + number, loss="wbce", split="val", device="cpu")
        config = replace(config, epochs=5, lr_drop=3, protocol="as-matched")
        assert dict(evaluate(made, config).students[0]) == student
        assert dict(evaluate(made, replace(config, protocol="per-phase")).students[0]) != student


def test_a_lost_student_recalls_nothing(grid: AblateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever recalls are averaged: in tuning, in the table, on the page."""
    monkeypatch.setattr(ablation, "experiment", lambda *_: TINY)
    (row,) = (r for r in recorded(grid) if (r["run"]["method"], r["run"]["seed"]) == ("herding", 1))
    run = from_json(Run, row["run"])
    half = {**row, "students": [{**dict.fromkeys(row["students"][0], 30.0)}], "lost": 1}
    one = ablation._Grid(replace(grid, methods=("herding",), seeds=1, seed=1), TINY, "ptmst ablate", NOBODY)
    one.found[run] = half
    assert one._mean(run) == 15.0
    full = Run("all real pairs", 0, 1)
    (found, _) = one.rows([run], [full])
    assert [student["mean"] for student in found.scores.students] == [30.0, 0.0]
    assert found.more["diverged"] == 1 and found.scores.mean() == 15.0
    assert table.recalls([half]) == [30.0, 0.0]


def test_one_student_that_diverges_costs_the_others_nothing(
    grid: AblateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTMST_CACHE", str(grid.out / "cache"))
    (before,) = (r for r in recorded(grid) if (r["run"]["method"], r["run"]["seed"]) == ("herding", 1))

    def diverging(made: DistilledSet, config: EvaluateConfig) -> Scores:
        if config.seed == 2:
            raise Diverged("the first of the two")
        return evaluate(made, config)

    monkeypatch.setattr(runs, "evaluate", diverging)
    _, row = runs.measure((grid.out, TINY, from_json(Run, before["run"]), "cpu"))
    assert row["lost"] == 1 and row["students"] == before["students"][1:]


def test_rates_are_tuned_at_the_middle_size(grid: AblateConfig) -> None:
    sized = ablation._Grid(
        replace(grid, out=grid.out / "sized", methods=("lors",), pairs=(12, 4, 8)), TINY, "ptmst", NOBODY
    )
    recall = {1000: dict(zip(FACTORS, (5, 6, 9), strict=True)), 1001: dict(zip(FACTORS, (4, 4, 0), strict=True))}
    asked: list[Run] = []

    def run(label: str, runs: Iterable[Run]) -> None:
        for one in runs:
            asked.append(one)
            value = recall[one.seed][one.factor]
            sized.found[one] = {"students": [{"mean": float(value)}] * bool(value), "lost": int(not value)}

    sized.run = run  # type: ignore[method-assign]
    best = sized.tuned()["lors"]
    assert len(asked) == len(set(asked)) == 2 * len(FACTORS)
    assert {(one.pairs, one.split) for one in asked} == {(8, "val")} and {one.seed for one in asked} == {1000, 1001}
    # Best together: not the one that is ahead on the first seed and diverges on the second.
    assert best.factor == FACTORS[1]


def test_what_other_rates_recall_is_dropped(grid: AblateConfig, tmp_path: Path) -> None:
    """As where a new size moves the middle one, at which they are tuned."""
    (tmp_path / RESULTS).write_bytes((grid.out / RESULTS).read_bytes())
    again = ablation._Grid(replace(grid, out=tmp_path), TINY, "ptmst ablate", NOBODY)
    before = recorded(grid)
    best = {run.method: run for run in again.found if run.split == "test" and run.seed == 0}
    again.forget_other_rates({method: best[method] for method in grid.methods})
    assert recorded(replace(grid, out=tmp_path)) == before
    other = replace(best["lors"], factor=27.0, split="val")
    again.forget_other_rates({method: best[method] for method in ("herding", "ptm-st")} | {"lors": other})
    stale = [row for row in before if (row["run"]["method"], row["run"]["split"]) == ("lors", "test")]
    assert len(stale) == 2 and recorded(replace(grid, out=tmp_path)) == [row for row in before if row not in stale]


def test_a_grid_goes_on_where_it_stopped(grid: AblateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTMST_CACHE", str(grid.out / "cache"))
    monkeypatch.setattr(ablation, "experiment", lambda *_: TINY)
    whole = json.loads((grid.out / RESULTS).read_text())
    lost = [row for row in whole["rows"] if (row["run"]["method"], row["run"]["split"]) == ("lors", "test")]
    kept = [row for row in whole["rows"] if row not in lost]
    (grid.out / RESULTS).write_text(json.dumps(whole | {"rows": kept}))
    asked: list[Run] = []

    def here(_: Any, function: Any, tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            asked.extend(part for part in task if isinstance(part, Run))
            yield function(task)

    monkeypatch.setattr(parallel.Workers, "completed", here)
    # The index has a hash: as edited by hand it is refused, as a file that lacks one it is read.
    edited = json.loads((grid.out / RESULTS).read_text())
    edited.pop("sha256", None)
    (grid.out / RESULTS).write_text(json.dumps(edited))
    rows = ablate(grid, "ptmst ablate")
    assert asked == [from_json(Run, row["run"]) for row in lost]
    for before in lost:
        (after,) = (row for row in recorded(grid) if row["run"] == before["run"])
        assert after["students"] == before["students"]
    full = [("all real pairs", 48), ("all real pairs, heads alone", 48)]
    assert [(row.name, row.pairs) for row in rows] == [*((m, 8) for m in grid.methods), *full]
    assert [len(row.scores.students) for row in rows] == [4, 4, 4, 4, 2, 2]
    herding, lors, repblend, _, trained, heads = rows
    for row, whole in ((herding, trained), (lors, trained), (repblend, heads)):
        expected = 100 * row.scores.mean() / whole.scores.mean() if whole.scores.mean() else None
        assert fraction_of_full(row, rows) == (expected if expected is None else pytest.approx(expected))
        assert row.scores.provenance["seeds"] == [0, 1] and "4 students of 2 seeds" in how([row])[0]
        assert row.more["diverged"] == 0 and float(row.more["CPU s"]) > 0 and float(row.more["peak GB"]) > 0.1
    (factor,) = {row["run"]["factor"] for row in lost}
    assert str(lors.more["tuned"]).startswith(f"rates × {factor:.2g}")
    assert str(lors.more["tuned"]).endswith("(edge)") == (factor in (FACTORS[0], FACTORS[-1]))
    assert lors.scores.mean() == pytest.approx(mean(s["mean"] for row in lost for s in row["students"]))


def test_every_table_says_what_its_columns_are(
    grid: AblateConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablation, "experiment", lambda *_: TINY)
    flags = ["--data", "scenes", "--methods", ",".join(grid.methods), "--pairs", "8", "--seeds", "2", "--workers", "1"]
    assert cli.main(["ablate", "--out", str(grid.out), *flags]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (shown, *((grid.out / f"recalls{suffix}").read_text("utf-8") for suffix in (".md", ".tex"))):
        assert COLUMNS.replace("η", r"$\eta$") in text or COLUMNS in text
    for text in ((grid.out / f"recalls{suffix}").read_text("utf-8") for suffix in (".csv", ".json")):
        assert "CPU s" in text and "peak GB" in text and COLUMNS not in text


def test_another_grid_is_refused(grid: AblateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "experiment", lambda *_: replace(TINY, distill=replace(TINY.distill, steps=3)))
    before = (grid.out / RESULTS).read_bytes()
    with pytest.raises(
        InputError, match=r"of these settings, found one that differs in settings; choose another --out"
    ):
        ablate(grid, "ptmst ablate")
    assert (grid.out / RESULTS).read_bytes() == before


def test_a_grid_whose_scores_count_ties_in_another_way_is_refused(
    grid: AblateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "experiment", lambda *_: TINY)
    found = files.read_json(grid.out / RESULTS, "ablation", 1)
    del found["rows"][0]["provenance"]["ties"]
    files.write_json(tmp_path / RESULTS, found)
    with pytest.raises(InputError, match="expected an ablation of these settings, found one that differs in ties;"):
        ablation._Grid(replace(grid, out=tmp_path), TINY, "ptmst ablate", NOBODY)


def test_methods_join_a_grid_and_leave_it(grid: AblateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "experiment", lambda *_: TINY)
    (tmp_path / RESULTS).write_bytes((grid.out / RESULTS).read_bytes())
    fewer = ablation._Grid(replace(grid, out=tmp_path, methods=("herding", "st")), TINY, "ptmst ablate", NOBODY)
    assert len(fewer.found) == len(recorded(grid))
    fewer._save()
    again = ablation._Grid(replace(grid, out=tmp_path, methods=("lors", "st")), TINY, "ptmst ablate", NOBODY)
    assert set(again.found) == set(fewer.found)
    changed = dict(methods()) | {"lors": replace(methods()["lors"], phases="as they are")}
    monkeypatch.setattr(ablation, "methods", lambda: changed)
    with pytest.raises(InputError, match="found one that differs in lors; choose another --out"):
        ablation._Grid(replace(grid, out=tmp_path), TINY, "ptmst ablate", NOBODY)


def test_more_rates_may_be_tried(grid: AblateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a grid that tried fewer, only what is new is measured."""
    (tmp_path / RESULTS).write_bytes((grid.out / RESULTS).read_bytes())
    monkeypatch.setattr(tuning, "FACTORS", (*FACTORS, 27.0))
    again = ablation._Grid(
        replace(grid, out=tmp_path, methods=("lors",)), TINY, "ptmst ablate", parallel.Workers(NOBODY)
    )
    asked: list[Any] = []

    def completed(_: Any, function: Any, tasks: Iterable[Any]) -> Iterator[Any]:
        for _out, _base, run, _device in tasks:
            asked.append(run)
            yield run, {"run": to_json(run), "students": [{"mean": 0.0}], "lost": 0}

    monkeypatch.setattr(parallel.Workers, "completed", completed)
    again.tuned()
    assert [(run.method, run.factor, run.seed) for run in asked] == [("lors", 27.0, 1000), ("lors", 27.0, 1001)]
    assert json.loads((tmp_path / RESULTS).read_text())["tried"]["factors"] == [*FACTORS, 27.0]
    # On the page, what is an end of what was tried is told by method.
    file = json.loads((tmp_path / RESULTS).read_text())
    ends = {
        method: table._tuned(file, {"run": to_json(Run(method, 8, 0, factor=FACTORS[-1]))}).endswith("(edge)")
        for method in ("lors", "ptm-st")
    }
    assert ends == {"lors": False, "ptm-st": True}


def test_the_page_shows_the_numbers_of_the_grid(grid: AblateConfig, tmp_path: Path) -> None:
    (tmp_path / "ablation-scenes.json").write_bytes((grid.out / RESULTS).read_bytes())
    test = [row for row in recorded(grid) if row["run"]["split"] == "test"]

    def recalls(method: str) -> list[float]:
        return [float(s["mean"]) for row in test if row["run"]["method"] == method for s in row["students"]]

    lines = table.methods(tmp_path, "scenes").splitlines()
    for method, whole in (("lors", "all real pairs"), ("repblend", "all real pairs, heads alone")):
        (line,) = (line for line in lines if line.startswith(f"| {method} "))
        assert f"{mean(recalls(method)):.1f} ± {stdev(recalls(method)):.1f}" in line
        assert f"| {100 * mean(recalls(method)) / mean(recalls(whole)):.0f} % |" in line
    shown = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:-2]]
    # PTM-ST alone has an average.
    assert shown == [*grid.methods, "– its last leaves", "all real pairs", "all real pairs, heads alone"]
    assert "2 seeds × 2 students" in lines[-1] and "`ptmst ablate`" in lines[-1]
    asked = {"RepBlend or LoRS?": ("repblend", "lors")}
    differences = [
        mean(float(s["mean"]) for row in test for s in row["students"] if _is(row, "repblend", seed))
        - mean(float(s["mean"]) for row in test for s in row["students"] if _is(row, "lors", seed))
        for seed in range(2)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "QUESTIONS", asked)
        (line,) = (line for line in table.questions(tmp_path, ["scenes", "digits"]).splitlines() if "LoRS?" in line)
    half = 12.7062 * stdev(differences) / sqrt(2)
    middle = mean(differences)
    assert f"| scenes | {middle:+.1f} [{middle - half:+.1f}, {middle + half:+.1f}] |" in line
    assert table.methods(tmp_path, "digits") == table.questions(tmp_path, ["digits"]) == "Not measured yet."


def _is(row: dict[str, Any], method: str, seed: int) -> bool:
    return (row["run"]["method"], row["run"]["seed"]) == (method, seed)
