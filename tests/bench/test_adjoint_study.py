"""The study's other recursions against autograd in float64, its choices against arithmetic by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench import readme, result, style
from bench.adjoint import cells, figures, plans, runs, tables, why
from bench.adjoint.cells import BASE, DATA, EXACT, TRUNCATED, Cell, Data, Side, cell, with_rates
from bench.adjoint.estimators import TimedStep, adjoint_of, bounded_share
from bench.adjoint.plans import ALTERNATIVES, PLANS, SCREENED, best_side, tuned
from oracles import relative_error
from ptmst import TrajectoryStore, distill, evaluate, schema
from ptmst.config import EvaluateConfig, Phase, WriteDataConfig
from ptmst.engine.recursion import Adjoint, Carry
from ptmst.errors import InputError
from ptmst.students.layers import LayerTable
from ptmst.students.losses import student_loss
from ptmst.synthetic.distilled_set import DistilledPhase, DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity
from tiny import DISTILL, OuterCase, outer_case, three_layers, tower_case

pytestmark = pytest.mark.slow

CASE = "convnet"


def step(case: OuterCase, side: Side, seed: int = 0) -> TimedStep:
    return TimedStep(case.step(adjoint=0.0 if side == TRUNCATED else 1.0), side, seed)


@dataclass(frozen=True)
class Told:
    """An adjoint that notes what goes in and comes out."""

    adjoint: Adjoint
    steps: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    """(λ_{i+1}, change, λ_i) in the order of the recursion."""
    moves = True

    def begin(self, layers: LayerTable, steps: int, last: Tensor) -> Carry:
        carry = self.adjoint.begin(layers, steps, last)

        def noted(i: int, adjoint: Tensor, change: Tensor) -> Tensor:
            self.steps.append((adjoint, change, carry(i, adjoint, change)))
            return self.steps[-1][2]

        return noted


def partly_detached(case: OuterCase, batches: Tensor, share: Callable[[int], Tensor | float]) -> dict[str, Tensor]:
    """Autograd through the inner loop, where step i sees θ_i with the share(i) of its gradient."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in case.pairs.leaves().items()}
    oracle, theta = case.oracle, case.start.clone().requires_grad_()
    for i, index in enumerate(batches):
        seen = theta.detach() + share(i) * (theta - theta.detach())
        theta = theta - oracle.rate(leaves["lr"]) * oracle.step_gradient(seen, leaves, index)
    found = torch.autograd.grad(oracle.loss(theta), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert relative_error(found[name], value) <= 1e-9, name


@pytest.mark.parametrize("side", [TRUNCATED, EXACT, Side(adjoint=0.3), Side(adjoint=0.5, clip=0.7)])
def test_the_engines_own(side: Side) -> None:
    case = tower_case(CASE, "full")
    found = step(case, side)(case.span, case.pairs, case.batches).grads
    assert_alike(found, case.oracle.recursion(side.adjoint, side.clip))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_before_a_window_the_adjoint_stands_still(length: int) -> None:
    case = tower_case(CASE, "full")
    n = len(case.batches)
    found = step(case, Side("window", adjoint=1.0, steps=length))(case.span, case.pairs, case.batches).grads
    # λ_i = λ_{i+1} + change within the last `length` recursions: those of steps n-1 … n-length.
    assert_alike(found, partly_detached(case, case.batches, lambda i: float(n - i < length)))


def test_groups_have_shares_of_their_own() -> None:
    case = tower_case(CASE, "full")
    image, text = case.student.layers.group_sizes
    share = torch.cat([torch.full((image,), 0.5), torch.full((text,), 0.125)]).double()
    found = step(case, Side(adjoint=0.5, texts=0.125))(case.span, case.pairs, case.batches).grads
    assert_alike(found, partly_detached(case, case.batches, lambda i: share))


def test_a_random_window_is_rat_bptt() -> None:
    """The loss after a random number of steps; what lies before the window has no gradient."""
    case = tower_case(CASE, "full")
    seen = step(case, Side("random-window", adjoint=1.0, steps=2), seed=3)
    lengths = []
    for _ in range(6):
        found = seen(case.span, case.pairs, case.batches).grads
        last = seen.length
        lengths.append(last)
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in case.pairs.leaves().items()}
        oracle, theta = case.oracle, case.start.clone().requires_grad_()
        for i, index in enumerate(case.batches[:last]):
            if i == last - 2:
                theta = theta.detach().requires_grad_()
            theta = theta - oracle.rate(leaves["lr"]) * oracle.step_gradient(theta, leaves, index)
        expected = torch.autograd.grad(oracle.loss(theta), list(leaves.values()))
        assert_alike(found, dict(zip(leaves, expected, strict=True)))
    assert set(lengths) == {2, 3}


