"""A split is decoded once into the cache, and read from there by content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptmst.data import Pairs, load_pairs, pixels, write_scenes
from ptmst.data.pixels import decoded_once
from ptmst.errors import InputError


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    write_scenes(tmp_path / "data", image_size=16, train=11, val=1, test=1, warmup=0, captions=1)
    return load_pairs("scenes", tmp_path / "data", "train", 16)


def cached() -> list[Path]:
    return sorted(Path(os.environ["PTMST_CACHE"]).glob(pixels.SHELF.pattern))


def test_pixels_are_those_of_the_files(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "IMAGES_AT_ONCE", 4)
    kept = decoded_once(pairs)
    assert kept.decoded is not None and kept.in_memory and kept.fits_in_memory and len(cached()) == 1
    index = torch.tensor([3, 0, 3, 10])
    expected = [np.asarray(Image.open(pairs.image_paths[i])).transpose(2, 0, 1) for i in index]
    assert np.array_equal(kept.pixels(index).numpy(), np.stack(expected))
    assert torch.equal(kept.images(index), pairs.images(index))
    monkeypatch.setattr(Pairs, "decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(decoded_once(pairs).pixels(index), kept.pixels(index))


def test_a_file_is_of_content_and_size(pairs: Pairs, tmp_path: Path) -> None:
    decoded_once(pairs)
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    moved = load_pairs("scenes", tmp_path / "moved", "train", 16)
    decoded_once(moved)
    assert len(cached()) == 1
    decoded_once(load_pairs("scenes", tmp_path / "data", "train", 8))
    assert len(cached()) == 2
    path = moved.image_paths[4]
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    assert torch.equal(decoded_once(moved).pixels(torch.tensor([4])), moved.pixels(torch.tensor([4])))
    assert len(cached()) == 3


def test_a_split_that_is_too_large_or_cannot_be_kept_stays(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pixels.SHELF, "most_bytes", 11 * 3 * 16 * 16 - 1)
        assert decoded_once(pairs) is pairs and not caplog.messages
    (tmp_path / "a file").touch()
    monkeypatch.setenv("PTMST_CACHE", str(tmp_path / "a file" / "cache"))
    assert decoded_once(pairs) is pairs and "cache of pixels" in caplog.messages[0]


def test_a_broken_image_is_named(pairs: Pairs) -> None:
    pairs.image_paths[2].write_bytes(b"nothing")
    with pytest.raises(InputError, match=pairs.image_names[2]):
        decoded_once(pairs)
    assert not cached()
