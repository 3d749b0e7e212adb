"""Distillation against torch's optimizers and an outer loop of its own; what stops it, and how it goes on."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from oracles import beta, relative_error
from ptmst import (
    DistillConfig,
    DistilledSet,
    Diverged,
    InputError,
    LeafRates,
    Phase,
    SyntheticPairs,
    TrajectoryStore,
    distill,
    outer_gradient,
    schema,
)
from ptmst.config import TeachConfig
from ptmst.distillation import distill as distillation
from ptmst.distillation import optimizer
from ptmst.distillation.draws import draw_batches, initial_pairs
from ptmst.distillation.optimizer import OuterState, outer_update
from ptmst.engine.outer_step import OuterStep
from ptmst.engine.recursion import OuterGradient
from ptmst.recipe import Recipe
from ptmst.students.student import Student
from ptmst.support import devices, folders, parts
from ptmst.support.files import read_tensors
from ptmst.support.signals import interruptible
from ptmst.synthetic.distilled_set import FOLDER
from ptmst.synthetic.soft_labels import FullSimilarity, LowRankSimilarity, Similarity
from ptmst.teachers import teach
from ptmst.trajectories.spans import Span
from tiny import DISTILL, ENCODER, RATES, contents, finish, names, python, tiny_store

Optimizer = Literal["sgd", "adam"]
RATE = {"images": 0.1, "texts": 0.2, "lr": 0.003, "similarity": 0.5, "diag": 0.5, "left": 0.5, "right": 0.5}
SLOW = replace(DISTILL, steps=40, inner_steps=2, checkpoint_minutes=0.0005)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory)


def synthetic(kind: str, n: int = 7) -> SyntheticPairs:
    similarity: Similarity = FullSimilarity(torch.randn(n, n))
    if kind == "low-rank":
        similarity = LowRankSimilarity(torch.randn(n), torch.randn(n, 3), torch.randn(n, 3), alpha=2.0)
    return SyntheticPairs(torch.randn(n, 3, 5, 5), torch.randn(n, 11), similarity, torch.tensor([0.1, 0.2]))


def torch_optimizer(leaves: dict[str, Tensor], config: DistillConfig) -> torch.optim.Optimizer:
    groups = [{"params": [leaf], "lr": RATE[name]} for name, leaf in leaves.items()]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    return torch.optim.Adam(groups, betas=(config.momentum, 0.99), eps=1e-8)


# The parts


@pytest.mark.parametrize("kind", ["full", "low-rank"])
@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.5), ("adam", 0.9)])
def test_the_outer_optimiser_is_torchs(optimizer: Optimizer, momentum: float, kind: str) -> None:
    rates = LeafRates(images=0.1, texts=0.2, lr=0.003, similarity=0.5)
    config = DistillConfig(optimizer=optimizer, momentum=momentum, rates=rates, ema=0.8, steps=5)
    pairs = synthetic(kind)
    theirs = {name: leaf.double().clone().requires_grad_() for name, leaf in pairs.leaves().items()}
    average = {name: leaf.detach().clone() for name, leaf in theirs.items()}
    reference = torch_optimizer(theirs, config)
    state = OuterState.begin(pairs, config)
    for step in range(5):
        grads = {name: torch.randn_like(leaf) for name, leaf in pairs.leaves().items()}
        per_group = torch.rand(2)
        state = outer_update(state, OuterGradient(per_group.sum(), per_group, torch.zeros(1), grads), config)
        for name, leaf in theirs.items():
            leaf.grad = grads[name].double()
        reference.step()
        average = {name: 0.8 * average[name] + 0.2 * leaf.detach() for name, leaf in theirs.items()}
        for name, leaf in theirs.items():
            assert relative_error(state.pairs.leaves()[name], leaf.detach()) <= 1e-6, (step, name)
            assert relative_error(state.average.leaves()[name], average[name]) <= 1e-6, (step, name)
        assert torch.equal(state.loss[step], per_group)
        assert relative_error(state.lr[step], theirs["lr"].detach()) <= 1e-6
    assert state.step == 5


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.5), ("adam", 0.9)])
def test_eta_is_learned_as_its_logarithm(optimizer: Optimizer, momentum: float) -> None:
    """By torch's optimizer on log η; the chain rule is autograd's. The average is of η itself."""
    rates = LeafRates(images=0.0, texts=0.0, lr=0.5, similarity=0.0)
    config = DistillConfig(optimizer=optimizer, momentum=momentum, rates=rates, ema=0.8, steps=6, lr_scale="log")
    pairs = synthetic("full")
    average = pairs.lr.double()
    exponent = average.log().requires_grad_()
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    how: dict[str, Any] = {"momentum": momentum} if optimizer == "sgd" else {"betas": (momentum, 0.99), "eps": 1e-8}
    reference, state = kind([exponent], lr=0.5, **how), OuterState.begin(pairs, config)
    for _ in range(6):
        pull = 5 * torch.rand(2)  # always down: on a linear scale η would be negative at once
        grads = {name: torch.zeros_like(leaf) for name, leaf in pairs.leaves().items()} | {"lr": pull}
        state = outer_update(state, OuterGradient(pull.sum(), pull, torch.zeros(1), grads), config)
        reference.zero_grad()
        (exponent.exp() * pull.double()).sum().backward()
        reference.step()
        average = 0.8 * average + 0.2 * exponent.exp().detach()
        assert relative_error(state.pairs.lr, exponent.exp().detach()) <= 1e-5
        assert relative_error(state.average.lr, average) <= 1e-5
    assert bool((state.pairs.lr > 0).all()) and bool((state.pairs.lr < torch.tensor([0.1, 0.2])).all())


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.5), ("adam", 0.9)])
@pytest.mark.parametrize(("pull", "within"), [(0.0, "unit"), (0.1, "free"), (0.1, "unit")])
def test_soft_labels_are_held(
    optimizer: Optimizer, momentum: float, pull: float, within: Literal["free", "unit"]
) -> None:
    """A step of torch's optimizer, then a part of the way to the identity, then a clamp, then the average."""
    rates = LeafRates(images=0.1, texts=0.1, lr=0.001, similarity=0.4)
    config = replace(DistillConfig(optimizer=optimizer, momentum=momentum, rates=rates, ema=0.8, steps=6))
    config = replace(config, similarity_range=within, similarity_pull=pull)
    pairs = synthetic("full")
    pairs = pairs.replace({**pairs.leaves(), "similarity": torch.eye(len(pairs))})
    matrix = torch.eye(len(pairs)).double().requires_grad_()
    average = matrix.detach().clone()
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    how: dict[str, Any] = {"momentum": momentum} if optimizer == "sgd" else {"betas": (momentum, 0.99), "eps": 1e-8}
    reference, state = kind([matrix], lr=0.4, **how), OuterState.begin(pairs, config)
    for _ in range(6):
        grads = {name: torch.randn_like(leaf) for name, leaf in pairs.leaves().items()}
        per_group = torch.rand(2)
        state = outer_update(state, OuterGradient(per_group.sum(), per_group, torch.zeros(1), grads), config)
        matrix.grad = grads["similarity"].double()
        reference.step()
        with torch.no_grad():
            matrix += pull * (torch.eye(len(pairs)) - matrix)
            if within == "unit":
                matrix.clamp_(0, 1)
        average = 0.8 * average + 0.2 * matrix.detach()
        assert relative_error(state.pairs.leaves()["similarity"], matrix.detach()) <= 1e-6
        assert relative_error(state.average.leaves()["similarity"], average) <= 1e-6
    values = state.pairs.leaves()["similarity"]
    assert bool(((values > 0) & (values < 1)).any())
    if within == "unit":
        assert bool((values == 0).any()) and bool((values <= 1).all())


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.5), ("adam", 0.9)])
def test_rates_fall_by_a_cosine(optimizer: Optimizer, momentum: float) -> None:
    """As by torch's scheduler, of every leaf."""
    rates = LeafRates(images=0.1, texts=0.2, lr=0.003, similarity=0.5)
    config = DistillConfig(optimizer=optimizer, momentum=momentum, rates=rates, steps=6, rate_decay="cosine")
    pairs = synthetic("full")
    theirs = {name: leaf.double().clone().requires_grad_() for name, leaf in pairs.leaves().items()}
    reference, state = torch_optimizer(theirs, config), OuterState.begin(pairs, config)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=6)
    for _ in range(6):
        grads = {name: torch.randn_like(leaf) for name, leaf in pairs.leaves().items()}
        state = outer_update(state, OuterGradient(torch.zeros(()), torch.zeros(2), torch.zeros(1), grads), config)
        for name, leaf in theirs.items():
            leaf.grad = grads[name].double()
        reference.step()
        schedule.step()
        for name, leaf in theirs.items():
            assert relative_error(state.pairs.leaves()[name], leaf.detach()) <= 1e-6, name


