"""Tables and JSON as others write them: read right, or one line that names file, thing and remedy; README.md lists all.

What is refused when it is loaded is a problem for `check`, in the same words.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import logging
import lzma
import os
import socket
import subprocess
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO, StringIO
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from ptmst import DataConfig, cli, load_pairs
from ptmst.data import load_split
from ptmst.data.annotations import texts_of
from ptmst.data.captions import clean_caption
from ptmst.data.check import check
from ptmst.data.pairs import Pairs
from ptmst.data.sources import source_of
from ptmst.errors import InputError
from ptmst.students.text_towers import HashedText

Form = Literal["NFC", "NFD"]
SCOTLAND = "🏴" + "".join(chr(0xE0000 + ord(letter)) for letter in "gbsct\x7f")


def png(seed: int = 0) -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With different images a, b and sub/c."""
    for i, name in enumerate(("a.png", "b.png", "sub/c.png")):
        lay(tmp_path, name, png(i))
    return tmp_path


def lay(root: Path, name: str, content: str | bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def pairs_of(pairs: Pairs) -> list[tuple[str, str]]:
    return [(pairs.image_names[i], text) for i, text in zip(pairs.image_of_text.tolist(), pairs.captions, strict=True)]


def read(name: str, root: Path, content: str | bytes | None = None, **columns: str) -> list[tuple[str, str]]:
    """(image, caption) of a split that is in order for `check` too."""
    if content is not None:
        lay(root, name.partition(":")[2], content)
    pairs = load_pairs(name, root, **columns)  # type: ignore[arg-type]
    report = check(name, root, **columns)
    assert report.problems == ()
    assert [(split.images, split.captions) for split in report.splits] == [(len(pairs.image_names), len(pairs))]
    return pairs_of(pairs)


def refused(name: str, root: Path, content: str | bytes | None = None, **columns: str) -> str:
    """The one line, which `check` says too."""
    if content is not None:
        lay(root, name.partition(":")[2], content)
    with pytest.raises(InputError) as caught:
        load_pairs(name, root, **columns)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000 and message.isprintable()
    assert message in check(name, root, **columns).problems
    return message.replace(f"{root}/", "")


def remark(name: str, root: Path, content: str | bytes, caplog: pytest.LogCaptureFixture) -> str:
    """The one line on what is read nevertheless."""
    lay(root, name.partition(":")[2], content)
    report = check(name, root)
    assert report.problems == ()
    (line,) = report.remarks
    assert "\n" not in line
    return line.replace(f"{root}/", "")


def jsonl(*rows: Mapping[str, object]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


# Columns


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("filepath,title", {}),
        ("image,caption", {}),
        ("image, caption", {}),
        ("file_name,text", {"image_column": "file_name", "caption_column": "text"}),
        ("filepath,text", {"caption_column": "text"}),
        ("image,text", {"caption_column": "text"}),
        ("file,caption", {"image_column": "file"}),
        # A choice goes before names that are known; filepath and title before image and caption.
        ("best,title,image,filepath", {"image_column": "best"}),
        ("filepath,title,image,caption", {}),
    ],
)
def test_columns_by_their_names(root: Path, header: str, columns: dict[str, str]) -> None:
    content = f"{header}\na.png,A dog,no.png,x\nsub/c.png,one,no.png,x\n"
    content = "\n".join(",".join(line.split(",")[: header.count(",") + 1]) for line in content.splitlines())
    expected = [("a.png", "a dog"), ("sub/c.png", "one")]
    if header.startswith("best"):
        content = "best,title,image,filepath\na.png,A dog,no.png,x\nsub/c.png,one,no.png,x\n"
    assert read("csv:x.csv", root, content, **columns) == expected
    assert read("tsv:x.tsv", root, content.replace(",", "\t"), **columns) == expected
    rows = list(csv.DictReader(StringIO(content), skipinitialspace=True))
    if header != "filepath,title,image,caption":  # of both pairs JSON prefers the other
        assert read("jsonl:x.jsonl", root, jsonl(*rows), **columns) == expected


def test_columns_are_settings_of_every_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(root, "x.csv", "file_name,text\na.png,one\n")
    data = DataConfig("csv:x.csv", root, image_size=8, image_column="file_name", caption_column="text")
    assert pairs_of(load_split(data, "train")) == [("a.png", "one")]
    columns = ["--image-column", "file_name", "--caption-column", "text"]
    assert cli.main(["data", "check", "csv:x.csv", "--root", str(root), *columns]) == 0
    assert cli.main(["data", "check", "csv:x.csv", "--root", str(root)]) == 2
    assert "name the columns with --data.image-column" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("file,caption", "filepath and title or image and caption, and at most one split, found ['file', 'caption']"),
        ("image,image,caption", "found ['image', 'image', 'caption']"),
        ("image_name| comment_number| comment", "found ['image_name| comment_number| comment']"),
        ("x" * 5000, f"found ['{'x' * 118}…; name the columns"),
    ],
)
def test_other_columns_are_refused(root: Path, header: str, found: str) -> None:
    message = refused("csv:x.csv", root, f"{header}\na.png,x\n")
    assert message.startswith("x.csv: line 1: expected a header with one column each of") and found in message