@pytest.mark.parametrize(("recursion", "clip"), [("per-layer", 0.5), ("per-layer", 1.0), ("bounded", 1.0)])
def test_bounds_hold(recursion: Any, clip: float) -> None:
    case = tower_case(CASE, "full")
    layers = case.student.layers
    told = Told(adjoint_of(Side(recursion, adjoint=1.0, clip=clip)))
    case.step(adjoint=told)(case.span, case.pairs, case.batches)
    kept = [told.steps[0][0], *(after for _, _, after in told.steps)]
    norms = [layers.layer_norms(lam) if recursion == "per-layer" else layers.dot(lam, lam).sqrt() for lam in kept]
    assert len(norms) == len(case.batches)
    for norm in norms[1:]:
        assert (norm <= clip * norms[0] * (1 + 1e-6)).all()  # layer norms come in float32
    assert not torch.equal(kept[-1], kept[0])


@pytest.mark.parametrize("clip", [1e9, 0.8])
def test_the_clip_of_each_layer(clip: float) -> None:
    """Against the recursion written out: without effect where the clip is wide, layer by layer where it is not."""
    case, share = tower_case(CASE, "full"), 0.3
    layers = case.student.layers
    told = Told(adjoint_of(Side("per-layer", adjoint=share, clip=clip)))
    found = case.step(adjoint=told)(case.span, case.pairs, case.batches).grads
    steps = told.steps
    if clip > 1:
        assert_alike(found, partly_detached(case, case.batches, lambda i: share))
    offsets, first = layers.offsets.tolist(), steps[0][0]
    clipped = 0
    for lam, change, after in steps:
        for begin, end in pairwise(offsets):
            expected = lam[begin:end] + share * change[begin:end]
            largest = clip * first[begin:end].norm()
            if expected.norm() > largest:
                expected, clipped = expected * (largest / expected.norm()), clipped + 1
            assert relative_error(after[begin:end], expected) <= 1e-6  # layer norms come in float32
    assert (clipped > 0) == (clip < 1)


def test_averages_over_batches_against_brute_force() -> None:
    draw = torch.Generator().manual_seed(0)
    g = torch.randn(4, 3, generator=draw, dtype=torch.float64)
    expected = torch.randn(3, generator=draw, dtype=torch.float64)
    found = why._averaged(g, expected)
    center = [sum(float(row[k]) for row in g) / 4 for k in range(3)]
    noise = sum(sum((float(row[k]) - center[k]) ** 2 for row in g) / 3 for k in range(3))
    assert found["noise"] == pytest.approx(noise)
    assert found["signal"] == pytest.approx(sum(c * c for c in center) - noise / 4)
    dot = sum(c * float(e) for c, e in zip(center, expected, strict=True))
    assert found["cosine of averages"] == pytest.approx(
        dot / sum(c * c for c in center) ** 0.5 / float(expected.norm())
    )
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in combinations(g, 2)]
    assert found["cosine between batches"] == pytest.approx(sum(cosines) / 6)


