"""Image files as upright RGB pictures in sRGB, whatever their color mode, depth, profile and orientation."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError, _imaging

from ptmst.data import containers
from ptmst.data.annotations import Place
from ptmst.errors import InputError
from ptmst.support import kinds

DECODERS = min(8, os.cpu_count() or 1)
"""Threads that decode images; PIL releases the interpreter lock while it decodes and resizes."""

# By name: PIL also knows formats without a signature, which broken files pass for, and some that start a program.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "MPO", "PPM", "JPEG2000", "AVIF", "ICO", "PSD")
_WHITE = (255, 255, 255)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""


def silence_pil() -> None:
    """PIL warns of what is broken around pixels that are whole, and of a large picture before it is refused here."""
    for kind in (UserWarning, Image.DecompressionBombWarning):
        warnings.filterwarnings("ignore", category=kind, module=r"PIL\.")
    # Without a handler, Python writes what is logged to the terminal.
    logging.getLogger("PIL").addHandler(_NOWHERE)
    # libtiff writes there by itself. Where it is not to be found, as in PIL on Windows, it does so still.
    libtiff = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if hasattr(libtiff, name):
            getattr(libtiff, name)(None)


_NOWHERE = logging.NullHandler()
silence_pil()  # for all threads: Python has no filter of one thread's own


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

    Of an animation it is the first frame. What is transparent lies on white, colors of an embedded profile are
    converted to sRGB, of 16 bits the upper 8 are kept where they are in use, and more pixels than PIL's
    `MAX_IMAGE_PIXELS` are refused.
    """
    content = b""
    try:
        content = place.read()
        plain, profile = containers.bare(content)
        with Image.open(BytesIO(plain), formats=_formats()) as image:
            # From here to twice as many PIL itself only warns.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}×{image.height}")
            tiles, drawn = list(getattr(image, "tile", ())), _drawn(image)
            _refuse_misread(image, plain, tiles)
            stored = _orientation(image)
            image.load()
            profile = profile or image.info.get("icc_profile")
            upright = _rgb(_of_16_bits(image, plain, tiles), profile)
            if drawn is not None:
                inner, upright = upright.crop(drawn), Image.new("RGB", image.size, _WHITE)
                upright.paste(inner, drawn[:2])
            if stored in _UPRIGHT and image.format != "TIFF":  # that PIL turns as it loads it
                upright = upright.transpose(_UPRIGHT[stored])
            return Picture(upright, image.mode, stored in _UPRIGHT)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{path}: expected an image of at most {Image.MAX_IMAGE_PIXELS:,} pixels, found more ({error}); "
            "scale it down, or take its entry out"
        ) from error
    except InputError:  # of the file that the image is in
        raise
    except containers.Broken as error:
        raise InputError(f"{path}: expected {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: expected a whole image, found {_what_instead(content)}") from error
    except Exception as error:  # on broken bytes PIL's decoders raise nearly anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: expected a whole image, found {reason}; replace the file") from error


@lru_cache(1)
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this PIL can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _what_instead(content: bytes) -> str:
    kind = kinds.kind_of(content[: kinds.HEAD])
    if kind == kinds.LFS_POINTER:
        return f"{kind} in its place; fetch the file itself with git lfs pull"
    if kind in ("HEIC", "AVIF", "JPEG XL", "SVG", "PDF", "PostScript"):
        return f"{kind}, which Pillow does not read here; convert it to JPEG or PNG"
    return f"{kind or _broken(content) or 'no kind of image'}; replace the file"


def _broken(content: bytes) -> str | None:
    """What a file begins like, of those that PIL reads."""
    accepted = ((name, Image.OPEN[name][1]) for name in _formats())
    return next((f"a broken {name}" for name, accepts in accepted if accepts and accepts(content[:16]) is True), None)