def test_a_column_that_is_not_there_is_refused(root: Path) -> None:
    message = refused("csv:x.csv", root, "image,caption\na.png,x\n", caption_column="text")
    assert "one column each of filepath and text or image and text" in message
    message = refused("jsonl:x.jsonl", root, jsonl({"image": "a.png", "caption": "x"}), caption_column="text")
    assert "expected the keys image and text, found ['caption', 'image']; add them" in message


@pytest.mark.parametrize("name", ["scenes", "coco", "wds:*.tar"])
def test_where_there_are_no_columns_none_can_be_chosen(root: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"caption_column: expected data of csv, .+ found {name[:3]}.+; leave it out"):
        load_pairs(name, root, caption_column="text")


# Cells


@pytest.mark.parametrize("quoted", [False, True])
def test_a_quote_that_is_never_closed_is_told_where_it_opens(root: Path, quoted: bool) -> None:
    rows = ['a.png,"x"' if quoted else "a.png,x"] * 50_000
    rows[2] = 'a.png,"x'
    message = refused("csv:x.csv", root, "\n".join(["image,caption", *rows, ""]))
    assert message.startswith("x.csv: line 4: expected a row of cells, found a mistake in row 3 (")
    assert message.endswith("perhaps a quote that is never closed; write a quote inside a quoted cell twice")


def test_rows_are_told_by_lines_where_cells_have_several(root: Path) -> None:
    message = refused("csv:x.csv", root, 'image,caption\na.png,"x\ny"\n\na.png,"x')
    assert message.startswith("x.csv: line 5: expected a row of cells, found a mistake in row 2 (")


NASTY = (
    'He said "no, no"',
    "two\nlines",
    "two\r\nlines",
    'a "',
    '"',
    ",",
    "a, b",
    "a\tb",
    "  x  ",
    "é",
    "日本語 です",
    "a",
)


