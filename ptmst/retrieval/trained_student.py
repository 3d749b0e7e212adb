"""A trained student: all that embeds pictures and captions of one's own, in a folder that needs no other weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ptmst.config import Device, Places
from ptmst.data import image_batches
from ptmst.data.annotations import ImageBytes, Place
from ptmst.data.batches import IMAGES_AT_ONCE
from ptmst.data.captions import clean_caption
from ptmst.data.images import DECODERS
from ptmst.data.normalize import MEAN, STD, normalize
from ptmst.data.pairs import resized
from ptmst.errors import InputError
from ptmst.recipe import Recipe
from ptmst.students.student import Student
from ptmst.students.text_towers import TextTower
from ptmst.students.weights import load_weights
from ptmst.support import devices, files, folders
from ptmst.support.devices import arithmetic

INDEX = "student.json"
KIND, VERSION = "trained student", 1
FOLDER = folders.Kind("a trained student", (INDEX,))
_TOWER, _HEADS = "tower.safetensors", "heads.safetensors"
_HEAD_NAMES = ("image", "text")
Picture = str | Path | Image.Image
"""A file, or an image in memory."""


@dataclass(frozen=True)
class TrainedStudent:
    """Towers and heads with the parameters that were learned.

    Pictures are decoded, resized and normalized, and captions cleaned, as those were that it learned from.
    """

    recipe: Recipe
    student: Student
    """The functions."""
    theta: Tensor
    """Their parameters [P], which the modules take."""
    texts: TextTower
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained on and how; JSON values."""

    def __post_init__(self) -> None:
        self.student.take(self.theta)

    @property
    def width(self) -> int:
        """H, the width of its embeddings."""
        nothing = torch.zeros(1, self.recipe.text_width, device=self.student.device)
        return int(self.student.embed_texts(self.theta, nothing).shape[1])

    @torch.no_grad()
    def embed_images(self, pictures: Iterable[Picture]) -> Tensor:
        """float32 [N, H] of unit length, on the CPU. Raises InputError that names a picture that cannot be read."""
        images = _Pictures(tuple(pictures), self.recipe)
        if not images.pictures:
            return torch.empty(0, self.width)
        device, rows = self.student.device, torch.arange(len(images.pictures))
        with arithmetic("fp32"):
            seen = [
                F.normalize(self.student.embed_images(self.theta, some)).cpu()
                for some in image_batches(images, rows.split(IMAGES_AT_ONCE), device)
            ]
        return torch.cat(seen)

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """float32 [T, H] of unit length, on the CPU."""
        device, most = self.student.device, self.recipe.data.max_words
        texts = self.texts.embed([clean_caption(caption, most) for caption in captions], device)
        with arithmetic("fp32"):
            return F.normalize(self.student.embed_texts(self.theta, texts.to(device))).cpu()

    def save(self, path: str | Path) -> None:
        """Write it as a folder; the index comes last. The text tower stays where it is, and is named."""
        path = Path(path)
        image, text, *frozen = self.student.modules
        tower, heads = (frozen[0], {"image": image, "text": text}) if frozen else (image, {"text": text})
        named = {f"{of}.{name}": value for of, head in heads.items() for name, value in head.state_dict().items()}
        hashes = {
            _TOWER: files.write_tensors(path / _TOWER, tower.state_dict()),
            _HEADS: files.write_tensors(path / _HEADS, named),
        }
        record = {"settings": self.recipe.to_json(), "provenance": dict(self.provenance), "hashes": hashes}
        files.write_json(path / INDEX, {"format": "ptmst-trained-student", "version": VERSION, **record})

    @classmethod
    def load(cls, path: str | Path, places: Places | None = None, device: Device = "auto") -> TrainedStudent:
        """Read a student, and compare every hash. `places` names its text tower, if that has moved.

        Raises InputError for a folder that is no student, or a damaged one, and where its text tower is missing.
        """
        path = Path(path)
        if not (path / INDEX).exists():
            raise InputError(f"{path}: expected a trained student, found no {INDEX}; make one with `ptmst train`")
        index = files.read_json(path / INDEX, KIND, VERSION)
        try:
            hashes, provenance = index["hashes"], index["provenance"]
            tower, heads = (files.read_tensors(path / name, hashes[name]) for name in (_TOWER, _HEADS))
            recipe = Recipe.from_json(index["settings"])
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path / INDEX}: expected a whole index, found a damaged one ({error}); run `ptmst train` again"
            ) from error
        if places is not None:
            recipe = recipe.at(replace(places, image_weights=None))
        # Its weights are here: those that it began with are not asked for.
        encoder = replace(recipe.encoder, image_weights=None, warmup_epochs=0)
        begun = replace(recipe, encoder=encoder, fingerprints=replace(recipe.fingerprints, image_weights=None))
        student = begun.student((INDEX,), tower)
        image, text, *_ = student.modules
        for of, module in zip(_HEAD_NAMES, (image, text), strict=True):
            own = {name.removeprefix(f"{of}."): value for name, value in heads.items() if name.startswith(f"{of}.")}
            if own:
                load_weights(module, own, path / _HEADS)
        student = student.to(devices.pick(device))
        return cls(recipe, student, student.flatten(), recipe.text_tower(), provenance)


def load_student(path: str | Path, *, device: Device = "auto") -> TrainedStudent:
    """The student that `ptmst train` has written to a folder. Raises InputError as `TrainedStudent.load` does."""
    return TrainedStudent.load(path, device=device)


@dataclass(frozen=True)
class _InMemory:
    """The bytes of an image that has no file."""

    content: bytes
    file: Path = Path("an image in memory")

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    def read(self) -> bytes:
        return self.content


class _Pictures:
    """Pictures as `image_batches` reads them."""

    in_memory = False

    def __init__(self, pictures: tuple[Picture, ...], recipe: Recipe) -> None:
        self.pictures, self._data = pictures, recipe.data

    def pixels(self, indices: Tensor) -> Tensor:
        size = self._data.image_size
        assert size is not None
        places = [_place(self.pictures[index]) for index in indices.tolist()]
        with ThreadPoolExecutor(DECODERS) as pool:
            return torch.stack(list(pool.map(lambda at: resized(at, at.file, size), places)))

    def normalized(self, pixels: Tensor) -> Tensor:
        return normalize(pixels, self._data.mean or MEAN, self._data.std or STD)


def _place(picture: Picture) -> Place:
    if not isinstance(picture, Image.Image):
        return ImageBytes(Path(picture))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return _InMemory(buffer.getvalue())
