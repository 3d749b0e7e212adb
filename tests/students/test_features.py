"""Features of a frozen tower: what the tower sees, computed once for all that decides them."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ptmst.data import Pairs, load_pairs, write_scenes
from ptmst.errors import InputError
from ptmst.students import features
from ptmst.students.features import feature_batches, kept_features
from ptmst.students.heads import ProjectionHead
from ptmst.students.image_towers import ConvNet
from ptmst.students.student import Student
from ptmst.support import parts

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
    return sorted(Path(os.environ["PTMST_CACHE"]).glob(features.PATTERN))


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


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "head"])
def test_what_is_damaged_is_made_again(pairs: Pairs, calls: list[int], damage: str) -> None:
    found = kept_features(student(), pairs, CPU).clone()
    (path,) = cached()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-5] ^= 1
    if damage == "head":
        content[30] ^= 0xFF
    path.write_bytes({"cut": bytes(content[:-9]), "empty": b""}.get(damage, bytes(content)))
    assert torch.equal(kept_features(student(), pairs, CPU), found)
    assert calls == [11, 11]
    assert torch.equal(kept_features(student(), pairs, CPU), found) and calls == [11, 11]


def test_a_full_disk_is_told_and_the_work_goes_on(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = kept_features(student(), pairs, CPU).clone()
    cached()[0].unlink()

    class Full:
        def __enter__(self) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(parts, "file", lambda target: Full())
    with caplog.at_level(logging.WARNING):
        assert torch.equal(kept_features(student(), pairs, CPU), expected)
    (said,) = caplog.messages
    assert said.endswith("cannot be written (No space left on device); going on without it") and not cached()


def test_a_folder_that_cannot_be_written_is_told(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("PTMST_CACHE", str(tmp_path / "a file" / "cache"))
    assert kept_features(student(), pairs, CPU).shape == (11, 32)
    assert "cache of features" in caplog.messages[0] and len(caplog.messages) == 1


def test_a_file_that_another_process_removed_is_no_harm(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = kept_features(student(), pairs, CPU).clone()
    cached()[0].unlink()
    monkeypatch.setattr(features, "_remove_oldest", lambda path: path.unlink())
    assert torch.equal(kept_features(student(), pairs, CPU), expected)


def test_the_oldest_make_room(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_features(student(0), pairs, CPU)
    size = cached()[0].stat().st_size
    monkeypatch.setattr(features, "MOST_BYTES", 2 * size)
    for age, path in enumerate(cached()):
        os.utime(path, (age, age))
    kept_features(student(1), pairs, CPU)
    for path in cached():
        os.utime(path, (1000, 1000))
    kept_features(student(0), pairs, CPU)  # used again
    before = set(cached())
    kept_features(student(2), pairs, CPU)
    assert len(cached()) == 2 and len(before & set(cached())) == 1
    monkeypatch.setattr(features, "_computed", lambda *_: pytest.fail("computed again"))
    kept_features(student(0), pairs, CPU)


def test_a_damaged_image_is_named(pairs: Pairs) -> None:
    pairs.image_paths[2].write_bytes(b"nothing")
    with pytest.raises(InputError, match=pairs.image_names[2]):
        kept_features(student(), pairs, CPU)
    assert not cached()


def test_batches_that_stop_leave_nothing(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IMAGES_AT_ONCE", 4)
    original = features._computed

    def stopped(*args: Any) -> Iterator[Tensor]:
        yield next(original(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "_computed", stopped)
    with pytest.raises(KeyboardInterrupt):
        kept_features(student(), pairs, CPU)
    assert not list(Path(os.environ["PTMST_CACHE"]).iterdir())