@pytest.mark.parametrize("form", ["csv", "tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_pythons_csv_writes_is_read(tmp_path: Path, form: str, encoding: str, ending: str, quoting: int) -> None:
    text = StringIO(newline="")
    table = csv.writer(text, "excel" if form == "csv" else "excel-tab", lineterminator=ending, quoting=quoting)  # type: ignore[arg-type]
    # Of the line ends it quotes only its own.
    captions = tuple(f"x{text}" for text in NASTY if ending != "\r" or "\n" not in text)
    table.writerows([("image", "caption"), *(("a.png", text) for text in captions)])
    lay(tmp_path, "a.png", png())
    lay(tmp_path, f"x.{form}", text.getvalue().encode(encoding))
    annotations = source_of(f"{form}:x.{form}").read(tmp_path, "train")
    assert annotations.captions == captions


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_json_in_any_unicode(root: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    rows = jsonl({"image": "a.png", "caption": "日本語 é"}, {"image": "b.png", "caption": "\N{GRINNING FACE}"})
    assert read("jsonl:x.jsonl", root, (mark + rows).encode(encoding)) == [
        ("a.png", "日本語 é"),
        ("b.png", "\N{GRINNING FACE}"),
    ]
    entries = json.dumps([json.loads(line) for line in rows.splitlines()], ensure_ascii=False)
    lay(root, "cc3m_captions_train.json", (mark + entries).encode(encoding))
    assert load_pairs("cc3m", root).captions == ("日本語 é", "\N{GRINNING FACE}")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_utf16_without_its_mark_is_told(root: Path, form: str, encoding: str) -> None:
    content = {"csv": "image,caption\na.png,x\n", "jsonl": jsonl({"image": "a.png", "caption": "x"})}[form]
    message = refused(f"{form}:x.{form}", root, content.encode(encoding))
    assert "found zero bytes, as in UTF-16 without a byte order mark; save the file as UTF-8" in message


def test_half_of_a_utf16_file_is_told(root: Path) -> None:
    message = refused("csv:x.csv", root, "image,caption\na.png,é\n".encode("utf-16")[:-1])
    assert "x.csv: expected UTF-16, as its byte order mark says, found other bytes (truncated data)" in message


def test_bytes_that_are_no_utf8_are_told_by_their_row(root: Path) -> None:
    content = "image,caption\na.png,x\nb.png,café\na.png,y\nb.png,naïve\n".encode("latin-1")
    assert refused("csv:x.csv", root, content).startswith("x.csv: line 3: expected UTF-8, found other bytes in b.png")
    assert [line.split(":")[1] for line in check("csv:x.csv", root).problems] == [" line 3", " line 5"]


def test_marks_between_files_that_were_joined(root: Path) -> None:
    rows = [jsonl({"image": name, "caption": "x"}) for name in ("a.png", "b.png")]
    assert read("jsonl:x.jsonl", root, "\ufeff" + "\n\ufeff".join(rows)) == [("a.png", "x"), ("b.png", "x")]


# Captions


@pytest.mark.parametrize("nothing", ["", " ", "\t", ".", '"()"', "-", "?", "nan", "NaN", "None", "NULL", "n/a", "<NA>",
                                     "(null)", "#N/A", "NA", "NaT", "nil", "undefined", r"\N", "#NAME?", "#DIV/0!",
                                     "\u200b", "\ufeff", "\u2060\u200b \u00ad", "\u200d", "\u3164", "\u2800\u2800",
                                     "\u200bnan", "n\u00adaN\ufe0f", "none\0", "\u3164null", "\x1b", "\ufffc",
                                     "\U000e0041"])  # fmt: skip
def test_a_caption_that_says_nothing_is_left_out_and_told(
    root: Path, nothing: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, object]] = [
        {"image": "a.png", "caption": ["one", nothing]},
        {"image": "b.png", "caption": nothing},
        {"image": "sub/c.png", "caption": "two"},
    ]
    lay(root, "x.jsonl", jsonl(*rows))
    line = (
        f"{root}/x.jsonl: 2 captions without a word (empty, or such as nan or none) left out, of a.png, b.png; write "
        "them, or leave out their rows"
    )
    with caplog.at_level(logging.WARNING, "ptmst"):
        assert pairs_of(load_pairs("jsonl:x.jsonl", root)) == [("a.png", "one"), ("sub/c.png", "two")]
    assert caplog.messages == [line]
    report = check("jsonl:x.jsonl", root)
    assert report.problems == (line,) and report.splits[0].empty == 2
    lay(root, "x.jsonl", jsonl(rows[1]))
    assert "found 1 caption without a word; add words" in refused("jsonl:x.jsonl", root)


@pytest.mark.parametrize("text", ["a", "7", "None of them", "a nan bread", "null and void", "🐕", "日", "é", "ก", "א"])
def test_a_caption_that_says_little_is_kept(root: Path, text: str) -> None:
    rows = jsonl({"image": "a.png", "caption": text})
    assert read("jsonl:x.jsonl", root, rows) == [("a.png", text.lower())]


@pytest.mark.slow  # to import scikit-learn
@pytest.mark.parametrize(
    ("text", "is_short"), [("a", True), ("🐕 🐕", True), ("a b", True), ("ab", False), ("日", False)]
)
def test_captions_that_the_hashed_tower_cannot_tell_apart_are_told(root: Path, text: str, is_short: bool) -> None:
    lay(root, "x.jsonl", jsonl({"image": "a.png", "caption": text}))
    told = [line for line in check("jsonl:x.jsonl", root).remarks if "1 caption of single letters or signs" in line]
    assert bool(told) == is_short == (not HashedText(64).embed([text]).any())


LISTED = ["A dog runs.", "it's", 'say "hi"', "both ' and \"", "two\nlines", "C:\\x", "é 😀", "a\tb", "[a]", "one, two"]


@pytest.mark.parametrize("texts", [LISTED, ["one"], ["None of them", "two", "two"]], ids=["ten", "one", "three"])
@pytest.mark.parametrize(
    "written",
    [
        json.dumps,
        lambda texts: json.dumps(texts, ensure_ascii=False, indent=1),
        repr,
        lambda texts: f" {texts!r} ",
        lambda texts: str(np.array(texts)),
        lambda texts: str(np.array(texts, dtype=object)),
    ],
    ids=["JSON", "JSON of lines", "Python", "spaces", "NumPy", "NumPy objects"],
)
def test_a_list_of_captions_written_in_a_cell_is_a_list(
    root: Path, texts: list[str], written: Callable[[list[str]], str]
) -> None:
    """As Flickr30k's table on Hugging Face has them, and whatever else writes a column of lists as CSV."""
    file = StringIO()
    csv.writer(file).writerows([("image", "caption"), ("a.png", written(texts)), ("b.png", "[one] dog")])
    expected = [*(("a.png", clean_caption(text)) for text in texts), ("b.png", "[one] dog")]
    assert read("csv:x.csv", root, file.getvalue()) == expected
    rows = [{"image": "a.png", "caption": written(texts)}, {"image": "b.png", "caption": "[one] dog"}]
    assert read("jsonl:x.jsonl", root, jsonl(*rows)) == expected


@pytest.mark.parametrize("text", ["[1, 2]", "[a]", "['it's a dog', 'x']", '["a"] b', "['a'] or ['b']", "['a' said he]",
                                  "[['a', 'b']]", '["a", 1]', "[" * 9_999 + "x]", '["\\d"]', "[a"])  # fmt: skip
def test_a_caption_with_brackets_is_a_caption(text: str) -> None:
    assert texts_of(text, "") == [text]
    assert texts_of(["['a', 'b']", text], "") == ["['a', 'b']", text]


@pytest.mark.parametrize("text", ["['one', nan]", "['one', None]", '["one", null]', "['one' nan]", "[nan, 'one',]"])
def test_what_is_missing_in_a_list_in_a_cell_is_left_out(root: Path, text: str) -> None:
    lay(root, "x.jsonl", jsonl({"image": "a.png", "caption": text}))
    assert pairs_of(load_pairs("jsonl:x.jsonl", root)) == [("a.png", "one")]
    assert check("jsonl:x.jsonl", root).splits[0].empty == 1


def test_half_of_a_character_in_a_list_in_a_cell_is_told(root: Path) -> None:
    rows = jsonl({"image": "a.png", "caption": json.dumps(["\ud83d"])})
    assert "found half of a character (a surrogate)" in refused("jsonl:x.jsonl", root, rows)


def test_marks_inside_captions_are_left_out(root: Path) -> None:
    content = "image,caption\na.png,\ufeffa dog\nb.png,a \ufeffcat\n"
    assert read("csv:x.csv", root, content) == [("a.png", "a dog"), ("b.png", "a cat")]


@pytest.mark.parametrize("hidden", ["\u200b", "\u00ad", "\u2066", "\u2060", "\0", "\x1b[31m", "\x85", "\u034f",
                                    "\u061c", "\u2800", "\u3164", "\U000e0041\U000e0042"])  # fmt: skip
def test_characters_that_cannot_be_seen_are_told(root: Path, hidden: str, caplog: pytest.LogCaptureFixture) -> None:
    content = jsonl(
        {"image": "a.png", "caption": f"a d{hidden}og"}, {"image": "b.png", "caption": f"👩‍👩‍👧 ❤️ می‌خواهم\t{SCOTLAND}"}
    )
    line = remark("jsonl:x.jsonl", root, content, caplog)
    assert line.startswith("x.jsonl: 1 caption with characters that cannot be seen, the first a d\\")
    assert load_pairs("jsonl:x.jsonl", root).captions[0] == f"a d{hidden}og"


@pytest.mark.parametrize("text", ["一只狗在草地上跑", "犬が走る", "สุนัขวิ่งบนหญ้า"])
def test_scripts_without_spaces_are_told(root: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    content = jsonl(
        {"image": "a.png", "caption": [text, f"a {text[0]} runs", "개가 달린다", "ein Hund"]},
        {"image": "b.png", "caption": "one"},
    )
    line = remark("jsonl:x.jsonl", root, content, caplog)
    assert line.startswith(f"x.jsonl: 2 captions in a script without spaces between words, the first {text}; the tow")


def test_a_caption_of_several_images_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = jsonl(*({"image": name, "caption": text} for name, text in [("a.png", "A dog."), ("b.png", "a dog")]))
    assert remark("jsonl:x.jsonl", root, content, caplog) == (
        "x.jsonl: train has 2 captions of 2 that several images have, the first a dog; recall asks for one of these "
        "images, so it is at best IR@1/5/10 50.00, 100.00, 100.00, TR@1/5/10 50.00, 100.00, 100.00, mean 83.33 (`ptmst "
        "evaluate --count-equal-captions` takes any of them); in a batch they are negatives of one another"
    )
    assert len(load_pairs("jsonl:x.jsonl", root)) == 2


def test_an_image_under_several_names_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    lay(root, "copy.png", png(0))
    content = jsonl({"image": "a.png", "caption": "one"}, {"image": "copy.png", "caption": "two"})
    assert remark("jsonl:x.jsonl", root, content, caplog) == (
        "x.jsonl: 1 image under several names: a.png = copy.png; recall asks for one of them"
    )


@pytest.mark.parametrize("ids", [(1, 2, 2), ("1", "2", "2"), ("x", 1, None)])
def test_an_image_is_one_whatever_its_ids_say(root: Path, ids: tuple[object, ...]) -> None:
    images = ("a.png", "a.png", "b.png")
    rows = [
        {"image": n, "caption": f"x{i}", "image_id": id_} for i, (n, id_) in enumerate(zip(images, ids, strict=True))
    ]
    expected = [("a.png", "x0"), ("a.png", "x1"), ("b.png", "x2")]
    assert read("jsonl:x.jsonl", root, jsonl(*rows)) == expected
    lay(root, "cc3m_captions_train.json", json.dumps(rows))
    assert pairs_of(load_pairs("cc3m", root)) == expected
    cells = "".join(f"{row['image_id']},{row['image']},{row['caption']}\n" for row in rows)
    assert read("csv:x.csv", root, "image_id,image,caption\n" + cells) == expected


# JSON that is none, or none to be used


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (r'{"image": "a.png", "caption": "\ud83d"}', r"expected a caption in Unicode, found half of a character"),
        (r'{"image": "a.png", "caption": ["x", "a \udc00 b"]}', r"(a surrogate) in a \udc00 b; write the whole"),
        (r'{"image": "a\ud83d.png", "caption": "x"}', r"found characters of no path (a\ud83d.png); fix it"),
        (r'{"image": "a\u0000.png", "caption": "x"}', r"found characters of no path (a\x00.png); fix it"),
        (r'{"image": "no\n\u001b[31m.png", "caption": "x"}', r"no\n\x1b[31m.png"),
        ('{"image": "a.png", "caption": "x", "image_id": ' + "7" * 5000 + "}", "found a number of thousands of digits"),
        ('{"image": "a.png", "caption": ' + "[" * 200_000, "found brackets that are nested too deeply"),
        ('{"a":' * 200_000, "found brackets that are nested too deeply"),
        ('{"image": "a.png", "caption": NaN}', "expected caption to be text or a list of texts, found a number"),
        ('{"image": "", "caption": "x"}', "to be a path, found ''"),
        ('{"image": ".", "caption": "x"}', "expected the path of an image, found '.'; fix it"),
        ('{"image": "' + "7" * 5000 + '", "caption": "x"}', f"missing, the first {'7' * 120}…; "),
        ('{"image": "a.png", "caption": "x", "split": ["\\n"]}', r"found ['\n']; rename it"),
    ],
)  # fmt: skip
def test_json_that_cannot_be_used_is_one_line(root: Path, entry: str, message: str) -> None:
    lay(root, "x.jsonl", entry)
    if "missing" in message or "no\\n" in message:  # `check` counts what is missing
        with pytest.raises(InputError) as caught:
            load_pairs("jsonl:x.jsonl", root)
        assert message in str(caught.value) and "\n" not in str(caught.value)
        assert all("\n" not in problem and len(problem) < 1000 for problem in check("jsonl:x.jsonl", root).problems)
        return
    assert message in refused("jsonl:x.jsonl", root)
    if "split" not in entry:
        lay(root, "cc3m_captions_train.json", f"[{entry}]" if entry.endswith("}") else f"[{entry}")
        with pytest.raises(InputError) as caught:
            load_pairs("cc3m", root)
        known = message.replace("to be a path, found ''", "expected the path of an image, found ''")
        assert known in str(caught.value) and "\n" not in str(caught.value)


def test_a_whole_surrogate_pair_is_a_character(root: Path) -> None:
    row = r'{"image": "a.png", "caption": "\ud83d\ude00"}'
    assert read("jsonl:x.jsonl", root, row) == [("a.png", json.loads(row)["caption"])] == [("a.png", "😀")]


def test_a_zero_byte_in_a_table(root: Path) -> None:
    message = refused("csv:x.csv", root, "image,caption\na\0.png,x\n")
    assert message.startswith(r"x.csv: line 2: expected the path of an image, found characters of no path (a\x00.png)")
    with pytest.raises(InputError, match=r"a\\x00\.csv: expected a CSV file, found no such file"):
        load_pairs("csv:a\0.csv", root)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("csv:x.csv", "image,caption\n"),
        ("csv:x.csv", "image,caption\n\n\n"),
        ("csv:x.csv", "\n\n\nimage,caption"),
        ("tsv:x.tsv", "image\tcaption\r\n\r\n"),
        ("jsonl:x.jsonl", ""),
        ("jsonl:x.jsonl", "\n  \n\t\n\ufeff\n"),
        ("csv:{split}.csv", "image,caption\n"),
        ("jsonl:{split}.jsonl", "\n"),
    ],
)
def test_an_empty_table_is_refused_by_check_as_by_the_reader(root: Path, name: str, content: str) -> None:
    lay(root, name.partition(":")[2].replace("{split}", "train"), content)
    assert ": expected rows of split train, found no rows; " in refused(name, root)