def test_curvature_is_the_spectrum_of_the_whole_hessian() -> None:
    student = three_layers()
    case = outer_case(student, 8, "full")
    store: Any = SimpleNamespace(layers=student.layers, student=lambda _: student)
    config = replace(DISTILL, temperature=0.5)
    found = why._curvature(case.pairs, config, store, lambda _: case.span, [why.Draw(0, 0, case.batches)])
    loss, theta = student_loss(student, config.loss, config.temperature), case.span.start
    rate = student.layers.expand(case.pairs.lr)
    for i, index in enumerate(case.batches):
        batch = case.pairs.images[index], case.pairs.texts[index], case.pairs.similarity.batch(index)
        hessian = torch.autograd.functional.hessian(partial(_loss, loss, batch), theta)
        values = torch.linalg.eigvalsh(rate.sqrt()[:, None] * hessian * rate.sqrt())
        ends = found["largest"][0][i], found["smallest"][0][i]
        assert ends == pytest.approx((float(values[-1]), float(values[0])), rel=0.02)
        theta = theta - rate * torch.autograd.functional.jacobian(partial(_loss, loss, batch), theta)


def _loss(loss: Callable[..., Tensor], batch: tuple[Tensor, ...], theta: Tensor) -> Tensor:
    return loss(theta, *batch)


def test_a_cell_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest cell, by the study's own code, against the library's by hand."""
    monkeypatch.setenv("PTMST_CACHE", str(tmp_path / "cache"))
    small = WriteDataConfig(name="scenes", image_size=16, train=24, val=8, test=8, warmup=24, captions=2)
    for module in (cells, runs):
        monkeypatch.setattr(module, "images", lambda tower: small)
    plain = cells.teach_config(3, "convnet")
    teach = replace(plain, encoder=replace(plain.encoder, image_width=16, warmup_epochs=1), experts=2, batch_size=16)
    monkeypatch.setattr(runs, "teach_config", lambda seed, tower: replace(teach, seed=seed))
    config = replace(BASE, phases=(Phase(8, 5, (0, 2)),), steps=20, inner_steps=2, batch_size=4, compile="off")
    one = cell("digits", 3, "small", Side(adjoint=0.5, clip=1.0), config, forms=plans.FORMS)
    runs.prepare("digits", "convnet", tmp_path)
    row = runs.measure((one, tmp_path))
    assert schema.from_json(Cell, row["cell"]) == one and row["diverged at"] is None
    store = TrajectoryStore.open(runs.store_path(one, tmp_path))
    made = distill(one.distill, store)
    (phase,) = made.phases
    assert row["loss"] == [pytest.approx(float(phase.history["loss"].sum(1).mean()))]
    assert row["lr"] == [phase.pairs.lr.tolist()]
    eta = torch.full((2,), config.student_lr)
    fixed = replace(phase, pairs=phase.pairs.replace(phase.pairs.leaves() | {"lr": eta}), last_lr=eta)
    assert not torch.equal(phase.pairs.lr, eta)
    for form, distilled, protocol in (
        ("per-phase", made, "per-phase"),
        ("reference", made, "reference"),
        ("fixed", replace(made, phases=(fixed,)), "per-phase"),
    ):
        assert len(row["students"][form]) == cells.STUDENTS
        for split in ("val", "test"):
            how = EvaluateConfig(seed=3, students=3, device="cpu", split=split, protocol=protocol)  # type: ignore[arg-type]
            recalls = [student["mean"] for student in evaluate(distilled, how).students]
            assert [student[split] for student in row["students"][form]] == pytest.approx(recalls, abs=1e-3)


def test_the_bounded_share_is_the_largest() -> None:
    draw = torch.Generator().manual_seed(0)
    dot = lambda a, b: (a * b).sum(1)  # noqa: E731
    lam, turned = (torch.randn(200, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    largest = lam.norm(dim=1) * (1 + torch.rand(200, generator=draw, dtype=torch.float64))
    found = bounded_share(dot, lam, turned, largest)
    tried = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    norms = (lam + tried[:, None, None] * turned).norm(dim=2)
    # The share is walked from 0: the largest before the bound is first crossed.
    inside = (norms <= largest * (1 + 1e-12)).long().cumprod(0).sum(0) - 1
    assert (found - tried[inside]).abs().max() <= 1.01e-4


def test_a_cell_is_found_again_in_the_results(tmp_path: Path) -> None:
    for name in ("experts", "screening", "alternatives", "why", "phases"):
        cells = PLANS[name](tmp_path)
        assert len(set(cells)) == len(cells), name
        assert [schema.from_json(Cell, json.loads(json.dumps(schema.to_json(one)))) for one in cells] == cells
    assert not set(SCREENED) & set(ALTERNATIVES)


def test_a_part_waits_for_the_one_before_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^screening: expected 156 runs, found 0; finish that part first$"):
        PLANS["tuning"](tmp_path)


def simulated(one: Cell, number: int) -> dict[str, Any]:
    """A row as a run writes it; recall depends on the side and the seed."""
    draw = np.random.default_rng(number)
    if one.measure == "experts":
        return {"cell": schema.to_json(one), "recall": draw.uniform(2, 30, (4, 11)).tolist()}
    if one.measure == "why":
        return {"cell": schema.to_json(one), "states": {state: explained(draw) for state in STATES}}
    recall = 10 + 5 * one.side.adjoint + one.seed / 10
    students: list[dict[str, float] | None] = [{"val": recall - 1, "test": recall + n / 4} for n in range(3)]
    return {
        "cell": schema.to_json(one),
        "diverged at": None,
        "cpu s": 20.0,
        "cpu s of a step": 0.08,
        "loss": [1.5] * len(one.distill.phases),
        "curve": [[1.9, 1.5]] * len(one.distill.phases),
        "lr": [[0.1, 0.2]] * len(one.distill.phases),
        "students": dict.fromkeys(one.forms, students),
    }


STATES = ("initial", "distilled, truncated", "distilled, c = 0.5")


def explained(draw: np.random.Generator) -> dict[str, Any]:
    curved = [0, 0, 1, 1, 2, 2]
    curvature = {end: draw.uniform(-1, 5, (6, 8)).tolist() for end in ("largest", "smallest")}
    found: dict[str, Any] = {"loss": 1.9, "starts": [0, 1, 2] * 4, "curved starts": curved, "curvature": curvature}
    names = ("cosine of averages", "noise", "signal", "cosine between batches")
    for side in why.SIDES:
        of: dict[str, Any] = {"gain": float(draw.uniform())}
        of |= {key: draw.uniform(0, 1, 12).tolist() for key in ("cosine with exact", "norm")}
        if side != TRUNCATED:
            of["growth"] = draw.uniform(1, 3, (12, 8, 2)).tolist()
        of["fixed"] = {str(start): dict(zip(names, draw.uniform(0, 1, 4).tolist(), strict=True)) for start in why.FIXED}
        of["neighbors"] = {"cosine": draw.uniform(0, 1, 9).tolist(), "norm": draw.uniform(0, 1, 10).tolist()}
        found[side.label] = of
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of every part, simulated."""
    results = tmp_path_factory.mktemp("results")
    for name in PLANS:
        rows = [simulated(one, number) for number, one in enumerate(PLANS[name](results))]
        command = f"python -m bench.adjoint --plan {name}"
        result.write(results / f"{name}.json", rows, command=command, machine={"cpu": "a cpu"})
    return results


