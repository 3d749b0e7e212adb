"""How good a student would be that followed a trajectory, or a shortcut line, perfectly: on val, not on test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptmst.data import Pairs, image_batches
from ptmst.data.batches import IMAGES_AT_ONCE
from ptmst.evaluation.scorer import RetrievalScorer
from ptmst.students.features import feature_batches, kept_features
from ptmst.students.losses import contrastive_logits, hard_label_loss
from ptmst.students.student import Student
from ptmst.students.text_towers import TextTower, embed_captions
from ptmst.support import progress
from ptmst.trajectories.shortcut import Expert

_MOST = 512
"""Pairs that the loss is measured on, as one batch."""


@dataclass(frozen=True)
class Point:
    """How good parameters θ are."""

    recall: float
    """Mean recall, percent."""
    loss: float
    """Contrastive loss of real pairs with hard labels."""


class Judge:
    """Recall and loss on a split of real pairs. All θ are of students like the given one."""

    def __init__(self, student: Student, held_out: Pairs, tower: TextTower, temperature: float) -> None:
        self._student, self._temperature, device = student, temperature, student.device
        self._scorer = RetrievalScorer(held_out, tower, device)
        first: dict[int, int] = {}
        for text, image in enumerate(held_out.image_of_text.tolist()):
            first.setdefault(image, text)
        images = torch.tensor(sorted(first)[:_MOST])
        captions = [held_out.captions[first[image]] for image in images.tolist()]
        self._texts = embed_captions(tower, captions, device).to(device)
        parts = images.split(IMAGES_AT_ONCE)
        if student.frozen is None:
            self._images = list(image_batches(held_out, parts, device))
        else:
            self._images = list(feature_batches(kept_features(student, held_out, device), parts, device))

    @torch.no_grad()
    def __call__(self, theta: Tensor) -> Point:
        """Of θ [P]."""
        theta = theta.to(self._student.device)
        heads = self._student.heads
        seen = torch.cat([heads.embed_images(theta, some) for some in self._images])
        loss = hard_label_loss(contrastive_logits(seen, heads.embed_texts(theta, self._texts), self._temperature))
        return Point(self._scorer.score(self._student, theta)["mean"], float(loss))


@dataclass(frozen=True)
class Ceiling:
    """Of one expert."""

    epochs: dict[int, Point]
    """θ at epoch 0 and at every kept one."""
    lines: dict[int, dict[int, Point]]
    """θ(t) of the shortcut to K for every t from 0 to K; by K, then t. At its ends it is the expert."""


def ceiling(expert: Expert, judge: Judge, endpoints: tuple[int, ...], bar: progress.Bar) -> Ceiling:
    """Recall and loss along a trajectory, and along the shortcuts to `endpoints`, which are kept ones."""
    raw, epochs = expert.raw(), dict[int, Point]()
    for t in (0, *sorted(expert.displacements)):
        epochs[t] = judge(raw.point(t))
        bar.advance(f"epoch {t}")
    lines: dict[int, dict[int, Point]] = {}
    for endpoint in endpoints:
        line = expert.shortcut(endpoint)
        inner = {t: judge(line.point(t)) for t in range(1, endpoint)}
        lines[endpoint] = {0: epochs[0], **inner, endpoint: epochs[endpoint]}
        bar.advance(f"line to {endpoint}", steps=endpoint - 1)
    return Ceiling(epochs, lines)


def looks(expert: Expert, endpoints: tuple[int, ...]) -> int:
    """How many points `ceiling` judges."""
    return 1 + len(expert.displacements) + sum(endpoint - 1 for endpoint in endpoints)
