"""Image-text pairs of one split: the data that teachers train on and students are tested on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ptmst.config import Channels, DataConfig
from ptmst.data.annotations import Place
from ptmst.data.captions import clean_caption
from ptmst.data.classes import Classes, read_classes
from ptmst.data.contents import check_length, shown
from ptmst.data.images import DECODERS, decode
from ptmst.data.normalize import MEAN, STD, normalize
from ptmst.data.sources import known, source_of
from ptmst.errors import InputError
from ptmst.support import devices
from ptmst.support.files import sha256

_LOG = logging.getLogger(__name__)
_HASHES: dict[tuple[Any, ...], str] = {}
"""Of the images that this process has hashed."""
_SHARE = 0.5
"""Of the host's free memory that the decoded images of a split may take."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """One split: I distinct images, T captions. Pair j is (image `image_of_text[j]`, caption j); `len` is T."""

    name: str
    split: str
    root: Path
    image_names: tuple[str, ...]
    """Images as paths relative to the root, [I]; one in a tar file is TAR/MEMBER."""
    places: tuple[Place, ...]
    """Where the bytes of each image are, [I]."""
    captions: tuple[str, ...]
    """Cleaned captions, [T]."""
    image_of_text: Tensor
    """Image of each caption, int64 [T]."""
    image_size: int
    """Height H and width W of the images, pixels."""
    mean: Channels = MEAN
    std: Channels = STD
    """Mean and standard deviation of red, green and blue that images are normalized with."""
    decoded: Tensor | None = field(default=None, repr=False)
    """Pixels of all images, uint8 [I, 3, H, W], where they are kept (pixels.py)."""

    def __len__(self) -> int:
        return len(self.captions)

    @cached_property
    def image_paths(self) -> tuple[Path, ...]:
        """Images, [I]: each a file, or TAR/MEMBER."""
        return tuple(self.root / name for name in self.image_names)

    def classes(self) -> Classes | None:
        """The classes of its images, where its folder tells them. Raises InputError for a broken `classes.json`."""
        return read_classes(self.root, self.image_names, f"{self.split} images")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, captions and image size: the same wherever the root is; no image is read."""
        content = (self.image_names, self.captions, self.image_of_text.tolist(), self.image_size)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def content_hash(self) -> str:
        """SHA-256 of the bytes of all images, in their order.

        They are read once in a process, as long as size and time of change of their files stay. Raises InputError.
        """
        try:
            seen = self._as_it_is()
            if seen not in _HASHES:
                with ThreadPoolExecutor(DECODERS) as pool:
                    hashes = list(pool.map(lambda place: hashlib.sha256(place.read()).digest(), self.places))
                _HASHES[seen] = sha256(b"".join(hashes))
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}); restore the file") from error
        return _HASHES[seen]

    def take_content_hash(self, value: str) -> None:
        """Let `content_hash` return what another process has just computed."""
        with suppress(OSError):  # which it tells itself
            _HASHES[self._as_it_is()] = value

    def _as_it_is(self) -> tuple[Any, ...]:
        """Names the bytes of all images without reading them."""
        stats = [path.stat() for path in dict.fromkeys(path for place in self.places for path in place.files)]
        return self.places, tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)

    def answers_hash(self) -> str:
        """SHA-256 of what retrieval is scored on: the bytes of all images, the captions and whose they are."""
        answers = self.content_hash(), self.captions, self.image_of_text.tolist()
        return sha256(json.dumps(answers).encode())

    def images(self, indices: Tensor) -> Tensor:
        """Normalized images, float32 [B, 3, H, W] on the CPU, of image indices int64 [B], each in 0 … I-1.

        Raises InputError naming a file that is not a whole, readable image.
        """
        return self.normalized(self.pixels(indices))

    def normalized(self, pixels: Tensor) -> Tensor:
        """float32 images of pixels uint8 [..., 3, H, W], on the device where those are."""
        return normalize(pixels, self.mean, self.std)

    def pixels(self, indices: Tensor) -> Tensor:
        """Pixels, uint8 [B, 3, H, W] on the CPU, of image indices int64 [B], each in 0 … I-1.

        A split whose pixels fit in half of the memory that is free at the first call is decoded once. Raises InputError
        naming a file that is not a whole, readable image.
        """
        if self.decoded is not None:
            return self.decoded.index_select(0, indices.cpu())
        wanted, position = torch.unique(indices.cpu(), return_inverse=True)
        if self._cache is None:
            return self.decode(wanted).index_select(0, position)
        pixels, decoded = self._cache
        new = wanted[~decoded[wanted]]
        if len(new):
            pixels[new] = self.decode(new)
            decoded[new] = True
        return pixels.index_select(0, wanted[position])  # four times as fast as pixels[…]

    def is_blank(self) -> bool:
        """Whether all images are of the same single color, as transparent ones are on white; read until one is not.

        Raises InputError naming a file that is not a whole, readable image.
        """
        first: Tensor | None = None
        for some in torch.arange(len(self.image_names)).split(DECODERS):
            pixels = self.decode(some)
            first = pixels[:1, :, :1, :1] if first is None else first
            if bool((pixels != first).any()):
                return False
        return True

    @property
    def fits_in_memory(self) -> bool:
        """Whether an image is decoded once and kept."""
        return self.decoded is not None or self._cache is not None

    @property
    def in_memory(self) -> bool:
        """Whether every image is decoded, in memory or mapped."""
        return self.decoded is not None or (self._cache is not None and bool(self._cache[1].all()))

    @cached_property
    def _cache(self) -> tuple[Tensor, Tensor] | None:
        """Pixels uint8 [I, 3, H, W] and which images they already hold, bool [I]; None if they would not fit."""
        shape = (len(self.image_names), 3, self.image_size, self.image_size)
        if math.prod(shape) > _SHARE * devices.free_bytes(torch.device("cpu")):
            return None
        return torch.empty(shape, dtype=torch.uint8), torch.zeros(shape[0], dtype=torch.bool)

    def decode(self, indices: Tensor) -> Tensor:
        """`pixels`, read from their files now."""
        pixels = torch.empty((len(indices), 3, self.image_size, self.image_size), dtype=torch.uint8)

        def fill(rows: Iterable[int]) -> None:
            for row in rows:
                pixels[row] = self._read(int(indices[row]))

        with ThreadPoolExecutor(DECODERS) as pool:
            list(pool.map(fill, (range(first, len(indices), DECODERS) for first in range(DECODERS))))
        return pixels

    def _read(self, index: int) -> Tensor:
        """Pixels uint8 [3, H, W] of an image."""
        return resized(self.places[index], self.image_paths[index], self.image_size)


def resized(place: Place, path: Path, size: int) -> Tensor:
    """Pixels uint8 [3, size, size] of the picture at `place`. Raises InputError that names `path`, as `decode` does."""
    picture = decode(place, path).upright.resize((size, size), Image.Resampling.BICUBIC)
    return rearrange(torch.from_numpy(np.array(picture)), "h w c -> c h w")


def load_split(data: DataConfig, split: str) -> Pairs:
    """`load_pairs` of what `data` describes; its image size must be set, mean and std are CLIP's where they are not."""
    assert data.image_size is not None
    mean, std = data.mean or MEAN, data.std or STD
    columns = data.image_column, data.caption_column
    return load_pairs(data.name, data.folder, split, data.image_size, data.max_words, mean, std, *columns)


