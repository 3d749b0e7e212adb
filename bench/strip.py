"""`python -m bench.strip SET --out FILE.png`: eight pairs of a distilled set in one picture, with their captions.

The upper row shows the real pairs that distillation began with, where the data are still there; the lower row shows
what became of them. Pixels are enlarged, not smoothed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COUNT = 8
"""Pairs shown, evenly spread over each phase."""
WIDTH = 1600
"""Pixels, for 800 on a page."""
_GAP, _HEAD, _BELOW, _BETWEEN = 8, 36, 8, 22
_FONT, _LINE, _LINES = 20, 26, 4
_COLORS = 256
_INK, _QUIET = "#1F2328", "#59636E"
_HEADS = ("Real pairs at the start", "The same pairs, distilled, with the nearest real caption")


@dataclass(frozen=True)
class Shown:
    """A picture, uint8 [H, W, 3], and the caption under it."""

    picture: Any
    caption: str


def rows(folder: Path, root: Path | None) -> list[list[Shown]]:
    """The initial pairs, where their data can be read, and the distilled ones."""
    import torch

    from ptmst import DistilledSet, InputError
    from ptmst.config import Places
    from ptmst.data.sampling import random_subset
    from ptmst.report.sets import spread

    distilled = DistilledSet.load(folder)
    sizes = [len(phase.pairs) for phase in distilled.phases]
    pixels = torch.cat([distilled.pixels(phase) for phase in range(len(sizes))])
    nearest = [caption for phase in distilled.phases for caption in phase.captions]
    chosen = [sum(sizes[:phase]) + pair for phase, pair in spread(sizes, COUNT)]
    after = [_shown(pixels[i], nearest[i]) for i in chosen]
    seed = distilled.provenance.get("config", {}).get("seed")
    try:
        if seed is None:
            raise InputError("expected a distilled set, found one of real pairs")
        real = distilled.recipe.at(Places(root=root)).pairs("train")
    except InputError as error:
        print(f"without the initial pairs: {error}", file=sys.stderr)
        return [after]
    # The initial pairs of all phases are one draw (ptmst.distillation.draws.initial_pairs).
    texts = random_subset(real, seed, sum(sizes))[chosen]
    images = real.pixels(real.image_of_text[texts])
    before = [_shown(image, real.captions[text]) for image, text in zip(images, texts.tolist(), strict=True)]
    return [before, after]


def _shown(pixels: Any, caption: str) -> Shown:
    return Shown(pixels.permute(1, 2, 0).numpy(), caption)


def draw(shown: list[list[Shown]], out: Path) -> None:
    """Write the picture."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    plain = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), _FONT)
    bold = ImageFont.truetype(str(fonts / "DejaVuSans-Bold.ttf"), _FONT)
    columns = max(len(row) for row in shown)
    cell = (WIDTH - (columns - 1) * _GAP) // columns
    captions = [[_wrapped(one.caption, cell, plain.getlength) for one in row] for row in shown]
    heights = [_HEAD + cell + _BELOW + _LINE * max(map(len, row)) for row in captions]
    page = Image.new("RGB", (WIDTH, sum(heights) + _BETWEEN * (len(shown) - 1)), "white")
    pen, top = ImageDraw.Draw(page), 0
    heads = _HEADS[-len(shown) :]
    for head, height, row, lines in zip(heads, heights, shown, captions, strict=True):
        pen.text((0, top), head, fill=_INK, font=bold)
        for column, (one, words) in enumerate(zip(row, lines, strict=True)):
            left, under = column * (cell + _GAP), top + _HEAD
            page.paste(Image.fromarray(one.picture).resize((cell, cell), Image.Resampling.NEAREST), (left, under))
            for number, text in enumerate(words):
                pen.text((left, under + cell + _BELOW + number * _LINE), text, fill=_QUIET, font=plain)
        top += height + _BETWEEN
    out.parent.mkdir(parents=True, exist_ok=True)
    # A third of the bytes, and hardly another picture.
    page.quantize(_COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, optimize=True)


def _wrapped(text: str, width: float, length: Callable[[str], float]) -> list[str]:
    """Lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if length(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) == _LINES:
            lines[-1] += " …"
            break
        else:
            lines.append(word)
    return lines


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m bench.strip", description=__doc__)
    options.add_argument("set", type=Path, metavar="SET", help="folder of a distilled set")
    options.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="picture to write")
    options.add_argument("--root", type=Path, metavar="FOLDER", help="data folder, where it has moved")
    asked = options.parse_args()
    from ptmst import InputError

    try:
        draw(rows(asked.set, asked.root), asked.out)
    except InputError as error:
        options.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
