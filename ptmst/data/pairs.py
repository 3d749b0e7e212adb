"""Image-text pairs of one split: the data that teachers train on and students are tested on."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from ptmst.data.captions import clean_caption
from ptmst.data.karpathy import read_annotations
from ptmst.errors import InputError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
CACHE_BYTES = 2 * 1024**3
"""A split whose decoded images fit in this many bytes is decoded once and kept."""
DECODERS = min(8, os.cpu_count() or 1)
"""Threads that decode images; PIL releases the interpreter lock while it decodes and resizes."""


@dataclass(frozen=True)
class Source:
    """Where a data set's annotations lie and how a user comes by them."""

    file: str
    splits: tuple[str, ...]
    remedy: str


def _published(file: str, where: str) -> Source:
    return Source(file, ("train", "val", "test"), f"lay {where} in {{root}}")


def _generated(name: str) -> Source:
    remedy = (
        f"write the set with `ptmst data --name {name} --root {{root}}` (after deleting {name}.json, if it is there)"
    )
    return Source(f"{name}_{{split}}.json", ("train", "val", "test", "warmup"), remedy)


_SALESFORCE = "from storage.googleapis.com/sfr-vision-language-research/datasets"
SOURCES = {
    "scenes": _generated("scenes"),
    "digits": _generated("digits"),
    "flickr30k": _published(
        "flickr30k_{split}.json",
        f"{{file}} {_SALESFORCE} and Flickr30k's folder flickr30k-images",
    ),
    "coco": _published(
        "coco_karpathy_{split}.json",
        f"{{file}} {_SALESFORCE} and COCO's folders train2014 and val2014",
    ),
    "cc3m": _published(
        "cc3m_{split}.json",
        'LLaVA-CC3M-Pretrain-595K\'s images and {file}, a list of {{"image": path, "caption": text}},',
    ),
}


@dataclass(frozen=True, eq=False)
class Pairs:
    """One split: I distinct images, T captions. Pair j is (image `image_of_text[j]`, caption j); `len` is T."""

    name: str
    split: str
    root: Path
    image_names: tuple[str, ...]
    """Image files relative to the root, [I]."""
    captions: tuple[str, ...]
    """Cleaned captions, [T]."""
    image_of_text: Tensor
    """Image of each caption, int64 [T]."""
    image_size: int
    """Height H and width W of the images, pixels."""

    def __len__(self) -> int:
        return len(self.captions)

    @cached_property
    def image_paths(self) -> tuple[Path, ...]:
        """Image files, [I]."""
        return tuple(self.root / name for name in self.image_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, captions and image size: the same wherever the root lies; pixels are not read."""
        content = (self.image_names, self.captions, self.image_of_text.tolist(), self.image_size)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def images(self, indices: Tensor) -> Tensor:
        """Normalised images, float32 [B, 3, H, W] on the CPU, of image indices int64 [B], each in 0 … I-1.

        Raises InputError naming a file that is not a whole, readable image.
        """
        wanted, position = torch.unique(indices.cpu(), return_inverse=True)
        if self._cache is None:
            return normalise(self._decode(wanted)[position])
        pixels, decoded = self._cache
        new = wanted[~decoded[wanted]]
        if len(new):
            pixels[new] = self._decode(new)
            decoded[new] = True
        return normalise(pixels[wanted[position]])

    @cached_property
    def _cache(self) -> tuple[Tensor, Tensor] | None:
        """Pixels uint8 [I, 3, H, W] and which images they already hold, bool [I]; None if they would not fit."""
        shape = (len(self.image_names), 3, self.image_size, self.image_size)
        if math.prod(shape) > CACHE_BYTES:
            return None
        return torch.empty(shape, dtype=torch.uint8), torch.zeros(shape[0], dtype=torch.bool)

    def _decode(self, indices: Tensor) -> Tensor:
        pixels = torch.empty((len(indices), 3, self.image_size, self.image_size), dtype=torch.uint8)

        def decode(rows: Iterable[int]) -> None:
            for row in rows:
                pixels[row] = _read_image(self.image_paths[indices[row]], self.image_size)

        with ThreadPoolExecutor(DECODERS) as pool:
            list(pool.map(decode, (range(first, len(indices), DECODERS) for first in range(DECODERS))))
        return pixels


def load_pairs(name: str, root: Path | str, split: str = "train", image_size: int = 224, max_words: int = 30) -> Pairs:
    """Pairs of one split of a data set (a key of SOURCES) under `root`.

    Raises InputError for an unknown data set or split, and for annotations or images that are missing or broken;
    every image file is looked up, none is read.
    """
    source = SOURCES[_known(name, tuple(SOURCES), "data set")]
    file = source.file.format(split=_known(split, source.splits, f"split of {name}"))
    for setting, value in (("image_size", image_size), ("max_words", max_words)):
        if value < 1:
            raise InputError(f"{setting}: expected a positive number, found {value}; raise it")
    root = Path(root)
    found = read_annotations(root / file, root, source.remedy.format(root=root, file=file))
    captions = tuple(clean_caption(caption, max_words) for caption in found.captions)
    return Pairs(name, split, root, found.image_names, captions, torch.tensor(found.image_of_text), image_size)


def normalise(pixels: Tensor) -> Tensor:
    """float32 images [..., 3, H, W] with the encoders' mean and deviation, from uint8 pixels of that shape."""
    mean, std = _statistics(pixels.device)
    return (pixels.float() / 255 - mean) / std


def denormalise(images: Tensor) -> Tensor:
    """uint8 pixels [..., 3, H, W] from normalised images of that shape, rounded and clamped."""
    mean, std = _statistics(images.device)
    return ((images.detach().float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(MEAN, device=device).view(3, 1, 1), torch.tensor(STD, device=device).view(3, 1, 1)


def _known(value: str, choices: Sequence[str], what: str) -> str:
    if value in choices:
        return value
    nearest = difflib.get_close_matches(value, choices, n=1)
    advice = f"did you mean {nearest[0]}?" if nearest else "choose one of them"
    raise InputError(f"{what}: expected {', '.join(choices)}, found {value!r}; {advice}")


def _read_image(path: Path, size: int) -> Tensor:
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # on broken bytes PIL's decoders raise nearly anything
        raise InputError(f"{path}: expected a whole image, found {error}; replace the file") from error
    resized = upright.resize((size, size), Image.Resampling.BICUBIC)
    return rearrange(torch.from_numpy(np.array(resized)), "h w c -> c h w")
