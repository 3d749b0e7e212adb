"""What is drawn lies on white, whole and centered; captions say each thing once; groups are dealt into shares."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from ptmst.data.drawn import dealt, different, drawn, is_plain, on_white, words

needs_resvg = pytest.mark.skipif(find_spec("resvg_py") is None, reason="needs the extra ptmst[drawings]")
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image, int)


def box(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not white."""
    seen = (pixels(image) < 250).any(2)
    rows, columns = (np.flatnonzero(seen.sum(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@needs_resvg
@pytest.mark.parametrize(
    ("size", "viewbox"),
    [('width="10cm" height="5cm"', "0 0 200 100"), ('width="900" height="450"', "0 0 200 100"), ("", "0 0 200 100")],
)
def test_a_drawing_fills_the_page_but_for_a_margin(size: str, viewbox: str) -> None:
    """Whatever it is measured in, and wherever it is on its own page."""
    svg = f'{HEAD} {size} viewBox="{viewbox}"><rect x="20" y="60" width="40" height="20" fill="#00f"/></svg>'
    image = drawn(svg, 64)
    assert image.size == (64, 64)
    left, top, right, bottom = box(image)
    assert (left, right) == (3, 61) and abs((bottom - top) - 29) <= 1 and abs((top + bottom) / 2 - 32) <= 1
    assert pixels(image)[32, 32].tolist() == [0, 0, 255] and pixels(image)[0, 0].tolist() == [255, 255, 255]


@needs_resvg
def test_a_tall_drawing_is_whole() -> None:
    image = drawn(f'{HEAD} viewBox="0 0 10 100"><rect width="10" height="100" fill="red"/></svg>', 64)
    left, top, right, bottom = box(image)
    assert (top, bottom) == (3, 61) and right - left == 6


@needs_resvg
@pytest.mark.parametrize("svg", ["", "no svg", f"{HEAD}/>", f'{HEAD} width="9" height="9"><rect/></svg>'])
def test_what_draws_nothing_is_told(svg: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        drawn(svg, 64)


@needs_resvg
def test_letters_do_not_depend_on_the_machine() -> None:
    square = '<rect width="4" height="4"/>'
    text = f'{HEAD} viewBox="0 0 100 100">{square}<text x="50" y="50" font-size="40">letters</text></svg>'
    assert drawn(text, 32).tobytes() == drawn(f'{HEAD} viewBox="0 0 100 100">{square}</svg>', 32).tobytes()


def test_what_cannot_be_seen_has_no_color() -> None:
    """A disc on black that is transparent: its edge is between its own color and white, never darker."""
    y, x = np.mgrid[:200, :200]
    disc = (y - 100) ** 2 + (x - 100) ** 2 < 90**2
    picture = np.zeros((200, 200, 4), np.uint8)
    picture[disc] = (250, 200, 100, 255)
    seen = pixels(on_white(Image.fromarray(picture), 48))
    assert (seen >= [247, 197, 97]).all() and seen[24, 24].tolist() == [250, 200, 100]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1"])
def test_a_picture_of_any_mode_is_laid_on_white(mode: str) -> None:
    gray = Image.fromarray(np.tile(np.linspace(0, 200, 30).astype(np.uint8), (20, 1)))
    image = on_white(gray.convert(mode), 32)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert pixels(image)[0].tolist() == [[255] * 3] * 32


def test_nothing_to_be_seen_is_told() -> None:
    for alpha in (0, 8):
        with pytest.raises(ValueError, match="nothing is drawn"):
            on_white(Image.new("RGBA", (9, 9), (200, 10, 10, alpha)), 16)


def test_a_plain_picture() -> None:
    image = Image.new("RGB", (5, 4), (1, 2, 3))
    assert is_plain(image)
    image.putpixel((4, 3), (1, 2, 4))
    assert not is_plain(image)


def test_words_and_captions() -> None:
    assert words(" big_red  dog. ") == "big red dog"
    assert different(["A dog", "", "dog, a!", "...", "a dog barks", "barks a Dog"]) == ["A dog", "a dog barks"]


def test_groups_are_dealt_by_their_shares_and_not_by_their_order() -> None:
    names = [f"g{i}" for i in range(200)]
    split_of = dealt(names, 0.1, 0.25)
    assert Counter(split_of.values()) == {"train": 130, "val": 20, "test": 50} and set(split_of) == set(names)
    assert dealt([*reversed(names), *names], 0.1, 0.25) == split_of
    assert dealt(names, 0.1, 0.25, seed=1) != split_of
    assert {name for name in names if split_of[name] == "test"} != set(names[:50])
