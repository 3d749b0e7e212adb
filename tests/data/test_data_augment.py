"""Random views of images: what they show by hand, how often, and that a key decides every bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ptmst.data import augment, image_batches, load_pairs, write_scenes
from ptmst.data.augment import Views, view
from ptmst.support.seeds import generator


def ramp(width: int, height: int) -> Image.Image:
    """Red counts columns and green rows, so that each pixel says where it was."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 7)], -1).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(200, 120), (90, 90), (60, 200)])
def test_crops_are_of_half_the_area_or_more(width: int, height: int) -> None:
    boxes = [augment._crop(width, height, generator(i)) for i in range(400)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    shares = [(r - x) * (b - y) / (width * height) for x, y, r, b in boxes]
    proportions = [(r - x) / (b - y) for x, y, r, b in boxes]
    if width == height:
        # Uniform in the area, but that large boxes of extreme proportions do not fit.
        assert 0.49 <= min(shares) < 0.55 and 0.65 < np.mean(shares) < 0.78 and max(shares) > 0.93
        assert 0.73 < min(proportions) < 0.8 and 1.25 < max(proportions) < 1.36
        assert len({box[:2] for box in boxes}) > 150
    if (width, height) == (60, 200):  # no box of half the area has such proportions: the largest in the middle
        assert set(boxes) == {(0, 60, 60, 140)}


def test_moved_pictures_are_where_they_should_be() -> None:
    """Each change with either sign, pixel by pixel from the definition; what comes from outside is gray."""
    size = 32
    picture = ramp(size, size)
    x, y = (v.astype(float) for v in np.meshgrid(np.arange(size), np.arange(size)))
    names = ["same", "contrast", "equalize", "brightness", "sharpness", "shear x", "shear y", "shift x", "shift y"]
    for sign in (1.0, -1.0):
        changed = {
            name: np.asarray(change(picture, sign)).astype(float)
            for name, change in zip([*names, "turn"], augment._ALL_CHANGES, strict=True)
        }
        for name in ("same", "brightness", "sharpness"):
            assert (changed[name] == np.asarray(picture)).all()
        assert (changed["contrast"] == np.asarray(ImageOps.autocontrast(picture))).all()
        assert (changed["equalize"] == np.asarray(ImageOps.equalize(picture))).all()
        middle, turn = (size - 1) / 2, np.deg2rad(sign * 15)
        u, v = x - middle, y - middle
        sources = {
            "shear x": (x + sign * 0.15 * (y + 0.5), y),
            "shear y": (x, y + sign * 0.15 * (x + 0.5)),
            "shift x": (x + sign * 5, y),
            "shift y": (x, y + sign * 5),
            "turn": (middle + np.cos(turn) * u - np.sin(turn) * v, middle + np.sin(turn) * u + np.cos(turn) * v),
        }
        for name, (from_x, from_y) in sources.items():
            inside = (from_x >= 0.5) & (from_x <= size - 1.5) & (from_y >= 0.5) & (from_y <= size - 1.5)
            outside = (from_x < -1) | (from_x > size) | (from_y < -1) | (from_y > size)
            assert inside.sum() > 400 and outside.any()
            red, green, blue = np.moveaxis(changed[name], -1, 0)
            assert abs(red - from_x)[inside].max() <= 1 and abs(green - from_y)[inside].max() <= 1, name
            assert (blue[inside] == 7).all() and (changed[name][outside] == 128).all(), name


def test_views_are_cropped_flipped_and_changed_as_often_as_they_should() -> None:
    picture = ramp(100, 100)
    views = [np.asarray(view(picture, 100, generator("view", i))).astype(float) for i in range(600)]
    kept = [v for v in views if (v[..., 2] == 7).all()]
    # Its place was changed in neither of two draws: (1 − 5/10 · 1/2)² = 0.56 of all.
    assert 0.5 < len(kept) / len(views) < 0.62
    across = [v[50, -1, 0] - v[50, 0, 0] for v in kept]
    assert 0.4 < np.mean([d < 0 for d in across]) < 0.6
    assert len({v.tobytes() for v in views}) == len(views)


def test_a_key_decides_every_bit(tmp_path: Path) -> None:
    """Whatever else is in a batch, and on however many threads; another epoch or caption sees something else."""
    write_scenes(tmp_path, image_size=16, train=6, val=1, test=1, warmup=0, captions=2)
    pairs = load_pairs("scenes", tmp_path, "train", 16)
    captions = torch.arange(len(pairs))
    whole = Views(pairs, 3, "expert", 0, 1).pixels(captions)
    assert whole.shape == (12, 3, 16, 16) and whole.dtype == torch.uint8
    assert torch.equal(Views(pairs, 3, "expert", 0, 1).pixels(captions[[7, 2]]), whole[[7, 2]])
    of_one = [row.tobytes() for row in whole.numpy()]
    assert len(set(of_one)) == 12
    assert not any(
        torch.equal(a, b) for a, b in zip(Views(pairs, 3, "expert", 0, 2).pixels(captions), whole, strict=True)
    )
    views = Views(pairs, 3, "expert", 0, 1)
    (batch,) = image_batches(views, [captions[:4]], torch.device("cpu"))
    assert torch.equal(batch, pairs.normalized(whole[:4]))
