"""CSV, TSV and JSONL: what is read, and one line for each way a table can be broken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ptmst import load_pairs
from ptmst.errors import InputError

CAPTIONS = ("A cafe\u0301 — at NIGHT.", "👩‍👩‍👧 and a 🐕!", "שלום עולם", 'A "red, round" ball', "line one\nline two")
CLEANED = ("a cafe\u0301 — at night", "👩‍👩‍👧 and a 🐕", "שלום עולם", "a red, round ball", "line one\nline two")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With empty images a, b and sub/c: none is read."""
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize(("form", "separator"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_table_of_cells(root: Path, form: str, separator: str, mark: str, ending: str) -> None:
    images = ("sub/c.jpg", "a.jpg", "./sub/c.jpg", str(root / "a.jpg"), "a.jpg")
    rows = [("title", "likes", "filepath")]
    rows += [(quoted(text), "7", image) for image, text in zip(images, CAPTIONS, strict=True)]
    content = mark + ending.join(separator.join(row) for row in rows) + ending * 2
    (root / f"x.{form}").write_bytes(content.encode())
    pairs = load_pairs(f"{form}:x.{form}", root)
    assert pairs.image_names == ("sub/c.jpg", "a.jpg")
    assert pairs.image_paths == (root / "sub/c.jpg", root / "a.jpg")
    assert pairs.captions == CLEANED and pairs.image_of_text.tolist() == [0, 1, 0, 1, 1]
    assert (pairs.name, pairs.split) == (f"{form}:x.{form}", "train")


def test_a_tab_is_no_separator_in_csv_nor_a_comma_in_tsv(root: Path) -> None:
    (root / "x.csv").write_text("filepath,title\na.jpg,one\ttwo\n")
    (root / "x.tsv").write_text("filepath\ttitle\na.jpg\tone, two\n")
    assert load_pairs("csv:x.csv", root).captions == ("one\ttwo",)
    assert load_pairs("tsv:x.tsv", root).captions == ("one, two",)


def test_line_ends_inside_a_cell_are_kept(root: Path) -> None:
    (root / "x.csv").write_bytes(b'filepath,title\r\na.jpg,"one\r\ntwo"\r\nb.jpg,"one\ntwo"\r\n')
    # A run of white space collapses; a single line feed is none.
    assert load_pairs("csv:x.csv", root).captions == ("one two", "one\ntwo")


def test_json_lines(root: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": "b.jpg", "caption": CAPTIONS[0], "license": 3},
        {"filepath": "sub/c.jpg", "title": list(CAPTIONS[1:3])},
        {"image": str(root / "b.jpg"), "caption": list(CAPTIONS[3:])},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows))
    (root / "x.jsonl").write_text(text, "utf-8")
    pairs = load_pairs("jsonl:x.jsonl", root)
    assert pairs.image_names == ("b.jpg", "sub/c.jpg")
    assert pairs.captions == CLEANED and pairs.image_of_text.tolist() == [0, 1, 1, 0, 0]


def test_the_table_may_lie_outside_the_root(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.csv"
    elsewhere.write_text("filepath,title\na.jpg,x\n")
    assert load_pairs(f"csv:{elsewhere}", root).image_paths == (root / "a.jpg",)


def test_a_relative_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "x.csv").write_text(f"filepath,title\n{root / 'a.jpg'},x\n")
    monkeypatch.chdir(root.parent)
    assert load_pairs("csv:x.csv", os.path.relpath(root)).image_names == ("a.jpg",)


def test_the_same_pairs_have_the_same_fingerprint_in_every_form(root: Path) -> None:
    (root / "x.csv").write_text("filepath,title\na.jpg,one\nb.jpg,two\n")
    (root / "x.jsonl").write_text('{"image": "a.jpg", "caption": "one"}\n{"image": "b.jpg", "caption": ["two"]}\n')
    entries = [{"image": "a.jpg", "caption": "one"}, {"image": "b.jpg", "caption": "two"}]
    (root / "cc3m_captions_train.json").write_text(json.dumps(entries))
    names = ("csv:x.csv", "jsonl:x.jsonl", "cc3m")
    assert len({load_pairs(name, root).fingerprint for name in names}) == 1


# Splits


def test_a_split_column_parts_the_rows(root: Path) -> None:
    (root / "x.csv").write_text("filepath,split,title\na.jpg,train,one\nb.jpg,test,two\na.jpg,train,three\n")
    (root / "x.jsonl").write_text(
        '{"image": "a.jpg", "caption": "one"}\n{"image": "b.jpg", "caption": "two", "split": "test"}\n'
        '{"image": "a.jpg", "caption": "three", "split": "train"}\n'
    )
    for name in ("csv:x.csv", "jsonl:x.jsonl"):
        assert load_pairs(name, root).captions == ("one", "three")
        assert load_pairs(name, root, "test").captions == ("two",)
        with pytest.raises(InputError, match=r"x\.\w+: expected rows of split val, found test and train; name the"):
            load_pairs(name, root, "val")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_without_a_split_all_rows_are_of_train(root: Path, form: str) -> None:
    row = {"csv": "filepath,title\na.jpg,x\n", "jsonl": '{"image": "a.jpg", "caption": "x"}'}
    (root / f"x.{form}").write_text(row[form])
    assert len(load_pairs(f"{form}:x.{form}", root)) == 1
    with pytest.raises(InputError, match=r"expected rows of split test, found train; name the split of each row in a"):
        load_pairs(f"{form}:x.{form}", root, "test")


def test_a_file_per_split(root: Path) -> None:
    for split, name in (("train", "a"), ("val", "b")):
        (root / f"{split}.csv").write_text(f"filepath,title\n{name}.jpg,x\n")
    assert load_pairs("csv:{split}.csv", root).image_names == ("a.jpg",)
    assert load_pairs("csv:{split}.csv", root, "val").image_names == ("b.jpg",)
    with pytest.raises(InputError, match=r"/test\.csv: expected a CSV file, found no such file"):
        load_pairs("csv:{split}.csv", root, "test")


def test_a_file_of_a_split_that_says_it_is_another_is_refused(root: Path) -> None:
    (root / "test.csv").write_text("filepath,title,split\na.jpg,x,train\n")
    with pytest.raises(InputError, match="expected rows of split test, found train"):
        load_pairs("csv:{split}.csv", root, "test")


# Mistakes


def refused(root: Path, name: str, content: str | bytes, split: str = "train") -> str:
    (root / name.partition(":")[2]).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        load_pairs(name, root, split)
    message = str(caught.value)
    assert message.startswith(str(root / name.partition(":")[2])) and "\n" not in message
    return message.removeprefix(str(root / name.partition(":")[2])).removeprefix(": ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: expected a header with one column each of filepath and title or ima"),
        ("filepath\ttitle\na.jpg\tx\n", r"found ['filepath\ttitle']; name the columns with --data.image-column and --"),
        ("filepath,caption\na.jpg,x\n", "line 1: expected a header with one column each of filepath and tit"),
        ("filepath,title,title\na.jpg,x,y\n", "line 1: expected a header with one column each of filepath and tit"),
        ("filepath,title,split,split\na.jpg,x,train,val\n", "at most one split, found ['filepath', 'title', 'spli"),
        ("filepath,title\n", "expected rows of split train, found no rows"),
        ("filepath,title\na.jpg,x\n\na.jpg,red, round\n", "line 4: expected 2 cells, as in the header, found 3; put a"),
        ("filepath,title\na.jpg\n", "line 2: expected 2 cells, as in the header, found 1"),
        ('filepath,title\na.jpg,"x\ny"\na.jpg\n', "line 4: expected 2 cells"),
        ('filepath,title\na.jpg,"x\ny",z\n', "line 2: expected 2 cells"),
        ('filepath,title\na.jpg,"red" ball\n', "line 2: expected a row of cells, found a mistake in row 1 ("),
        ('filepath,title\na.jpg,"red\nb.jpg,blue\n', "line 2: expected a row of cells, found a mistake in row 1 ("),
        ("filepath,title\n,x\n", "line 2: expected filepath to be a path, found ''; fix it"),
        ("filepath,title\n/etc/passwd,x\n", "line 2: expected an image inside the root folder, found /etc/passwd"),
        ("filepath,title\nsub/../../a.jpg,x\n", "line 2: expected an image inside the root folder, found sub/../../a"),
        ("filepath,title,split\na.jpg,x,valid\n", "line 2: expected split to be train, val, test, warmup, found "),
        ("filepath,title\nno.jpg,x\nsub,y\n", "found 2 missing, the first no.jpg; put the images there, or fix the"),
        (b"filepath,title\na.jpg,x\na.jpg,caf\xe9\n", r"line 3: expected UTF-8, found other bytes in a.jpgcaf\udce9;"),
    ],
)  # fmt: skip
def test_mistakes_in_csv_are_told_apart(root: Path, content: str | bytes, message: str) -> None:
    assert message in refused(root, "csv:x.csv", content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected rows of split train, found no rows"),
        ('{"image": "a.jpg", "caption": "x"}\n{"image": "a.jpg"', "line 2: expected JSON, found Expecting"),
        ("[]", "line 1: expected a JSON object, found a list; write one object a line"),
        ('\n{"image": "a.jpg"}', "line 2: expected the keys image and caption, found ['image']; add them"),
        ('{"image": "a.jpg", "title": "x"}', "expected the keys image and caption, found ['image', 'title']"),
        ('{"image": 3, "caption": "x"}', "line 1: expected image to be a path, found 3; fix it"),
        ('{"image": "a.jpg", "caption": null}', "expected caption to be text or a list of texts, found null"),
        ('{"image": "a.jpg", "caption": []}', "line 1: expected at least one caption, found an empty list"),
        ('{"image": "../a.jpg", "caption": "x"}', "line 1: expected an image inside the root folder, found ../a.jpg"),
        ('{"image": "a.jpg", "caption": "x", "split": ["val"]}', "expected split to be train, val, test, warmup, "),
    ],
)  # fmt: skip
def test_mistakes_in_json_lines_are_told_apart(root: Path, content: str, message: str) -> None:
    assert message in refused(root, "jsonl:x.jsonl", content)


