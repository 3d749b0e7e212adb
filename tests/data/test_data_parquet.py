"""Parquet files as others publish them: read as pyarrow reads them, whatever types their columns have."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ptmst import load_pairs
from ptmst.data import denormalize
from ptmst.data import parquet as module
from ptmst.data.check import check
from ptmst.data.parquet import Parquet
from ptmst.errors import InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
SIZE = 12


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    file = BytesIO()
    Image.fromarray(noise(seed)).save(file, "png")
    return file.getvalue()


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, rows: int = 5, group: int = 2, **columns: Any) -> Path:
    """Images 0 … rows-1 of noise, with a caption each, unless other columns are given."""
    path.parent.mkdir(exist_ok=True)
    images = pa.array([{"bytes": png(i), "path": f"{i}.png"} for i in range(rows)], STRUCT)
    given = {"image": images, "caption": pa.array([f"Text {i}" for i in range(rows)]), **columns}
    table = pa.table({name: column for name, column in given.items() if column is not None})
    pq.write_table(table, path, row_group_size=group)
    return path


def seen(name: str, root: Path, split: str = "train") -> list[tuple[str, list[int]]]:
    """Caption and the seed of the image of each pair, in order."""
    pairs = load_pairs(name, root, split, image_size=SIZE)
    images = denormalize(pairs.images(pairs.image_of_text)).permute(0, 2, 3, 1).numpy()
    return [
        (caption, [seed for seed in range(20) if np.array_equal(noise(seed), image)])
        for caption, image in zip(pairs.captions, images, strict=True)
    ]


PLAIN = [(f"text {i}", [i]) for i in range(5)]
CONTENT = [png(i) for i in range(5)]
TEXTS = [f"Text {i}" for i in range(5)]
FORMS: dict[str, tuple[dict[str, Any], Callable[[Path], object]]] = {
    "struct": ({}, lambda root: None),
    "bytes before path": (
        {"image": pa.array([{"path": "same", "bytes": c} for c in CONTENT], pa.struct([STRUCT[1], STRUCT[0]]))},
        lambda root: None,
    ),
    "struct of bytes alone": (
        {"image": pa.array([{"bytes": c} for c in CONTENT], pa.struct([("bytes", pa.large_binary())]))},
        lambda root: None,
    ),
    "bytes without a path": (
        {"image": pa.array([{"bytes": c, "path": None} for c in CONTENT], STRUCT)},
        lambda root: None,
    ),
    "bytes": ({"image": pa.array(CONTENT)}, lambda root: None),
    "large bytes": ({"image": pa.array(CONTENT, pa.large_binary())}, lambda root: None),
    "paths": (
        {"image": pa.array([f"{i}.png" for i in range(5)])},
        lambda root: [(root / f"{i}.png").write_bytes(c) for i, c in enumerate(CONTENT)],
    ),
    "a dictionary of paths": (
        {"image": pa.array([f"{i}.png" for i in range(5)]).dictionary_encode()},
        lambda root: [(root / f"{i}.png").write_bytes(c) for i, c in enumerate(CONTENT)],
    ),
    "struct of paths": (
        {"image": pa.array([{"bytes": None, "path": f"./{i}.png"} for i in range(5)], STRUCT)},
        lambda root: [(root / f"{i}.png").write_bytes(c) for i, c in enumerate(CONTENT)],
    ),
    "bytes here, a path there": (
        {"image": pa.array([{"bytes": (c, None)[i % 2], "path": f"{i}.png"} for i, c in enumerate(CONTENT)], STRUCT)},
        lambda root: [(root / f"{i}.png").write_bytes(CONTENT[i]) for i in (1, 3)],
    ),
    "large text": ({"caption": pa.array(TEXTS, pa.large_string())}, lambda root: None),
    "a dictionary of text": ({"caption": pa.array(TEXTS).dictionary_encode()}, lambda root: None),
    "lists": ({"caption": pa.array([[text] for text in TEXTS])}, lambda root: None),
    "large lists": ({"caption": pa.array([[text] for text in TEXTS], pa.large_list(pa.string()))}, lambda root: None),
    "lists of one": ({"caption": pa.array([[text] for text in TEXTS], pa.list_(pa.string(), 1))}, lambda root: None),
    "a column text": ({"caption": None, "text": pa.array(TEXTS)}, lambda root: None),
    "other columns": ({"id": pa.array(range(5)), "image.bytes": pa.array(["x"] * 5)}, lambda root: None),
}  # fmt: skip


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_column(tmp_path: Path, form: str, statistics: bool) -> None:
    columns, prepare = FORMS[form]
    file = write(tmp_path / "x.parquet", **columns)
    pq.write_table(pq.read_table(file), file, row_group_size=2, write_statistics=statistics)
    prepare(tmp_path)
    assert seen("parquet:x.parquet", tmp_path) == PLAIN
    assert not check("parquet:x.parquet", tmp_path).problems


def test_lists_are_captions_of_one_image(tmp_path: Path) -> None:
    captions = [["One!", "two", "שלום"], ["犬が二匹"], ["a cafe\u0301", "one"]]
    write(tmp_path / "x.parquet", 3, caption=pa.array(captions))
    expected = [("one", [0]), ("two", [0]), ("שלום", [0]), ("犬が二匹", [1]), ("a cafe\u0301", [2]), ("one", [2])]
    assert seen("parquet:x.parquet", tmp_path) == expected
    pairs = load_pairs("parquet:x.parquet", tmp_path)
    assert pairs.image_names == ("x.parquet/0", "x.parquet/1", "x.parquet/2")
    assert pairs.image_of_text.tolist() == [0, 0, 0, 1, 2, 2]


def test_rows_of_one_image_are_one_image(tmp_path: Path) -> None:
    """If path and bytes are equal: published files often keep the last part of a path only, or none."""
    rows = [("a/0.png", 0), ("0.png", 1), ("0.png", 2), ("0.png", 1), (None, 3), (None, 1), ("0.png", 2), (None, 3)]
    images = pa.array([{"path": path, "bytes": png(seed)} for path, seed in rows], STRUCT)
    write(tmp_path / "x.parquet", image=images, caption=pa.array([f"{i}" for i in range(8)]))
    assert seen("parquet:x.parquet", tmp_path) == [(f"{i}", [seed]) for i, (_, seed) in enumerate(rows)]
    pairs = load_pairs("parquet:x.parquet", tmp_path)
    assert pairs.image_of_text.tolist() == [0, 1, 2, 1, 3, 4, 2, 3]
    assert pairs.image_names == tuple(f"x.parquet/{row}" for row in (0, 1, 2, 4, 5))


def test_rows_of_one_image_in_several_files_are_one_image(tmp_path: Path) -> None:
    for part in range(2):
        write(tmp_path / f"{part}.parquet", 6, image=pa.array([png(seed) for seed in (0, 0, 1, 2, 1, part)]))
    pairs = load_pairs("parquet:*.parquet", tmp_path)
    assert pairs.image_of_text.tolist() == [0, 0, 1, 2, 1, 0, 0, 0, 1, 2, 1, 1]
    assert not [line for line in check("parquet:*.parquet", tmp_path).remarks if "several names" in line]


def test_rows_without_an_image_are_not_one_image(tmp_path: Path) -> None:
    images = pa.array([{"bytes": content, "path": None} for content in (png(0), None, None)], STRUCT)
    write(tmp_path / "x.parquet", 3, image=images)
    assert check("parquet:x.parquet", tmp_path).splits[0].unreadable == 2


def test_a_named_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    images = pa.array([{"bytes": content, "path": "x.png"} for content in (png(0), None)], STRUCT)
    write(tmp_path / "x.parquet", 2, image=images)
    (problem,) = check("parquet:x.parquet", tmp_path).problems
    assert "row 1 of row group 0: expected an image, found neither bytes nor the file" in problem
    os.mkfifo(tmp_path / "y.parquet")
    assert refused(tmp_path / "y.parquet").startswith("expected Parquet files of that name, found none")


def test_a_list_of_captions_written_as_text_is_a_list(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", 2, caption=pa.array(['["A dog.", "two"]', str(np.array(["it's", "d"]))]))
    assert seen("parquet:x.parquet", tmp_path) == [("a dog", [0]), ("two", [0]), ("it's", [1]), ("d", [1])]


def test_images_are_decoded_in_any_order_and_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptmst.data.pairs.DECODERS", 8)
    for part in range(3):
        images = pa.array([{"bytes": png(20 * part + i), "path": None} for i in range(20)], STRUCT)
        write(tmp_path / f"{part}.parquet", 20, 3, image=images)
    pairs = load_pairs("parquet:*.parquet", tmp_path, image_size=SIZE)
    index = torch.randperm(60)
    images = denormalize(pairs.images(index)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images, np.stack([noise(int(i)) for i in index]))


def test_a_row_group_is_read_once_for_images_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", 20, 10)
    pairs = load_pairs("parquet:x.parquet", tmp_path, image_size=SIZE)
    module._read_group.cache_clear()
    pairs.pixels(torch.arange(20))
    assert module._read_group.cache_info().misses == 2


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    for seed in (0, 7):
        write(tmp_path / "x.parquet", 1, image=pa.array([png(seed)]))
        assert seen("parquet:x.parquet", tmp_path) == [("text 0", [seed])]


# Splits


@pytest.mark.parametrize("val", ["val", "validation"])
def test_a_file_per_split(tmp_path: Path, val: str) -> None:
    write(tmp_path / "data/train-00000-of-00002.parquet", 2)
    write(tmp_path / "data/train-00001-of-00002.parquet", 1)
    write(tmp_path / f"data/{val}-00000-of-00001.parquet", 4)
    name = "parquet:data/{split}-*.parquet"
    pairs = load_pairs(name, tmp_path)
    # The only row of the second file has the image of the first row of the first.
    assert pairs.image_names == tuple(f"data/train-00000-of-00002.parquet/{row}" for row in (0, 1))
    assert pairs.image_of_text.tolist() == [0, 1, 0] and pairs.captions == ("text 0", "text 1", "text 0")
    assert seen(name, tmp_path, "val") == PLAIN[:4]
    assert [split.split for split in check(name, tmp_path).splits] == ["train", "val"]
    with pytest.raises(InputError, match=r"test-\*\.parquet: expected Parquet files of that name, found none; check"):
        load_pairs(name, tmp_path, "test")


def test_a_split_column_parts_the_rows(tmp_path: Path) -> None:
    splits = pa.array(["test", "train", "validation", "train", "test"])
    write(tmp_path / "x.parquet", split=splits)
    for split, rows in (("train", [1, 3]), ("val", [2]), ("test", [0, 4])):
        assert seen("parquet:*.parquet", tmp_path, split) == [PLAIN[i] for i in rows]
    assert [split.images for split in check("parquet:*.parquet", tmp_path).splits] == [2, 1, 2]
    with pytest.raises(InputError, match=r"\*\.parquet: expected rows of split warmup, found test and train and val; "):
        load_pairs("parquet:*.parquet", tmp_path, "warmup")


def test_without_a_split_all_rows_are_of_train(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"expected rows of split test, found train; name the split of each row in a"):
        load_pairs("parquet:x.parquet", tmp_path, "test")


def test_files_that_their_names_promise_are_missed(tmp_path: Path) -> None:
    for part in (0, 2):
        write(tmp_path / f"train-0000{part}-of-00003.parquet", 1)
    message = r"expected 3 files, as their names say, found 2, and no train-00001-of-00003\.parquet; fetch the rest"
    with pytest.raises(InputError, match=message):
        load_pairs("parquet:train-*.parquet", tmp_path)
    report = check("parquet:train-*.parquet", tmp_path)
    assert report.splits[0].images == 1 and "found 2, and no train-00001-of-00003.parquet" in report.problems[0]
    assert len(load_pairs("parquet:train-0000[02]-of-00003.parquet", tmp_path)) == 2


# Columns


@pytest.mark.parametrize("image", ["Image data", "jpg.png"])
def test_columns_of_other_names(tmp_path: Path, image: str) -> None:
    write(tmp_path / "x.parquet", image=None, caption=None, **{image: pa.array(CONTENT), "a.b": pa.array(TEXTS)})
    annotations = Parquet("x.parquet", image, "a.b").read(tmp_path, "train")
    assert annotations.captions == tuple(TEXTS) and [place.read() for place in annotations.places] == CONTENT
    pairs = load_pairs("parquet:x.parquet", tmp_path, image_column=image, caption_column="a.b")
    assert pairs.captions == tuple(caption for caption, _ in PLAIN)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": None}, "expected one column image, found caption; name it with --data.image-column"),
        ({"caption": None}, "expected one column caption or text, found image; name it with --data.caption-column"),
        ({"text": pa.array(TEXTS)}, "expected one column caption or text, found caption, text; name it with --data.c"),
        ({"image": pa.array(range(5))}, "expected bytes, a path, or a struct of bytes and path in column image, found"),
        ({"image": pa.array([{"url": "x"}] * 5)}, "a struct of bytes and path in column image, found struct<url: st"),
        ({"image": pa.array([[[[0]]]] * 5)}, "a struct of bytes and path in column image, found list<"),
        ({"caption": pa.array(range(5))}, "expected text or lists of text in column caption, found int64; name anothe"),
        ({"caption": pa.array([[1]] * 5)}, "expected text or lists of text in column caption, found list<"),
        ({"caption": pa.array([b"x"] * 5)}, "expected text or lists of text in column caption, found binary; name ano"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    assert message in refused(write(tmp_path / "x.parquet", **columns))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption": pa.array([*TEXTS[:4], None])}, "row 4: expected caption to be text or a list of texts, found nul"),
        ({"caption": pa.array([[t] for t in TEXTS[:4]] + [[]])}, "row 4: expected at least one caption, found an empt"),
        ({"caption": pa.array([[t] for t in TEXTS[:4]] + [["a", None]])}, "row 4: expected caption to be text or a li"),
        ({"image": pa.array([*("x.parquet",) * 4, ""])}, "row 4: expected the path of an image, found none; drop"),
        ({"image": pa.array([*("x.parquet",) * 4, None])}, "row 4: expected the path of an image, found none; drop"),
        ({"image": pa.array([*("x.parquet",) * 4, "../x"])}, "row 4: expected an image inside the root folder, found "),
        ({"image": pa.array([*("x.parquet",) * 4, "/x"])}, "row 4: expected an image inside the root folder, found /x"),
        ({"split": pa.array([*("train",) * 4, "valid"])}, "row 4: expected split to be train, val, test, warmup, foun"),
        ({"split": pa.array([*("train",) * 4, None])}, "row 4: expected split to be train, val, test, warmup, found N"),
    ],
)  # fmt: skip
def test_a_broken_row_is_named_and_the_check_goes_on(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    assert message in refused(write(tmp_path / "x.parquet", group=3, **columns))
    report = check("parquet:x.parquet", tmp_path)
    (problem,) = [line for line in report.problems if "row 4" in line]
    assert message in problem and report.splits[0].captions == 4


@pytest.mark.parametrize("path", [None, "../x.png", "/x.png", "no.png", ""])
def test_a_row_without_an_image_is_found_out_as_it_is_read(tmp_path: Path, path: str | None) -> None:
    """Before, the bytes of all images would have to be read."""
    rows = [*({"bytes": c, "path": None} for c in CONTENT[:4]), {"bytes": None, "path": path}]
    write(tmp_path / "x.parquet", image=pa.array(rows, STRUCT))
    with pytest.raises(InputError) as caught:
        seen("parquet:x.parquet", tmp_path)
    told = {
        None: "x.parquet: row 0 of row group 2: expected an image, found neither bytes nor a path inside the root",
        "no.png": "x.parquet: row 0 of row group 2: expected an image, found neither bytes nor the file ",
    }
    assert told.get(path, str(told[None])) in str(caught.value) and "\n" not in str(caught.value)
    assert check("parquet:x.parquet", tmp_path).splits[0].unreadable == 1


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", image=pa.array([f"{i}.png" for i in range(5)]))
    assert "expected every image it names under" in refused(tmp_path / "x.parquet")


def test_an_image_that_is_none_is_named_by_file_and_row(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", image=pa.array([*CONTENT[:3], CONTENT[3][:100], b""]))
    with pytest.raises(InputError, match=r"x\.parquet/[34]: expected a whole image, found ") as caught:
        seen("parquet:x.parquet", tmp_path)
    assert "\n" not in str(caught.value)
    assert check("parquet:x.parquet", tmp_path).splits[0].unreadable == 2


# Files


def refused(file: Path, pattern: str = "") -> str:
    with pytest.raises(InputError) as caught:
        load_pairs(f"parquet:{pattern or file.name}", file.parent)
    message = str(caught.value)
    assert message.startswith(str(file)) and "\n" not in message
    return message.removeprefix(f"{file}: ")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def pointer(content: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n"


def other(content: bytes) -> bytes:
    return b"filepath,title\n" * 99


def pages(content: bytes) -> bytes:
    return content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "expected a whole Parquet file, found a mistake ("),
        (other, "expected a whole Parquet file, found a mistake ("),
        (pages, "expected a whole Parquet file, found a mistake ("),
        (lambda content: b"", "expected a whole Parquet file, found a mistake (Parquet file size is 0 bytes); fetch"),
        (gzip.compress, "expected a whole Parquet file, found a gzip archive; unpack it"),
        (
            pointer,
            "expected a whole Parquet file, found a Git LFS pointer in its place; fetch the file itself with git",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    file = write(tmp_path / "x.parquet")
    file.write_bytes(damage(file.read_bytes()))
    assert refused(file).startswith(message)
    assert len(check("parquet:x.parquet", tmp_path).problems) == 1


def test_a_folder_is_called_one(tmp_path: Path) -> None:
    write(tmp_path / "data/x.parquet")
    assert refused(tmp_path / "data").startswith("expected a Parquet file, found a folder; name the files in it")


def test_other_files_that_the_pattern_matches_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet")
    (tmp_path / "a.md").write_text("read me")
    assert refused(tmp_path / "a.md", "*").startswith("expected a whole Parquet file, found a mistake (")


@pytest.mark.parametrize("columns", [{"image": pa.array([], STRUCT), "caption": pa.array([], pa.string())}])
def test_a_file_without_rows_is_refused(tmp_path: Path, columns: dict[str, Any]) -> None:
    assert refused(write(tmp_path / "x.parquet", **columns)).startswith("expected rows of split train, found no rows")


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    write(tmp_path / "x.parquet", 1, caption=broken)
    assert "'utf-8' codec can't decode byte 0xff" in refused(tmp_path / "x.parquet")


def test_a_row_group_that_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.parquet")
    monkeypatch.setattr("ptmst.support.devices.free_bytes", lambda device: 1000)
    message = refused(tmp_path / "x.parquet")
    assert message.startswith("expected row groups of at most 0 MB, a quarter of the free memory, found one of")


def test_files_outside_the_root_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet")
    (tmp_path / "root").mkdir()
    for pattern in ("../x.parquet", str(file)):
        with pytest.raises(InputError, match=r"expected an image inside the root folder, found .*x\.parquet"):
            load_pairs(f"parquet:{pattern}", tmp_path / "root")


@pytest.mark.parametrize("name", ["s3:x.parquet", "[a]*.parquet", "http:x.parquet"])
def test_a_name_is_a_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert seen("parquet:*.parquet", tmp_path) == PLAIN


@pytest.mark.parametrize("library", ["pyarrow", "pyarrow.parquet"])
def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    write(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=r'parquet: expected the package pyarrow, found none .+ "ptmst\[hf\]"$'):
        load_pairs("parquet:x.parquet", tmp_path)


def test_the_fingerprint_depends_on_content_alone(tmp_path: Path) -> None:
    for folder, group in (("one", 2), ("two", 5)):
        write(tmp_path / folder / "x.parquet", group=group)
    prints: Sequence[str] = [load_pairs("parquet:x.parquet", tmp_path / name).fingerprint for name in ("one", "two")]
    assert prints[0] == prints[1]
