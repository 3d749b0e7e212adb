"""Batches of images as they would be read one after another, and the thread that reads ahead."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ptmst.data.batches as batches_module
from ptmst.data import Pairs, image_batches, normalize
from ptmst.data.annotations import ImageBytes
from ptmst.errors import InputError
from ptmst.support import devices

CPU = torch.device("cpu")
IMAGES, SIZE = 7, 12
BYTES = IMAGES * 3 * SIZE * SIZE
INDICES = [torch.tensor(some, dtype=torch.int64) for some in ([3, 1], [0, 0, 6], [], [5], [2, 4, 3])]
WAIT_S = 30


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    for i in range(IMAGES):
        noise = np.random.default_rng(i).integers(0, 256, (20, 31, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    return of(tmp_path)


def of(root: Path) -> Pairs:
    names = tuple(f"{i}.png" for i in range(IMAGES))
    places = tuple(ImageBytes(root / name) for name in names)
    return Pairs("made", "train", root, names, places, ("a thing",) * IMAGES, torch.arange(IMAGES), SIZE)


def by_hand(pairs: Pairs, index: Sequence[int]) -> np.ndarray:
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (pairs.mean, pairs.std))
    pictures = [Image.open(pairs.root / f"{i}.png").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for i in index]
    found = [(np.asarray(p, np.float32).transpose(2, 0, 1) / np.float32(255) - mean) / std for p in pictures]
    return np.array(found).reshape(len(index), 3, SIZE, SIZE)


def reading() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("images")]


@pytest.mark.parametrize("free", [0, 2 * BYTES])
def test_batches_are_those_of_the_indices(pairs: Pairs, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit and in their order: read again, read the first time, and held."""
    monkeypatch.setattr(devices, "free_bytes", lambda device: free)
    for _ in range(2):
        found = list(image_batches(pairs, iter(INDICES), CPU))
        assert len(found) == len(INDICES)
        for images, index in zip(found, INDICES, strict=True):
            assert images.dtype == torch.float32 and images.shape == (len(index), 3, SIZE, SIZE)
            assert np.array_equal(images.numpy(), by_hand(pairs, index.tolist()))
    assert pairs.in_memory == bool(free) and not reading()


def test_no_batches() -> None:
    assert list(image_batches(of(Path()), [], CPU)) == []


class Watched:
    """The batches that were read, and on which threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[tuple[list[int], bool]] = []
        self.more = threading.Semaphore(0)
        original = Pairs.pixels

        def pixels(pairs: Pairs, index: Tensor) -> Tensor:
            self.read.append((index.tolist(), threading.current_thread() is threading.main_thread()))
            self.more.release()
            return original(pairs, index)

        monkeypatch.setattr(Pairs, "pixels", pixels)

    def wait(self, batches: int) -> None:
        for _ in range(batches):
            assert self.more.acquire(timeout=WAIT_S)


def test_one_batch_is_read_ahead_and_no_more(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, asked = Watched(monkeypatch), []

    def indices() -> Iterator[Tensor]:
        for index in INDICES:
            asked.append(index.tolist())
            yield index

    batches = image_batches(pairs, indices(), CPU)
    assert not asked
    for number in range(len(INDICES) - 1):
        next(batches)
        watched.wait(2 if number == 0 else 1)  # while this one is used
        assert asked == [index.tolist() for index in INDICES[: number + 2]]
        assert watched.read == [(index, False) for index in asked]
    assert len(list(batches)) == 1 and not reading()


def test_what_is_held_is_read_without_a_thread(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs.images(torch.arange(IMAGES))
    watched = Watched(monkeypatch)
    batches = image_batches(pairs, INDICES, CPU)
    next(batches)
    assert watched.read == [(INDICES[0].tolist(), True)] and not reading()


@pytest.mark.slow
def test_a_broken_image_is_told_where_its_batch_is_due(pairs: Pairs) -> None:
    (pairs.root / "5.png").write_bytes(b"hello")
    found: list[Tensor] = []
    with pytest.raises(InputError, match=r"5\.png: expected a whole image, found no kind of image; replace the file"):
        found.extend(image_batches(pairs, INDICES, CPU))
    assert len(found) == 3
    assert np.array_equal(found[1].numpy(), by_hand(pairs, [0, 0, 6]))
    gc.collect()
    assert not reading()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_who_stops_midway_leaves_no_thread(pairs: Pairs, stop: type[BaseException]) -> None:
    def walk() -> None:
        for _ in image_batches(pairs, INDICES * 100, CPU):
            raise stop

    with pytest.raises(stop):
        walk()
    gc.collect()
    assert not reading()


def test_an_interrupt_leaves_what_is_to_come(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a batch is waited for: it is read to its end, the one behind it never."""
    begun, go = [], threading.Event()

    def pixels(pairs: Pairs, index: Tensor) -> Tensor:
        begun.append(index.tolist())
        assert go.wait(WAIT_S)
        return torch.zeros(len(index), 3, SIZE, SIZE, dtype=torch.uint8)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    class Executor(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            go.set()
            super().shutdown(wait)

    monkeypatch.setattr(Pairs, "pixels", pixels)
    monkeypatch.setattr(batches_module, "ThreadPoolExecutor", Executor)
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(image_batches(pairs, INDICES, CPU))
    assert begun == [INDICES[0].tolist()] and not reading()


def test_bytes_go_to_the_device(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the four times as many of float32; here the device is one that has shapes only."""
    seen: list[Tensor] = []

    def normalized(_: Pairs, pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return normalize(pixels)

    monkeypatch.setattr(Pairs, "normalized", normalized)
    for images, index in zip(image_batches(pairs, INDICES, torch.device("meta")), INDICES, strict=True):
        assert seen[-1].dtype == torch.uint8 and seen[-1].device.type == images.device.type == "meta"
        assert images.shape == (len(index), 3, SIZE, SIZE) and images.dtype == torch.float32