def test_an_empty_file_has_no_header(root: Path) -> None:
    for content in ("", "\n\n", "\ufeff"):
        assert "line 1: expected a header" in refused("csv:x.csv", root, content)


def test_a_table_of_rows_that_cannot_be_used_is_refused(root: Path) -> None:
    lay(root, "x.csv", "image,caption\n/etc/passwd,x\n")
    problems = check("csv:x.csv", root).problems
    assert "expected an image inside the root folder, found /etc/passwd" in problems[0]
    assert "expected rows of split train, found none that can be used" in problems[1]


@pytest.mark.parametrize(
    "value", [[], {"images": []}, {"images": [{"filename": "a.png", "split": "test", "sentences": []}]}]
)
def test_annotations_without_an_image_are_refused_by_check(root: Path, value: object) -> None:
    lay(root, "flickr8k_train.json" if value == [] else "dataset_flickr8k.json", json.dumps(value))
    with pytest.raises(InputError) as caught:
        load_pairs("flickr8k", root)
    assert str(caught.value) in check("flickr8k", root).problems


# Files that are something else


def zipped(content: bytes) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", content)
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
OTHERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "pointer": (lambda content: POINTER, "a Git LFS pointer in its place; fetch the file itself with git lfs pull"),
    "gzip": (gzip.compress, "a gzip archive; unpack it"),
    "bzip2": (bz2.compress, "a bzip2 archive; unpack it"),
    "xz": (lzma.compress, "an xz archive; unpack it"),
    "zstd": (lambda content: b"\x28\xb5\x2f\xfd" + content, "a zstd archive; unpack it"),
    "zip": (zipped, "a zip archive; unpack it"),
    "page": (lambda content: b"\n<!DOCTYPE html><html>404</html>", "an HTML page; fetch it again"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["csv:x.csv", "tsv:x.tsv", "jsonl:x.jsonl", "cc3m", "wds:x.tar"])