TABLES = {name.removeprefix("adjoint-"): table for name, table in readme.TABLES.items() if name.startswith("adjoint-")}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_can_be_made(name: str, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "RESULTS", whole.parent)
    (whole.parent / "adjoint").unlink(missing_ok=True)
    (whole.parent / "adjoint").symlink_to(whole)
    lines = TABLES[name]("folder").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) > 2 and len({line.count("|") for line in table}) == 1
    assert "nan" not in "".join(table) and "Not measured" not in "".join(lines)
    assert "`python -m bench.adjoint --plan " in lines[-1] and "on a cpu" in lines[-1]


def test_the_confirmations_numbers(whole: Path) -> None:
    """Recalls here are 10 + 5c + seed/10, and a quarter for the mean of three students."""
    lines = tables.confirmation(whole).splitlines()
    (base,) = (line for line in lines if line.startswith("| base | scenes |"))
    best = best_side(plans.rows(whole, "screening"))
    damped = 5 * best.adjoint
    seconds = f"+{damped:.1f} [+{damped:.1f}, +{damped:.1f}]"
    shown = f"| base | scenes | 5 | 12.4 | {12.45 + damped:.1f} | 17.4 | {seconds} | {seconds} | "
    assert base.startswith(shown), (base, shown)


def test_the_contests_and_the_alternatives_numbers(whole: Path) -> None:
    best = best_side(plans.rows(whole, "screening"))
    other = best_side(plans.rows(whole, "screening") + plans.rows(whole, "alternatives"), ALTERNATIVES)
    difference = 5 * (other.adjoint - best.adjoint)
    interval = f"{difference:+.1f} [{difference:+.1f}, {difference:+.1f}]"
    table = tables.contest(whole)
    means = f"{12.45 + 5 * best.adjoint:.1f} | {12.45 + 5 * other.adjoint:.1f}"
    for setting in ("| **all** | scenes and digits |", "| base | scenes |", "| 16 inner steps | digits |"):
        assert f"{setting} {means} | {interval} |" in table
    lines = tables.alternatives(whole).splitlines()
    for side in (TRUNCATED, *ALTERNATIVES):
        (line,) = (line for line in lines if line.startswith(f"| {side.label} |"))
        less = 5 * (side.adjoint - best.adjoint)
        assert f"| {less:+.1f} [{less:+.1f}, {less:+.1f}] |" in line, line


