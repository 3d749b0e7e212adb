"""Features of a frozen tower: what the tower sees, computed once for all that decides them."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ptmst.data import Pairs, load_pairs, write_scenes
from ptmst.errors import InputError
from ptmst.students import features
from ptmst.students.features import feature_batches, kept_features, kept_features_of
from ptmst.students.heads import ProjectionHead
from ptmst.students.image_towers import ConvNet
from ptmst.students.student import Student

CPU = torch.device("cpu")


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    write_scenes(tmp_path / "data", image_size=16, train=11, val=1, test=1, warmup=0, captions=1)
    return load_pairs("scenes", tmp_path / "data", "train", 16)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the tower saw, call by call; first two of noise."""
    seen: list[int] = []
    original = Student.features

    def spy(student: Student, images: Tensor) -> Tensor:
        seen.append(len(images))
        return original(student, images)

    monkeypatch.setattr(Student, "features", spy)
    return seen


def student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return Student.from_modules(ProjectionHead(32, 4), ProjectionHead(6, 4), tower=ConvNet(8))


def cached() -> list[Path]:
    return sorted(Path(os.environ["PTMST_CACHE"]).glob(features.SHELF.pattern))


def test_features_are_what_the_tower_sees(pairs: Pairs, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IMAGES_AT_ONCE", 4)
    of = student()
    found = kept_features(of, pairs, CPU)
    assert calls == [4, 4, 3] and found.shape == (11, 32) and found.dtype == torch.float32
    assert of.tower is not None
    with torch.no_grad():
        for i in range(11):
            expected = of.tower(pairs.images(torch.tensor([i])))[0]
            assert torch.allclose(found[i], expected, rtol=1e-5, atol=1e-6)
    again = kept_features(student(), pairs, CPU)
    assert calls == [4, 4, 3] and torch.equal(again, found)
    rows = list(feature_batches(found, (torch.tensor([3, 3, 9]), torch.tensor([0])), CPU))
    assert torch.equal(rows[0], found[[3, 3, 9]]) and torch.equal(rows[1], found[:1])


def test_a_file_is_of_all_that_decides_it(pairs: Pairs, calls: list[int], tmp_path: Path) -> None:
    kept_features(student(), pairs, CPU)
    # The same elsewhere: nothing is computed.
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    moved = load_pairs("scenes", tmp_path / "moved", "train", 16)
    kept_features(student(), moved, CPU)
    assert calls == [11] and len(cached()) == 1

    def another(of: Student, seen: Pairs) -> None:
        before = len(cached())
        kept_features(of, seen, CPU)
        assert len(cached()) == before + 1

    another(student(seed=1), pairs)
    another(student(), replace(pairs, mean=(0.5, 0.5, 0.5)))
    another(student(), replace(pairs, std=(0.5, 0.5, 0.5)))
    another(student(), load_pairs("scenes", tmp_path / "data", "train", 8))
    # The same weights in another order of work.
    of = student()
    assert of.tower is not None
    of.tower.add_module("more", nn.Tanh())
    another(of, pairs)

    # The same weights and layers, and other work.
    class Scaled(ConvNet):
        scale = 1.0

        def forward(self, images: Tensor) -> Tensor:
            return self.scale * super().forward(images)

    for scale in (1.0, 3.0):
        torch.manual_seed(0)
        tower = Scaled(8)
        tower.scale = scale
        another(Student.from_modules(ProjectionHead(32, 4), ProjectionHead(6, 4), tower=tower), pairs)
    path = moved.image_paths[4]
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    another(student(), moved)


def test_a_damaged_image_is_named(pairs: Pairs) -> None:
    pairs.image_paths[2].write_bytes(b"nothing")
    with pytest.raises(InputError, match=pairs.image_names[2]):
        kept_features(student(), pairs, CPU)
    assert not cached()


def test_without_a_cache_they_are_held_in_memory(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    expected = kept_features(student(), pairs, CPU).clone()
    (tmp_path / "a file").touch()
    monkeypatch.setenv("PTMST_CACHE", str(tmp_path / "a file" / "cache"))
    assert torch.equal(kept_features(student(), pairs, CPU), expected) and calls == [11, 11]


def test_of_images_that_are_tensors(pairs: Pairs, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IMAGES_AT_ONCE", 8)
    images = pairs.images(torch.arange(11))
    found = kept_features_of(student(), images)
    assert torch.equal(kept_features_of(student(), images), found) and calls == [8, 3]
    tower = student().tower
    assert tower is not None
    with torch.no_grad():
        torch.testing.assert_close(found, tower(images), rtol=1e-5, atol=1e-6)
    for of, seen in ((student(), images + 1), (student(1), images), (student(), images[:4])):
        before = len(cached())
        kept_features_of(of, seen)
        assert len(cached()) == before + 1