def load_pairs(
    name: str,
    root: Path | str,
    split: str = "train",
    image_size: int = 224,
    max_words: int = 30,
    mean: Channels = MEAN,
    std: Channels = STD,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> Pairs:
    """Pairs of one split of a data set under `root`.

    `name` is a key of SOURCES, or names files by their form: csv:PATH, tsv:PATH or jsonl:PATH (columns or keys
    filepath and title, or image and caption, or those of `image_column` and `caption_column`; and split where one file
    holds several), wds:GLOB (WebDataset's tar files), parquet:GLOB. PATH and GLOB, in which {split} stands for the
    split's name, and the image paths inside are relative to `root`. Captions that say nothing are left out, which is
    logged, as is what a user should know of a file that can be read in two ways.

    Raises InputError for an unknown data set or split, and for annotations or images that are missing or broken;
    every image file is looked up, none is read.
    """
    source = source_of(name, image_column, caption_column)
    known(split, source.splits, f"split of {name}")
    for setting, value in (("image_size", image_size), ("max_words", max_words)):
        if value < 1:
            raise InputError(f"{setting}: expected a positive number, found {value}; raise it")
    root = Path(root)
    check_length(str(root), "root")
    annotations, missing = source.read(root, split).located(root)
    if missing:
        raise InputError(
            f"{annotations.origin}: expected every image it names under {root}, found {len(missing)} missing, "
            f"the first {shown(annotations.image_names[missing[0]])}; {annotations.remedy}"
        )
    for remark in annotations.remarks:
        _LOG.warning("%s", remark)
    if annotations.wordless:
        _LOG.warning("%s", annotations.left_out())
    captions = tuple(clean_caption(caption, max_words) for caption in annotations.captions)
    image_of_text = torch.tensor(annotations.image_of_text)
    image_names, places = annotations.image_names, annotations.places
    return Pairs(name, split, root, image_names, places, captions, image_of_text, image_size, mean, std)