def test_what_is_scored_on_test_is_shown(whole: Path) -> None:
    """Recalls on val are one lower, and a quarter besides."""
    (line,) = (line for line in tables.segments(whole).splitlines() if line.startswith("| scenes | c = 0 |"))
    assert "| 10.3 ± 0.2 |" in line or "| 10.4 ± 0.2 |" in line
    combined = tables.combination(whole).splitlines()[2]
    best = best_side(plans.rows(whole, "screening")).adjoint
    shown = [cell.split(" ±")[0].strip() for cell in combined.split("|")[2:-1]]
    assert shown == [f"{recall + 5 * best:.1f}" for recall in (13.1, 14.35, 13.1, 14.35)]


def test_the_table_of_phases_shows_each_form_of_each_size(whole: Path, tmp_path: Path) -> None:
    found = json.loads((whole / "phases.json").read_text())
    where = {(setting, form): line for line, (_, setting, form) in enumerate(tables.PHASES)}
    for row in found["rows"]:
        setting, _, size = row["cell"]["setting"].rpartition(", ")
        more = {"50 pairs": 20, "200 pairs": 40}[size] + {"scenes": 0, "digits": 0.5}[row["cell"]["data"]]
        for form in row["students"]:
            value = where.get((setting, form), -1) + more
            row["students"][form] = [{"val": 0.0, "test": value}] * 3
    result.write(tmp_path / "phases.json", found["rows"])
    lines = tables.phases(tmp_path).splitlines()
    columns = "scenes, 50 pairs | digits, 50 pairs | scenes, 200 pairs | digits, 200 pairs"
    assert lines[0] == f"| students train on | {columns} |"
    for number, line in enumerate(lines[2 : 2 + len(tables.PHASES)]):
        shown = [cell.strip() for cell in line.split("|")[2:-1]]
        assert shown == [f"{number + more:.1f} ± 0.0" for more in (20, 20.5, 40, 40.5)], line


def test_parts_of_a_set_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """One phase alone, and all pairs as one: blocks of S on the diagonal, the mean of η, nothing else changed."""
    draw = torch.Generator().manual_seed(0)

    def phase(n: int) -> DistilledPhase:
        images, texts, s = (torch.randn(size, generator=draw) for size in ((n, 3, 2, 2), (n, 5), (n, n)))
        lr = torch.rand(2, generator=draw)
        return DistilledPhase(SyntheticPairs(images, texts, FullSimilarity(s), lr), 2 * lr, tuple("abc"[:n]))

    first, second = phase(2), phase(3)
    made = DistilledSet((first, second), {}, {})
    monkeypatch.setattr(runs, "_students", lambda distilled, config: (distilled, config))
    one = cell("scenes", 0, "two, 5 pairs", TRUNCATED, BASE, forms=("per-phase", "first", "second", "at once"))
    found: dict[Any, Any] = runs.evaluations(one, made)
    assert {form: distilled.phases for form, (distilled, _) in found.items() if form != "at once"} == {
        "per-phase": (first, second),
        "first": (first,),
        "second": (second,),
    }
    ((merged,), config) = (found["at once"][0].phases, found["at once"][1])
    assert config == EvaluateConfig(seed=0, protocol="per-phase", device="cpu")
    s = torch.zeros(5, 5)
    s[:2, :2], s[2:, 2:] = (part.pairs.similarity.dense() for part in (first, second))
    assert torch.equal(merged.pairs.similarity.dense(), s)
    for name in ("images", "texts"):
        both = torch.cat([getattr(part.pairs, name) for part in (first, second)])
        assert torch.equal(getattr(merged.pairs, name), both)
    assert torch.equal(merged.pairs.lr, (first.pairs.lr + second.pairs.lr) / 2)
    assert torch.equal(merged.last_lr, first.pairs.lr + second.pairs.lr) and merged.captions == tuple("ababc")


