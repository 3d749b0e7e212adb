"""Experts on real pairs; displacement and step norms are recorded as training goes (docs/method.md §1, §2)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmst import kernels, schema
from ptmst.config import Coding, TeachConfig
from ptmst.data import Pairs, image_batches
from ptmst.engine.derivatives import underivable
from ptmst.errors import Diverged, InputError
from ptmst.recipe import TOWER, encoder_settings, load, student_of, tell_random_weights
from ptmst.students.heads import make_student
from ptmst.students.image_towers import prepared
from ptmst.students.losses import contrastive_logits, hard_label_loss
from ptmst.students.student import Student
from ptmst.students.text_towers import TextTower, embed_captions, text_tower
from ptmst.students.warmup import warm_tower
from ptmst.support import devices, folders, progress
from ptmst.support.seeds import generator
from ptmst.trajectories.recorder import Recorder
from ptmst.trajectories.store import INDEX, TrajectoryStore


def train_teachers(config: TeachConfig) -> TrajectoryStore:
    """Train the experts that the store at `config.out` still lacks, and return the store.

    A store made with other settings is refused; a killed run continues with the next missing expert. Raises
    InputError for settings or data that cannot be used and Diverged for a non-finite loss.
    """
    schema.check(config)
    config = replace(config, data=prepared(config.data, config.encoder))
    out, device = Path(config.out), devices.pick(config.device)
    if config.precision == "tf32" and device.type != "cuda":
        raise InputError("precision tf32: expected a CUDA device, found none; use fp32 here")
    folders.refuse_taken(out, but="a trajectory store")
    pairs = load(config.data, "train")
    if len(pairs) < config.batch_size:
        raise InputError(
            f"{pairs.name} {pairs.split}: expected at least one batch of {config.batch_size} pairs, found "
            f"{len(pairs)}; lower batch_size"
        )
    tower = text_tower(config.encoder)
    settings = _settings(config, pairs, tower)

    def opened() -> TrajectoryStore:
        store = TrajectoryStore.open(out)
        _refuse_other_settings(store, settings, config.coding)
        return store

    # A store that lacks nothing is only read, which many processes may do at once.
    if (out / INDEX).exists() and not _missing(store := opened(), config):
        return store
    with folders.claimed(out, "a trajectory store"), devices.arithmetic(config.precision):
        store = opened() if (out / INDEX).exists() else _new_store(config, settings, tower.width, device)
        if missing := _missing(store, config):
            _train(missing, store, config, pairs, tower, device)
    return store


def _missing(store: TrajectoryStore, config: TeachConfig) -> list[int]:
    return [number for number in range(config.experts) if number not in store.experts]


def _train(
    missing: list[int],
    store: TrajectoryStore,
    config: TeachConfig,
    pairs: Pairs,
    tower: TextTower,
    device: torch.device,
) -> None:
    steps = -(-len(pairs) // config.batch_size)
    done = (config.experts - len(missing)) * config.epochs
    texts = embed_captions(tower, pairs.captions, device).to(device)
    with progress.bar("teach", config.experts * config.epochs, done) as bar:
        if not pairs.fits_in_memory:
            bar.note("the decoded images are more than half of the free memory: decoding them anew in every epoch")
        for number in missing:
            student = student_of(store, (config.seed, "expert", number)).to(device)
            recorder = Recorder(student.layers, config.kept_endpoints)
            losses = []
            for epoch in train_on_pairs(student, pairs, texts, config, number):
                recorder.record(epoch.theta)
                if epoch.number == 0:
                    continue
                losses.append(epoch.loss)
                bar.advance(f"expert {number + 1}/{config.experts}, loss {epoch.loss:.3f}, {steps} batches an epoch")
            store.add(number, recorder.expert(), {"losses": losses})


@dataclass(frozen=True)
class Epoch:
    """The end of a training epoch; epoch 0 is the start."""

    number: int
    theta: Tensor
    loss: float
    """Mean training loss over the epoch's batches; not a number at the start."""


