"""Image files as upright RGB pictures, whatever their color mode, depth and orientation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ptmst.data.annotations import Place
from ptmst.errors import InputError

DECODERS = min(8, os.cpu_count() or 1)
"""Threads that decode images; PIL releases the interpreter lock while it decodes and resizes."""


@dataclass(frozen=True)
class Picture:
    """A decoded image."""

    upright: Image.Image
    """RGB."""
    mode: str
    """PIL's name of the color mode it was stored in."""
    rotated: bool
    """Whether it was stored in another orientation, as its EXIF says."""


def decode(place: Place, path: Path) -> Picture:
    """The picture whose bytes are at `place`. Raises InputError that names `path` if it is no whole, readable one.

    Alpha is dropped, of 16 bits the upper 8 are kept, and more than PIL's `MAX_IMAGE_PIXELS` are refused.
    """
    try:
        with Image.open(BytesIO(place.read())) as image:
            # From here to twice as many PIL itself only warns.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}×{image.height}")
            upright = ImageOps.exif_transpose(image)
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            return Picture(_rgb(upright), image.mode, orientation in range(2, 9))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{path}: expected an image of at most {Image.MAX_IMAGE_PIXELS:,} pixels, found more ({error}); "
            "scale it down, or take its entry out"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: expected a whole image, found no kind of image; replace the file") from error
    except Exception as error:  # on broken bytes PIL's decoders raise nearly anything
        raise InputError(f"{path}: expected a whole image, found {error}; replace the file") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # PIL would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:  # straight to RGB, PIL warns
        image = image.convert("RGBA")
    return image.convert("RGB")
