"""Image files as upright RGB pictures in sRGB, whatever their color mode, depth, profile and orientation."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

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
    converted to sRGB, of 16 bits the upper 8 are kept, and more than PIL's `MAX_IMAGE_PIXELS` are refused.
    """
    content = b""
    try:
        content = place.read()
        plain, profile = _without_long_texts(content)
        with Image.open(BytesIO(plain), formats=_formats()) as image:
            # From here to twice as many PIL itself only warns.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}×{image.height}")
            _refuse_incomplete(image, content)
            stored, drawn = _orientation(image), _drawn(image)
            image.load()
            upright = _rgb(image, profile or image.info.get("icc_profile"))
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
    except _Unreadable as error:
        raise InputError(f"{path}: expected {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: expected a whole image, found {_what_instead(content)}") from error
    except Exception as error:  # on broken bytes PIL's decoders raise nearly anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: expected a whole image, found {reason}; replace the file") from error


class _Unreadable(Exception):
    """What was expected and found, and what to do."""


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
    return f"{kind or 'no kind of image'}; replace the file"


def _refuse_incomplete(image: Image.Image, content: bytes) -> None:
    """Raise _Unreadable where PIL would guess what a broken file lacks."""
    if image.format == "GIF" and not _is_in_blocks(content):
        raise _Unreadable("a whole image, found bytes between the blocks of a GIF; replace the file")
    if image.format == "TIFF" and _PHOTOMETRIC not in getattr(image, "tag_v2", {}):
        raise _Unreadable("a whole image, found a TIFF that does not say what its values mean; replace the file")


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


_BITS, _PHOTOMETRIC = 258, 262
"""Tags of TIFF."""


def _of_integers(values: np.ndarray, bits: int) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 2**16:
        raise _Unreadable(f"gray values in 0 … 65,535, found {low:,} … {high:,}; save it with 8 bits")
    # Bytes saved as if they were 16 bits: as such they would all be black.
    shift = 0 if bits == 16 and high < 256 else bits - 8
    return (values >> shift).astype(np.uint8)


def _of_floats(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 255:
        raise _Unreadable(f"floats in 0 … 1 or 0 … 255, found {low:g} … {high:g}; save it with 8 bits")
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


_PNG = b"\x89PNG\r\n\x1a\n"
_LONG_TEXT, _LONGEST_TEXTS, _LONGEST_PROFILE = 2**20, 2**25, 2**26
"""Bytes: of a text and of all that PIL is given, which refuses a picture for more, and of a profile."""


def _without_long_texts(content: bytes) -> tuple[bytes, bytes | None]:
    """A PNG without texts and a profile that are too long for PIL, and that profile; other files as they are."""
    if not content.startswith(_PNG):
        return content, None
    kept: list[bytes | memoryview] = [_PNG]
    profile, texts, at = None, 0, len(_PNG)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        name, body = content[at + 4 : at + 8], content[at + 8 : end - 4]
        if name == b"IDAT" and zlib.crc32(content[at + 4 : end - 4]).to_bytes(4) != content[end - 4 : end]:
            raise _Unreadable("a whole image, found pixels with a wrong checksum; replace the file")
        at, chunk = end, memoryview(content)[at:end]
        if name in (b"tEXt", b"zTXt", b"iTXt"):
            size = max(len(body), len(_inflated(name, body, _LONG_TEXT)))
            texts += min(size, _LONG_TEXT)
            if size >= _LONG_TEXT or texts > _LONGEST_TEXTS:
                continue
        elif name == b"iCCP" and len(whole := _inflated(name, body, _LONGEST_PROFILE)) >= _LONG_TEXT:
            profile = whole
            continue
        kept.append(chunk)
    return (content if sum(map(len, kept)) == len(content) else b"".join(kept)), profile


def _inflated(name: bytes, body: bytes, most: int) -> bytes:
    """What a chunk holds in compressed form, up to `most` bytes; nothing where nothing is."""
    rest = body.partition(b"\0")[2]
    if name == b"iTXt":
        packed = rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
    else:
        packed = rest[1:] if name != b"tEXt" else b""
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        return b""
