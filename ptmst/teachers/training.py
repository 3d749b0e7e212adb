"""How an expert is trained: real pairs, hard labels, plain SGD (paper §3; docs/method.md §1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from ptmst import kernels
from ptmst.config import TeachConfig
from ptmst.data import Pairs, image_batches
from ptmst.data.augment import Views
from ptmst.engine.compilation import Compiler, compiler
from ptmst.errors import Diverged
from ptmst.students.features import feature_batches, kept_features
from ptmst.students.heads import dropout
from ptmst.students.losses import contrastive_logits, hard_label_loss
from ptmst.students.student import Student
from ptmst.support.memory import peak_memory
from ptmst.support.seeds import generator

_TRIED = 2
"""Batches of a trial."""


@dataclass(frozen=True)
class Epoch:
    """The end of a training epoch; epoch 0 is the start."""

    number: int
    theta: Tensor
    loss: float
    """Mean training loss over the epoch's batches; not a number at the start."""


def train_on_pairs(
    student: Student,
    pairs: Pairs,
    texts: Tensor,
    config: TeachConfig,
    number: int,
    features: Tensor | None = None,
) -> Iterator[Epoch]:
    """Train expert `number` on real pairs with hard labels, plain SGD; yields after every epoch.

    `texts` [T, D] are the pairs' caption embeddings, `features` [I, Z] what a frozen tower sees in their images: None
    where it is not known yet. θ is updated in place: copy what is to be kept.
    """
    theta = student.flatten().to(texts.device)
    lr = torch.full((student.layers.num_groups,), config.lr, device=theta.device)

    if features is None:
        features = seen_features(student, pairs, config, theta.device)
    seeing = student if features is None else student.heads
    seeing = seeing.in_bf16() if config.precision == "bf16" else seeing
    embed = _embedding(seeing, None if student.frozen else compiler(config.compile, theta.device))

    def loss_of(theta: Tensor, images: Tensor, texts: Tensor) -> Tensor:
        return hard_label_loss(contrastive_logits(*embed(theta, images, texts), config.temperature))

    yield Epoch(0, theta, float("nan"))
    for epoch in range(config.epochs):
        key = (config.seed, "expert", number, epoch)
        order = epoch_batches(torch.randperm(len(pairs), generator=generator(*key)), config)
        images_of = [pairs.image_of_text[index] for index in order]
        if features is not None:
            batches = feature_batches(features, images_of, theta.device)
        elif config.augment:
            batches = image_batches(Views(pairs, *key), order, theta.device)
        else:
            batches = image_batches(pairs, images_of, theta.device)
        losses = []
        with dropout(seeing.modules, config.dropout, generator(*key, "dropout")):
            for index, images in zip(order, batches, strict=True):
                leaf = theta.detach().requires_grad_()
                loss = loss_of(leaf, images, texts[index.to(theta.device)])
                (gradient,) = torch.autograd.grad(loss, leaf)
                kernels.flat_sgd_(theta, gradient, lr, student.layers.offsets, student.layers.groups)
                losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        if not torch.isfinite(theta).all():
            raise Diverged(f"expert {number}, epoch {epoch + 1}: the loss is {mean} at lr {config.lr}; lower teach lr")
        yield Epoch(epoch + 1, theta, mean)


def _embedding(
    student: Student, compiled: Compiler | None
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`student.embed`, with its image tower compiled; the text head is small, and may drop."""
    if compiled is None:
        return student.embed
    embed_images = compiled(student.embed_images)
    return lambda theta, images, texts: (embed_images(theta, images), student.embed_texts(theta, texts))


def seen_features(student: Student, pairs: Pairs, config: TeachConfig, device: torch.device) -> Tensor | None:
    """What heads behind a frozen tower see in every epoch; None where they see something else each time."""
    return kept_features(student, pairs, device) if student.frozen is not None and not config.augment else None


def epoch_batches(order: Tensor, config: TeachConfig) -> tuple[Tensor, ...]:
    """The pairs of each step of an epoch."""
    batches: tuple[Tensor, ...] = order.split(config.batch_size)
    return batches[:-1] if config.drop_last and len(batches[-1]) < config.batch_size else batches


@dataclass(frozen=True)
class Trial:
    """What training took, measured on a few batches."""

    seconds: float
    """Of a batch."""
    bytes: int
    """Memory beside what was there before; 0 where the system does not tell."""


def trial(
    student: Student,
    pairs: Pairs,
    texts: Tensor,
    config: TeachConfig,
    features: Tensor | None,
    clock: Callable[[], float] = time.perf_counter,
) -> Trial:
    """Train for a few batches, of which nothing stays, to see what they take."""
    few = min(len(pairs), _TRIED * config.batch_size)
    some = replace(pairs, captions=pairs.captions[:few], image_of_text=pairs.image_of_text[:few])
    still = replace(config, epochs=2, endpoints=(2,), lr=0.0)
    epochs = train_on_pairs(student, some, texts, still, 0, features)
    with peak_memory() as before:
        pass
    with peak_memory() as peak:
        for _ in islice(epochs, 2):  # the start, and an epoch in which images are decoded
            pass
        began = clock()
        next(epochs)
        seconds = clock() - began
    taken = max(0, peak[0] - before[0]) if peak and before else 0
    return Trial(seconds / len(epoch_batches(torch.arange(few), config)), taken)
