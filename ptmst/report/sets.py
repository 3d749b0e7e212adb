"""How a set is shown on a page: what pairs began as and became, its soft labels, its curves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ptmst.errors import InputError
from ptmst.evaluation.nearest import Nearest, RealPictures
from ptmst.report.figures import COLORS, figure, svg
from ptmst.report.tables import is_selection
from ptmst.report.templates import picture_address
from ptmst.support import progress
from ptmst.synthetic.distilled_set import DistilledSet

SHOWN = 12
"""Pairs of a set that are shown at once, evenly spread over each phase; the rest is folded."""
_THUMBNAIL = 48
"""Most pixels of a side of a real picture beside a distilled one."""
_STRONGEST = 3
"""Pairs of different places whose soft labels are highest, that are shown."""
_POSITIVE, _NEGATIVE = torch.tensor([34, 85, 140]), torch.tensor([178, 60, 60])
"""Colors of the highest soft labels, and of those as far below 0."""


@dataclass(frozen=True)
class Limits:
    """What the axes of all sets have in common."""

    steps: int
    loss: float
    lr: float

    @classmethod
    def of(cls, sets: Iterable[DistilledSet]) -> Limits:
        """Of those with a history."""
        histories = [phase.history for made in sets for phase in made.phases if phase.history]
        if not histories:
            return cls(1, 1.0, 1.0)
        losses = [max(_smoothed(group)) for history in histories for group in history["loss"].unbind(1)]
        rates = max(float(history["lr"].max()) for history in histories)
        return cls(max(len(history["loss"]) for history in histories), 1.05 * max(losses), 1.05 * rates)


def shown_set(name: str, distilled: DistilledSet, found: Nearest | None, told: str, limits: Limits) -> dict[str, Any]:
    """What the page's template takes of a set, whose nearest pictures were `found` and are `told` of."""
    pairs = list(_pairs(distilled, found))
    first = {*spread([len(phase.pairs) for phase in distilled.phases], SHOWN)}
    return {
        "name": name,
        "told": told,
        "began": found is not None and found.starts is not None,
        "pairs": pairs,
        "shown": [pair for pair in pairs if (pair["phase"], pair["number"]) in first],
        "rest": [pair for pair in pairs if (pair["phase"], pair["number"]) not in first],
        "labels": None if is_selection(distilled.provenance) else _labels(distilled, pairs),
        "curves": _curves(distilled, limits),
    }


