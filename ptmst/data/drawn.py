"""Pictures and captions of data sets that are drawn: SVG to pixels on white, and what a thing is called."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

_FREE = 0.05
"""Of a picture's width, left free on each side."""
_FINER = 3
"""SVG are drawn at this many times the size, and averaged down."""
_FAINT = 8
"""Alpha up to which a pixel counts as empty."""


def drawn(svg: str, size: int) -> Image.Image:
    """The drawing of an SVG text on white, whole and centered: RGB of `size` pixels.

    Letters are not drawn: they look as the fonts of a machine do. Raises ValueError where nothing is drawn, or the text
    is no SVG.
    """
    import resvg_py

    try:
        content = resvg_py.svg_to_bytes(svg_string=svg, width=_FINER * size, dpi=96, skip_system_fonts=True)
    except BaseException as error:  # a panic of Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(str(error).partition("\n")[0]) from None
    return on_white(Image.open(io.BytesIO(bytes(content))), size)


def on_white(picture: Image.Image, size: int) -> Image.Image:
    """What is seen of a picture, centered on a white square of `size` pixels. Raises ValueError where nothing is."""
    picture = picture.convert("RGBA")
    seen = picture.getchannel("A").point(lambda alpha: 255 * (alpha > _FAINT)).getbbox()
    if seen is None:
        raise ValueError("nothing is drawn")
    picture = picture.crop(seen)
    scale = round(size * (1 - 2 * _FREE)) / max(picture.size)
    fitted = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
    )
    page = Image.new("RGBA", (size, size), "white")
    page.alpha_composite(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    return page.convert("RGB")


def is_plain(picture: Image.Image) -> bool:
    """Whether a picture is of one color."""
    return picture.getcolors(1) is not None


def alike(images: Sequence[bytes], above: float) -> list[tuple[int, int]]:
    """Pairs of pictures, by number, that correlate more than that, small and gray: one drawing in other colors, say."""
    seen = np.stack([_gray(image) for image in images])
    return [(one, other) for one, other in np.argwhere(np.triu(seen @ seen.T, 1) > above).tolist()]


def _gray(content: bytes) -> np.ndarray:
    """A small gray picture, float32 [256], of which the inner product with another is their correlation."""
    with Image.open(io.BytesIO(content)) as image:
        gray = np.asarray(image.convert("L").resize((16, 16)), np.float32).ravel()
    gray = gray - gray.mean()
    return np.asarray(gray / max(float(np.linalg.norm(gray)), 1e-6))


def words(text: str) -> str:
    """A keyword as one would say it."""
    return re.sub(r"\s+", " ", text.replace("_", " ")).strip(" .,;")


def different(captions: Iterable[str]) -> list[str]:
    """Those captions that say something, each set of words once."""
    kept: dict[frozenset[str], str] = {}
    for caption in captions:
        said = frozenset(re.findall(r"\w+", caption.lower()))
        if said:
            kept.setdefault(said, caption)
    return list(kept.values())


def dealt(groups: Iterable[str], val: float, test: float, seed: int = 0) -> Mapping[str, str]:
    """The split of each group: shares `val` and `test` of them, the rest is for training."""
    order = sorted(set(groups))
    random.Random(seed).shuffle(order)
    for_test, for_both = round(len(order) * test), round(len(order) * (val + test))
    return {
        group: "test" if number < for_test else "val" if number < for_both else "train"
        for number, group in enumerate(order)
    }