def train_on_pairs(student: Student, pairs: Pairs, texts: Tensor, config: TeachConfig, number: int) -> Iterator[Epoch]:
    """Train expert `number` on real pairs with hard labels, plain SGD; yields after every epoch.

    `texts` [T, D] are the pairs' caption embeddings. θ is updated in place: copy what is to be kept.
    """
    theta = student.flatten().to(texts.device)
    lr = torch.full((student.layers.num_groups,), config.lr, device=theta.device)

    def loss_of(theta: Tensor, images: Tensor, texts: Tensor) -> Tensor:
        return hard_label_loss(contrastive_logits(*student.embed(theta, images, texts), config.temperature))

    yield Epoch(0, theta, float("nan"))
    for epoch in range(config.epochs):
        order = torch.randperm(len(pairs), generator=generator(config.seed, "expert", number, epoch))
        batches = image_batches(pairs, pairs.image_of_text[order].split(config.batch_size), theta.device)
        losses = []
        for index, images in zip(order.to(theta.device).split(config.batch_size), batches, strict=True):
            leaf = theta.detach().requires_grad_()
            loss = loss_of(leaf, images, texts[index])
            (gradient,) = torch.autograd.grad(loss, leaf)
            kernels.flat_sgd_(theta, gradient, lr, student.layers.offsets, student.layers.groups)
            losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        if not torch.isfinite(theta).all():
            raise Diverged(f"expert {number}, epoch {epoch + 1}: the loss is {mean} at lr {config.lr}; lower teach lr")
        yield Epoch(epoch + 1, theta, mean)


def _new_store(config: TeachConfig, settings: dict[str, Any], text_width: int, device: torch.device) -> TrajectoryStore:
    assert config.data.image_size is not None
    if not config.encoder.freeze_tower:
        # Before minutes of warm-up, and before experts are taught for days that nothing could be distilled from.
        student = make_student(config.encoder, config.data.image_size, text_width, (0,))
        _refuse_underivable(student, config.encoder.image_tower, config.data.image_size, text_width)
    if config.encoder.image_weights is None:
        tell_random_weights(config.encoder.image_tower, config.encoder.warmup_epochs, "--encoder.image-weights")
    weights = None
    if config.encoder.warmup_epochs:
        weights = warm_tower(config.encoder, load(config.data, "warmup"), config.seed, device)
    student = make_student(config.encoder, config.data.image_size, text_width, (0,), weights)
    out = Path(config.out)
    store = TrajectoryStore(out, student.layers, config.epochs, config.kept_endpoints, settings, config.coding)
    if weights is not None:
        store.add_file(TOWER, weights)
    store.save_index()
    return store


def _refuse_underivable(student: Student, tower: str, image_size: int, text_width: int) -> None:
    images, texts = torch.zeros(2, 3, image_size, image_size), torch.ones(2, text_width)
    if underivable(student, "path", True, images, texts) is not None:
        reason = underivable(student, "primals", True, images, texts)
        if reason is not None:
            raise InputError(
                f"image_tower {tower}: expected a tower that can be differentiated twice, found one that cannot "
                f"({reason}); choose another (docs/towers.md), or freeze it"
            )


def _settings(config: TeachConfig, pairs: Pairs, tower: TextTower) -> dict[str, Any]:
    whole = schema.to_json(config)
    whole = {key: value for key, value in whole.items() if key not in ("out", "device", "experts", "coding")}
    return whole | encoder_settings(config.encoder, pairs, tower)


def _refuse_other_settings(store: TrajectoryStore, settings: dict[str, Any], coding: Coding) -> None:
    # Paths may be written in many ways; the hashes beside them tell whether the content is the same.
    untold = ["data.root", "encoder.image_weights", "encoder.text_weights"]
    # The heads of a trained tower are as wide as it is.
    untold += ["encoder.head_width"] if not settings["encoder"]["freeze_tower"] else []
    # Stores of before there was a choice were taught in float32.
    kept = {"precision": "fp32", **store.settings}
    different = sorted(entry for entry in _differences(kept, settings) if entry[0] not in untold)
    if store.coding != coding:
        different.append(("coding", store.coding, coding))
    if different:
        what = "; ".join(f"{key}: {old} in the store, {new} asked for" for key, old, new in different[:4])
        kind = "another encoder" if any(key.startswith(("encoder", "text_")) for key, _, _ in different) else "others"
        raise InputError(
            f"{store.path}: expected a store of these settings, found {kind} ({what}); choose another --out"
        )


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for key in a.keys() | b.keys():
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            yield from _differences(x, y, f"{prefix}{key}.")
        elif json.dumps(x) != json.dumps(y):
            yield f"{prefix}{key}", str(x), str(y)