def test_the_picture_of_the_confirmation_has_its_differences(whole: Path) -> None:
    with style.applied() as pyplot:
        (panel,) = figures._confirmation(whole, pyplot).axes
    best = best_side(plans.rows(whole, "screening")).adjoint
    means = [float(x) for line in panel.lines if line.get_marker() == "o" for x in line.get_xdata()]
    settings = [setting for of in plans.SETTINGS.values() for setting in of]
    assert means == pytest.approx([5 * best] * len(settings) * len(DATA))
    assert [label.get_text() for label in panel.get_yticklabels()] == settings[::-1]


def test_every_figure_is_drawn(whole: Path, tmp_path: Path) -> None:
    written = figures.draw(whole, tmp_path / "figures")
    assert {path.name for path in written} == {"screening.png", "confirmation.png", "growth.png", "worth.png"}
    for path in written:
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 50
    assert figures.draw(tmp_path / "nothing", tmp_path / "none") == []


def row(one: Cell, recall: float | None) -> dict[str, Any]:
    students = {} if recall is None else {"per-phase": [{"val": recall, "test": 0.0}] * 2 + [None]}
    return {"cell": schema.to_json(one), "students": students}


def test_the_best_side_is_chosen_on_val_in_units_of_the_truncated_forms() -> None:
    better, worse = Side(adjoint=0.5), Side(adjoint=0.75, clip=1.0)
    recall: dict[tuple[Data, Side], float] = {
        ("scenes", TRUNCATED): 10, ("scenes", better): 15, ("scenes", worse): 12, ("scenes", EXACT): 90,
        ("digits", TRUNCATED): 40, ("digits", better): 40, ("digits", worse): 50, ("digits", EXACT): 90,
    }  # fmt: skip
    rows = [row(cell(data, 0, "x", side, BASE), value) for (data, side), value in recall.items()]
    rows += [
        row(cell(data, 0, "x", side, BASE), 1.0)
        for data in DATA
        for side in SCREENED
        if side not in (TRUNCATED, EXACT, better, worse)
    ]
    assert best_side(rows) == better  # 1.5 and 1, against 1.2 and 1.25


def test_rates_are_chosen_on_val_and_divergence_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, factors = plans.OPTIMIZERS["sgd"]
    recalls: list[list[float | None]] = [[4.0, 4.0], [9.0, None], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    values = dict(zip(factors, recalls, strict=True))
    rows = [
        row(cell("scenes", seed, f"sgd × {factor:.2g}", EXACT, with_rates(base, factor)), value)
        for factor, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]
    rows += [row(cell("digits", 0, f"sgd × {factors[2]:.2g}", EXACT, base), 99.0)]
    result.write(tmp_path / "tuning-sgd.json", rows)
    cells = [schema.from_json(Cell, one["cell"]) for one in rows]
    monkeypatch.setitem(PLANS, "tuning-sgd", lambda results: cells)
    found = tuned(tmp_path, "scenes", "sgd", EXACT)
    # A third of the students diverged everywhere: 16/6 against 18/6, where one whole distillation diverged.
    assert found.rates == replace(base, rates=with_rates(base, factors[1]).rates).rates