def test_a_file_of_another_kind_is_called_what_it_is(root: Path, name: str, kind: str) -> None:
    if name.startswith("wds"):
        pytest.importorskip("braceexpand")
    make, found = OTHERS[kind]
    file = name.partition(":")[2] or "cc3m_captions_train.json"
    lay(root, file, make(b"image,caption\na.png,x\n"))
    message = refused(name, root)
    assert message.startswith(f"{file}: expected ") and message.endswith(f", found {found}")


def test_a_parquet_or_tar_file_is_sent_to_its_form(root: Path) -> None:
    assert refused("csv:x.csv", root, b"PAR1" + b"\0" * 20).endswith("found a Parquet file; name it parquet:")
    assert refused("jsonl:x", root, b"\0" * 257 + b"ustar" + b"\0" * 9).endswith("found a tar file; name it wds:")


COCO = {
    "info": {},
    "images": [{"id": 1, "file_name": "a.png"}],
    "annotations": [{"image_id": 1, "id": 1, "caption": "x"}],
}


@pytest.mark.parametrize("file", ["coco_karpathy_train.json", "dataset_coco.json"])
def test_cocos_own_captions_in_place_of_karpathys_are_called_so(root: Path, file: str) -> None:
    lay(root, file, json.dumps(COCO))
    message = refused("coco", root)
    assert message.startswith(f"{file}: expected ") and "found COCO's own annotations; lay coco_karpathy_" in message


