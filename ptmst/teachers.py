"""Experts on real pairs; displacement and step norms are recorded as training goes (METHOD §1, §2)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmst import config as configs
from ptmst import devices, files, kernels, progress
from ptmst.config import Coding, DataConfig, EncoderConfig, TeachConfig
from ptmst.contrast import contrastive_logits, hard_label_loss
from ptmst.data import MEAN, STD, Pairs, image_batches, load_pairs
from ptmst.derivatives import underivable
from ptmst.encoders import CPU, TextTower, embed_captions, make_student, text_tower
from ptmst.errors import Diverged, InputError
from ptmst.flat import LayerTable, Student
from ptmst.seeds import generator
from ptmst.shortcut import Displacement, Expert
from ptmst.store import INDEX, TrajectoryStore
from ptmst.towers import prepared, prepared_alike
from ptmst.warmup import warm_tower

TOWER = "tower.safetensors"


def train_teachers(config: TeachConfig) -> TrajectoryStore:
    """Train the experts that the store at `config.out` still lacks, and return the store.

    A store made with other settings is refused; a killed run continues with the next missing expert. Raises
    InputError for settings or data that cannot be used and Diverged for a non-finite loss.
    """
    configs.check(config)
    config = replace(config, data=prepared(config.data, config.encoder))
    out, device = Path(config.out), devices.pick(config.device)
    if config.precision == "tf32" and device.type != "cuda":
        raise InputError("precision tf32: expected a CUDA device, found none; use fp32 here")
    files.refuse_taken(out, but="a trajectory store")
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
    with files.claimed(out, "a trajectory store"), devices.arithmetic(config.precision):
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


class Recorder:
    """Keeps of a trajectory only what its shortcuts need, as it happens."""

    def __init__(self, layers: LayerTable, endpoints: tuple[int, ...]) -> None:
        self._layers, self._endpoints = layers, endpoints
        self._points: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._displacements: dict[int, Displacement] = {}

    def record(self, theta: Tensor) -> None:
        """Take the next epoch's θ [P]; the first call takes θ⁰."""
        theta = theta.detach().cpu().clone()
        if self._points:
            base, before = self._points[0], self._points[-1]
            self._norms.append(self._layers.layer_norms(theta - before))
            if len(self._norms) in self._endpoints:
                self._displacements[len(self._norms)] = Displacement.encode(theta - base, self._layers)
            self._points = [base, theta]
        else:
            self._points = [theta]

    def expert(self) -> Expert:
        return Expert(self._layers, self._points[0], self._displacements, torch.stack(self._norms))


def load(config: DataConfig, split: str) -> Pairs:
    """The pairs of a `prepared` config."""
    assert config.image_size is not None
    # Stores of before these were settings have CLIP's, and no word of it.
    mean, std = config.mean or MEAN, config.std or STD
    return load_pairs(config.name, config.folder, split, config.image_size, config.max_words, mean, std)


def real_pairs(store: TrajectoryStore, root: Path | None = None, device: torch.device = CPU) -> tuple[Pairs, Tensor]:
    """The store's training pairs and their text embeddings [T, D], on the CPU; `root` is their folder, where it moved.

    Texts that are not in the cache are embedded on `device`. Raises InputError where they have changed.
    """
    data = data_of(store.settings, root)
    pairs = load(data, "train")
    if pairs.fingerprint != store.settings["data_fingerprint"]:
        raise InputError(f"{data.folder}: expected the pairs that {store.path} was taught on, found others; teach anew")
    return pairs, embed_captions(text_tower_of(store.settings), pairs.captions, device)


def data_of(settings: Mapping[str, Any], root: Path | None = None) -> DataConfig:
    """The data that a store or a distilled set records; `root` is their folder, where it has moved.

    Raises InputError where none is recorded.
    """
    _refuse_bare(settings)
    data = configs.from_json(DataConfig, settings["data"])
    if root is None and not data.folder.exists():
        raise InputError(
            f"{data.folder}: expected the data that experts were taught on, found no such folder; name the one they "
            "moved to with --root, or restore it"
        )
    return replace(data, root=root) if root is not None else data


def text_tower_of(settings: Mapping[str, Any]) -> TextTower:
    """The text tower that a store or a distilled set records. Raises InputError where it embeds otherwise by now."""
    _refuse_bare(settings)
    encoder = configs.from_json(EncoderConfig, settings["encoder"])
    tower = text_tower(encoder)
    if tower.fingerprint != settings["text_fingerprint"]:
        raise InputError(
            f"text_tower {encoder.text_tower}: expected {settings['text_fingerprint']}, as the experts had it, found "
            f"{tower.fingerprint}; restore its weights, or teach anew"
        )
    return tower


