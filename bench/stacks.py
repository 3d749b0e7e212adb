"""The students of one evaluation, trained in stacks of a given size."""

from __future__ import annotations

import torch

from ptmst import DistilledSet, EncoderConfig, EvaluateConfig, SyntheticPairs
from ptmst.evaluation.students import train_students
from ptmst.students.heads import make_student
from ptmst.synthetic.distilled_set import DistilledPhase
from ptmst.synthetic.soft_labels import FullSimilarity

STUDENTS, PAIRS, SIZE, TEXT_WIDTH, EPOCHS = 4, 100, 32, 256, 3
DRAWS = [(0, "student", number) for number in range(STUDENTS)]


def encoder(frozen: bool) -> EncoderConfig:
    """The demo's."""
    return EncoderConfig(image_width=64, freeze_tower=frozen)


def distilled(size: int) -> DistilledSet:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(PAIRS, 3, size, size, generator=draw)
    lr = torch.full((2,), 0.05)
    pairs = SyntheticPairs(images, torch.randn(PAIRS, TEXT_WIDTH, generator=draw), FullSimilarity.identity(PAIRS), lr)
    return DistilledSet((DistilledPhase(pairs, lr, ("",) * PAIRS, {}),), {}, {}, None)


def trained(encoder: EncoderConfig, size: int, students: int, together: int, device: torch.device) -> torch.Tensor:
    """θ [K, P] of the students after all epochs; `together` of them train as one stack."""
    made = [make_student(encoder, size, TEXT_WIDTH, draw) for draw in DRAWS[:students]]
    thetas = torch.stack([student.flatten() for student in made]).to(device)
    config, parts = EvaluateConfig(epochs=EPOCHS - 1), []
    for first in range(0, students, together):
        some = slice(first, first + together)
        shared = made[0].to(device)
        *_, (_, theta) = train_students(shared, thetas[some], distilled(size), config, DRAWS[:students][some])
        parts.append(theta)
    return torch.cat(parts)
