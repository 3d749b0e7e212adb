"""What is half-written is gone when nobody writes it any more, and never before."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from ptmst.errors import InputError
from ptmst.support import files, locks, parts


def left(target: Path, age: float = 0.0, machine: str | None = None, folder: bool = False) -> Path:
    """A part that a killed process has left, `age` seconds ago."""
    part = parts.name(target)
    if machine is not None:
        part = part.with_name(part.name.replace(locks.machine(), machine))
    if folder:
        (part / "inside").mkdir(parents=True)
        (part / "inside" / "file").write_bytes(b"half")
    else:
        part.write_bytes(b"half")
    os.utime(part, (time.time() - age,) * 2)
    return part


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    ("machine", "age", "goes"),
    [(None, 0, True), ("deadbeef", 60, False), ("deadbeef", 7200, True), ("4711", 60, False), ("4711", 7200, True)],
)
def test_what_is_swept(tmp_path: Path, machine: str | None, age: float, goes: bool, folder: bool) -> None:
    """Of this machine at once; another's, or an earlier release's, when it has long been left alone."""
    part = left(tmp_path / "a.json", age, machine, folder)
    (tmp_path / ".hidden").write_bytes(b"theirs")
    parts.sweep(tmp_path)
    assert part.exists() is not goes
    assert (tmp_path / ".hidden").exists()


def test_without_locks_age_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "try_lock", lambda _: None)
    young, old = left(tmp_path / "a"), left(tmp_path / "b", 7200)
    parts.sweep(tmp_path)
    assert young.exists() and not old.exists()


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    with parts.file(tmp_path / "a.json") as file, parts.folder(tmp_path / "b") as folder:
        os.utime(file.name, (0, 0))
        parts.sweep(tmp_path)
        assert Path(file.name).exists() and folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b"]


def test_who_writes_a_file_sweeps_its_parts_alone(tmp_path: Path) -> None:
    names = ("[a]*.json", "b.json")
    ours, other = (left(tmp_path / name) for name in names)
    files.write(tmp_path / "[a]*.json", b"whole")
    assert not ours.exists() and other.exists()


def test_a_part_that_was_taken_for_abandoned_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swept after it was made and before it was locked."""
    lock, swept = fcntl.flock, list[Path]()

    def late(descriptor: int, how: int) -> None:
        if not swept:
            swept.extend(tmp_path.glob(".*.part"))
            swept[0].unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    files.write(tmp_path / "a", b"whole")
    assert len(swept) == 1 and [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"whole")]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_whole_or_empty(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "out"
    if there:
        target.mkdir()

    def stopped() -> None:
        with parts.folder(target) as part:
            (part / "file").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * there
    with parts.folder(target) as part:
        (part / "file").write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (target / "file").read_bytes() == b"whole"


def test_a_folder_that_was_filled_meanwhile_stays(tmp_path: Path) -> None:
    def filled() -> None:
        with parts.folder(tmp_path / "out") as part:
            (part / "file").write_bytes(b"ours")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "file").write_bytes(b"theirs")

    with pytest.raises(OSError, match="not empty"):
        filled()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_bytes() == b"theirs"


def test_trying_to_write_leaves_nothing(tmp_path: Path) -> None:
    files.try_writing(tmp_path / "new" / "deep" / "scores.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "scores.json").write_bytes(b"old")
    files.try_writing(tmp_path / "scores.json")
    assert (tmp_path / "scores.json").read_bytes() == b"old"


@pytest.mark.parametrize(("path", "reason"), [("file/scores.json", "Not a directory"), ("folder", "it is a folder")])
def test_what_cannot_be_written_is_told(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError) as caught:
        files.try_writing(tmp_path / path)
    advice = "free space or choose another output folder"
    assert str(caught.value) == f"{tmp_path / path}: cannot be written ({reason}); {advice}"
