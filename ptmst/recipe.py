"""What a trajectory store and a distilled set record of their making, and how to make it again from that."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ptmst import schema
from ptmst.config import TEMPERATURE, DataConfig, EncoderConfig, Places, Precision, TeachConfig
from ptmst.data import MEAN, STD, Pairs, load_split
from ptmst.data.credits import Credits, read_credits
from ptmst.errors import InputError
from ptmst.students.heads import make_student
from ptmst.students.image_towers import prepared_alike
from ptmst.students.packages import package_of, weights_file
from ptmst.students.student import Student
from ptmst.students.text_towers import CPU, TextTower, embed_captions, text_tower
from ptmst.students.warmup import warm_tower
from ptmst.support import files

_LOG = logging.getLogger(__name__)
TOWER = "tower.safetensors"
"""The initial image tower in the folder of a store or a set, where it was warmed up."""


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of what the settings name only by path or name."""

    data: str
    """SHA-256 of the training pairs."""
    text_tower: str
    """Name and weights of the text tower."""
    image_weights: str | None
    """SHA-256 of the file that the image tower's weights came from."""
    images: str | None = None
    """SHA-256 of the bytes of the training images; None where they were not read, as in stores of earlier releases."""


@dataclass(frozen=True)
class Recipe:
    """How experts were made: enough to load their data again and to make students like them."""

    data: DataConfig
    """The real pairs, with the size, mean and standard deviation that the images were read with."""
    encoder: EncoderConfig
    text_width: int
    """Width D of the text tower's embeddings."""
    fingerprints: Fingerprints
    teaching: TeachConfig | None = None
    """How the experts were trained, but for what a store's index says itself; None for imported ones."""
    credits: Credits | None = None
    """Whose data they are, where these tell it: distilled pictures begin as real ones."""

    @classmethod
    def of(
        cls,
        data: DataConfig,
        encoder: EncoderConfig,
        pairs: Pairs,
        tower: TextTower,
        teaching: TeachConfig | None = None,
    ) -> Self:
        """The recipe of experts on these training pairs, read with `data`, and their text tower.

        Paths are recorded as absolute ones: what is made in one folder is of use in another.
        """
        data, encoder = replace(data, root=data.folder.absolute()), _absolute(encoder)
        fingerprints = Fingerprints(pairs.fingerprint, tower.fingerprint, _file_hash(encoder.image_weights))
        return cls(data, encoder, tower.width, fingerprints, teaching, read_credits(data.folder))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The recipe that `to_json` wrote, by this release or an earlier one: missing settings take their defaults.

        Raises InputError for a record without data and encoder, and for settings that this release does not know.
        """
        if "encoder" not in record:
            raise InputError(
                "expected a store or set with an encoder and data, found one without; stores from `ptmst import "
                "--networks` only work with TrajectoryMatchingLoss"
            )
        rest = dict(record)
        credits = Credits.from_json(rest.pop(_CREDITS)) if _CREDITS in rest else None
        try:
            data = schema.from_json(DataConfig, rest.pop("data"))
            encoder = schema.from_json(EncoderConfig, rest.pop("encoder"))
            data_print, text_tower, image_weights = (rest.pop(key) for key in _FINGERPRINTS)
            prints = Fingerprints(data_print, text_tower, image_weights, rest.pop(_CONTENT, None))
            width = int(rest.pop("text_width"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"expected a complete record of data and encoder, found one without {error}") from error
        if data.image_size is None:
            raise InputError("expected a complete record of data and encoder, found one without image_size")
        # Before mean and std were settings, images were normalized with CLIP's.
        data = replace(data, mean=data.mean or MEAN, std=data.std or STD)
        teaching = schema.from_json(TeachConfig, {**rest, "data": record["data"], "encoder": record["encoder"]})
        return cls(data, encoder, width, prints, teaching if rest else None, credits)

    def to_json(self) -> dict[str, Any]:
        """The settings, all of them, and the fingerprints, as JSON values (format: docs/formats.md)."""
        settings = {} if self.teaching is None else schema.decisive(self.teaching)
        settings = {key: value for key, value in settings.items() if key not in _IN_THE_INDEX}
        settings |= {"data": schema.to_json(self.data), "encoder": schema.to_json(self.encoder)}
        prints = (self.fingerprints.data, self.fingerprints.text_tower, self.fingerprints.image_weights)
        record = {**settings, "text_width": self.text_width, **dict(zip(_FINGERPRINTS, prints, strict=True))}
        if self.fingerprints.images is not None:
            record[_CONTENT] = self.fingerprints.images
        if self.credits is not None:
            record[_CREDITS] = self.credits.to_json()
        return record

    def of_images(self, pairs: Pairs) -> Self:
        """The recipe that records the bytes of the training images too, which are read for it. Raises InputError."""
        return replace(self, fingerprints=replace(self.fingerprints, images=pairs.content_hash()))

    @property
    def seed(self) -> int:
        """The seed of the experts, and of the warm-up of their tower."""
        return 0 if self.teaching is None else self.teaching.seed

    @property
    def temperature(self) -> float:
        """The divisor of the cosine similarities that the experts were trained with."""
        return TEMPERATURE if self.teaching is None else self.teaching.temperature

    @property
    def precision(self) -> Precision:
        """The arithmetic of warm-up and experts."""
        return "fp32" if self.teaching is None else self.teaching.precision

    @property
    def places(self) -> Places:
        """Where its data and towers were."""
        encoder = self.encoder
        return Places(
            root=self.data.root,
            image_weights=encoder.image_weights,
            text_tower=encoder.text_tower,
            text_weights=encoder.text_weights,
        )

    def portable(self) -> Self:
        """The recipe without the folders of this machine; names and hashes stay, by which `at` knows what is meant."""
        encoder = self.encoder
        kind, _, name = encoder.text_tower.partition(":")
        if kind == "hf" and Path(name).is_absolute():
            encoder = replace(encoder, text_tower=f"{kind}:{Path(name).name}")
        image_weights, text_weights = (
            path and Path(path.name) for path in (encoder.image_weights, encoder.text_weights)
        )
        encoder = replace(encoder, image_weights=image_weights, text_weights=text_weights)
        return replace(self, data=replace(self.data, root=None), encoder=encoder)

    def at(self, places: Places) -> Self:
        """The recipe with its data and towers at other places; what `places` does not name is where it was.

        Raises InputError where the image tower's weights are others there; data and text tower are compared when they
        are read.
        """
        data = self.data if places.root is None else replace(self.data, root=places.root.absolute())
        moved = {name: getattr(places, name) for name in ("image_weights", "text_tower", "text_weights")}
        moved = {name: place for name, place in moved.items() if place is not None}
        there = replace(self, data=data, encoder=_absolute(replace(self.encoder, **moved)) if moved else self.encoder)
        if places.image_weights is not None:
            there._refuse_other_weights()
        return there

    def pairs(self, split: str) -> Pairs:
        """A split of the real pairs. Raises InputError where it is not there or cannot be read."""
        if not self.data.folder.exists():
            raise InputError(
                f"{self.data.folder}: expected the data that the experts were trained on, found no such folder; "
                "give its new place with --root, or restore it"
            )
        return load_split(self.data, split)

    def training_pairs(self, device: torch.device = CPU) -> tuple[Pairs, Tensor]:
        """The pairs that the experts were trained on and their text embeddings [T, D], on the CPU.

        Texts that are not in the cache are embedded on `device`. Raises InputError where pairs or text tower have
        changed.
        """
        pairs = self.pairs("train")
        self._refuse_other_pairs(pairs)
        return pairs, embed_captions(self.text_tower(), pairs.captions, device)

    def refuse_other_data(self) -> None:
        """Raises InputError where the training pairs in the data's folder are others than the experts'.

        A folder without a training split is taken as it is, with a warning.
        """
        try:
            pairs = self.pairs("train")
        except InputError as error:
            _LOG.warning("%s: taken to be the experts' data without a training split to compare", error)
            return
        self._refuse_other_pairs(pairs)

    def _refuse_other_pairs(self, pairs: Pairs) -> None:
        if pairs.fingerprint != self.fingerprints.data:
            raise InputError(
                f"{self.data.folder}: expected the pairs that the experts were trained on, found different ones; "
                "restore them, or run `ptmst teach` again"
            )

    def text_tower(self) -> TextTower:
        """The text tower. Raises InputError where it is no longer where it was, or has changed."""
        name, weights = self.encoder.text_tower, self.encoder.text_weights
        flag = "--text-tower" if weights is None else "--text-weights"
        folder = Path(name.removeprefix(_HF))
        try:
            if name.startswith(_HF) and folder.is_absolute() and not folder.is_dir():
                raise InputError(f"text_tower {name}: expected the folder of the experts' text tower, found none")
            tower = text_tower(self.encoder)
        except InputError as error:
            if (name.startswith(_HF) and not folder.is_dir()) or (weights is not None and not weights.is_file()):
                raise InputError(f"{error}; if it has moved, name its new place with {flag}") from error
            raise
        if tower.fingerprint != self.fingerprints.text_tower:
            raise InputError(
                f"text_tower {name}: expected {self.fingerprints.text_tower}, as for the experts, found "
                f"{tower.fingerprint}; restore its weights, name their place with {flag}, or run `ptmst teach` again"
            )
        return tower

    def student(self, draw: tuple[int | str, ...], start: Mapping[str, Tensor] | None = None) -> Student:
        """A fresh student, with random parts drawn by the seed key `draw`; `start` is its warmed-up image tower.

        Raises InputError where the file of the image tower's weights has changed.
        """
        self._refuse_other_weights()
        assert self.data.image_size is not None
        return make_student(self.encoder, self.data.image_size, self.text_width, draw, start)

    def _refuse_other_weights(self) -> None:
        weights, expected = self.encoder.image_weights, self.fingerprints.image_weights
        found = _file_hash(weights)
        if found == expected:
            return
        if expected is None:
            raise InputError(
                f"{weights}: expected no weights, since the experts' image tower started without, found some; leave "
                "--image-weights out"
            )
        what = "none" if found is None else "different ones"
        raise InputError(
            f"{weights}: expected the weights that the experts started from, found {what}; name their place with "
            "--image-weights, restore the file, or run `ptmst teach` again"
        )

    def with_tower(
        self, name: str, weights: Path | None, device: torch.device
    ) -> tuple[Self, dict[str, Tensor] | None]:
        """The recipe with another image tower, and that tower's start: None for `weights` or random ones.

        Without weights it is warmed up as the experts' own was. Images are normalized for it, unless mean or std were
        set by the user. Raises InputError for a tower or weights that cannot be used.
        """
        epochs = 0 if weights is not None else self.encoder.warmup_epochs
        encoder = replace(self.encoder, image_tower=name, image_weights=weights, warmup_epochs=epochs)
        schema.check(encoder)
        prints = replace(self.fingerprints, image_weights=_file_hash(weights))
        other = replace(
            self, data=prepared_alike(self.data, self.encoder, encoder), encoder=encoder, fingerprints=prints
        )
        if not encoder.warmup_epochs:
            return other, None
        return other, warm_tower(encoder, other.pairs("warmup"), self.seed, device)

    def provenance(self, scored: Pairs) -> dict[str, Any]:
        """What scores on a split record of students and data: content hashes, not paths; JSON values."""
        record = self.to_json()
        return {
            "data": self.data.name,
            "encoder": schema.decisive(_placeless(self.encoder)),
            **{key: record[key] for key in (*_FINGERPRINTS, _CONTENT) if key in record},
            "scored": {
                "data": scored.name,
                "split": scored.split,
                "fingerprint": scored.fingerprint,
                "mean": list(scored.mean),
                "std": list(scored.std),
                "images": len(scored.image_names),
                "captions": len(scored),
                "sha256": scored.answers_hash(),
            },
        }

    def differences(self, other: Recipe) -> list[tuple[str, object, object]]:
        """The settings that decide a result and differ, by dotted name: (name, here, in `other`).

        Bytes of images are compared where both record them.
        """
        here, there = self.decisive(), other.decisive()
        if _CONTENT not in here or _CONTENT not in there:
            here, there = ({key: record[key] for key in record if key != _CONTENT} for record in (here, there))
        if self.fingerprints.text_tower == other.fingerprints.text_tower:  # by whatever name
            here, there = ({**record, "encoder": {**record["encoder"], "text_tower": None}} for record in (here, there))
        return sorted(_differences(here, there))

    def decisive(self) -> dict[str, Any]:
        """The settings that decide a result, and the fingerprints, without places; JSON values."""
        # The heads of a trained tower are as wide as the tower, whatever was set.
        encoder = self.encoder if self.encoder.freeze_tower else replace(self.encoder, head_width=None)
        encoder = _placeless(encoder)
        record = {**self.to_json(), "data": schema.decisive(self.data), "encoder": schema.decisive(encoder)}
        return {key: value for key, value in record.items() if key != _CREDITS}


_FINGERPRINTS = ("data_fingerprint", "text_fingerprint", "image_weights_sha256")
_CONTENT = "data_content"
"""The fields of Fingerprints as files name them; the last MAY be missing."""
_CREDITS = "credits"
_HF = "hf:"
_IN_THE_INDEX = ("experts", "coding")
"""Settings of a store that its index says itself: a store may grow."""


def _absolute(encoder: EncoderConfig) -> EncoderConfig:
    """With absolute paths for those of this folder; names of packages and of the hub stay."""
    name = encoder.text_tower
    folder = Path(name.removeprefix(_HF)) if name.startswith(_HF) else None
    return replace(
        encoder,
        image_weights=_absolute_file(encoder.image_weights),
        text_tower=f"{_HF}{folder.absolute()}" if folder is not None and folder.is_dir() else name,
        text_weights=_absolute_file(encoder.text_weights),
    )


def _absolute_file(weights: Path | None) -> Path | None:
    return weights if weights is None or package_of(weights) is not None else weights.absolute()


def _placeless(encoder: EncoderConfig) -> EncoderConfig:
    """With the name alone of a text tower's folder."""
    folder = Path(encoder.text_tower.removeprefix(_HF))
    return replace(encoder, text_tower=f"{_HF}{folder.name}") if folder.is_absolute() else encoder


def _file_hash(weights: Path | None) -> str | None:
    return None if weights is None else files.known_hash(weights_file(weights))


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object, object]]:
    for key in a.keys() | b.keys():
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            yield from _differences(x, y, f"{prefix}{key}.")
        elif x != y:
            yield f"{prefix}{key}", x, y
