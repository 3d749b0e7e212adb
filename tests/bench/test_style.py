"""Figures of the docs: labels that do not overlap, numbers on axes, and pictures that are those of the results."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from bench import plots, style
from bench.adjoint import figures
from bench.result import RESULTS, ROOT

pytestmark = pytest.mark.slow


def test_labels_are_moved_apart_and_no_further() -> None:
    assert style.apart([0.0, 20.0, 40.0], 10) == [0, 20, 40]
    assert style.apart([0.0, 0.0], 10) == [-5, 5]
    assert style.apart([0.0, 1.0, 30.0, 31.0, 32.0], 10) == pytest.approx([-4.5, 5.5, 21, 31, 41])
    moved = style.apart([0.0, 0.0, 0.0, 4.0, 12.0], 10)
    assert all(high - low >= 10 - 1e-9 for low, high in pairwise(moved))


@pytest.mark.parametrize(("value", "shown"), [(16, "16"), (5000, "5,000"), (55136, "55 k"), (2_231_552, "2.2 M")])
def test_numbers_on_axes_are_short(value: float, shown: str) -> None:
    assert plots.amount(value) == shown


def test_the_pictures_of_the_docs_are_those_of_the_results(tmp_path: Path) -> None:
    """Compared pixel by pixel at a quarter of the size: fonts differ a little between versions of matplotlib."""
    drawn = plots.draw(RESULTS / "growth-cpu.json", tmp_path / "growth")
    drawn += figures.draw(RESULTS / "adjoint", tmp_path / "adjoint")
    for path in drawn:
        committed = ROOT / "docs" / path.relative_to(tmp_path)
        with Image.open(path) as mine, Image.open(committed) as other:
            assert mine.size == other.size and mine.width == 200 * style.WIDTH
            sizes = mine.width // 4, mine.height // 4
            pairs = zip(*(one.convert("L").resize(sizes).tobytes() for one in (mine, other)), strict=True)
            assert sum(abs(a - b) for a, b in pairs) / (sizes[0] * sizes[1]) < 2, path.name
