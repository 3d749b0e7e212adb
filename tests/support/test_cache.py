"""What the cache holds is listed by kind and can be removed by kind; nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ptmst import cli
from ptmst.data import pixels
from ptmst.students import features
from ptmst.students.text_towers import HashedText, embed_captions
from ptmst.support import cache, remembered


@pytest.fixture
def folder() -> Path:
    """Two texts, one file of features, a fact, a compiled one in folders, and a file that is not of the cache."""
    folder = Path(os.environ["PTMST_CACHE"])
    (folder / "compiled" / "ab").mkdir(parents=True)
    embed_captions(HashedText(4), ["one"])
    embed_captions(HashedText(4), ["two"])
    for name, size in {
        "features-1.safetensors": 30,
        "fact-1.json": 9,
        "compiled/ab/kernel.py": 7,
        "mine.txt": 1000,
    }.items():
        (folder / name).write_bytes(b"x" * size)
    return folder


def found() -> dict[str, tuple[int, int]]:
    return {kept.kind: (kept.files, kept.bytes) for kept in cache.contents()}


def test_contents_by_kind(folder: Path) -> None:
    texts = sum(path.stat().st_size for path in folder.glob("texts-*"))
    assert found() == {"texts": (2, texts), "features": (1, 30), "pixels": (0, 0), "facts": (1, 9), "compiled": (1, 7)}
    os.utime(folder / "features-1.safetensors", (5, 5))
    assert {kept.kind: kept.used for kept in cache.contents()}["features"] == 5


def test_what_is_listed_is_what_is_kept() -> None:
    """The patterns are named twice, since a light command does not load what writes the files."""
    kept = {"features": features.SHELF.pattern, "pixels": pixels.SHELF.pattern, "facts": remembered.PATTERN}
    assert {kind: cache._WHAT[kind][0] for kind in kept} == kept  # type: ignore[index]


def test_a_kind_is_removed_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cache", "--clear", "compiled"]) == 0
    assert "compiled: 1 files removed, 0.0 MB" in capsys.readouterr().out
    assert found()["compiled"] == (0, 0) and found()["texts"][0] == 2 and found()["features"] == (1, 30)
    assert cli.main(["cache", "--clear", "all"]) == 0
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["mine.txt"]
    embeds = embed_captions(HashedText(4), ["one"])
    assert torch.equal(embeds, HashedText(4).embed(["one"])) and found()["texts"][0] == 1
    for kind in found():
        assert cli.main(["cache", "--clear", kind]) == 0 and found()[kind] == (0, 0)


def test_an_empty_cache_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cache"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("texts", "features", "pixels", "facts", "compiled"))