@pytest.mark.parametrize("file", ["captions_train2014.json", "annotations/captions_val2014.json"])
def test_cocos_own_captions_beside_it_are_called_so(root: Path, file: str) -> None:
    lay(root, file, json.dumps(COCO))
    assert f"found COCO's own {Path(file).name}, which does not have these splits; lay" in refused("coco", root)


def test_cocos_own_captions_as_json_lines_are_called_so(root: Path) -> None:
    message = refused("jsonl:x.jsonl", root, json.dumps(COCO))
    assert "found COCO's own annotations with ['annotations', 'images', 'info']; add them" in message


def test_karpathys_files_in_each_others_place_are_called_so(root: Path) -> None:
    lay(root, "flickr8k_train.json", json.dumps({"images": []}))
    assert "expected a list of entries, found Karpathy's file of all splits" in refused("flickr8k", root)
    (root / "flickr8k_train.json").unlink()
    lay(root, "dataset_flickr8k.json", json.dumps([{"image": "a.png", "caption": "x"}]))
    assert "found a list, as of one split; lay flickr8k_train.json" in refused("flickr8k", root)


def test_a_split_that_karpathy_does_not_have_is_refused(root: Path) -> None:
    images = [{"filename": "a.png", "filepath": "sub", "split": "dev", "sentences": [{"raw": "x"}]}]
    lay(root, "dataset_coco.json", json.dumps({"images": images}))
    assert "image 1 of 1: expected split to be train, restval, val, test, found 'dev'" in refused("coco", root)


# Paths


def test_paths_of_windows(root: Path) -> None:
    content = 'image,caption\nsub\\c.png,one\n.\\a.png,two\nsub/c.png,three\n"sub\\\\c.png",four\n'
    assert read("csv:x.csv", root, content) == [
        ("sub/c.png", "one"),
        ("a.png", "two"),
        ("sub/c.png", "three"),
        ("sub/c.png", "four"),
    ]