def spread(sizes: Iterable[int], count: int) -> list[tuple[int, int]]:
    """(phase, pair) of `count` pairs, as many of each phase as of another, evenly spread over it."""
    sizes = list(sizes)
    shares = [count // len(sizes) + (phase < count % len(sizes)) for phase in range(len(sizes))]
    return [
        (phase, min(size - 1, round((i + 0.5) * size / min(share, size) - 0.5)))
        for phase, (size, share) in enumerate(zip(sizes, shares, strict=True))
        for i in range(min(share, size))
    ]


def _pairs(distilled: DistilledSet, found: Nearest | None) -> Iterator[dict[str, Any]]:
    """Each pair's picture and caption, with what it began as and its nearest real picture, where they are known."""
    row = 0
    for phase, one in enumerate(distilled.phases):
        pictures: Iterable[str | None] = [None] * len(one.pairs)
        if distilled.in_pixels:
            pictures = map(picture_of, distilled.pixels(phase))
        for number, (picture, caption) in enumerate(zip(pictures, one.captions, strict=True)):
            pair: dict[str, Any] = {"phase": phase, "number": number, "picture": picture}
            pair |= {"caption": progress.printable(caption), "before": None, "neighbor": None}
            if found is not None:
                pair["neighbor"] = {
                    "picture": picture_of(found.pictures[row], _THUMBNAIL if distilled.in_pixels else None),
                    "caption": progress.printable(found.captions[row]),
                    "distance": f"{float(found.distance[row]):.{_places(distilled)}f}",
                }
            if found is not None and found.starts is not None:
                before = picture_of(found.starts.pictures[row]), progress.printable(found.starts.captions[row])
                pair["before"] = dict(zip(("picture", "caption"), before, strict=True))
            row += 1
            yield pair


def nearest_pictures(distilled: DistilledSet, real: RealPictures | None) -> tuple[Nearest | None, str]:
    """The nearest of the `real` pictures to each, and what they are together or why there are none.

    None are looked for where `real` is None.
    """
    of_set = "" if distilled.in_pixels else f"{_NO_PICTURES} "
    # Selected pictures are real themselves.
    if real is None or is_selection(distilled.provenance):
        return None, of_set
    try:
        found = real.nearest_to(distilled)
    except InputError as error:
        return None, progress.printable(f"{of_set}Without the nearest real pictures: {error}.")
    return found, of_set + _told(found, distilled)


_NO_PICTURES = (
    "This set has no pictures, but what its frozen tower would see in them, and trains heads on that tower alone."
)


def _places(distilled: DistilledSet) -> int:
    """Decimals of distances: of pixels whole levels, of features thousandths."""
    return 1 if distilled.in_pixels else 3


def _told(found: Nearest, distilled: DistilledSet) -> str:
    def middle(values: Tensor) -> str:
        return f"{median(values.tolist()):.{_places(distilled)}f}"

    if distilled.in_pixels:
        text = (
            "The folded pictures have the nearest real one beside them and its distance, the root mean square "
            f"difference of their pixels, 0 … 255: {middle(found.distance)} in the median."
        )
    else:
        text = (
            "Shown is the real picture with the nearest features and its distance, 1 − their cosine: "
            f"{middle(found.distance)} in the median."
        )
    if (starts := found.starts) is None:
        return text
    same, count = int(starts.nearest.sum()), len(found.distance)
    return (
        f"{text} For {same} of {count} it is the one that the picture began as. From there it moved by "
        f"{middle(starts.distance)} in the median, while the nearest other real picture was "
        f"{middle(starts.to_another)} away."
    )


def picture_of(pixels: Tensor, most: int | None = None) -> str:
    """An image uint8 [3, H, W] as a data address, made smaller where a side has more than `most` pixels."""
    return picture_address(Image.fromarray(rearrange(pixels, "c h w -> h w c").numpy()), most)


# Soft labels


def _labels(distilled: DistilledSet, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Heat maps of S, phase by phase, and the strongest labels of images and texts of different pairs."""
    matrices = [pairs.similarity.dense().float() for pairs in distilled]
    most = max(float(matrix.abs().max()) for matrix in matrices)
    first, strongest = 0, list[tuple[float, int, int]]()
    for matrix in matrices:
        others = matrix.clone()
        others.fill_diagonal_(-torch.inf)
        values, places = others.flatten().topk(min(_STRONGEST, matrix.numel() - len(matrix)))
        for value, place in zip(values[values > 0].tolist(), places[values > 0].tolist(), strict=True):
            strongest.append((value, first + place // len(matrix), first + place % len(matrix)))
        first += len(matrix)
    return {
        "maps": [picture_address(heat_map(matrix, most), lossless=True) for matrix in matrices],
        "most": f"{most:.1f}",
        "diagonal": f"{_mean([matrix.diagonal() for matrix in matrices]):.2f}",
        "others": f"{_mean([matrix[~torch.eye(len(matrix), dtype=torch.bool)] for matrix in matrices]):.2f}",
        "strongest": [
            {"value": f"{value:.2f}", "image": pairs[image], "caption": pairs[text]["caption"]}
            for value, image, text in sorted(strongest, reverse=True)[:_STRONGEST]
        ],
    }


def _mean(parts: Sequence[Tensor]) -> float:
    values = torch.cat([part.flatten() for part in parts])
    return float(values.mean()) if len(values) else 0.0


def heat_map(matrix: Tensor, most: float) -> Image.Image:
    """Values [N, N] as a picture of N×N: white at 0, blue up to `most`, red down to −`most`."""
    share = (matrix / most if most else matrix).clamp(-1, 1)[..., None]
    color = torch.where(share > 0, _POSITIVE, _NEGATIVE)
    pixels = 255 + share.abs() * (color - 255)
    return Image.fromarray(pixels.round().to(torch.uint8).numpy())


# Curves


def _curves(distilled: DistilledSet, limits: Limits) -> str | None:
    """Matching loss per group and η, each against the outer step; none for a set that was not distilled."""
    phases = [phase.history for phase in distilled.phases if phase.history]
    if not phases:
        return None
    groups = (
        ("image", "text") if phases[0]["loss"].shape[1] == 2 else tuple(map(str, range(phases[0]["loss"].shape[1])))
    )
    drawn = figure(9, 2.9)
    axes = drawn.subplots(1, 2)
    for number, history in enumerate(phases, start=1):
        for group, name in enumerate(groups):
            label = f"phase {number}, {name}" if len(phases) > 1 else name
            style = {"color": COLORS[(number - 1) % len(COLORS)], "linestyle": ("-", "--", ":")[group % 3]}
            axes[0].plot(list(_smoothed(history["loss"][:, group])), label=label, linewidth=1.2, **style)
            axes[1].plot(history["lr"][:, group].tolist(), label=label, linewidth=1.2, **style)
    axes[0].set(xlabel="outer step", ylabel="matching loss (running mean)", ylim=(0, limits.loss))
    axes[1].set(xlabel="outer step", ylabel="student learning rate η", ylim=(0, limits.lr))
    for one in axes:
        one.set_xlim(0, limits.steps)
    axes[0].legend(frameon=False, fontsize=8)
    return svg(drawn)


def _smoothed(values: Tensor) -> Iterator[float]:
    """The mean over the last twentieth of the run at every step: single spans differ too much to see a trend."""
    window = max(1, len(values) // 20)
    total = values.double().cumsum(0).tolist()
    for i, whole in enumerate(total):
        first = max(0, i + 1 - window)
        yield (whole - (total[first - 1] if first else 0.0)) / (i + 1 - first)