def test_a_neighbour_of_the_root_is_outside_it(root: Path) -> None:
    beside = root.with_name(root.name + "2")
    assert "inside the root folder" in refused(root, "csv:x.csv", f"filepath,title\n{beside / 'a.jpg'},x\n")


@pytest.mark.parametrize(("form", "file", "between"), [("csv", "x.tsv", "\t"), ("tsv", "x.csv", ",")])
def test_a_file_with_another_separator_is_refused(root: Path, form: str, file: str, between: str) -> None:
    """The prefix decides, since open_clip's own .csv files have tabs."""
    content = f"filepath{between}title\na.jpg{between}x\n"
    message = refused(root, f"{form}:{file}", content)
    other = {"csv": "a file with tabs is tsv:", "tsv": "a file with commas is csv:"}[form]
    assert message.startswith("line 1: expected a header with one column each of") and message.endswith(other)
    assert len(load_pairs(f"{other[-4:]}{file}", root).captions) == 1


def test_images_beside_the_table_are_found_from_their_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "x.csv").write_text("filepath,title\na.jpg,x\n")
    monkeypatch.chdir(root)
    assert len(load_pairs("csv:x.csv", Path()).captions) == len(load_pairs("csv:x.csv", root).captions) == 1


def test_a_missing_table_is_named(root: Path) -> None:
    with pytest.raises(
        InputError, match=r"/no\.csv: expected a CSV file, found no such file; check the path, which is rel"
    ):
        load_pairs("csv:no.csv", root)


@pytest.mark.parametrize("name", ["csv:", "xml:x.xml", "csv"])
def test_a_form_that_does_not_exist_is_refused(root: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"data set: expected .+, csv:PATH, tsv:PATH, .+, parquet:GLOB, found"):
        load_pairs(name, root)


def test_a_split_that_does_not_exist_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"split of csv:x\.csv: expected train, val, test, warmup, found 'tests'; did"):
        load_pairs("csv:x.csv", root, "tests")