def test_a_permutation_walks_every_pair_once() -> None:
    draw = draw_batches(12, 4, 7, torch.Generator().manual_seed(3))
    assert draw.shape == (7, 4) and draw.dtype == torch.int64
    for first in (0, 3):
        assert sorted(draw[first : first + 3].flatten().tolist()) == list(range(12))
    assert not torch.equal(draw[:3], draw[3:6])


def test_a_permutation_is_redrawn_when_too_few_pairs_are_left() -> None:
    draw = draw_batches(11, 4, 40, torch.Generator().manual_seed(3)).view(20, 8)
    assert all(len(set(walk.tolist())) == 8 for walk in draw)
    assert set(draw.flatten().tolist()) == set(range(11))
    assert draw_batches(4, 4, 3, torch.Generator()).sort().values.tolist() == [[0, 1, 2, 3]] * 3


def test_batches_are_drawn_from_the_generator_alone() -> None:
    first, again, other = (draw_batches(11, 4, 5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    torch.manual_seed(5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("similarity", ["full", "low-rank"])
def test_phases_begin_at_real_pairs_of_their_own(
    store: TrajectoryStore, similarity: Literal["full", "low-rank"]
) -> None:
    config = replace(DISTILL, similarity=similarity, rank=3, student_lr=0.07)
    pairs, texts = store.recipe.training_pairs()
    images = pairs.images(torch.arange(24))
    taken: list[int] = []
    for number, phase in enumerate(config.phases):
        found = initial_pairs(config, number, pairs, texts, 2)
        assert len(found) == phase.pairs
        assert torch.equal(found.lr, torch.tensor([0.07, 0.07]))
        assert torch.equal(found.similarity.dense(), torch.eye(phase.pairs))
        if isinstance(found.similarity, LowRankSimilarity):
            assert found.similarity.left.shape == (phase.pairs, 3)
            assert found.similarity.left.abs().min() > 0
        for image, text in zip(found.images, found.texts, strict=True):
            (number_of_image,) = [i for i, real in enumerate(images) if torch.equal(real, image)]
            own = texts[pairs.image_of_text == number_of_image]
            assert any(torch.equal(real, text) for real in own)
            taken.append(number_of_image)
    assert len(set(taken)) == 18


# The whole loop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trajectory", "optimizer", "similarity", "length"),
    [
        ("shortcut", "sgd", "full", 1),
        ("shortcut", "adam", "low-rank", 2),
        ("raw", "sgd", "full", 2),
        ("raw", "adam", "low-rank", 1),
    ],
)
def test_a_run_is_the_outer_loop_written_by_hand(
    store: TrajectoryStore,
    trajectory: Literal["shortcut", "raw"],
    optimizer: Optimizer,
    similarity: Literal["full", "low-rank"],
    length: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = RATES if optimizer == "adam" else LeafRates(images=1.0, texts=1.0, lr=1e-4, similarity=0.05)
    momentum = 0.9 if optimizer == "adam" else 0.5
    config = replace(
        DISTILL,
        phases=(Phase(8, 2, (0, 3 - length)), Phase(10, 3, (1, 4 - length))),
        expert_epochs=length,
        trajectory=trajectory,
        optimizer=optimizer,
        momentum=momentum,
        similarity=similarity,
        rank=3,
        alpha=1.5,
        rates=rates,
        adjoint=0.5,
        adjoint_clip=1.5,
        temperature=0.1,
    )
    steps = _record_steps(monkeypatch)
    distilled = distill(config, store)
    assert len(steps) == 8
    monkeypatch.undo()

    student = store.student((1,))
    pairs, texts = store.recipe.training_pairs()
    for number, phase in enumerate(config.phases):
        points = {(e, t): _point(store, trajectory, e, t, phase.endpoint) for e in (0, 1) for t in range(4)}
        leaves = {k: v.requires_grad_() for k, v in initial_pairs(config, number, pairs, texts, 2).leaves().items()}
        average = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        groups = [
            {"params": [leaf], "lr": getattr(rates, name if name in ("images", "texts", "lr") else "similarity")}
            for name, leaf in leaves.items()
        ]
        by_hand: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=0.5)
        if optimizer == "adam":
            by_hand = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-8)
        template = initial_pairs(config, number, pairs, texts, 2)
        for step, (start, batches) in enumerate(steps[4 * number : 4 * number + 4]):
            (at,) = [key for key in points if key[1] in range(*phase.start) and _same(points[key], start)]
            assert batches.shape == (3, 4) and int(batches.max()) < phase.pairs
            found = outer_gradient(
                student,
                points[at],
                points[at[0], at[1] + length],
                template.replace({name: leaf.detach() for name, leaf in leaves.items()}),
                batches,
                temperature=0.1,
                adjoint=0.5,
                adjoint_clip=1.5,
            )
            for name, leaf in leaves.items():
                leaf.grad = found.grads[name]
            by_hand.step()
            average = {name: 0.9 * average[name] + 0.1 * leaf.detach() for name, leaf in leaves.items()}
            history = distilled.phases[number].history
            assert relative_error(history["loss"][step], found.per_group) <= 1e-4
            assert relative_error(history["lr"][step], leaves["lr"].detach()) <= 1e-4
        moved = distilled[number].leaves()
        for name, value in average.items():
            assert relative_error(moved[name], value) <= 1e-4, (number, name)
            if name != "left" or optimizer == "adam":
                began = template.leaves()[name]
                assert relative_error(moved[name] - began, value - began) <= 5e-3, (number, name)
        assert relative_error(distilled.phases[number].last_lr, leaves["lr"].detach()) <= 1e-4


def _record_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """(θ_start, batches) of every outer step to come."""
    steps: list[tuple[Tensor, Tensor]] = []
    original = OuterStep.__call__

    def spy(step: OuterStep, span: Span, pairs: SyntheticPairs, batches: Tensor, *mixing: Any) -> OuterGradient:
        steps.append((span.start.clone(), batches.clone()))
        return original(step, span, pairs, batches, *mixing)

    monkeypatch.setattr(OuterStep, "__call__", spy)
    return steps


def _point(store: TrajectoryStore, trajectory: str, number: int, t: int, endpoint: int) -> Tensor:
    """θ(t) from the record alone; past the end point of a shortcut, zeros."""
    expert = store.expert(number)
    sizes = torch.tensor(store.layers.sizes)
    end = endpoint if trajectory == "shortcut" else t
    if t > end:
        return torch.zeros_like(expert.base)
    if t == 0:
        return expert.base
    share = torch.ones(len(sizes), dtype=torch.float64)
    if trajectory == "shortcut":
        share = torch.from_numpy(beta(expert.step_norms.numpy().astype(np.float64), endpoint)[t])
    kept = expert.displacements[end]
    factor = (share * kept.scale.double()).repeat_interleave(sizes)
    return (expert.base.double() + factor * kept.values.double()).float()


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-6 * b.norm())


@pytest.mark.slow
@pytest.mark.parametrize("trajectory", ["shortcut", "raw"])
def test_every_expert_and_every_start_is_drawn(
    store: TrajectoryStore, trajectory: Literal["shortcut", "raw"], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = _record_steps(monkeypatch)
    phase = Phase(8, 3, (0, 3))
    distill(replace(DISTILL, phases=(phase,), trajectory=trajectory, steps=24, inner_steps=1), store)
    expected = [_point(store, trajectory, expert, t, 3) for expert in (0, 1) for t in range(3)]
    # Experts share the tower but not the head at epoch 0.
    assert {i for start, _ in steps for i, point in enumerate(expected) if _same(point, start)} == set(range(6))
    assert len({tuple(batches.flatten().tolist()) for _, batches in steps}) > 20


@pytest.mark.slow
def test_the_matching_loss_falls(store: TrajectoryStore) -> None:
    config = replace(DISTILL, phases=(Phase(16, 2, (0, 1)),), steps=15, batch_size=16, inner_steps=2)
    loss = distill(config, store).phases[0].history["loss"].sum(1)
    assert loss[-3:].mean() < 0.95 * loss[:3].mean()


@pytest.mark.slow
def test_a_seed_decides_the_bits(store: TrajectoryStore) -> None:
    config = replace(DISTILL, steps=2, phases=DISTILL.phases[:1])
    first, again, other = (distill(replace(config, seed=seed), store)[0].images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# Ways of computing it

QUICK: dict[str, dict[str, Any]] = {
    "primals": {"keep": "primals", "adjoint": 1.0, "adjoint_clip": 1.0},
    "chunks": {"chunk": 2, "adjoint": 0.5},
    "nothing": {"keep": "nothing"},
    "bf16": {"precision": "bf16"},
    "all at once": {"precision": "bf16", "chunk": 1, "keep": "nothing"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "frozen"),
    [
        *((way, False) for way in QUICK),
        ("all at once", True),
        *(pytest.param(way, True, marks=pytest.mark.exhaustive) for way in QUICK if way != "all at once"),
    ],
)
def test_another_way_of_computing_is_the_same_run(
    tmp_path_factory: pytest.TempPathFactory, way: str, frozen: bool
) -> None:
    store = tiny_store(tmp_path_factory, frozen)
    rates = LeafRates(images=1.0, texts=1.0, lr=1e-4, similarity=0.05)
    config = replace(DISTILL, optimizer="sgd", momentum=0.5, rates=rates)
    plain = {k: v for k, v in QUICK[way].items() if k.startswith("adjoint")}
    expected, found = (distill(replace(config, **how), store) for how in (plain, QUICK[way]))
    half = "precision" in QUICK[way]
    starts = [initial_pairs(config, n, *store.recipe.training_pairs(), 2) for n in range(2)]
    for ours, theirs, start in zip(found, expected, starts, strict=True):
        for name, value in theirs.leaves().items():
            assert ours.leaves()[name].dtype == torch.float32
            moved = relative_error(ours.leaves()[name] - start.leaves()[name], value - start.leaves()[name])
            assert moved <= (0.2 if half else 5e-3), name
            assert moved > 1e-4 or not half or name == "lr", name
    assert found.provenance["config"].items() >= QUICK[way].items()


@pytest.mark.slow
def test_settings_reach_the_outer_step(store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of how it is computed change no result that would tell."""
    given: list[dict[str, Any]] = []

    original = OuterStep.__init__

    def spy(step: OuterStep, student: Student, **settings: Any) -> None:
        given.append(settings)
        original(step, student, **settings)

    settings: dict[str, Any] = {
        "loss": "kl",
        "temperature": 0.1,
        "adjoint": 0.0,
        "adjoint_clip": 2.0,
        "precision": "bf16",
        "keep": "nothing",
        "chunk": 2,
        "compile": "off",
    }
    monkeypatch.setattr(OuterStep, "__init__", spy)
    distill(replace(DISTILL, steps=1, **settings), store)
    assert given == [settings]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "frozen"),
    [
        ("primals", False),
        ("all at once", True),
        pytest.param("primals", True, marks=pytest.mark.exhaustive),
        pytest.param("all at once", False, marks=pytest.mark.exhaustive),
    ],
)
def test_another_way_of_computing_resumes_to_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, way: str, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny_store(tmp_path_factory, frozen)
    config = replace(DISTILL, checkpoint_minutes=0.0, **QUICK[way])
    distill(replace(config, out=tmp_path / "whole"), store)
    stopped = replace(config, out=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        _stop_at(6, patch)
        with pytest.raises(KeyboardInterrupt):
            distill(stopped, store)
    with pytest.raises(InputError, match="expected a run of these settings and this store, found another"):
        distill(replace(stopped, keep="path", chunk=None, precision="fp32"), store, resume=True)
    distill(stopped, store, resume=True)
    assert contents(tmp_path / "stopped", "phase-*") == contents(tmp_path / "whole", "phase-*")


@pytest.mark.slow
def test_a_run_says_that_it_compiles(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[str] = []

    def compiler(mode: str, device: torch.device) -> Callable[[Callable[..., Any]], Callable[..., Any]] | None:
        def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
            compiled.append(function.__name__)
            return function

        assert device.type == "cpu"
        return as_it_is if mode == "on" else None

    monkeypatch.setattr("ptmst.engine.outer_step.compiler", compiler)
    config = replace(DISTILL, keep="path", chunk=None)
    expected = distill(config, store)
    assert capsys.readouterr().err == "" and not compiled
    found = distill(replace(config, compile="on"), store)
    assert compiled == ["step", "along"]
    assert capsys.readouterr().err.splitlines() == [
        "distill: compiling the outer step: once, for minutes with a big tower"
    ]
    assert torch.equal(found[1].images, expected[1].images)


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phases": (Phase(8, 5, (0, 2)),)}, r"^phase 1: expected epochs within the 3 recorded in .*, found 5; lower"),
        (
            {"phases": (Phase(8, 2, (0, 2)), Phase(8, 6, (3, 5))), "trajectory": "raw"},
            r"^phase 2: expected epochs within the 3 recorded in .*, found 4; lower the end point or start range",
        ),
        ({"phases": (Phase(8, 2, (0, 3)),)}, r"^phases\[0\]: expected the last span 2→3 to end by the end point"),
        ({"phases": (Phase(8, 2, (2, 2)),)}, r"^phases\[0\]\.start: expected 0 <= first < last, found 2-2"),
        ({"phases": (Phase(3, 2, (0, 2)),)}, r"^phases\[0\]\.pairs: expected at least one batch of 4, found 3 pairs"),
        ({"phases": ()}, "^phases: expected at least one, found none"),
        ({"phases": (Phase(8, 2, (0, 2)), Phase(20, 2, (0, 2)))}, "^pairs: expected at most the 24 images of scenes"),
    ],
)
def test_settings_that_the_store_cannot_serve_are_refused(
    store: TrajectoryStore, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        distill(replace(DISTILL, out=tmp_path / "out", **change), store)
    assert not names(tmp_path / "out")


@pytest.mark.parametrize(
    ("trajectory", "phase", "message"),
    [
        ("shortcut", Phase(8, 2, (0, 2)), r"\(3\), found 2; use a kept one, or teach with --endpoints 2$"),
        ("raw", Phase(8, 3, (0, 3)), r"\(3\), found 1, 2; use a kept one, or teach with --endpoints all$"),
    ],
)
def test_an_end_point_that_was_not_kept_is_refused(
    store: TrajectoryStore, trajectory: Literal["shortcut", "raw"], phase: Phase, message: str
) -> None:
    with pytest.raises(InputError, match="^phase 1: expected end points kept in .*" + message):
        distill(replace(DISTILL, trajectory=trajectory, phases=(phase,)), replace(store, endpoints=(3,)))


def test_an_empty_store_is_refused(store: TrajectoryStore) -> None:
    with pytest.raises(InputError, match="expected at least one expert, found none; run `ptmst teach` to its end"):
        distill(DISTILL, replace(store, experts={}))


def test_a_folder_that_cannot_be_written_is_refused(store: TrajectoryStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file/out: cannot be used \(Not a directory\); choose another output f"):
        distill(replace(DISTILL, out=tmp_path / "file" / "out"), store)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_refused(store: TrajectoryStore, tmp_path: Path) -> None:
    config = replace(DISTILL, out=tmp_path / "out", steps=1)
    distill(config, store)
    before = contents(tmp_path / "out", "*")
    mistakes: tuple[tuple[bool, dict[str, Any], str], ...] = (
        (False, {}, "holds a distillation already; continue it with --resume, or choose another --out"),
        (False, {"steps": 2}, "holds a distillation already"),
        (True, {"steps": 2}, "expected a run of these settings and this store, found another; resume with the"),
        (True, {"seed": 1}, "found another"),
    )
    for resume, change, message in mistakes:
        with pytest.raises(InputError, match=message):
            distill(replace(config, **change), store, resume=resume)
    with pytest.raises(InputError, match="found another"):
        distill(config, replace(store, hashes={**store.hashes, "expert-000.safetensors": "0"}), resume=True)
    assert contents(tmp_path / "out", "*") == before
    (tmp_path / "out" / "run.json").unlink()
    for resume, message in ((False, "holds a distillation already"), (True, "expected a distillation run, found no")):
        with pytest.raises(InputError, match=message):
            distill(config, store, resume=resume)
    assert contents(tmp_path / "out", "*") == {name: before[name] for name in before if name != "run.json"}


@pytest.mark.slow
def test_a_folder_of_another_kind_is_refused_before_anything_is_read(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store's tower and a set's have one file name: neither may be written over the other."""
    taken, run = tmp_path / "store", tmp_path / "run"
    shutil.copytree(store.path, taken)
    distill(replace(DISTILL, out=run, steps=1), store)
    before = {folder: contents(folder, "*") for folder in (taken, run)}

    def unexpected(*_: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(Recipe, "pairs", unexpected)
    monkeypatch.setattr(Recipe, "student", unexpected)
    monkeypatch.setattr(teach, "load_split", unexpected)
    for resume in (False, True):
        with pytest.raises(InputError, match="store: holds a trajectory store already; choose another --out"):
            distill(replace(DISTILL, out=taken), store, resume=resume)
    with pytest.raises(InputError, match="run: holds a distillation already"):
        distill(replace(DISTILL, out=run), store)
    asked = replace(schema.from_json(TeachConfig, {}), out=run, encoder=ENCODER)
    with pytest.raises(InputError, match="run: holds a distilled set already; choose another --out"):
        teach.train_teachers(asked)
    assert {folder: contents(folder, "*") for folder in (taken, run)} == before


def test_data_that_changed_leave_no_trace_of_a_run(store: TrajectoryStore, tmp_path: Path) -> None:
    other = replace(store, settings={**store.settings, "data_fingerprint": "another"})
    with pytest.raises(InputError, match="expected the pairs that"):
        distill(replace(DISTILL, out=tmp_path / "out"), other)
    assert not (tmp_path / "out").exists()


# Divergence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"student_lr": 1e30}, r"phase 1, outer step 0: found non-finite loss, .* after η = 1e\+30, 1e\+30"),
        (
            {"rates": replace(RATES, images=1e30)},
            r"phase 1, outer step 1: found non-finite .* after η = 0\.\d+, 0\.\d+",
        ),
        ({"rates": replace(RATES, lr=5.0)}, "phase 1, outer step 0: found η that is no longer positive after η = 0"),
    ],
)
def test_divergence_is_named_and_leaves_a_whole_checkpoint(
    store: TrajectoryStore, tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    config = replace(DISTILL, out=tmp_path, **change)
    with pytest.raises(Diverged, match=f"{what}.*; begin again in another folder with lower rates.lr, .* is kept in"):
        distill(config, store)
    kept = sorted(tmp_path.glob("checkpoint-0-*.safetensors"))
    assert kept and "distilled.json" not in names(tmp_path)
    for path in kept:
        assert all(bool(torch.isfinite(value).all()) for value in read_tensors(path).values())


@pytest.mark.slow
def test_an_update_that_overflows_is_divergence(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = optimizer.outer_update

    def overflowing(state: OuterState, gradient: OuterGradient, config: DistillConfig) -> OuterState:
        if state.step == 3:
            gradient.grads["texts"].fill_(1e30)
        return original(state, gradient, config)

    monkeypatch.setattr(distillation, "outer_update", overflowing)
    rates = LeafRates(images=1e-3, texts=1e10, lr=1e-5, similarity=1e-3)
    config = replace(DISTILL, optimizer="sgd", rates=rates, out=tmp_path / "out", checkpoint_minutes=0.0)
    with pytest.raises(
        Diverged, match=r"^phase 1, outer step 3: found non-finite leaf\.texts after η = .*; begin again in another"
    ):
        distill(config, store)
    kept = [f"checkpoint-0-{step:08d}.safetensors" for step in (2, 3)]
    assert names(tmp_path / "out") == [*kept, "run.json"]


# Survival


def _stop_at(step: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] = KeyboardInterrupt) -> None:
    """Raise where outer step `step`, counted over all phases, would begin."""
    original, calls = OuterStep.__call__, iter(range(1 << 30))

    def stopping(outer: OuterStep, span: Span, pairs: SyntheticPairs, batches: Tensor, *mixing: Any) -> OuterGradient:
        if next(calls) == step:
            raise error
        return original(outer, span, pairs, batches, *mixing)

    monkeypatch.setattr(OuterStep, "__call__", stopping)


@pytest.fixture
def stopped(store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DistillConfig:
    """A run with a checkpoint after every step that was cut off at its seventh."""
    config = replace(DISTILL, out=tmp_path / "stopped", checkpoint_minutes=0.0)
    with monkeypatch.context() as patch:
        _stop_at(6, patch)
        with pytest.raises(KeyboardInterrupt):
            distill(config, store)
    return config


@pytest.fixture(scope="module")
def whole(store: TrajectoryStore, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], dict[str, bytes]]:
    """The phases of DISTILL without a stop, made when first asked for, under the asking test's threads."""
    made: dict[str, bytes] = {}

    def phases() -> dict[str, bytes]:
        if not made:
            folder = tmp_path_factory.mktemp("whole")
            distill(replace(DISTILL, out=folder), store)
            made.update(contents(folder, "phase-*"))
        return made

    return phases


@pytest.mark.slow
def test_the_newest_two_checkpoints_are_kept(
    store: TrajectoryStore, stopped: DistillConfig, whole: Callable[[], dict[str, bytes]]
) -> None:
    assert stopped.out is not None
    kept = [f"checkpoint-{phase}-{step:08d}.safetensors" for phase, step in ((0, 3), (0, 4), (1, 1), (1, 2))]
    assert names(stopped.out) == [*kept, "run.json"]
    distill(stopped, store, resume=True)
    assert contents(stopped.out, "phase-*") == whole()
    assert names(stopped.out) == ["distilled.json", "phase-1.safetensors", "phase-2.safetensors", "run.json"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_step(
    store: TrajectoryStore,
    tmp_path: Path,
    whole: Callable[[], dict[str, bytes]],
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, out = whole(), tmp_path / "out"
    original, handler = optimizer.outer_update, signal.getsignal(number)

    def signalled(state: OuterState, gradient: OuterGradient, config: DistillConfig) -> OuterState:
        if state.step == 2:
            signal.raise_signal(number)
        return original(state, gradient, config)

    config = replace(DISTILL, out=out, checkpoint_minutes=60.0)
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "outer_update", signalled)
        with pytest.raises(KeyboardInterrupt):
            distill(config, store)
    assert signal.getsignal(number) is handler
    assert names(out) == ["checkpoint-0-00000000.safetensors", "checkpoint-0-00000003.safetensors", "run.json"]
    steps = _record_steps(monkeypatch)
    distill(config, store, resume=True)
    assert len(steps) == 5
    assert contents(out, "phase-*") == expected


def test_a_signal_that_comes_too_late_for_a_step_ends_the_phase() -> None:
    """Nobody asks after the last step: it must not be swallowed."""

    def last_step() -> None:
        with interruptible() as interrupted:
            assert not interrupted()
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        last_step()
    with interruptible() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted()  # the caller knows, and sees to it


def test_a_second_signal_ends_at_once(store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(*_: Any) -> OuterState:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr(distillation, "outer_update", signalled)
    with pytest.raises(KeyboardInterrupt):
        distill(replace(DISTILL, out=tmp_path / "out", checkpoint_minutes=60.0), store)
    assert names(tmp_path / "out") == ["checkpoint-0-00000000.safetensors", "run.json"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other pairs", "no history"])
@pytest.mark.parametrize("how_many", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_a_damaged_checkpoint_is_passed_over(
    store: TrajectoryStore,
    stopped: DistillConfig,
    whole: Callable[[], dict[str, bytes]],
    damage: str,
    how_many: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert stopped.out is not None
    hurt = sorted(stopped.out.glob("checkpoint-1-*"))[-how_many:]
    first = next(stopped.out.glob("checkpoint-0-*"))
    for path in hurt:
        poorer = {name: 0 * value for name, value in read_tensors(path).items() if not name.startswith("history")}
        made = {
            "cut": path.read_bytes()[:-9],
            "empty": b"",
            "flipped": path.read_bytes()[:-4] + bytes([path.read_bytes()[-4] ^ 1]) + path.read_bytes()[-3:],
            "other pairs": first.read_bytes(),
            "no history": save(poorer),
        }
        path.write_bytes(made[damage])
    distill(stopped, store, resume=True)
    passed = [line.split(": passed over, it cannot be read (")[0] for line in caplog.messages]
    assert passed == [str(p) for p in reversed(hurt)]
    assert contents(stopped.out, "phase-*") == whole()
    assert names(stopped.out) == ["distilled.json", "phase-1.safetensors", "phase-2.safetensors", "run.json"]


@pytest.mark.slow
def test_new_checkpoints_are_kept_where_the_newest_were_damaged(
    store: TrajectoryStore, stopped: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed once more, before the steps of those that were damaged: no step is taken a third time."""
    assert stopped.out is not None
    hurt = sorted(stopped.out.glob("checkpoint-1-*"))
    for path in hurt:
        path.write_bytes(path.read_bytes()[:100])
    with monkeypatch.context() as patch:
        _stop_at(1, patch)
        with pytest.raises(KeyboardInterrupt):
            distill(stopped, store, resume=True)
    assert names(stopped.out, ("checkpoint-1-*.safetensors",)) == ["checkpoint-1-00000000.safetensors", hurt[0].name]
    steps = _record_steps(monkeypatch)
    distill(stopped, store, resume=True)
    assert len(steps) == 3


@pytest.mark.slow
def test_a_finished_run_is_read_back(store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(DISTILL, out=tmp_path, steps=1)
    made = distill(config, store)
    _stop_at(0, monkeypatch, AssertionError)
    again = distill(config, store, resume=True)
    assert isinstance(again, DistilledSet)
    assert [phase.captions for phase in again.phases] == [phase.captions for phase in made.phases]
    for ours, theirs in zip(again, made, strict=True):
        assert all(torch.equal(ours.leaves()[name], leaf) for name, leaf in theirs.leaves().items())


def _command(store: TrajectoryStore, out: Path, *more: str) -> list[str]:
    phases = [f"{p.pairs}:{p.endpoint}:{p.start[0]}-{p.start[1]}" for p in SLOW.phases]
    flags = {
        "store": store.path,
        "out": out,
        "steps": SLOW.steps,
        "inner-steps": SLOW.inner_steps,
        "batch-size": SLOW.batch_size,
        "optimizer": SLOW.optimizer,
        "momentum": SLOW.momentum,
        "rates.images": RATES.images,
        "rates.texts": RATES.texts,
        "rates.lr": RATES.lr,
        "rates.similarity": RATES.similarity,
        "ema": SLOW.ema,
        "checkpoint-minutes": SLOW.checkpoint_minutes,
        "device": "cpu",
    }
    given = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    return ["distill", *given, "--phases", *phases, *more]


def _hashes(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents(folder, "phase-*").items()}


@pytest.fixture(scope="module")
def uninterrupted(store: TrajectoryStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """The folder of a run in a process of its own, which goes on beside the test until it is asked for."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    process = python(*_command(store, out))

    def folder() -> Path:
        if process.returncode is None:
            assert finish(process)[0] == 0
        return out

    yield folder
    process.kill()
    process.communicate()


def _wait_for_progress(out: Path, alive: Callable[[], bool]) -> None:
    """Until a step has been taken: the checkpoint of step 0 is written before Ctrl-C is held back."""
    before, until = set(names(out, ("checkpoint-*",))), time.monotonic() + 60
    while (
        all(name.endswith("-00000000.safetensors") for name in set(names(out, ("checkpoint-*",))) - before) and alive()
    ):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(
    kills: int, store: TrajectoryStore, tmp_path: Path, uninterrupted: Callable[[], Path]
) -> None:
    draw, out, killed = random.Random(0), tmp_path / "out", 0
    for attempt in range(kills):
        process = python(*_command(store, out, *(["--resume"] if attempt else [])))
        _wait_for_progress(out, lambda process=process: process.poll() is None)  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        killed += finish(process)[0] == -signal.SIGKILL
    assert killed == kills
    parts.name(out / "checkpoint-0-00000001.safetensors").write_bytes(b"cut off")
    code, said, _ = finish(python(*_command(store, out, "--resume")))
    assert code == 0 and said == f"{out}: 18 pairs in 2 phases\n"
    assert _hashes(out) == _hashes(uninterrupted())
    assert names(out) == names(uninterrupted())
    assert DistilledSet.load(out).num_pairs == 18


@pytest.mark.slow
def test_ctrl_c_ends_between_steps_and_resume_goes_on(
    store: TrajectoryStore, tmp_path: Path, uninterrupted: Callable[[], Path]
) -> None:
    out = tmp_path / "out"
    process = python(*_command(store, out))
    _wait_for_progress(out, lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    code, said, complained = finish(process)
    assert code == 130 and said == ""
    chosen, shown, stopped = complained.splitlines()
    assert shown == f"{out / 'live.html'} shows the run as it goes"
    assert chosen.startswith("distill: keep primals, chunk none; the inner steps need about ")
    assert stopped == "ptmst: stopped; the same command with --resume continues"
    newest = sorted(out.glob("checkpoint-*"))[-1]
    step, tensors = int(newest.stem.split("-")[2]), read_tensors(newest)
    assert 0 < step < SLOW.steps
    assert bool((tensors["history.lr"][:step] > 0).all()) and not tensors["history.lr"][step:].any()
    assert torch.equal(tensors["history.lr"][step - 1], tensors["leaf.lr"])
    assert finish(python(*_command(store, out, "--resume")))[0] == 0
    assert _hashes(out) == _hashes(uninterrupted())


@pytest.mark.slow
def test_a_folder_that_is_being_written_is_refused(store: TrajectoryStore, tmp_path: Path) -> None:
    with folders.claimed(tmp_path / "out", FOLDER):
        message = r"out: another process is writing a distilled set here \(.+\); wait for its end, or choose"
        with pytest.raises(InputError, match=message):
            distill(replace(DISTILL, out=tmp_path / "out"), store)
    assert contents(tmp_path / "out", "*") == {}
    distill(replace(DISTILL, out=tmp_path / "out", steps=1), store)


@pytest.mark.slow
def test_experts_that_do_not_fit_give_the_same_set(store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read ahead on a thread, one after the other: to the same bits."""
    expected = distill(DISTILL, store)
    monkeypatch.setattr(devices, "free_bytes", lambda _: 0)
    found = distill(DISTILL, TrajectoryStore.open(store.path))
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(value, theirs.leaves()[name]) for name, value in ours.leaves().items())
