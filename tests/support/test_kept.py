"""A tensor of the cache is made once, mapped, checked, and makes room for others; without a cache work goes on."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmst.support import parts
from ptmst.support.kept import Shelf

ROWS = torch.arange(22.0).view(11, 2)


class Made:
    """Makes ROWS, or others, in pieces of four, and counts how often."""

    def __init__(self, rows: Tensor = ROWS) -> None:
        self.rows, self.times = rows, 0

    def __call__(self) -> Iterator[Tensor]:
        self.times += 1
        yield from self.rows.split(4)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf("things", most_bytes=1 << 20)


def cached(shelf: Shelf) -> list[Path]:
    return sorted(Path(os.environ["PTMST_CACHE"]).glob(shelf.pattern))


@pytest.mark.parametrize("rows", [ROWS, torch.arange(231, dtype=torch.uint8).view(11, 3, 7)])
def test_it_is_made_once_and_mapped(shelf: Shelf, rows: Tensor) -> None:
    made = Made(rows)
    for _ in range(2):
        found = shelf.get("a", 11, made)
        assert found is not None and torch.equal(found, rows) and found.dtype == rows.dtype
    (path,) = cached(shelf)
    assert made.times == 1 and torch.equal(load_file(path)["things"], rows)
    assert str(path) in Path("/proc/self/maps").read_text()
    other = shelf.get("b", 11, Made(rows + 1))
    assert other is not None and torch.equal(other, rows + 1) and len(cached(shelf)) == 2


def test_what_it_holds_is_what_its_head_says(shelf: Shelf) -> None:
    shelf.get("a", 11, Made())
    head = cached(shelf)[0].read_bytes()
    assert hashlib.sha256(ROWS.numpy().tobytes()).hexdigest().encode() in head


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "head"])
def test_what_is_damaged_is_made_again(shelf: Shelf, damage: str) -> None:
    made = Made()
    shelf.get("a", 11, made)
    (path,) = cached(shelf)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-5] ^= 1
    if damage == "head":
        content[30] ^= 0xFF
    path.write_bytes({"cut": bytes(content[:-9]), "empty": b""}.get(damage, bytes(content)))
    for _ in range(2):
        found = shelf.get("a", 11, made)
        assert found is not None and torch.equal(found, ROWS) and made.times == 2


def test_a_full_disk_is_told(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        def __enter__(self) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(parts, "file", lambda target: Full())
    with caplog.at_level(logging.WARNING):
        assert shelf.get("a", 11, Made()) is None
    (said,) = caplog.messages
    assert said.endswith("cannot be written (No space left on device); going on without it") and not cached(shelf)


def test_a_folder_that_cannot_be_written_is_told(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("PTMST_CACHE", str(tmp_path / "a file" / "cache"))
    assert shelf.get("a", 11, Made()) is None
    assert "cache of things" in caplog.messages[0] and len(caplog.messages) == 1


def test_what_another_process_removed_is_no_harm(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "_remove_oldest", lambda self, path: path.unlink())
    assert shelf.get("a", 11, Made()) is None


def test_the_oldest_make_room(shelf: Shelf) -> None:
    shelf.get("a", 11, Made())
    (path,) = cached(shelf)
    shelf.most_bytes = 2 * path.stat().st_size
    os.utime(path, (0, 0))
    shelf.get("b", 11, Made())
    for path in cached(shelf):
        os.utime(path, (1000, 1000))
    shelf.get("a", 11, Made())  # used again
    before = set(cached(shelf))
    shelf.get("c", 11, Made())
    assert len(cached(shelf)) == 2 and len(before & set(cached(shelf))) == 1
    shelf.get("a", 11, lambda: pytest.fail("made again"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_batches_that_stop_leave_nothing(shelf: Shelf, error: type[BaseException]) -> None:
    def stopped() -> Iterator[Tensor]:
        yield ROWS[:4]
        raise error

    with pytest.raises(error):
        shelf.get("a", 11, stopped)
    assert not list(Path(os.environ["PTMST_CACHE"]).iterdir())
