"""Pictures of every kind against numbers by hand: what they are seen as, or what is told about them."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, features

from oracles import UPRIGHT
from ptmst.data.images import Picture, decode, silence_pil
from ptmst.errors import InputError

DRAW = np.random.default_rng(0)
COLORS = DRAW.integers(0, 256, (6, 5, 3), dtype=np.uint8)
GRAY = COLORS[..., 0]
ALPHA = np.array([0, 64, 128, 255, 200], np.uint8)[None].repeat(6, 0)
PATH = Path("folder/x.picture")


@pytest.fixture(autouse=True)
def as_in_the_program() -> None:
    """pytest replaces the filters of warnings."""
    silence_pil()


class Bytes(NamedTuple):
    """An image that is in no file."""

    content: bytes
    file: Path = PATH
    files: tuple[Path, ...] = (PATH,)

    def read(self) -> bytes:
        return self.content


def look(content: bytes) -> Picture:
    return decode(Bytes(content), PATH)


def seen(content: bytes) -> np.ndarray:
    """uint8 [H, W, 3]."""
    picture = look(content)
    assert picture.upright.mode == "RGB"
    return np.asarray(picture.upright)


def saved(image: Image.Image | np.ndarray, form: str, **how: Any) -> bytes:
    buffer = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, form, **how)
    return buffer.getvalue()


def thrice(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, -1)


def on_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colors * share + 255 * (1 - share)


def png(depth: int, kind: int, rows: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by the letter: rows of samples as they lie in the file, and chunks before them."""
    height, width = rows.shape[:2]
    raw = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def tiff(bits: int, photometric: int, row_bytes: list[bytes], width: int, sample_format: int = 1) -> bytes:
    """A gray TIFF by the letter, little-endian and in one strip."""
    body = b"".join(row_bytes)
    entries = [
        (256, 3, width),
        (257, 3, len(row_bytes)),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, len(row_bytes)),
        (279, 4, len(body)),
        (339, 3, sample_format),
    ]
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + struct.pack("<H", len(entries)) + table + bytes(4)


# Depth


DEEP = DRAW.integers(0, 2**16, (6, 5), dtype=np.uint16)
DEEP_COLORS = DRAW.integers(0, 2**16, (6, 5, 3), dtype=np.uint16)
DEEP_ALPHA = ALPHA.astype(np.uint16) * 257
TWELVE = np.arange(0, 4080, 136, dtype=np.uint16).reshape(6, 5)[:, :4]


