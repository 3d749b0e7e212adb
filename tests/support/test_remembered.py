"""A fact is found out once for each key, and again where it cannot be kept or is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ptmst.support import files
from ptmst.support.remembered import PATTERN, remembered, surroundings


def kept() -> list[Path]:
    return sorted(Path(os.environ["PTMST_CACHE"]).glob(PATTERN))


class Asked:
    """Answers with a value that no one else has, and counts."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> list[object]:
        self.times += 1
        return [self.times, "é", 0.1, None]


def test_it_is_asked_once_for_each_key() -> None:
    asked = Asked()
    assert remembered({"a": 1, "b": [2]}, asked) == [1, "é", 0.1, None]
    assert remembered({"b": [2], "a": 1}, asked) == [1, "é", 0.1, None] and asked.times == 1
    assert remembered({"a": 1, "b": [3]}, asked)[0] == 2 and len(kept()) == 2


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": "ptmst-fact", "version": 1, "value": 7, "sha256": "0"}'])
def test_what_is_damaged_is_found_out_again(content: bytes) -> None:
    asked = Asked()
    remembered({}, asked)
    kept()[0].write_bytes(content)
    assert remembered({}, asked)[0] == 2
    assert remembered({}, asked)[0] == 2


def test_it_works_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PTMST_CACHE", str(tmp_path / "file"))
    asked = Asked()
    assert [remembered({}, asked)[0] for _ in range(2)] == [1, 2]


def test_nothing_is_kept_of_what_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        remembered({}, lambda: 1 // 0)
    assert not kept() and remembered({}, lambda: 5) == 5


def test_surroundings_name_releases_and_processor() -> None:
    found = surroundings("numpy")
    assert found.keys() == {"ptmst", "torch", "numpy", "cpu"} and all(found.values())


def test_a_known_hash_follows_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "weights", list[Path]()
    original = files.hash_of

    def spy(path: Path) -> str | None:
        read.append(path)
        return original(path)

    monkeypatch.setattr(files, "hash_of", spy)
    assert files.known_hash(path) is None
    path.write_bytes(b"one")
    assert files.known_hash(path) == files.known_hash(path) == files.sha256(b"one") and len(read) == 1
    path.write_bytes(b"two")
    os.utime(path, (5, 5))
    assert files.known_hash(path) == files.sha256(b"two") and len(read) == 2
