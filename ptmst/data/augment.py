"""Random views of images, as the published experts see them: a crop, a flip, and two small changes.

Half of an image's area or more, at 3/4 to 4/3 of its proportions, is scaled to a square and flipped half of the time.
Then two of ten changes are drawn, each of which is made half of the time: RandAugment at level 5 of 10. At that level
brightness and sharpness stay as they are. What moves out of the picture leaves gray behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ptmst.data.images import DECODERS, decode
from ptmst.data.pairs import Pairs
from ptmst.support.seeds import generator

_AREA, _PROPORTIONS, _TRIES = (0.5, 1.0), (3 / 4, 4 / 3), 10
_SHEAR, _SHIFT, _DEGREES = 0.15, 5.0, 15.0
"""Shear as a ratio, shift in pixels, rotation: half of what level 10 stands for."""
_GRAY = (128, 128, 128)
_CHANGES = 2


class Views:
    """A new view of each pair's image for one epoch; each a function of the key and the pair's number."""

    in_memory = False

    def __init__(self, pairs: Pairs, *key: str | int) -> None:
        self._pairs, self._key = pairs, key

    def pixels(self, captions: Tensor) -> Tensor:
        """Pixels, uint8 [B, 3, H, W] on the CPU, for caption indices int64 [B].

        Raises InputError naming a file that is not a whole, readable image.
        """
        pairs = self._pairs
        size, images = pairs.image_size, pairs.image_of_text[captions].tolist()
        pixels = torch.empty((len(captions), 3, size, size), dtype=torch.uint8)

        def fill(rows: Iterable[int]) -> None:
            for row in rows:
                image = images[row]
                picture = decode(pairs.places[image], pairs.image_paths[image]).upright
                seen = view(picture, size, generator(*self._key, "view", int(captions[row])))
                pixels[row] = torch.from_numpy(np.array(seen)).permute(2, 0, 1)

        with ThreadPoolExecutor(DECODERS) as pool:
            list(pool.map(fill, (range(first, len(images), DECODERS) for first in range(DECODERS))))
        return pixels

    def normalized(self, pixels: Tensor) -> Tensor:
        """float32 images of pixels uint8 [..., 3, H, W], on the device where those are."""
        return self._pairs.normalized(pixels)


def view(picture: Image.Image, size: int, draws: torch.Generator) -> Image.Image:
    """A random view of an RGB picture, `size` pixels wide and high."""
    seen = picture.resize((size, size), Image.Resampling.BICUBIC, box=_crop(picture.width, picture.height, draws))
    if _heads(draws):
        seen = ImageOps.mirror(seen)
    for _ in range(_CHANGES):
        change, sign = _ALL_CHANGES[_integer(len(_ALL_CHANGES), draws)], 1.0 if _heads(draws) else -1.0
        if _heads(draws):
            seen = change(seen, sign)
    return seen


def _crop(width: int, height: int, draws: torch.Generator) -> tuple[float, float, float, float]:
    """Left, top, right and bottom; in the middle, and as large as its proportions allow, where no drawn one fits."""
    lowest, highest = _PROPORTIONS
    for _ in range(_TRIES):
        area = width * height * _uniform(*_AREA, draws)
        proportions = math.exp(_uniform(math.log(lowest), math.log(highest), draws))
        across, down = round(math.sqrt(area * proportions)), round(math.sqrt(area / proportions))
        if 0 < across <= width and 0 < down <= height:
            left, top = _integer(width - across + 1, draws), _integer(height - down + 1, draws)
            return left, top, left + across, top + down
    across, down = min(width, round(height * highest)), min(height, round(width / lowest))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def _moved(picture: Image.Image, *matrix: float) -> Image.Image:
    """Each pixel (x, y) from (ax + by + c, dx + ey + f)."""
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=_GRAY
    )


def _turned(picture: Image.Image, sign: float) -> Image.Image:
    return picture.rotate(sign * _DEGREES, resample=Image.Resampling.BILINEAR, fillcolor=_GRAY)


def _same(picture: Image.Image, sign: float) -> Image.Image:
    return picture


_ALL_CHANGES: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    _same,
    lambda picture, sign: ImageOps.autocontrast(picture),
    lambda picture, sign: ImageOps.equalize(picture),
    _same,  # brightness
    _same,  # sharpness
    lambda picture, sign: _moved(picture, 1, sign * _SHEAR, 0, 0, 1, 0),
    lambda picture, sign: _moved(picture, 1, 0, 0, sign * _SHEAR, 1, 0),
    lambda picture, sign: _moved(picture, 1, 0, sign * _SHIFT, 0, 1, 0),
    lambda picture, sign: _moved(picture, 1, 0, 0, 0, 1, sign * _SHIFT),
    _turned,
)


def _uniform(low: float, high: float, draws: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=draws, dtype=torch.float64))


def _integer(count: int, draws: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=draws))


def _heads(draws: torch.Generator) -> bool:
    return _integer(2, draws) == 1
