"""Fresh students trained on a distilled set (docs/method.md §6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vmap

from ptmst.config import TEMPERATURE, EvaluateConfig, LossKind
from ptmst.errors import Diverged
from ptmst.students.features import kept_features_of
from ptmst.students.losses import StudentLoss, student_loss
from ptmst.students.student import Student
from ptmst.support.seeds import generator
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.union import union


def as_distilled(distilled: DistilledSet, config: EvaluateConfig) -> EvaluateConfig:
    """`config` with the set's own loss and temperature where none is asked for, and per-phase in place of as-matched
    for pairs that were matched in no batches."""
    # Real pairs have no loss of their own; their temperature is the experts'.
    own = distilled.provenance.get("config", {})
    loss: LossKind = config.loss or own.get("loss", "wbce")
    experts = distilled.recipe.temperature if distilled.settings else TEMPERATURE
    if config.protocol == "as-matched" and distilled.inner_batch is None:
        config = replace(config, protocol="per-phase")
    return replace(config, loss=loss, temperature=config.temperature or own.get("temperature", experts))


def train_students(
    student: Student,
    thetas: Tensor,
    distilled: DistilledSet,
    config: EvaluateConfig,
    seed_keys: Sequence[tuple[int | str, ...]],
) -> Iterator[tuple[int, Tensor]]:
    """Train K students from θ [K, P] on the phases in order; yields (epoch, θ [K, P]) after every epoch of all phases.

    Of a progressive set a phase has the pairs of those before it too.

    `student` has the functions that all share; each draws batches of its own. An epoch is ceil(N/batch) batches, each
    the first pairs of a fresh permutation: `batch` of them, or as many as an inner step had. θ is updated in place:
    copy what is to be kept. Raises Diverged for a non-finite θ.
    """
    layers, device = student.layers, thetas.device
    schedule = _reference_rates if config.protocol == "reference" else _per_phase_rates
    config = as_distilled(distilled, config)
    assert config.loss is not None and config.temperature is not None
    gradient = _gradient(student_loss(student.heads, config.loss, config.temperature))
    phases = [pairs.to(device) for pairs in distilled]
    if distilled.is_progressive:
        phases = [union(phases[: number + 1]) for number in range(len(phases))]
    features = [see(student, pairs) for pairs in phases]
    # Vectors of all students are large: no step makes new ones.
    thetas, momentum, scratch = thetas.clone(), torch.zeros_like(thetas), torch.empty_like(thetas)
    for epoch, (phase, rates, restart) in enumerate(schedule(distilled, config)):
        pairs, images = phases[phase], features[phase]
        rate = layers.expand(rates.to(device))
        if restart:
            momentum.zero_()
        generators = [generator(*seed_key, "epoch", epoch) for seed_key in seed_keys]
        size = distilled.inner_batch if config.protocol == "as-matched" else None
        steps = -(-len(pairs) // config.batch_size)
        batches = [_batches(len(pairs), steps, size or config.batch_size, rng) for rng in generators]
        # At once, since a copy waits for the device.
        for index in torch.stack(batches, dim=1).to(device):
            similarity = torch.stack([pairs.similarity.batch(chosen) for chosen in index])
            g = gradient(thetas, images[index], pairs.texts[index], similarity)
            momentum.mul_(config.momentum).add_(g).add_(torch.mul(thetas, config.weight_decay, out=scratch))
            thetas.sub_(torch.mul(rate, momentum, out=scratch))
        ends = torch.stack([torch.stack(torch.aminmax(theta)) for theta in thetas])
        for seed_key, finite in zip(seed_keys, torch.isfinite(ends).all(1).tolist(), strict=True):
            if not finite:
                eta = ", ".join(f"{r:.3g}" for r in rates.tolist())
                raise Diverged(
                    f"student {seed_key}, epoch {epoch}: θ is not finite at η = {eta}; the set's η is too large"
                )
        yield epoch, thetas


def _batches(num_pairs: int, steps: int, size: int, rng: torch.Generator) -> Tensor:
    """int64 [steps, B]: the first of a permutation each, of all N pairs where a batch of B holds them."""
    return torch.stack([torch.randperm(num_pairs, generator=rng)[:size] for _ in range(steps)])


def _gradient(loss_of: StudentLoss) -> Callable[..., Tensor]:
    """∇_θ of every student: θ [K, P] and stacked batches → [K, P]."""

    def gradient(thetas: Tensor, *batches: Tensor) -> Tensor:
        leaf = thetas.detach().requires_grad_()
        if len(thetas) == 1:
            loss = loss_of(leaf[0], *(batch[0] for batch in batches))
        else:
            loss = vmap(loss_of)(leaf, *batches).sum()
        (g,) = torch.autograd.grad(loss, leaf)
        return g

    return gradient


def see(student: Student, pairs: SyntheticPairs) -> Tensor:
    """What the heads see of the pairs' images: features, where a tower is frozen."""
    if student.frozen is None or not pairs.in_pixels:
        return pairs.images
    return kept_features_of(student, pairs.images).to(pairs.images.device)


def _per_phase_rates(distilled: DistilledSet, config: EvaluateConfig) -> Iterator[tuple[int, Tensor, bool]]:
    """Per epoch: phase, η [G], whether momentum restarts. Each phase uses its own η and a whole schedule."""
    for number, pairs in enumerate(distilled):
        for epoch in range(config.epochs + 1):
            yield number, pairs.lr * (0.1 if epoch > config.lr_drop else 1.0), epoch == 0


def _reference_rates(distilled: DistilledSet, config: EvaluateConfig) -> Iterator[tuple[int, Tensor, bool]]:
    """As published: one optimizer and one schedule over all phases, at the last phase's un-averaged η."""
    lr = distilled.phases[-1].last_lr
    for number in range(len(distilled)):
        for epoch in range(config.epochs + 1):
            dropped = number * (config.epochs + 1) + epoch > config.lr_drop
            yield number, lr * (0.1 if dropped else 1.0), False
