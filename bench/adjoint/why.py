"""How the adjoint grows on its way back, and what its gradients are worth: numbers behind the recalls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp

from bench.adjoint.cells import EXACT, TRUNCATED, Cell, Side
from bench.adjoint.estimators import TimedStep
from ptmst import TrajectoryStore
from ptmst.config import DistillConfig
from ptmst.distillation.distill import distill_with
from ptmst.distillation.draws import draw_batches, initial_pairs
from ptmst.students.losses import student_loss
from ptmst.support.seeds import generator
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.trajectories.spans import RawSpan

SIDES = (
    TRUNCATED,
    Side(adjoint=0.25),
    Side(adjoint=0.5),
    Side(adjoint=0.75),
    EXACT,
    Side(adjoint=0.5, clip=1.0),
    Side(adjoint=1.0, clip=1.0),
)
DRAWS, EIGEN_TOLERANCE = 48, 1e-2
FIXED, BATCHES = (0, 2, 5), 64
"""Start points at which gradients of one expert are averaged over batches only, one half against the other."""
WALKED, CURVED = 4, 2
"""Draws that are repeated from every start point; draws of each start whose curvature is measured."""
STEP = 0.02
"""Length of the trial step: root mean square over the entries of a leaf, about that of Adam."""
LEAVES = ("images", "texts")


@dataclass(frozen=True)
class Draw:
    """The random choices of an outer step: expert, start point and batches."""

    expert: int
    start: int
    batches: Tensor


Spans = Callable[[Draw], RawSpan]


def measure(cell: Cell, store: TrajectoryStore, step_of: Callable[[Side], TimedStep]) -> dict[str, Any]:
    """On the initial pairs and on those distilled with two of the gradients."""
    config = cell.distill
    pairs, texts = store.recipe.training_pairs()
    first = initial_pairs(config, 0, pairs, texts, store.layers.num_groups)
    states = {"initial": _at(first, cell, store, step_of)}
    for name, side in (("truncated", TRUNCATED), ("c = 0.5", Side(adjoint=0.5))):
        made = distill_with(step_of(side), config, store)
        states[f"distilled, {name}"] = _at(made.phases[0].pairs, cell, store, step_of)
    return states


def _at(
    pairs: SyntheticPairs, cell: Cell, store: TrajectoryStore, step_of: Callable[[Side], TimedStep]
) -> dict[str, Any]:
    config = cell.distill
    trajectories = {number: store.expert(number).raw() for number in sorted(store.experts)}

    def span(draw: Draw) -> RawSpan:
        raw = trajectories[draw.expert]
        return RawSpan.between(raw.point(draw.start), raw.point(draw.start + config.expert_epochs), store.layers)

    def gradients(side: Side, draws: Sequence[Draw]) -> tuple[dict[str, Tensor], list[list[Tensor]]]:
        step = step_of(side)
        grads, norms = [], []
        for draw in draws:
            grads.append(step(span(draw), pairs, draw.batches).grads)
            norms.append(list(step.norms))
        return {leaf: torch.stack([g[leaf].flatten().clone() for g in grads]) for leaf in LEAVES}, norms

    draws = _draws(config, sorted(store.experts), DRAWS)
    fixed = {start: _batches(config, min(store.experts), start) for start in FIXED}
    exact = gradients(EXACT, draws)[0]
    expected = {start: gradients(EXACT, mine[BATCHES // 2 :])[0]["images"].mean(0) for start, mine in fixed.items()}
    fit, held = slice(0, DRAWS // 2), draws[DRAWS // 2 :]
    before = _typical_loss(step_of(TRUNCATED), span, pairs, held)
    starts = [draw.start for draw in draws]
    curved = [draw for start in sorted(set(starts)) for draw in [d for d in draws if d.start == start][:CURVED]]
    state: dict[str, Any] = {"loss": before, "starts": starts, "curved starts": [draw.start for draw in curved]}
    state["curvature"] = _curvature(pairs, config, store, span, curved)
    for side in SIDES:
        mine, norms = gradients(side, draws)
        moved = pairs.replace(pairs.leaves() | {leaf: _moved(pairs, leaf, mine[leaf][fit].mean(0)) for leaf in LEAVES})
        row: dict[str, Any] = {"gain": before - _typical_loss(step_of(TRUNCATED), span, moved, held)}
        row["cosine with exact"] = _rounded(torch.cosine_similarity(mine["images"], exact["images"]))
        row["norm"] = _rounded(mine["images"].norm(dim=1))
        if norms[0]:
            row["growth"] = _rounded(torch.stack([torch.stack(each) / each[0] for each in norms]))
        row["fixed"] = {
            str(start): _averaged(gradients(side, batches[: BATCHES // 2])[0]["images"], expected[start])
            for start, batches in fixed.items()
        }
        row["neighbors"] = _neighbors(gradients, side, draws, store.epochs, config)
        state[side.label] = row
    return state


def _rounded(values: Tensor) -> Any:
    """As nested lists, to four digits."""
    return np.vectorize(lambda value: float(f"{value:.4g}"))(values.numpy()).tolist()


def _draws(config: DistillConfig, experts: list[int], count: int) -> list[Draw]:
    phase = config.phases[0]
    draws = []
    for number in range(count):
        draw = generator(config.seed, "why", number)
        expert = experts[int(torch.randint(len(experts), (1,), generator=draw))]
        start = int(torch.randint(*phase.start, (1,), generator=draw))
        draws.append(Draw(expert, start, draw_batches(phase.pairs, config.batch_size, config.inner_steps, draw)))
    return draws


def _batches(config: DistillConfig, expert: int, start: int) -> list[Draw]:
    """Outer steps that differ in their batches only."""
    pairs, draws = config.phases[0].pairs, []
    for number in range(BATCHES):
        draw = generator(config.seed, "why", "fixed", start, number)
        draws.append(Draw(expert, start, draw_batches(pairs, config.batch_size, config.inner_steps, draw)))
    return draws


def _averaged(mine: Tensor, expected: Tensor) -> dict[str, float]:
    """Bias and variance of gradients [M, D] over batches, against the exact average [D] of other batches.

    The squared norm of an average contains 1/M of the variance, which is subtracted from the signal.
    """
    center = mine.mean(0)
    noise = float(mine.var(0).sum())
    signal = float(center.square().sum()) - noise / len(mine)
    return {
        "cosine of averages": float(torch.cosine_similarity(center, expected, dim=0)),
        "noise": noise,
        "signal": signal,
        "cosine between batches": _between(mine),
    }


def _between(g: Tensor) -> float:
    unit = torch.nn.functional.normalize(g, dim=1)
    count = len(g)
    return float(((unit @ unit.T).sum() - count) / (count * (count - 1)))


def _moved(pairs: SyntheticPairs, leaf: str, gradient: Tensor) -> Tensor:
    value = pairs.leaves()[leaf]
    return value - STEP * gradient.view_as(value) / gradient.square().mean().sqrt()


def _typical_loss(
    step: TimedStep, span: Callable[[Draw], RawSpan], pairs: SyntheticPairs, draws: Sequence[Draw]
) -> float:
    losses = [step(span(draw), pairs, draw.batches).loss.item() for draw in draws]
    return median(losses)


def _neighbors(
    gradients: Callable[[Side, Sequence[Draw]], tuple[dict[str, Tensor], Any]],
    side: Side,
    draws: Sequence[Draw],
    epochs: int,
    config: DistillConfig,
) -> dict[str, list[float]]:
    """By start point: cosine of the gradient with the next one's on the same batches, and norm (the paper's Fig. 2).

    Of the images; means of the cosines and medians of the norms over some draws.
    """
    starts = range(epochs - config.expert_epochs + 1)
    cosines, norms = [], []
    for draw in draws[:WALKED]:
        walk = gradients(side, [Draw(draw.expert, start, draw.batches) for start in starts])[0]["images"]
        cosines.append(torch.cosine_similarity(walk[:-1], walk[1:]).tolist())
        norms.append(walk.norm(dim=1).tolist())
    return {
        "cosine": [mean(column) for column in zip(*cosines, strict=True)],
        "norm": [median(column) for column in zip(*norms, strict=True)],
    }


def _curvature(
    pairs: SyntheticPairs,
    config: DistillConfig,
    store: TrajectoryStore,
    span: Spans,
    draws: Sequence[Draw],
) -> dict[str, list[list[float]]]:
    """Ends of the spectrum of √η H √η, by draw and inner step. A step is stable if they lie in [0, 2]."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    student = store.student((config.seed, "student"))
    gradient = grad(student_loss(student, config.loss, config.temperature))
    root = store.layers.expand(pairs.lr).sqrt()
    spectrum: dict[str, list[list[float]]] = {"largest": [], "smallest": []}
    for draw in draws:
        theta, ends = span(draw).start, []
        for index in draw.batches:
            batch = (pairs.images[index], pairs.texts[index], pairs.similarity.batch(index))

            def product(v: Any, theta: Tensor = theta, batch: tuple[Tensor, ...] = batch) -> Any:
                direction = root * torch.as_tensor(v.reshape(-1), dtype=torch.float32)
                pushed = jvp(lambda theta: gradient(theta, *batch), (theta,), (direction,))[1]
                return (root * pushed).numpy()

            operator = LinearOperator((len(theta), len(theta)), matvec=product, dtype=np.float32)
            begin = torch.randn(len(theta), generator=generator(config.seed, "eigen")).numpy()
            values = eigsh(operator, k=2, which="BE", tol=EIGEN_TOLERANCE, v0=begin, return_eigenvectors=False)
            ends.append((float(values.max()), float(values.min())))
            theta = theta - store.layers.expand(pairs.lr) * gradient(theta, *batch)
        spectrum["largest"].append([high for high, _ in ends])
        spectrum["smallest"].append([low for _, low in ends])
    return spectrum
