"""What an outer step draws: initial pairs, batches and blending (docs/method.md §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ptmst.config import DistillConfig
from ptmst.data import Pairs
from ptmst.data.sampling import random_subset
from ptmst.students.features import kept_features_of
from ptmst.students.student import Student
from ptmst.support.seeds import generator
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity, LowRankSimilarity, Similarity


def initial_pairs(config: DistillConfig, number: int, pairs: Pairs, texts: Tensor, groups: int) -> SyntheticPairs:
    """A phase at step 0: random real pairs (apart from the other phases'), S = identity, η as configured."""
    before = sum(phase.pairs for phase in config.phases[:number])
    count = config.phases[number].pairs
    chosen = random_subset(pairs, config.seed, before + count)[before:]
    similarity: Similarity
    if config.similarity == "full":
        similarity = FullSimilarity.identity(count)
    else:
        rng = generator(config.seed, "low-rank", number)
        similarity = LowRankSimilarity.identity(count, config.rank, config.alpha, rng)
    lr = torch.full((groups,), config.student_lr)
    return SyntheticPairs(pairs.images(pairs.image_of_text[chosen]), texts[chosen].clone(), similarity, lr)


def initial_phases(config: DistillConfig, student: Student, real: tuple[Pairs, Tensor]) -> list[SyntheticPairs]:
    """Every phase at step 0, on the host: its images, or what the student's frozen tower sees in them."""
    phases = [initial_pairs(config, number, *real, student.layers.num_groups) for number in range(len(config.phases))]
    if config.image_leaves == "pixels":
        return phases
    seen = [kept_features_of(student, pairs.images.to(student.device)) for pairs in phases]
    return [replace(pairs, images=features.cpu()) for pairs, features in zip(phases, seen, strict=True)]


def expert_of(experts: Sequence[int], seed: int, phase: int, step: int, part: int = 0) -> tuple[int, torch.Generator]:
    """The expert of a part of an outer step, and the generator of what else that draws: each expert once, before any
    comes again."""
    key = (seed, "phase", phase, step)
    rng = generator(*key)
    first = int(torch.randint(len(experts), (1,), generator=rng))
    if part == 0:
        return experts[first], rng
    order = torch.randperm(len(experts), generator=generator(*key, "experts")).tolist()
    order = [first, *(place for place in order if place != first)]
    return experts[order[part % len(order)]], generator(*key, part)


def draw_batches(num_pairs: int, batch: int, steps: int, rng: torch.Generator) -> Tensor:
    """int64 [steps, batch]: random permutations walked in chunks, redrawn when fewer than `batch` are left."""
    per_permutation = num_pairs // batch
    permutations = -(-steps // per_permutation)
    walked = [torch.randperm(num_pairs, generator=rng)[: per_permutation * batch] for _ in range(permutations)]
    return torch.cat(walked).view(-1, batch)[:steps]


def draw_mixing(batch: int, steps: int, blend: float, rng: torch.Generator) -> Tensor:
    """float32 [steps, batch, batch]: λ I + (1 − λ) P of every step, λ from Beta(blend, blend), P a permutation."""
    # torch's own sampler of Beta takes no generator.
    chance = np.random.default_rng(int(torch.randint(1 << 62, (1,), generator=rng)))
    lam = torch.from_numpy(chance.beta(blend, blend, steps)).float()[:, None, None]
    identity = torch.eye(batch)
    permuted = torch.stack([identity[torch.randperm(batch, generator=rng)] for _ in range(steps)])
    return lam * identity + (1 - lam) * permuted