def _refuse_misread(image: Image.Image, content: bytes, tiles: list[Any]) -> None:
    """Raise Broken where PIL would guess what a broken file lacks, or take values for others."""
    if image.format == "GIF" and not _is_in_blocks(content):
        raise containers.Broken("a whole image, found bytes between the blocks of a GIF; replace the file")
    if image.format != "TIFF":
        return
    tags = getattr(image, "tag_v2", {})
    if _PHOTOMETRIC not in tags:
        raise containers.Broken("a whole image, found a TIFF that does not say what its values mean; replace the file")
    if _is_in_planes(image) and len(_rawmode(tiles)) == 1 and max(tags[_BITS]) > 8:
        raise containers.Broken(
            "pixels of all colors, found a TIFF of 16 bits in a plane for each; save it with 8 bits"
        )


def _is_in_blocks(content: bytes) -> bool:
    """Whether only whole extensions are before the first frame of a GIF."""
    palette = 3 << (content[10] & 7) + 1 if content[10] & 0x80 else 0
    at = 13 + palette
    while content[at : at + 1] == b"!":
        at += 2
        while at < len(content) and content[at]:
            at += content[at] + 1
        at += 1
    return content[at : at + 1] == b","


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG":  # whose EXIF may follow the pixels: what is wrong with those is told here, and once
        image.load()
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF, of which PIL's parser raises nearly anything, says nothing of a whole picture
        return 1


