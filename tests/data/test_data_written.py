"""A data set of pictures is written once, whole or not at all, and never over what is another's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ptmst.data import load_pairs
from ptmst.data.credits import Credits
from ptmst.data.written import Advance, PictureSet, Sample, write_set
from ptmst.errors import InputError
from ptmst.support import files, locks

SAMPLES: list[Sample] = [
    ("train", "a.png", b"A", ["one", "two"]),
    ("train", "sub/b.png", b"B", ["three"]),
    ("test", "c.png", b"C", ["four", "five"]),
]


def samples(advance: Advance) -> Iterator[Sample]:
    for sample in SAMPLES:
        advance()
        yield sample


PICTURES = PictureSet(
    "emoji", {"from": "x"}, Credits("MIT", ("A, by B, MIT",)), samples, len(SAMPLES), "the MIT license"
)
WHOLE = {
    "images/a.png", "images/sub/b.png", "images/c.png", "emoji_train.json", "emoji_test.json",
    "LICENSES.txt", "credits.json", "emoji.json",
}  # fmt: skip


def content(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def stop_at(number: int) -> Callable[[int, int], None]:
    def stop(done: int, _: int) -> None:
        if done == number:
            raise KeyboardInterrupt

    return stop


def test_what_is_written(tmp_path: Path) -> None:
    seen = list[tuple[int, int]]()
    assert write_set(tmp_path, PICTURES, lambda *step: seen.append(step)) is True
    assert seen == [(1, 3), (2, 3), (3, 3)]
    found = content(tmp_path)
    assert found.keys() == WHOLE
    assert (found["images/a.png"], found["images/sub/b.png"], found["images/c.png"]) == (b"A", b"B", b"C")
    assert found["LICENSES.txt"] == b"the MIT license"
    assert [(e["image"], e["caption"]) for e in json.loads(found["emoji_train.json"])] == [
        ("images/a.png", "one"), ("images/a.png", "two"), ("images/sub/b.png", "three"),
    ]  # fmt: skip
    assert [(e["image"], e["caption"]) for e in json.loads(found["emoji_test.json"])] == [
        ("images/c.png", ["four", "five"])
    ]
    credits, record = json.loads(found["credits.json"]), json.loads(found["emoji.json"])
    assert (credits["format"], credits["license"], credits["credits"]) == ("ptmst-credits", "MIT", ["A, by B, MIT"])
    assert (record["format"], record["from"], record["images"]) == ("ptmst-emoji", "x", {"train": 2, "test": 1})


def test_the_same_set_gives_the_same_bytes_and_a_rerun_writes_nothing(tmp_path: Path) -> None:
    assert write_set(tmp_path / "a", PICTURES) and write_set(tmp_path / "b", PICTURES)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    (tmp_path / "a" / locks.CLAIM).write_bytes(b"")  # by a run that was killed when all was written
    assert write_set(tmp_path / "a", PICTURES) is False
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before


@pytest.mark.parametrize("gone", ["emoji_test.json", "emoji_train.json", "credits.json"])
def test_what_is_missing_is_written_again(tmp_path: Path, gone: str) -> None:
    write_set(tmp_path / "whole", PICTURES)
    write_set(tmp_path / "set", PICTURES)
    (tmp_path / "set" / gone).unlink()
    assert write_set(tmp_path / "set", PICTURES) is True
    assert content(tmp_path / "set") == content(tmp_path / "whole")


@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_stopped_run_leaves_no_split_that_reads_as_whole_and_continues(tmp_path: Path, images: int) -> None:
    write_set(tmp_path / "whole", PICTURES)
    root = tmp_path / "set"
    write_set(root, PICTURES)
    (root / "credits.json").unlink()  # an earlier run's annotations are there
    with pytest.raises(KeyboardInterrupt):
        write_set(root, PICTURES, stop_at(images))
    assert not list(root.glob("emoji_*.json"))
    assert json.loads((root / "emoji.json").read_text())["unfinished"] is True
    assert write_set(root, PICTURES) is True
    assert content(root) == content(tmp_path / "whole")


@pytest.mark.parametrize("written", range(6))
def test_a_run_stopped_between_its_files_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """The record, two annotations, licenses, credits, the record again."""
    write_set(tmp_path / "whole", PICTURES)
    root, whole_file, count = tmp_path / "set", files.write, 0

    def write(path: Path, data: bytes) -> str:
        nonlocal count
        if count == written:
            raise KeyboardInterrupt
        count += 1
        return whole_file(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", write)
        with pytest.raises(KeyboardInterrupt):
            write_set(root, PICTURES)
    assert write_set(root, PICTURES) is True
    assert content(root) == content(tmp_path / "whole")
    assert write_set(root, PICTURES) is False


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from test_data_written import PICTURES
from ptmst.data.written import write_set
write_set(Path(sys.argv[2]), PICTURES, lambda done, _: os._exit(9) if done == 2 else None)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_folder_that_can_be_continued(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "set")]
    done = subprocess.run(command, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (9, b"")
    assert {name for name in content(tmp_path / "set") if name[0] != "."} == {"images/a.png", "emoji.json"}
    with pytest.raises(InputError, match="expected an annotation file, found none"):
        load_pairs("emoji", tmp_path / "set")
    assert write_set(tmp_path / "set", PICTURES) and write_set(tmp_path / "whole", PICTURES)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_a_set_made_of_something_else_is_refused_whole_or_not(tmp_path: Path) -> None:
    other = PictureSet("emoji", {"from": "y"}, PICTURES.credits, samples, 3)
    write_set(tmp_path / "whole", PICTURES)
    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path / "torn", PICTURES, stop_at(2))
    for name in ("whole", "torn"):
        before = content(tmp_path / name)
        with pytest.raises(InputError) as caught:
            write_set(tmp_path / name, other)
        assert str(caught.value) == (
            f"{tmp_path / name / 'emoji.json'}: expected emoji made of what is installed here, found it made of other "
            "from; choose another root or delete that folder"
        )
        assert content(tmp_path / name) == before


def test_pictures_of_others_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"theirs")
    with pytest.raises(InputError, match=r"^.+: expected a new folder, or one that `ptmst data` has begun, found .+; "):
        write_set(tmp_path, PICTURES)
    assert content(tmp_path) == {"images/a.png": b"theirs"}


@pytest.mark.parametrize("form", ["trajectory-store", "distilled-set"])
def test_a_folder_of_another_kind_is_refused(tmp_path: Path, form: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"format": f"ptmst-{form}"}))
    with pytest.raises(InputError, match=f"holds a {form.replace('-', ' ')} already; choose another"):
        write_set(tmp_path, PICTURES)
    assert content(tmp_path).keys() == {"x.json"}


def test_a_root_that_is_a_file_and_an_image_that_cannot_be_written_are_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"theirs")
    with pytest.raises(InputError, match=r"file: cannot be used \(.+\); choose another output folder$"):
        write_set(tmp_path / "file", PICTURES)
    clash: list[Sample] = [("train", "a", b"A", ["one"]), ("train", "a/b.png", b"B", ["two"])]
    with pytest.raises(InputError, match=r"images/a/b\.png: cannot be written \(.+\); free space or choose another"):
        write_set(tmp_path / "set", PictureSet("emoji", {}, PICTURES.credits, lambda _: clash, 2))
    assert json.loads((tmp_path / "set" / "emoji.json").read_text())["unfinished"] is True