def test_a_backslash_that_is_in_the_name_is_left_there(root: Path) -> None:
    lay(root, "sub\\c.png", png(9))
    lay(root, "x.csv", "image,caption\nsub\\c.png,x\nsub/c.png,y\n")
    pairs = load_pairs("csv:x.csv", root)
    assert pairs.image_names == ("sub\\c.png", "sub/c.png")
    assert [place.read() for place in pairs.places] == [png(9), png(2)]


@pytest.mark.parametrize("name", ["C:\\data\\a.png", "..\\a.png", "sub\\..\\..\\a.png", "\\\\server\\a.png", "\\a.png"])
def test_paths_of_windows_that_leave_the_root_are_refused(root: Path, name: str) -> None:
    message = refused("csv:x.csv", root, f"image,caption\n{name},x\n")
    assert f"expected an image inside the root folder, found {name}; write a relative path" in message


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
def test_names_in_another_unicode_form(tmp_path: Path, on_disk: Form, in_table: Form) -> None:
    name = "Zürich/café.png"
    lay(tmp_path, unicodedata.normalize(on_disk, name), png())
    other: Form = "NFC" if in_table == "NFD" else "NFD"
    written = [unicodedata.normalize(form, name) for form in (in_table, other)]
    rows = [{"image": image, "caption": f"x{i}"} for i, image in enumerate(written)]
    # Both spellings are one image; its name is the first one.
    assert read("jsonl:x.jsonl", tmp_path, jsonl(*rows)) == [(written[0], "x0"), (written[0], "x1")]
    pairs = load_pairs("jsonl:x.jsonl", tmp_path)
    assert pairs.places[0].read() == png()


