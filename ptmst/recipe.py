"""What a store or a distilled set records, and how its data, towers and students are made again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmst import schema
from ptmst.config import DataConfig, EncoderConfig, ImportConfig
from ptmst.data import MEAN, STD, Pairs, load_pairs
from ptmst.errors import InputError
from ptmst.students.heads import make_student
from ptmst.students.image_towers import prepared, prepared_alike
from ptmst.students.student import Student
from ptmst.students.text_towers import CPU, TextTower, embed_captions, text_tower
from ptmst.students.warmup import warm_tower
from ptmst.support import files
from ptmst.trajectories.store import TrajectoryStore

TOWER = "tower.safetensors"


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
    data = schema.from_json(DataConfig, settings["data"])
    if root is None and not data.folder.exists():
        raise InputError(
            f"{data.folder}: expected the data that experts were taught on, found no such folder; name the one they "
            "moved to with --root, or restore it"
        )
    return replace(data, root=root) if root is not None else data


def text_tower_of(settings: Mapping[str, Any]) -> TextTower:
    """The text tower that a store or a distilled set records. Raises InputError where it embeds otherwise by now."""
    _refuse_bare(settings)
    encoder = schema.from_json(EncoderConfig, settings["encoder"])
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
    encoder = schema.from_json(EncoderConfig, settings["encoder"])
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
    own = schema.from_json(EncoderConfig, settings["encoder"])
    encoder = replace(own, image_tower=name, image_weights=weights)
    if weights is not None:
        encoder = replace(encoder, warmup_epochs=0)
    schema.check(encoder)
    data = prepared_alike(data, own, encoder)
    made = {"data": schema.to_json(data), "encoder": schema.to_json(encoder)}
    start = None
    if encoder.warmup_epochs:
        start = warm_tower(encoder, load(data, "warmup"), settings.get("seed", 0), device)
    return {**settings, **made, "image_weights_sha256": _file_hash(weights)}, start


def tower_weights(store: TrajectoryStore) -> dict[str, Tensor] | None:
    """The image tower's start that the store keeps; none where the user's own weights are it."""
    return store.read_file(TOWER) if TOWER in store.hashes else None


def tell_random_weights(tower: str, warmup_epochs: int, flag: str) -> None:
    """Say once that a published tower begins without its published weights, nor warmed up."""
    if ":" in tower and not warmup_epochs:
        print(f"image_tower {tower}: begins with random weights; name a file of its own with {flag}", file=sys.stderr)


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


def _data(config: ImportConfig) -> DataConfig:
    """Published code normalises with CLIP's mean and deviation, whatever the tower."""
    data = config.data
    return prepared(replace(data, mean=data.mean or MEAN, std=data.std or STD), config.encoder)