def packed_12(row: np.ndarray) -> bytes:
    """Pairs of twelve bits in three bytes."""
    return b"".join((int(a) << 12 | int(b)).to_bytes(3, "big") for a, b in row.reshape(-1, 2))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(saved((GRAY / 255).astype(np.float32), "TIFF"), GRAY, id="TIFF-F-0..1"),
        pytest.param(saved(GRAY.astype(np.float32), "TIFF"), GRAY, id="TIFF-F-0..255"),
        pytest.param(saved(GRAY.astype(np.int32), "TIFF"), GRAY, id="TIFF-I-0..255"),
        pytest.param(saved(DEEP.astype(np.int32), "TIFF"), DEEP // 256, id="TIFF-I-0..65535"),
        pytest.param(saved(DEEP, "TIFF"), DEEP // 256, id="TIFF-16"),
        pytest.param(saved(DEEP, "PNG"), DEEP // 256, id="PNG-16"),
        pytest.param(saved(GRAY.astype(np.uint16), "PNG"), GRAY, id="PNG-16-of-bytes"),
        pytest.param(saved(DEEP, "JPEG2000"), DEEP // 256, id="JPEG2000-16"),
        pytest.param(png(16, 0, DEEP), DEEP // 256, id="PNG-16-by-the-letter"),
        pytest.param(tiff(16, 0, [row.tobytes() for row in 65535 - DEEP], 5), DEEP // 256, id="TIFF-16-white-is-0"),
        pytest.param(tiff(8, 0, [(255 - row).tobytes() for row in GRAY], 5), GRAY, id="TIFF-8-white-is-0"),
        pytest.param(tiff(12, 1, [packed_12(row) for row in TWELVE], 4), TWELVE // 16, id="TIFF-12"),
        pytest.param(b"P5 5 6 1023\n" + (DEEP // 64).astype(">u2").tobytes(), DEEP // 256, id="PGM-10-bits"),
    ],
)
def test_gray_of_any_depth(content: bytes, expected: np.ndarray) -> None:
    assert np.abs(seen(content).astype(int) - thrice(expected)).max() <= ("P5" in str(content[:2])), content[:4]


def colors_tiff(values: np.ndarray, planes: bool = False, packed: bool = False, order: str = "<") -> bytes:
    """A TIFF of 16-bit RGB or RGBA by the letter: a strip, or one for each color."""
    height, width, count = values.shape
    parts = [values[..., i] for i in range(count)] if planes else [values]
    strips = [part.astype(f"{order}u2").tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    starts = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    body, long = b"".join(strips), b""

    def several(kind: str, *numbers: int) -> int:
        nonlocal long
        if len(numbers) == 1:
            return numbers[0]
        where = 8 + len(body) + len(long)
        long += struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        return where

    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, count, several("H", *[16] * count)),
        (259, 4, 1, 8 if packed else 1),
        (262, 4, 1, 2),
        (273, 4, len(strips), several("I", *starts)),
        (277, 4, 1, count),
        (278, 4, 1, height),
        (279, 4, len(strips), several("I", *map(len, strips))),
        (284, 4, 1, 2 if planes else 1),
        *([(338, 4, 1, 2)] if count == 4 else []),
    ]
    table = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(body) + len(long))
    return head + body + long + struct.pack(f"{order}H", len(entries)) + table + bytes(4)


def jpeg2000(values: np.ndarray) -> bytes:
    """Each pixel as a square, since OpenCV writes no small pictures."""
    return cv2.imencode(".jp2", values[..., ::-1].repeat(16, 0).repeat(16, 1))[1].tobytes()


WRITERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "PNG": lambda values: png(16, {2: 4, 3: 2, 4: 6}[values.shape[2]], values),
    "TIFF": colors_tiff,
    "TIFF-packed": lambda values: colors_tiff(values, packed=True),
    "TIFF-other-order": lambda values: colors_tiff(values, order=">"),
    "TIFF-other-order-packed": lambda values: colors_tiff(values, order=">", packed=True),
}
"""Of colors, with alpha or without."""


@pytest.mark.parametrize("form", WRITERS)
def test_colors_of_16_bits(form: str) -> None:
    assert np.array_equal(seen(WRITERS[form](DEEP_COLORS)), DEEP_COLORS // 256)


@pytest.mark.parametrize("form", WRITERS)
def test_colors_of_16_bits_whose_upper_8_are_not_in_use(form: str) -> None:
    """As a program leaves them that widens bytes; alpha by itself, which is often full."""
    bytes_in = COLORS.astype(np.uint16)
    assert np.array_equal(seen(WRITERS[form](bytes_in)), COLORS)
    for colors, alpha in ((bytes_in, DEEP_ALPHA), (bytes_in, DEEP_ALPHA // 257), (DEEP_COLORS, DEEP_ALPHA // 257)):
        expected = on_white(COLORS if colors is bytes_in else DEEP_COLORS // 256, ALPHA)
        assert np.abs(seen(WRITERS[form](np.dstack([colors, alpha]))) - expected).max() <= 1
    one = bytes_in.copy()
    one[2, 2, 1] = 256
    assert np.array_equal(seen(WRITERS[form](one)), one // 256)
    assert np.array_equal(seen(WRITERS[form](bytes_in * 0)), COLORS * 0)


def test_gray_and_alpha_of_16_bits_whose_upper_8_are_not_in_use() -> None:
    expected = on_white(thrice(GRAY), ALPHA)
    for alpha in (DEEP_ALPHA, DEEP_ALPHA // 257):
        assert np.abs(seen(png(16, 4, np.dstack([GRAY.astype(np.uint16), alpha]))) - expected).max() <= 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"P6 5 6 65535\n" + COLORS.astype(">u2").tobytes(), id="PPM"),
        pytest.param(b"P3 5 6 65535\n" + " ".join(map(str, COLORS.ravel())).encode(), id="PPM-plain"),
        pytest.param(colors_tiff(COLORS.astype(np.uint16), planes=True, packed=True), id="TIFF-in-planes"),
        pytest.param(jpeg2000(COLORS.astype(np.uint16)), id="JPEG2000"),
    ],
)
def test_colors_whose_lower_8_bits_cannot_be_had_are_refused(content: bytes) -> None:
    with pytest.raises(InputError, match=f"^{PATH}: expected colors, found 16 bits of which no more than the lower 8"):
        look(content)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"P6 5 6 65535\n" + DEEP_COLORS.astype(">u2").tobytes(), id="PPM"),
        pytest.param(colors_tiff(DEEP_COLORS, planes=True, packed=True), id="TIFF-in-planes"),
        pytest.param(jpeg2000(DEEP_COLORS), id="JPEG2000"),
    ],
)
def test_colors_of_16_bits_are_read_where_the_upper_8_are_in_use(content: bytes) -> None:
    found = seen(content).astype(int)
    assert np.abs(found[:: len(found) // 6, :: len(found) // 6] - DEEP_COLORS // 256).max() <= 1


def test_a_plain_tiff_in_planes_of_16_bits_is_refused() -> None:
    """PIL takes its bytes for values of 8 bits."""
    with pytest.raises(InputError, match=f"^{PATH}: expected pixels of all colors, found a TIFF of 16 bits in a plane"):
        look(colors_tiff(DEEP_COLORS, planes=True))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([[0, 70_000]], np.int32), "gray values in 0 … 65,535, found 0 … 70,000"),
        (np.array([[-3, 9]], np.int32), "gray values in 0 … 65,535, found -3 … 9"),
        (np.array([[0, 300]], np.float32), "floats in 0 … 1 or 0 … 255, found 0 … 300"),
        (np.array([[-0.5, 1]], np.float32), "floats in 0 … 1 or 0 … 255, found -0.5 … 1"),
        (np.array([[np.nan, 1]], np.float32), "floats in 0 … 1 or 0 … 255, found nan … nan"),
    ],
)
def test_values_that_are_no_gray_are_refused(values: np.ndarray, found: str) -> None:
    with pytest.raises(InputError, match=f"^{PATH}: expected {found}; save it with 8 bits$"):
        look(saved(values, "TIFF"))


# Transparency


def palette_image(transparency: int | bytes) -> bytes:
    image = Image.fromarray(GRAY % 16, mode="P")
    image.putpalette(COLORS.reshape(-1, 3)[:16].tobytes())
    return saved(image, "PNG", transparency=transparency)


IN_PALETTE = COLORS.reshape(-1, 3)[:16][GRAY % 16]
SHARES = bytes(range(0, 256, 16))
WHITE_TEXT = np.where(GRAY[..., None] > 127, 255, 0).astype(np.uint8).repeat(3, -1)


NEAR = (0x4200 + np.arange(6, dtype=np.uint16))[:, None, None].repeat(5, 1).repeat(3, 2)
"""Rows of one color that differ in their lower 8 bits."""


@pytest.mark.parametrize(
    ("content", "colors", "alpha"),
    [
        pytest.param(saved(np.dstack([COLORS, ALPHA]), "PNG"), COLORS, ALPHA, id="PNG-RGBA"),
        pytest.param(saved(np.dstack([COLORS, ALPHA]), "TIFF"), COLORS, ALPHA, id="TIFF-RGBA"),
        pytest.param(
            saved(np.dstack([COLORS, ALPHA]), "WEBP", lossless=True, exact=True), COLORS, ALPHA, id="WEBP-RGBA"
        ),
        pytest.param(saved(np.dstack([COLORS, ALPHA]), "JPEG2000"), COLORS, ALPHA, id="JPEG2000-RGBA"),
        pytest.param(saved(np.dstack([GRAY, ALPHA]), "PNG"), thrice(GRAY), ALPHA, id="PNG-LA"),
        pytest.param(
            png(16, 4, np.dstack([DEEP, ALPHA.astype(np.uint16) * 257])), thrice(DEEP // 256), ALPHA, id="PNG-LA-16"
        ),
        pytest.param(
            png(16, 6, np.dstack([DEEP_COLORS, ALPHA.astype(np.uint16) * 257])),
            DEEP_COLORS // 256,
            ALPHA,
            id="PNG-RGBA-16",
        ),
        pytest.param(palette_image(3), IN_PALETTE, np.where(GRAY % 16 == 3, 0, 255), id="PNG-P-one"),
        pytest.param(palette_image(SHARES), IN_PALETTE, GRAY % 16 * 16, id="PNG-P-shares"),
        pytest.param(
            png(8, 0, GRAY, (b"tRNS", struct.pack(">H", GRAY[1, 1]))),
            thrice(GRAY),
            np.where(GRAY[1, 1] == GRAY, 0, 255),
            id="PNG-L-key",
        ),
        pytest.param(
            png(16, 0, DEEP, (b"tRNS", struct.pack(">H", DEEP[1, 1]))),
            thrice(DEEP // 256),
            np.where(DEEP[1, 1] == DEEP, 0, 255),
            id="PNG-16-key",
        ),
        pytest.param(
            png(8, 2, COLORS, (b"tRNS", struct.pack(">HHH", *COLORS[1, 1]))),
            COLORS,
            np.where((COLORS[1, 1] == COLORS).all(-1), 0, 255),
            id="PNG-RGB-key",
        ),
        pytest.param(
            png(16, 2, DEEP_COLORS, (b"tRNS", struct.pack(">HHH", *DEEP_COLORS[1, 1]))),
            DEEP_COLORS // 256,
            np.where((DEEP_COLORS[1, 1] == DEEP_COLORS).all(-1), 0, 255),
            id="PNG-RGB-16-key",
        ),
        pytest.param(
            png(16, 2, NEAR, (b"tRNS", struct.pack(">HHH", *NEAR[1, 1]))),
            NEAR // 256,
            np.where(np.arange(6)[:, None] == 1, 0, 255).repeat(5, 1),
            id="PNG-RGB-16-key-in-its-lower-bits",
        ),
        pytest.param(
            saved(np.dstack([WHITE_TEXT, 255 - WHITE_TEXT[..., 0]]), "PNG"),
            np.full_like(COLORS, 0),
            255 - WHITE_TEXT[..., 0],
            id="PNG-text-on-nothing",
        ),
    ],
)
def test_what_is_transparent_lies_on_white(content: bytes, colors: np.ndarray, alpha: np.ndarray) -> None:
    assert np.abs(seen(content) - on_white(colors, alpha)).max() <= 1
    opaque = seen(content)[alpha == 255]
    assert np.array_equal(opaque, colors[alpha == 255])


def test_a_palette_with_alpha() -> None:
    image = Image.fromarray(GRAY % 16, mode="P")
    image.putpalette(COLORS.reshape(-1, 3)[:16].tobytes())
    both = Image.merge("LA", [Image.fromarray(GRAY % 16), Image.fromarray(ALPHA)])
    rgba = image.convert("RGBA")
    rgba.putalpha(both.getchannel("A"))
    pa = image.convert("PA")
    pa.putalpha(both.getchannel("A"))
    assert np.abs(seen(saved(pa, "TIFF")) - on_white(IN_PALETTE, ALPHA)).max() <= 1


# Frames


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_seen(form: str) -> None:
    first, *others = (Image.new("RGB", (4, 3), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    how = {"lossless": True} if form == "WEBP" else {}
    content = saved(first, form, save_all=True, append_images=others, **how)
    assert np.array_equal(seen(content), np.asarray(first))


def test_where_a_gif_draws_nothing_it_is_white() -> None:
    """Its first frame fills a corner of it."""
    content = bytearray(saved(Image.new("P", (4, 3), 1), "GIF"))
    colors = Image.open(BytesIO(content)).convert("RGB").getpixel((0, 0))
    content[6:10] = struct.pack("<HH", 7, 5)  # the screen
    expected = np.full((5, 7, 3), 255)
    expected[:3, :4] = colors
    assert np.array_equal(seen(bytes(content)), expected)


# Print, and profiles


INK = DRAW.integers(0, 256, (16, 16, 4), dtype=np.uint8)


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_ink(form: str) -> None:
    """JPEG as Photoshop writes it: with Adobe's marker, and inverted."""
    content = saved(Image.fromarray(INK, mode="CMYK"), form, **({"quality": 100} if form == "JPEG" else {}))
    if form == "JPEG":
        assert b"Adobe" in content[:400]
    expected = (255 - INK[..., :3].astype(float)) * (255 - INK[..., 3:]) / 255
    assert np.abs(seen(content) - expected).max() <= (1 if form == "TIFF" else 12)
    assert look(content).mode == "CMYK"


TO_D50 = {
    "sRGB": [[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]],
    "AdobeRGB": [[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]],
    "DisplayP3": [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]],
}
"""Columns: red, green and blue as XYZ under D50 (as ICC profiles of these spaces have them)."""
GAMMA = 2.2


def profile_of(space: str, gamma: float = GAMMA, padding: int = 0) -> bytes:
    """An ICC profile by the letter (ICC.1:2001): a matrix and one gamma."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    columns = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), np.array(TO_D50[space]).T, strict=True))
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    blocks = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"wide\0" + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + b"".join(map(fixed, (0.9642, 1.0, 0.8249))),
        **{tag: b"XYZ " + bytes(4) + b"".join(map(fixed, column)) for tag, column in columns.items()},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
        b"cprt": b"text" + bytes(4) + b"none\0" + bytes(3),
    }
    if padding:
        blocks[b"junk"] = b"text" + bytes(4) + DRAW.integers(32, 127, padding, dtype=np.uint8).tobytes()
    table, body, at = b"", b"", 128 + 4 + 12 * len(blocks)
    for tag, block in blocks.items():
        table += tag + struct.pack(">II", at + len(body), len(block))
        body += block + bytes(-len(block) % 4)
    size = at + len(body)
    header = struct.pack(">I4sI4s4s4s12s4s", size, b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp")
    header += bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249))) + bytes(48)
    return header + struct.pack(">I", len(blocks)) + table + body


def in_srgb(colors: np.ndarray, space: str) -> np.ndarray:
    linear = (colors / 255) ** (round(GAMMA * 256) / 256) @ np.array(TO_D50[space]).T @ np.linalg.inv(TO_D50["sRGB"]).T
    linear = linear.clip(0, 1)
    levels: np.ndarray = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return levels


@pytest.mark.parametrize("space", ["AdobeRGB", "DisplayP3"])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_a_wide_gamut_is_converted(space: str, form: str) -> None:
    how = {"lossless": True} if form == "WEBP" else {}
    content = saved(COLORS, form, icc_profile=profile_of(space), **how)
    expected = in_srgb(COLORS, space)
    assert np.abs(seen(content) - expected).max() <= 2
    assert np.abs(expected - COLORS).max() > 20  # one that shows
    transparent = saved(np.dstack([COLORS, ALPHA]), "PNG", icc_profile=profile_of(space))
    assert np.abs(seen(transparent) - on_white(expected, ALPHA)).max() <= 2


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("profile", [srgb_profile(), b"no profile", profile_of("AdobeRGB")[:200], b""])
def test_srgb_and_what_is_no_profile_change_no_bit(profile: bytes) -> None:
    for image in (COLORS, GRAY):
        assert np.array_equal(seen(saved(image, "PNG", icc_profile=profile)), seen(saved(image, "PNG")))


def test_a_gray_picture_with_a_profile_of_colors() -> None:
    found = seen(saved(GRAY, "TIFF", icc_profile=profile_of("AdobeRGB", GAMMA)))
    assert np.abs(found - in_srgb(thrice(GRAY), "AdobeRGB")).max() <= 2


def test_lab() -> None:
    """White, black, and a gray of L* = 50, whose luminance is 0.184."""
    lab = np.array([[[255, 128, 128], [0, 128, 128], [128, 128, 128]]], np.uint8)
    image = Image.merge("LAB", [Image.fromarray(lab[..., i]) for i in range(3)])
    found = seen(saved(image, "TIFF"))[0]
    assert np.abs(found - np.array([[255] * 3, [0] * 3, [119] * 3])).max() <= 2


# What is around a picture


def text_png(**chunks: bytes) -> bytes:
    return png(8, 2, COLORS, *((name.encode(), body) for name, body in chunks.items()))


def missummed(content: bytes, name: str) -> bytes:
    """A PNG in which the checksum of a chunk is wrong."""
    start = content.index(name.encode())
    end = start + 4 + int.from_bytes(content[start - 4 : start])
    return content[:end] + bytes([content[end] ^ 1]) + content[end + 1 :]


MEGABYTES = DRAW.integers(32, 127, 3_000_000, dtype=np.uint8).tobytes()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(text_png(tEXt=b"Comment\0" + MEGABYTES), id="tEXt"),
        pytest.param(text_png(zTXt=b"Comment\0\0" + zlib.compress(MEGABYTES)), id="zTXt"),
        pytest.param(text_png(zTXt=b"Comment\0\0" + zlib.compress(bytes(30_000_000))), id="zTXt-bomb"),
        pytest.param(text_png(iTXt=b"Comment\0\1\0de\0\0" + zlib.compress(MEGABYTES)), id="iTXt"),
        pytest.param(text_png(iTXt=b"Comment\0\0\0\0\0" + MEGABYTES), id="iTXt-plain"),
        pytest.param(text_png(iCCP=b"p\0\0" + zlib.compress(MEGABYTES)), id="iCCP-no-profile"),
        pytest.param(text_png(iCCP=b"p\0\0no zlib"), id="iCCP-no-zlib"),
        pytest.param(text_png(zTXt=b"Comment"), id="zTXt-cut"),
        pytest.param(png(8, 2, COLORS, *[(b"tEXt", b"Comment\0" + MEGABYTES[:900_000])] * 80), id="many-texts"),
        pytest.param(saved(COLORS, "PNG", exif=b"Exif\0\0nothing like it"), id="broken-EXIF"),
        pytest.param(saved(COLORS, "WEBP", lossless=True, exif=b"II*\0\xff\xff\xff\xff"), id="broken-EXIF-WEBP"),
        *[
            pytest.param(text_png(**{name: body}), id=f"{name}-{len(body)}")
            for name in ("pHYs", "gAMA", "sRGB", "cHRM", "bKGD", "sBIT", "tIME", "acTL", "iTXt", "zTXt", "tEXt", "eXIf")
            for body in (b"", b"\0")
        ],
        pytest.param(text_png(iCCP=b""), id="iCCP-empty"),
        pytest.param(text_png(iCCP=b"icc\0\3" + zlib.compress(b"x")), id="iCCP-method-3"),
        pytest.param(text_png(zTXt=b"a\0\1" + zlib.compress(b"x")), id="zTXt-method-1"),
        pytest.param(text_png(zTXt=b"Raw profile type exif\0\1" + zlib.compress(b"x")), id="zTXt-EXIF-method-1"),
        *[
            pytest.param(missummed(text_png(**{name: b"a\0b"}), name), id=f"{name}-checksum")
            for name in ("tEXt", "zTXt", "iTXt", "eXIf", "iCCP", "abCd", "pHYs")
        ],
        pytest.param(missummed(png(8, 2, COLORS), "IEND"), id="IEND-checksum"),
        pytest.param(png(8, 2, COLORS)[:-12], id="no-IEND"),
        pytest.param(png(8, 2, COLORS) + b"more" * 99, id="more-after-IEND"),
    ],
)
def test_no_picture_is_refused_for_what_is_around_it(content: bytes) -> None:
    assert np.array_equal(seen(content), COLORS)


JPEG = saved(COLORS, "JPEG", quality=95)


def with_segments(*segments: tuple[int, bytes], jpeg: bytes = JPEG) -> bytes:
    """A JPEG with them at its beginning."""
    head = b"".join(bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return jpeg[:2] + head + jpeg[2:]


BESIDE_A_JPEG = [
    pytest.param(with_segments((0xE0, b"JFIF\0")), id="JFIF-short"),
    pytest.param(with_segments((0xE0, b"JFIF\0"), jpeg=JPEG[:2] + JPEG[20:]), id="JFIF-short-alone"),
    pytest.param(with_segments((0xEE, b"Adobe\0")), id="Adobe-short"),
    pytest.param(with_segments((0xEE, b"Adobe")), id="Adobe-nothing"),
    pytest.param(with_segments((0xE2, b"ICC_PROFILE\0")), id="ICC-nothing"),
    pytest.param(with_segments((0xE2, b"ICC_PROFILE\0\1\2xx")), id="ICC-part"),
    pytest.param(with_segments((0xE2, b"MPF\0garbage")), id="MPF"),
    pytest.param(with_segments((0xE2, b"MPF\0II*\0\x08\0\0\0\0\0")), id="MPF-empty"),
    pytest.param(with_segments((0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\xff\xff")), id="Photoshop"),
    pytest.param(with_segments((0xE1, b"Exif\0\0garbage")), id="EXIF"),
    pytest.param(with_segments((0xE1, b"Exif\0\0II*\0\x08\0\0\0\x01")), id="EXIF-cut"),
    pytest.param(with_segments((0xFE, b"")), id="comment-empty"),
    pytest.param(with_segments(*[(0xFE, b"c" * 65533)] * 80), id="comments"),
    pytest.param(JPEG[:2] + b"\xff\xff" + JPEG[2:], id="filled-up"),
]


@pytest.mark.parametrize("content", BESIDE_A_JPEG)
def test_no_jpeg_is_refused_for_what_is_around_it(content: bytes) -> None:
    assert np.array_equal(seen(content), seen(JPEG))
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None and np.array_equal(seen(content), decoded[..., ::-1])


def test_what_a_jpeg_needs_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = with_segments((0xE2, b"MPF\0"), jpeg=saved(COLORS, "JPEG", quality=95, exif=exif))
    assert look(turned).rotated and np.array_equal(seen(turned), np.rot90(seen(JPEG), -1))
    wide = saved(COLORS, "JPEG", quality=95, icc_profile=profile_of("AdobeRGB"))
    assert np.array_equal(seen(with_segments((0xFE, b"c"), jpeg=wide)), seen(wide))
    assert np.abs(seen(wide).astype(int) - seen(JPEG)).max() > 20
    ink = saved(Image.fromarray(INK, mode="CMYK"), "JPEG")
    assert np.array_equal(seen(with_segments((0xED, b"Photoshop"), jpeg=ink)), seen(ink))


@pytest.mark.parametrize("by", ["tEXt", "zTXt", "iTXt", "iTXt-packed", "eXIf"])
def test_the_orientation_of_a_png(by: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    old = f"\nexif\n    {len(raw)}\n{raw.hex()}\n".encode()
    xmp = b'<x tiff:Orientation="6"/>'
    chunk = {
        "tEXt": (b"tEXt", b"Raw profile type exif\0" + old),
        "zTXt": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(old)),
        "iTXt": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "iTXt-packed": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        "eXIf": (b"eXIf", raw.removeprefix(b"Exif\0\0")),
    }[by]
    content = png(8, 2, COLORS, (b"tEXt", b"Comment\0x"), chunk)
    assert look(content).rotated and np.array_equal(seen(content), np.rot90(COLORS, -1))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (missummed(text_png(tRNS=bytes(6)), "tRNS"), "a PNG that is broken where it says what is transparent; save"),
        (text_png(tRNS=b"\0"), "a PNG that is broken where it says what is transparent; save it again"),
        (missummed(text_png(), "IHDR"), "a PNG whose IHDR has a wrong checksum; replace the file"),
        (missummed(palette_image(3), "PLTE"), "a PNG whose PLTE has a wrong checksum; replace the file"),
        (text_png()[:40], "a broken PNG; replace the file"),
        (JPEG[:2] + b"\xff\xc0\0\3\0", "a broken JPEG; replace the file"),
        (b"GIF89a\1", "a broken GIF; replace the file"),
        (b"II*\0", "a broken TIFF; replace the file"),
    ],
)
def test_what_is_broken_is_named(content: bytes, told: str) -> None:
    with pytest.raises(InputError, match=f"^{PATH}: expected a whole image, found {told}"):
        look(content)


@pytest.mark.slow
def test_no_word_of_pil_reaches_the_terminal(tmp_path: Path) -> None:
    contents = [case.values[0] for case in BESIDE_A_JPEG] + [saved(COLORS, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\1")]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}").write_bytes(content)  # type: ignore[arg-type]
    (tmp_path / "large").write_bytes(saved(Image.new("1", (10, 10)), "PNG"))
    (tmp_path / "packed").write_bytes(colors_tiff(DEEP_COLORS, packed=True).replace(b"\x78\x9c", b"\x78\0"))
    (tmp_path / "samples").write_bytes(colors_tiff(np.zeros((2, 2, 9), np.uint16)))
    program = """
import sys
from pathlib import Path
from PIL import Image
from ptmst.data.annotations import ImageBytes
from ptmst.data.images import decode
from ptmst.errors import InputError
for path in Path(sys.argv[1]).iterdir():
    Image.MAX_IMAGE_PIXELS = 60 if path.name == "large" else 1000
    try:
        decode(ImageBytes(path), path)
    except InputError as error:
        print(path.name, error)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr == "", done.stderr
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == ["large", "packed", "samples"]


def test_a_large_profile_is_applied() -> None:
    profile = profile_of("AdobeRGB", padding=3_000_000)
    content = text_png(iCCP=b"p\0\0" + zlib.compress(profile))
    assert np.array_equal(seen(content), seen(saved(COLORS, "PNG", icc_profile=profile_of("AdobeRGB"))))


def test_a_long_text_beside_an_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", MEGABYTES.decode())
    picture = look(saved(COLORS, "PNG", exif=exif, pnginfo=info))
    assert picture.rotated and np.array_equal(np.asarray(picture.upright), np.rot90(COLORS, -1))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9])
def test_orientation(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = look(saved(COLORS, form, exif=exif, **({"lossless": True} if form == "WEBP" else {})))
    expected = UPRIGHT.get(orientation, UPRIGHT[1])(COLORS)
    assert np.array_equal(np.asarray(picture.upright), expected)
    assert picture.rotated == (2 <= orientation <= 8)


# Whole and broken files


def smooth() -> np.ndarray:
    ramp = np.linspace(0, 255, 64)
    return np.stack(
        [np.broadcast_to(ramp, (64, 64)), np.broadcast_to(ramp[:, None], (64, 64)), np.full((64, 64), 90)], -1
    )


@pytest.mark.parametrize(
    ("form", "how"),
    [
        ("JPEG", {"progressive": True, "quality": 95}),
        ("JPEG", {"quality": 95, "subsampling": 2}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95}),
        ("JPEG2000", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("ICO", {"sizes": [(64, 64)]}),
    ],
)
def test_each_form(form: str, how: dict[str, Any]) -> None:
    if form == "AVIF" and "avif" not in features.get_supported():
        pytest.skip("this Pillow reads no AVIF")
    expected = smooth()
    content = saved(expected.round().astype(np.uint8), form, **how)
    assert np.abs(seen(content) - expected).mean() < 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.95, 0.5])
def test_a_file_that_ends_early_is_refused(form: str, share: float) -> None:
    content = saved(DRAW.integers(0, 256, (64, 64, 3), dtype=np.uint8), form)
    with pytest.raises(InputError, match=f"^{PATH}: expected a whole image, found .+; replace the file$"):
        look(content[: int(len(content) * share)])


@pytest.mark.parametrize("summed", [False, True])
def test_a_png_with_damaged_pixels_is_refused(summed: bool) -> None:
    """PIL compares no checksum of theirs. Where that fits, the compression has one of its own."""
    whole = saved(DRAW.integers(0, 256, (5, 4, 3), dtype=np.uint8), "PNG")
    start = whole.index(b"IDAT")
    end = start + 4 + int.from_bytes(whole[start - 4 : start])
    refusals = list[str]()
    for at in range(start + 4, end):
        content = bytearray(whole)
        content[at] ^= 0x10
        if summed:
            content[end : end + 4] = zlib.crc32(content[start:end]).to_bytes(4)
        try:
            assert np.array_equal(seen(bytes(content)), seen(whole))
        except InputError as error:
            refusals.append(str(error))
    assert all(re.fullmatch(f"{PATH}: expected a whole image, found .+; replace the file", told) for told in refusals)
    # A bit that says nothing may change.
    assert len(refusals) >= end - start - 4 - summed


def test_a_gif_with_a_shifted_palette_is_refused() -> None:
    """PIL looks for the next block."""
    whole = saved(DRAW.integers(0, 256, (5, 4), dtype=np.uint8), "GIF", comment=b"," * 300)
    assert len(seen(whole))
    with pytest.raises(InputError, match=f"^{PATH}: expected a whole image, found bytes between the blocks of a GIF"):
        look(whole[:40] + b"x" + whole[40:])


def test_a_tiff_that_does_not_say_whether_zero_is_black_is_refused() -> None:
    whole = saved(DRAW.integers(0, 256, (5, 4), dtype=np.uint8), "TIFF")
    tag = struct.pack("<HH", 262, 3)
    assert whole.count(tag) == 1
    with pytest.raises(InputError, match=f"^{PATH}: expected a whole image, found a TIFF that does not say what its"):
        look(whole.replace(tag, struct.pack("<HH", 261, 3)))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "an empty file; replace the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer in its place; fetch .* lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which Pillow does not read here; convert it to JPEG or PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL, which Pillow does not read here; convert it to JPEG or PNG"),
        (b'<?xml version="1.0"?>\n<svg width="3"/>', "SVG, which Pillow does not read here; convert it to JPEG or PNG"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page; replace the file"),
        (b"PK\x03\x04 a zip", "a zip archive; replace the file"),
        (b"\x1f\x8b\x08 gzip", "a gzip archive; replace the file"),
        (b"just words", "no kind of image; replace the file"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_called_what_it_is(content: bytes, told: str) -> None:
    with pytest.raises(InputError, match=f"^{PATH}: expected a whole image, found {told}$"):
        look(content)


def test_a_picture_of_code_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL gives PostScript to Ghostscript."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr("subprocess.check_call", started)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(InputError, match="found PostScript, which Pillow does not read here; convert it"):
        look(content)