def test_two_files_whose_names_look_alike_are_two_images(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    for i, name in enumerate(names):
        lay(tmp_path, name, png(i))
    if len(os.listdir(tmp_path)) < 2:
        pytest.skip("this file system takes them for one")
    rows = jsonl(*({"image": name, "caption": f"x{i}"} for i, name in enumerate(names)))
    assert read("jsonl:x.jsonl", tmp_path, rows) == [(names[0], "x0"), (names[1], "x1")]
    assert [place.read() for place in load_pairs("jsonl:x.jsonl", tmp_path).places] == [png(0), png(1)]


def test_a_name_between_two_that_look_alike_is_missing(tmp_path: Path) -> None:
    composed, parted = (unicodedata.normalize(form, "éé.png") for form in ("NFC", "NFD"))
    for name in (composed, parted):
        lay(tmp_path, name, png())
    if len(os.listdir(tmp_path)) < 2:
        pytest.skip("this file system takes them for one")
    lay(tmp_path, "x.jsonl", jsonl({"image": composed[0] + parted[2:], "caption": "x"}))
    with pytest.raises(InputError, match="found 1 missing"):
        load_pairs("jsonl:x.jsonl", tmp_path)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_classes_are_found_in_another_unicode_form(tmp_path: Path, forms: tuple[Form, Form]) -> None:
    in_table, in_classes = (unicodedata.normalize(form, "é.png") for form in forms)
    lay(tmp_path, in_table, png())
    lay(tmp_path, "x.jsonl", jsonl({"image": in_table, "caption": "x"}))
    value = {"format": "ptmst-classes", "version": 1, "prompts": {"dog": ["a dog"]}, "images": {in_classes: "dog"}}
    lay(tmp_path, "classes.json", json.dumps(value))
    classes = load_pairs("jsonl:x.jsonl", tmp_path).classes()
    assert classes is not None and classes.labels.tolist() == [0]


def test_links_mean_the_same_on_both_sides(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(root)
    for base, other in ((root, link), (link, root)):
        rows = jsonl(
            {"image": str(other / "a.png"), "caption": "x"}, {"image": str(base / "sub/c.png"), "caption": "y"}
        )
        lay(root, "x.jsonl", rows)
        assert pairs_of(load_pairs("jsonl:x.jsonl", base)) == [("a.png", "x"), ("sub/c.png", "y")]
    lay(root, "x.jsonl", jsonl({"image": str(link.parent / "a.png"), "caption": "x"}))
    (link.parent / "a.png").write_bytes(png())
    for base in (root, link):
        with pytest.raises(InputError, match="expected an image inside the root folder"):
            load_pairs("jsonl:x.jsonl", base)


def test_a_file_that_is_a_link_is_the_file(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As in Hugging Face's cache, where all files are links."""
    blob = tmp_path_factory.mktemp("elsewhere") / "blob"
    blob.write_bytes(png(7))
    (root / "link.png").symlink_to(blob)
    (root / "broken.png").symlink_to(root / "no")
    assert read("csv:x.csv", root, "image,caption\nlink.png,x\n") == [("link.png", "x")]
    assert load_pairs("csv:x.csv", root).places[0].read() == png(7)
    lay(root, "x.csv", "image,caption\nbroken.png,x\n")
    with pytest.raises(InputError, match=r"found 1 missing, the first broken\.png"):
        load_pairs("csv:x.csv", root)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["csv:pipe", "jsonl:pipe", "wds:pipe", "wds:*", "cc3m", "csv:/dev/stdin"])
def test_a_named_pipe_is_no_file(tmp_path: Path, name: str) -> None:
    if name.startswith("wds"):
        pytest.importorskip("braceexpand")
    for file in ("pipe", "cc3m_captions_train.json"):
        os.mkfifo(tmp_path / file)
    with pytest.raises(InputError, match=r"expected .+ found "):
        load_pairs(name, tmp_path)


@pytest.mark.timeout(20)
def test_an_image_that_is_a_named_pipe_is_missing(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    lay(root, "x.csv", "image,caption\npipe.png,x\n")
    with pytest.raises(InputError, match=r"found 1 missing, the first pipe\.png"):
        load_pairs("csv:x.csv", root)


@pytest.mark.parametrize(
    "address",
    [
        *("http://127.0.0.1/x", "https://127.0.0.1/x", "s3://b/x", "gs://b/x", "hf://x", "file:///etc/passwd"),
        *("pipe:touch started", "|touch started", "$(touch started)"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl", "wds", "parquet"])
def test_nothing_is_started_or_connected_whatever_a_file_is_called(
    root: Path, form: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"wds": "braceexpand", "parquet": "pyarrow"}.get(form, "csv"))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("started or connected")

    for module, name in (
        (socket, "socket"),
        (socket, "create_connection"),
        (subprocess, "Popen"),
        (os, "system"),
        (os, "popen"),
    ):
        monkeypatch.setattr(module, name, never)
    monkeypatch.chdir(root)
    with pytest.raises(InputError):
        load_pairs(f"{form}:{address}", root)
    check(f"{form}:{address}", root)
    lay(root, "x.jsonl", jsonl({"image": address, "caption": "x"}))
    with pytest.raises(InputError):
        load_pairs("jsonl:x.jsonl", root)
    assert not (root / "started").exists()


# Lengths


LONG = ["x" * 5000, "x/" * 2400 + "x", "x/" * 1500 + "x", "{split}" + "x" * 300, "/" + "x" * 300, "../" * 2000 + "x"]
DEEP = ["[" * 3000, "{" * 2000, "{a," * 500 + "}" * 500, "*" * 300, "{1..9}" * 900]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "wds", "parquet"])
@pytest.mark.parametrize("path", [*LONG, *DEEP], ids=range(len(LONG) + len(DEEP)))
def test_a_name_of_thousands_of_characters_is_refused(root: Path, form: str, path: str) -> None:
    pytest.importorskip({"wds": "braceexpand", "parquet": "pyarrow"}.get(form, "csv"))
    refused(f"{form}:{path}", root)


@pytest.mark.parametrize("path", LONG, ids=range(len(LONG)))
def test_a_path_of_thousands_of_characters_is_refused_or_missing(root: Path, path: str) -> None:
    lay(root, "x.csv", f"image,caption\n{path},a dog\n")
    with pytest.raises(InputError, match=r"^.{1,600}$"):
        load_pairs("csv:x.csv", root)
    (problem,) = check("csv:x.csv", root).problems[:1]
    assert len(problem) < 600


@pytest.mark.parametrize("name", ["coco", "cc3m", "scenes", "csv:x.csv", "wds:x.tar", "parquet:x.parquet"])
@pytest.mark.parametrize("path", LONG[:2], ids=range(2))
def test_a_root_of_thousands_of_characters_is_refused(root: Path, name: str, path: str) -> None:
    for use in (load_pairs, check):
        with pytest.raises(InputError, match=r"^root: expected a path that a file system can hold, found .{1,300}$"):
            use(name, root / path)


@pytest.mark.parametrize(
    ("name", "columns"),
    [("x" * 5000, {}), ("x" * 5000 + ":y", {}), ("x" * 5000, {"image_column": "a"}), ("coco", {"split": "x" * 5000})],
)
def test_other_names_of_thousands_of_characters_are_shortened(root: Path, name: str, columns: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"^.{1,600}$"):
        load_pairs(name, root, **columns)  # type: ignore[arg-type]


def test_columns_of_thousands_of_characters_are_shortened(root: Path) -> None:
    refused("csv:x.csv", root, "image,caption\na.png,a dog\n", image_column="x" * 5000)
    refused("jsonl:x.jsonl", root, jsonl({"image": "a.png", "caption": "a dog"}), caption_column="x" * 5000)
