"""Rendered color scenes: two or three plain shapes on a shaded ground, with captions that tell part of it."""

from __future__ import annotations

from math import cos, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ptmst.config import WriteDataConfig
from ptmst.data.composition import Vocabulary
from ptmst.data.generated import Layout, Progress, write_generated

SUPERSAMPLE = 4
"""Shapes are drawn at this many times the image size and averaged down: PIL draws hard edges."""
RADII = {"small": 0.08, "large": 0.13}
"""Half the extent of a shape, image widths."""


def _star(*radii: float, points: int) -> list[tuple[float, float]]:
    """Corners at equal angles from the top, the radii taking turns `points` times."""
    corners = list(radii) * points
    step = 2 * pi / len(corners)
    return [(r * sin(i * step), -r * cos(i * step)) for i, r in enumerate(corners)]


_ARM = ((0.35, -0.35), (1.0, -0.35), (1.0, 0.35))
"""Corners of a cross that belong to its right arm."""
OUTLINES = {
    "circle": _star(1.0, points=48),
    "ring": _star(1.0, points=48),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": _star(1.1, points=3),
    "star": _star(1.1, 0.45, points=5),
    "cross": [(u * x - v * y, u * y + v * x) for x, y in _star(1.0, points=4) for u, v in _ARM],
}
"""Corners (x, y) of each shape about its center, radii."""
HOLE = 0.55
"""Radius of a ring's hole, radii."""
SHAPES = Vocabulary(
    generic="shape",
    kinds={
        "circle": ("circle", "disc"),
        "ring": ("ring", "hoop"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "star": ("star",),
        "cross": ("cross", "plus sign"),
    },
)


def write_scenes(root: Path | str, *, progress: Progress | None = None, **settings: Any) -> bool:
    """Write the data set "scenes" under `root`; False if the same set was there already.

    Settings are those of `WriteDataConfig`: `train`, `val`, `test` and `warmup` count images, each with `captions`
    captions; no scene is in two splits. The same settings give the same bytes. Raises InputError for settings out of
    range and for a root that holds other settings.
    """
    config = WriteDataConfig("scenes", Path(root), **settings)
    return write_generated(config, SHAPES, _paint, progress)


def _paint(layout: Layout, split: str, rng: np.random.Generator) -> Image.Image:
    extent = layout.image_size * SUPERSAMPLE
    canvas = Image.new("RGB", (extent, extent), layout.background)
    drawing = ImageDraw.Draw(canvas)
    for placed in layout.placed:
        x, y = (c * extent for c in placed.center)
        radius = RADII[placed.thing.size] * extent
        outline = OUTLINES[placed.thing.kind]
        drawing.polygon([(x + radius * u, y + radius * v) for u, v in outline], fill=placed.ink)
        if placed.thing.kind == "ring":
            hole = radius * HOLE
            drawing.polygon([(x + hole * u, y + hole * v) for u, v in outline], fill=layout.background)
    return canvas.reduce(SUPERSAMPLE)
