"""One process at a time, on file systems with locks and without; a killed one is never in the way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptmst.errors import InputError
from ptmst.support import folders, locks, parts
from ptmst.support.folders import Kind

SHELF = Kind("a shelf")


@pytest.fixture(params=["flock", errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=str)
def has_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system locks: Lustre's and NFS's answers where it does not."""
    if request.param == "flock":
        return True

    def none_here(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", none_here)
    return False


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def left_by(folder: Path, **changes: object) -> Path:
    """A claim as a killed process leaves it; by default one of this machine."""
    record = {**locks._this_process(), "pid": ended(), **changes}
    (folder / locks.CLAIM).write_text(json.dumps(record))
    return folder / locks.CLAIM


def test_a_folder_is_claimed_once(tmp_path: Path, has_locks: bool) -> None:
    with folders.claimed(tmp_path, SHELF):
        with pytest.raises(InputError) as caught, folders.claimed(tmp_path, SHELF):
            pass
        who = f"{tmp_path}: another process is writing a shelf here ({os.getpid()} on {os.uname().nodename}); wait"
        left = "" if has_locks else f", delete {tmp_path / '.claim'} if it has ended"
        assert str(caught.value) == f"{who} for its end{left}, or choose another --out"
    assert list(tmp_path.iterdir()) == []
    with folders.claimed(tmp_path, SHELF):
        pass


@pytest.mark.parametrize("content", ["", '{"pid": 1', "[]"])
def test_a_claim_that_was_not_written_out(tmp_path: Path, has_locks: bool, content: str) -> None:
    (tmp_path / locks.CLAIM).write_text(content)
    if has_locks:
        with folders.claimed(tmp_path, SHELF):
            pass
        assert list(tmp_path.iterdir()) == []
        return
    message = "another process is writing a shelf here; wait for its end, delete "
    with pytest.raises(InputError, match=message), folders.claimed(tmp_path, SHELF):
        pass


def test_a_killed_process_is_not_in_the_way(tmp_path: Path, has_locks: bool) -> None:
    left_by(tmp_path)
    with folders.claimed(tmp_path, SHELF):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nor_is_one_whose_number_another_has_now(tmp_path: Path, has_locks: bool) -> None:
    left_by(tmp_path, pid=os.getpid(), began=1)
    with folders.claimed(tmp_path, SHELF):
        pass


@pytest.mark.parametrize("change", [{"machine": "another"}, {"room": "pid:[1]"}])
def test_of_another_machine_or_container_nothing_is_known(
    tmp_path: Path, has_locks: bool, change: dict[str, str]
) -> None:
    claim = left_by(tmp_path, host="node7", **change)
    if has_locks:  # which say that nobody holds it
        with folders.claimed(tmp_path, SHELF):
            pass
        return
    message = rf"is writing a shelf here \(\d+ on node7\); .* delete {claim} if it has ended"
    with pytest.raises(InputError, match=message), folders.claimed(tmp_path, SHELF):
        pass
    assert claim.exists()


HOLD = """
import sys, pathlib, time
from ptmst.support import locks
with locks.claim(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(locks.Claimed, match=rf"^{process.pid} on "), locks.claim(tmp_path):
        pass
    process.kill()
    process.communicate()
    assert (tmp_path / locks.CLAIM).exists()
    with locks.claim(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_was_given_back_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locked after its holder has removed it: it is made again."""
    claim, lock, seen = left_by(tmp_path), locks.try_lock, list[int]()

    def late(descriptor: int) -> bool | None:
        if not seen:
            claim.unlink()
        seen.append(descriptor)
        return lock(descriptor)

    monkeypatch.setattr(locks, "try_lock", late)
    with locks.claim(tmp_path):
        assert claim.exists() and len(seen) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(InputError) as caught, folders.claimed(tmp_path / "new", SHELF):
        raise AssertionError
    assert (
        str(caught.value) == f"{tmp_path / 'new'}: cannot be used (Read-only file system); choose another output folder"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fresh", [False, True])
def test_what_was_left_goes_where_the_folder_is_refused(tmp_path: Path, fresh: bool) -> None:
    """Killed when all was written: nobody claims the folder again."""
    index = Kind("a finished shelf", ("shelf.json",))
    (tmp_path / "shelf.json").write_bytes(b"{}")
    left_by(tmp_path)
    parts.name(tmp_path / "shelf.json").write_bytes(b"half")
    claim = folders.claimed(tmp_path, index if fresh else SHELF, fresh=fresh)
    with pytest.raises(InputError, match="holds a finished shelf already"), claim:
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["shelf.json"]


def test_what_is_being_written_is_not_tidied(tmp_path: Path, has_locks: bool) -> None:
    with folders.claimed(tmp_path, SHELF):
        folders.tidy(tmp_path)
        assert (tmp_path / locks.CLAIM).exists()
    left_by(tmp_path)
    folders.tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []
