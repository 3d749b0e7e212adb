"""Scenes of handwritten digits: two or three of scikit-learn's 1,797 scans (8×8), in colored ink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ptmst.config import WriteDataConfig
from ptmst.data.composition import Vocabulary, pick
from ptmst.data.generated import Classified, Layout, Progress, write_generated

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = Vocabulary(generic="digit", kinds={name: (name,) for name in NAMES})
EXTENTS = {"small": 0.23, "large": 0.33}
"""Height and width of a scan, image widths."""
SHARES = {"train": 0.5, "val": 0.15, "test": 0.15, "warmup": 0.2}
"""Each split's share of the scans."""

FIRST = Classified(
    prompts={
        name: [
            f"a {name} {place}"
            for place in (
                "in the top left corner",
                "at the upper left",
                "at the top centre",
                "above a digit",
                "over a digit",
                "to the left of a digit",
                "left of a digit",
            )
        ]
        for name in NAMES
    },
    class_of=lambda scene: min(scene, key=lambda thing: thing.cell).kind,
)
"""Which digit comes first, as one reads."""

Scans = Mapping[str, Mapping[str, Sequence[np.ndarray]]]
"""Split → digit → masks uint8 [8, 8]; no scan is in two splits."""


def write_digits(root: Path | str, *, progress: Progress | None = None, **settings: Any) -> bool:
    """Write the data set "digits" under `root`; False if the same set was there already.

    Settings are those of `WriteDataConfig`: `train`, `val`, `test` and `warmup` count images, each with `captions`
    captions; no scene and no scan is in two splits. What an image of val or test is to be classified as is its first
    digit, as one reads. The same settings give the same bytes. Raises InputError for settings out of range and for a
    root that holds other settings.
    """
    config = WriteDataConfig("digits", Path(root), **settings)
    return write_generated(config, DIGITS, _paint, progress, FIRST)


@cache
def split_scans() -> Scans:
    """The scans, dealt out among the splits: the same for every seed, so that test scans are never trained on."""
    from sklearn.datasets import load_digits  # takes a second to import

    scans, labels = load_digits(return_X_y=True)
    masks = np.round(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    dealt: dict[str, dict[str, Sequence[np.ndarray]]] = {split: {} for split in SHARES}
    for label, name in enumerate(NAMES):
        mine = np.random.default_rng(label).permutation(masks[labels == label])
        ends = np.round(np.cumsum([0, *SHARES.values()]) * len(mine)).astype(int)
        for split, (start, end) in zip(SHARES, pairwise(ends), strict=True):
            dealt[split][name] = list(mine[start:end])
    return dealt


def _paint(layout: Layout, split: str, rng: np.random.Generator) -> Image.Image:
    size = layout.image_size
    canvas = Image.new("RGB", (size, size), layout.background)
    for placed in layout.placed:
        extent = round(EXTENTS[placed.thing.size] * size)
        scan = Image.fromarray(pick(rng, split_scans()[split][placed.thing.kind]))
        x, y = (round(c * size - extent / 2) for c in placed.center)
        canvas.paste(placed.ink, (x, y), scan.resize((extent, extent), Image.Resampling.BICUBIC))
    return canvas