def made_of(settings: Mapping[str, Any], scored: Pairs) -> dict[str, Any]:
    """What scores record of their students and data: content, not paths, so that alike is told from other."""
    encoder = {k: v for k, v in settings["encoder"].items() if k not in ("image_weights", "text_weights")}
    hashes = ("data_fingerprint", "text_fingerprint", "image_weights_sha256")
    recorded = {"data": settings["data"]["name"], "encoder": encoder, **{name: settings.get(name) for name in hashes}}
    counts = {"images": len(scored.image_names), "captions": len(scored)}
    normalised = {"mean": list(scored.mean), "std": list(scored.std)}
    return recorded | {"scored": {"split": scored.split, "fingerprint": scored.fingerprint, **normalised, **counts}}


def _refuse_bare(settings: Mapping[str, Any]) -> None:
    if "encoder" not in settings:
        raise InputError(
            "expected a store or set that records its data and encoder, found one that does not; what `ptmst import "
            "--networks` makes serves TrajectoryMatchingLoss alone"
        )


def student_of(store: TrajectoryStore, draw: tuple[int | str, ...]) -> Student:
    """A fresh student of the store's encoder. Raises InputError where the encoder no longer has the store's layers."""
    student = student_from_settings(store.settings, draw, tower_weights(store))
    if student.layers != store.layers:
        encoder = store.settings["encoder"]
        raise InputError(
            f"{store.path}: expected the layers of {encoder['image_tower']} + {encoder['text_tower']} "
            f"({student.layers.num_params:,} parameters), found {store.layers.num_params:,}; the store was made with "
            "another encoder (or release of it): teach anew"
        )
    return student


def student_from_settings(
    settings: Mapping[str, Any], draw: tuple[int | str, ...], weights: Mapping[str, Tensor] | None
) -> Student:
    """A fresh student from the settings that a store or a distilled set records.

    Raises InputError where the image tower's weights are no longer those of the settings.
    """
    _refuse_bare(settings)
    encoder = configs.from_json(EncoderConfig, settings["encoder"])
    if _file_hash(encoder.image_weights) != settings["image_weights_sha256"]:
        raise InputError(
            f"{encoder.image_weights}: expected the weights that the experts began with, found others or none; restore "
            "the file or teach anew"
        )
    return make_student(encoder, settings["data"]["image_size"], settings["text_width"], draw, weights)


def with_another_tower(
    settings: Mapping[str, Any], data: DataConfig, name: str, weights: Path | None, device: torch.device
) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """The settings of a set with another image tower, and that tower's start: its weights, or a warm-up as the set's.

    Its images are normalised as that tower wants them, where nothing else was set. Raises InputError for a tower or
    weights that cannot be used.
    """
    own = configs.from_json(EncoderConfig, settings["encoder"])
    encoder = replace(own, image_tower=name, image_weights=weights)
    if weights is not None:
        encoder = replace(encoder, warmup_epochs=0)
    configs.check(encoder)
    data = prepared_alike(data, own, encoder)
    made = {"data": configs.to_json(data), "encoder": configs.to_json(encoder)}
    start = None
    if encoder.warmup_epochs:
        start = warm_tower(encoder, load(data, "warmup"), settings.get("seed", 0), device)
    return {**settings, **made, "image_weights_sha256": _file_hash(weights)}, start


def tower_weights(store: TrajectoryStore) -> dict[str, Tensor] | None:
    """The image tower's start that the store keeps; none where the user's own weights are it."""
    return store.read_file(TOWER) if TOWER in store.hashes else None


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


def tell_random_weights(tower: str, warmup_epochs: int, flag: str) -> None:
    """Say once that a published tower begins without its published weights, nor warmed up."""
    if ":" in tower and not warmup_epochs:
        print(f"image_tower {tower}: begins with random weights; name a file of its own with {flag}", file=sys.stderr)


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
    whole = configs.to_json(config)
    whole = {key: value for key, value in whole.items() if key not in ("out", "device", "experts", "coding")}
    return whole | encoder_settings(config.encoder, pairs, tower)


def encoder_settings(encoder: EncoderConfig, pairs: Pairs, tower: TextTower) -> dict[str, Any]:
    """What a store records of its encoder and data beside their settings: fingerprints."""
    return {
        "text_width": tower.width,
        "text_fingerprint": tower.fingerprint,
        "data_fingerprint": pairs.fingerprint,
        "image_weights_sha256": _file_hash(encoder.image_weights),
    }


def _file_hash(path: Path | None) -> str | None:
    return files.sha256(path.read_bytes()) if path is not None and path.is_file() else None


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
