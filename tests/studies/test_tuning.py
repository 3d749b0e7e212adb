"""What is tried to tune a method: the same trials for all, each axis from the best of those before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from math import log

import pytest

from ptmst import schema
from ptmst.config import TUNING_SEEDS
from ptmst.presets import experiment
from ptmst.studies import tuning
from ptmst.studies.cost import Between
from ptmst.studies.runs import Run, settings
from ptmst.studies.tuning import FACTORS, search, trials, tuned

BASE = experiment("ablation")
ALL = ("rates", "batch", "similarity", "lr", "steps")
DISTILLED = ("tesla", "lors", "ptm-st", "st-low-rank")


def starts(*methods: str) -> list[Run]:
    return [Run(method, 100, TUNING_SEEDS[0], split="val") for method in methods]


def landscape(**best: float) -> Callable[[Run], float]:
    """Recall that falls with the distance to the best of every field."""
    return lambda run: -sum(abs(log((getattr(run, name) or 1.0) / value)) for name, value in best.items())


def asked_and_found(
    recall: Callable[[Run], float], axes: Sequence[str], *methods: str
) -> tuple[list[Run], dict[str, Run]]:
    asked: list[Run] = []

    def recalls(runs: Sequence[Run]) -> list[float]:
        asked.extend(run for run in runs if run not in asked)
        return [recall(run) for run in runs]

    return asked, search(starts(*methods), axes, BASE, recalls)


@pytest.mark.parametrize(("pairs", "share", "sizes"), [(100, 0.25, (25, 25)), (100, 0.5, (50, 50)), (7, 0.5, (4, 3))])
def test_a_batch_is_a_share_of_the_pairs_that_the_smallest_phase_holds(
    pairs: int, share: float, sizes: tuple[int, int]
) -> None:
    found = [settings(BASE, Run(name, pairs, 0, batch=share)).distill for name in ("lors", "ptm-st")]
    assert tuple(config.batch_size for config in found) == sizes
    for config in found:
        schema.check(config)


def test_every_factor_is_of_its_own_setting() -> None:
    plain = settings(BASE, Run("st", 100, 0)).distill
    for run, changed in (
        (Run("st", 100, 0, eta=3.0), replace(plain, student_lr=3 * plain.student_lr)),
        (Run("st", 100, 0, steps=2), replace(plain, steps=2 * plain.steps)),
        (
            Run("st", 100, 0, factor=2.0, similarity=3.0),
            replace(plain, rates=replace(plain.rates.scaled(2.0), similarity=6 * plain.rates.similarity)),
        ),
    ):
        assert settings(BASE, run).distill == changed


def test_a_run_of_an_earlier_release_is_read_as_it_was() -> None:
    old = {"method": "st", "pairs": 50, "seed": 3, "factor": 3.0, "loss": "wbce", "lr": 0.0, "split": "test"}
    assert schema.from_json(Run, old) == Run("st", 50, 3, factor=3.0)
    assert settings(BASE, Run("st", 50, 3)).distill.batch_size == BASE.distill.batch_size


def test_each_axis_is_searched_from_the_best_of_those_before() -> None:
    recall = landscape(factor=1 / 3, batch=1 / 2, similarity=3.0, eta=1.0, steps=2)
    asked, found = asked_and_found(recall, ALL, "lors")
    best = Run("lors", 100, 1000, split="val", factor=1 / 3, batch=1 / 2, similarity=3.0, steps=2)
    assert found == {"lors": best}
    differ = [[f.name for f in fields(Run) if getattr(run, f.name) != getattr(best, f.name)] for run in asked]
    # What has been found is kept; what is yet to come is at its start.
    later = ["factor", "batch", "similarity", "eta", "steps"]
    for names in filter(None, differ):
        assert set(names[1:]) <= {*later[later.index(names[0]) + 1 :]} - {"eta"}


@pytest.mark.parametrize("end", [1 / 81, 81.0])
def test_beyond_an_end_that_is_best_one_value_more_is_tried_once(end: float) -> None:
    asked, found = asked_and_found(landscape(factor=end), ("rates", "steps"), *DISTILLED)
    for method in DISTILLED:
        values = sorted({run.factor for run in asked if run.method == method})
        assert values == pytest.approx([1 / 9, 1 / 3, 1, 3] if end < 1 else [1 / 3, 1, 3, 9])
        assert found[method].factor == pytest.approx(1 / 9 if end < 1 else 9)


@pytest.mark.parametrize("inside", [True, False])
def test_every_method_has_as_many_trials(inside: bool) -> None:
    """But for a value more beyond each end, and for what a method lacks."""
    middle = dict.fromkeys(("factor", "similarity", "eta"), 1.0 if inside else 100.0)
    asked, _ = asked_and_found(landscape(**middle), ALL, *DISTILLED, "random", "herding")
    counts = {method: sum(run.method == method for run in asked) for method in (*DISTILLED, "random", "herding")}
    assert set(counts.values()) == ({9, 7, 10} if inside else {12, 9, 10})
    assert counts["tesla"] == (7 if inside else 9)  # whose S is fixed
    for run in starts(*DISTILLED, "random"):
        expected = trials(run, ALL, BASE)
        assert counts[run.method] == (expected.least if inside else expected.most)


def test_students_of_all_methods_may_see_all_pairs_at_once_or_some() -> None:
    def recall(run: Run) -> float:
        return run.factor + 2 * (run.protocol == "as-matched") + 2 * (run.batch == 1 / 2)

    axes = ("rates", "protocol")
    asked, found = asked_and_found(recall, axes, "lors", "random")
    assert [run.protocol for run in asked if run.method == "lors"][-1] == "as-matched"
    assert {run.protocol for run in asked if run.method == "lors"} == {"per-phase", "as-matched"}
    assert found["lors"].protocol == "as-matched" and found["lors"].factor == 9.0
    assert {(run.batch, run.loss, run.lr) for run in asked if run.method == "random"} == {
        (batch, loss, lr) for batch in (0.0, 0.5) for loss in tuning.REAL_LOSSES for lr in tuning.REAL_LR
    }
    assert found["random"].batch == 1 / 2 and found["random"].protocol is None
    for run in starts("lors", "random"):
        assert (
            trials(run, axes, BASE).least <= sum(r.method == run.method for r in asked) <= trials(run, axes, BASE).most
        )
    assert tuned(found["lors"], asked) == "rates × 9 (edge), as-matched"
    assert tuned(found["random"], asked).endswith(", students' batch 50 %")


def test_rates_alone_have_a_longer_list_and_no_value_beyond_it() -> None:
    asked, found = asked_and_found(landscape(factor=100.0), ("rates",), "lors")
    assert [run.factor for run in asked] == list(FACTORS) and found["lors"].factor == FACTORS[-1]
    assert {run.batch for run in asked} == {0.0}
    assert trials(asked[0], ("rates",), BASE) == Between(6, 6)


def test_of_equal_trials_what_there_was_is_kept() -> None:
    _, found = asked_and_found(lambda run: 0.0, ("rates",), "lors")
    assert found["lors"].factor == 1.0 != FACTORS[0]
    _, found = asked_and_found(lambda run: 0.0, ALL, "lors")
    kept = found["lors"]
    assert (kept.factor, kept.batch, kept.similarity, kept.eta, kept.steps) == (1.0, 1 / 4, 1.0, 1.0, 1)


def test_what_was_tuned_is_told_with_the_ends_of_what_was_tried() -> None:
    recall = landscape(factor=3.0, batch=1 / 2, similarity=1.0, eta=1 / 81, steps=2)
    asked, found = asked_and_found(recall, ALL, "st")
    # 9 was tried beyond 3, 1/9 beyond 1/3.
    assert tuned(found["st"], asked) == "rates × 3, S × 1, η × 0.11 (edge), batch 50 %, steps × 2"
    alone, of_rates = asked_and_found(recall, ("rates",), "st")
    assert tuned(of_rates["st"], alone) == "rates × 3"
    # Where it was tuned elsewhere, there are no trials.
    assert tuned(found["st"], []) == "rates × 3, η × 0.11, batch 50 %, steps × 2"
    assert tuned(Run("random", 9, 0, lr=0.3), [Run("random", 9, 0, lr=lr) for lr in tuning.REAL_LR]).endswith("(edge)")