def _drawn(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The part of a GIF that its first frame draws, where that is not all of it: PIL fills the rest with any color."""
    tiles = getattr(image, "tile", ()) if image.format == "GIF" else ()
    if not tiles:
        return None
    part: tuple[int, int, int, int] = tiles[0][1]
    return part if part != (0, 0, *image.size) else None


def _rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture on white, in sRGB."""
    if image.mode.startswith(("I", "F")):
        image = _in_8_bits(image)
    elif "transparency" in image.info and image.mode in ("1", "L", "P", "RGB"):
        image = image.convert("RGBA")
    elif image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    elif image.mode == "PA":
        image = image.convert("RGBA")
    opacity = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colors = _in_srgb(image, profile)
    if opacity is None:
        return colors
    page = Image.new("RGB", image.size, _WHITE)
    page.paste(colors, mask=opacity)
    return page


def _of_16_bits(image: Image.Image, content: bytes, tiles: list[Any]) -> Image.Image:
    """A loaded picture, of whose 16 bits PIL keeps the upper 8, with the lower ones where only those are in use."""
    rawmode, hidden = _rawmode(tiles), _hides_its_lower_bits(image, content, tiles)
    if not (hidden or ";16" in rawmode) or image.mode.startswith("I"):
        return image
    upper = dict(zip(image.getbands(), image.split(), strict=True))
    colors = [name for name in upper if name != "A"]
    if hidden and _highest(upper, colors) <= 1:
        raise containers.Broken("colors, found 16 bits of which no more than the lower 8 are in use; save it with 8")
    if hidden:
        return image
    unused = {name for group in (colors, ["A"]) if _highest(upper, group) == 0 for name in group}
    key = image.info.get("transparency")
    if not unused and key is None:
        return image
    lower = _lower(content, rawmode)
    bands = upper | {name: lower[name] for name in unused & lower.keys()}
    if key is not None:
        values = [np.asarray(upper[name], np.uint16) * 256 + np.asarray(lower[name]) for name in "RGB"]
        is_key = (np.stack(values, -1) == key).all(-1)
        bands["A"] = Image.fromarray(np.where(is_key, 0, 255).astype(np.uint8))
    return Image.merge("RGBA" if "A" in bands else image.mode, list(bands.values()))


def _lower(content: bytes, rawmode: str) -> dict[str, Image.Image]:
    """The lower 8 of 16 bits by band, which are the upper ones in the other order of bytes."""
    with Image.open(BytesIO(content), formats=_formats()) as image:
        seen: Any = image  # its list of tiles is of a type that PIL does not export
        if rawmode == _GRAY_AND_ALPHA:  # of which PIL knows one order only
            seen.tile = [_unpacked_as(tile, "RGBA") for tile in seen.tile]
        else:
            other = rawmode[:-1] + _OTHER_ORDER[rawmode[-1]]
            seen.tile = [_unpacked_as(tile, other) for tile in seen.tile]
        bands = dict(zip(image.getbands(), image.split(), strict=True))
    return dict.fromkeys("RGB", bands["G"]) | {"A": bands["A"]} if rawmode == _GRAY_AND_ALPHA else bands


_GRAY_AND_ALPHA = "LA;16B"
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def _unpacked_as(tile: Any, rawmode: str) -> Any:
    args = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _hides_its_lower_bits(image: Image.Image, content: bytes, tiles: list[Any]) -> bool:
    """Whether PIL cannot give the lower 8 of its 16 bits."""
    if image.format == "PPM":
        return bool(tiles) and tiles[0][0].startswith("ppm") and tiles[0][3][-1] == 2**16 - 1
    if image.format == "JPEG2000":
        size = content.find(b"\xff\x4f\xff\x51")
        return size >= 0 and content[size + 42 : size + 43] in (b"\x0f", b"\x8f")  # bits less one, and a sign
    return image.format == "TIFF" and _is_in_planes(image) and ";16" in _rawmode(tiles)


def _is_in_planes(image: Image.Image) -> bool:
    return bool(getattr(image, "tag_v2", {}).get(_PLANES) == 2)


def _rawmode(tiles: list[Any]) -> str:
    """How PIL unpacks a picture."""
    args = tiles[0][3] if tiles else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _highest(bands: dict[str, Image.Image], names: list[str]) -> int:
    return max((int(np.asarray(bands[name]).max()) for name in names if name in bands), default=1)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Gray of integers or floats as bytes, in mode L, or LA where a gray value stands for transparency."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        gray = _of_floats(values)
    else:
        # Twelve bits are told by a TIFF only; other formats are scaled to 16 as they are read.
        bits = tags.get(_BITS, (16,))[0] if image.mode.startswith("I;16") else 16
        gray = _of_integers(values, bits)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which PIL minds in 8 bits only
        gray = 255 - gray
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return Image.fromarray(gray)
    return Image.merge(
        "LA", [Image.fromarray(part) for part in (gray, np.where(values == key, 0, 255).astype(np.uint8))]
    )


_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284
"""Tags of TIFF."""


def _of_integers(values: np.ndarray, bits: int) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 2**16:
        raise containers.Broken(f"gray values in 0 … 65,535, found {low:,} … {high:,}; save it with 8 bits")
    # Bytes saved as if they were 16 bits: as such they would all be black.
    shift = 0 if bits == 16 and high < 256 else bits - 8
    return (values >> shift).astype(np.uint8)


def _of_floats(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 255:
        raise containers.Broken(f"floats in 0 … 1 or 0 … 255, found {low:g} … {high:g}; save it with 8 bits")
    gray: np.ndarray = np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)
    return gray


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture's colors, without its alpha."""
    if image.mode == "LAB":
        return _transformed(image, _of_lab())
    base = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    colors = image.convert(base)
    transform = _to_srgb(profile, base) if profile else None
    if transform is None and profile and base == "L":  # a gray picture may have the profile of an RGB one
        colors = colors.convert("RGB")
        transform = _to_srgb(profile, "RGB")
    if transform is not None:
        return _transformed(colors, transform)
    return colors if colors.mode == "RGB" else colors.convert("RGB")


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    out = ImageCms.applyTransform(image, transform)
    assert out is not None  # not in place
    return out


@lru_cache(32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None for sRGB itself, and for a profile that is broken or of another mode: such pictures are seen without it."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 17 if mode == "RGB" else 1, dtype=np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 1, 3) if mode == "RGB" else levels[None]
    before = Image.fromarray(probe)
    moved = np.abs(np.asarray(before.convert("RGB"), int) - np.asarray(_transformed(before, transform), int))
    return transform if moved.max() > _ROUNDING else None


_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Color space of a profile, by mode."""
_ROUNDING = 2
"""Levels by which profiles of sRGB, of which there are many, differ from each other."""


@lru_cache(1)
def _of_lab() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
