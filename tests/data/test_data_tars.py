"""Tar files as others pack them: read right, or one line that names file, thing and remedy; README.md lists all.

Names and bytes are compared with Python's tarfile, and samples with the webdataset library where it knows them.
"""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptmst import load_pairs
from ptmst.data.check import check
from ptmst.data.pairs import Pairs
from ptmst.errors import InputError

pytest.importorskip("braceexpand", reason="needs the extra ptmst[wds]")

Member = tuple[str, bytes | str]


def png(seed: int = 0) -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, target
    return info


def pack(path: Path, members: Iterable[Member | tarfile.TarInfo], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                content = member[1].encode() if isinstance(member[1], str) else member[1]
                tar.addfile(entry(member[0], len(content)), BytesIO(content))
    return path


def pairs_of(pairs: Pairs) -> list[tuple[str, str]]:
    return [(pairs.image_names[i], text) for i, text in zip(pairs.image_of_text.tolist(), pairs.captions, strict=True)]


def read(root: Path, name: str = "wds:*.tar") -> list[tuple[str, str]]:
    """(image, caption) of a split that is in order for `check` too, every image's bytes as tarfile extracts them."""
    pairs, report = load_pairs(name, root), check(name, root)
    assert report.problems == ()
    assert [(split.images, split.captions) for split in report.splits] == [(len(pairs.image_names), len(pairs))]
    for place in pairs.places:
        with tarfile.open(place.file) as tar:
            files = [tar.extractfile(member) for member in tar if not member.isdir()]
            assert place.read() in [file.read() for file in files if file is not None]
    return pairs_of(pairs)


def refused(root: Path, name: str = "wds:*.tar") -> str:
    """The one line, which `check` says too."""
    with pytest.raises(InputError) as caught:
        load_pairs(name, root)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000 and message.isprintable()
    assert message in check(name, root).problems
    return message.replace(f"{root}/", "")


def sound(count: int = 1, first: int = 0) -> list[Member]:
    return [
        member for i in range(first, first + count) for member in ((f"{i}.png", png(i)), (f"{i}.txt", f"number {i}"))
    ]


# CLIP_benchmark's sets

CAPTIONS = ["A dog.", "Two\nlines", "Three", "a \\ slash"]
LINES = "\n".join(text.replace("\n", "\\n") for text in CAPTIONS)
CLEANED = ["a dog", "two\nlines", "three", "a \\ slash"]


def mark(root: Path, where: str, content: str = "retrieval\n") -> None:
    if where == "in the tar file":
        with tarfile.open(root / "test/0.tar", "a") as tar:
            tar.addfile(entry("dataset_type.txt", len(content)), BytesIO(content.encode()))
    else:
        (root / where).write_text(content)


PLACES = ["dataset_type.txt", "test/dataset_type.txt", "in the tar file"]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("content", ["retrieval", "retrieval\n", "\ufeff Retrieval\r\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_is_a_caption_where_a_marker_says_so(tmp_path: Path, where: str, content: str, end: str) -> None:
    text = LINES.replace("\n", end) + end
    pack(
        tmp_path / "test/0.tar",
        [("s0000000.png", png(0)), ("s0000000.txt", text), ("s1.txt", "one"), ("s1.png", png(1))],
    )
    mark(tmp_path, where, content)
    (tmp_path / "test/nshards.txt").write_text("1\n")
    pairs = load_pairs("wds:{split}/*.tar", tmp_path, "test")
    assert pairs_of(pairs) == [*(("test/0.tar/s0000000.png", text) for text in CLEANED), ("test/0.tar/s1.png", "one")]
    report = check("wds:{split}/*.tar", tmp_path)
    assert (report.problems, report.remarks) == ((), ())


@pytest.mark.parametrize("marker", [None, "multilabel"])
def test_without_it_several_lines_are_one_caption_and_told(
    tmp_path: Path, marker: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    pack(tmp_path / "a.tar", [("0.png", png(0)), ("0.txt", "A dog.\na cat"), ("1.png", png(1)), ("1.txt", "one\n\n")])
    if marker:
        mark(tmp_path, "dataset_type.txt", marker)
    with caplog.at_level(logging.WARNING, "ptmst"):
        assert load_pairs("wds:*.tar", tmp_path).captions == ("a dog a cat", "one")
    (line,) = caplog.messages
    assert line == (
        f"{tmp_path}/*.tar: 1 txt of several lines, the first of a.tar/0.png, is read as one caption each; if every "
        f'line is a caption, write "retrieval" into {tmp_path}/dataset_type.txt'
    )
    assert check("wds:*.tar", tmp_path).remarks == (line,)
    (tmp_path / "dataset_type.txt").write_text("retrieval")
    assert load_pairs("wds:*.tar", tmp_path).captions == ("a dog", "a cat", "one")


def test_fewer_tar_files_than_counted_are_told(tmp_path: Path) -> None:
    for i in range(2):
        pack(tmp_path / f"{i}.tar", sound(first=i))
    (tmp_path / "nshards.txt").write_text("3\n")
    (line,) = check("wds:*.tar", tmp_path).remarks
    assert line == f"{tmp_path}: has 2 tar files of the 3 that nshards.txt counts; fetch the rest"


# Members


def test_captions_after_all_images(tmp_path: Path) -> None:
    members = sound(50)
    pack(tmp_path / "a.tar", [*members[::2], *members[1::2]])
    assert read(tmp_path) == [(f"a.tar/{i}.png", f"number {i}") for i in range(50)]


@pytest.mark.parametrize(
    ("names", "images"),
    [
        (["a.b.png", "a.b.txt"], ["a.b.png"]),
        (["1.1.png", "1.1.txt", "1.2.png", "1.2.txt"], ["1.1.png", "1.2.png"]),
        (["1.png", "1.txt", "1.1.png", "1.1.txt"], ["1.png", "1.1.png"]),
        (["v1.0/a.png", "v1.0/a.txt"], ["v1.0/a.png"]),
        (["x.tar.gz.png", "x.tar.gz.txt"], ["x.tar.gz.png"]),
        (["A.PNG", "A.TXT"], ["A.PNG"]),
        (["a.png", "a.mask.png", "a.txt", "a.mask.left.png"], ["a.png"]),  # parts of a, as the library has them
        (["a.mask.png", "a.alt.txt", "a.png", "a.txt"], ["a.png"]),
        (["./a.png", "a.txt"], ["./a.png"]),
        (["a.png", "a.txt", "README", "LICENSE"], ["a.png"]),
        (["a.png", "a.txt", "._a.png", "._a.txt", ".DS_Store", "._.DS_Store", "x/._b.png"], ["a.png"]),
        (["__MACOSX/a.png", "__MACOSX/._a.png", "d/__MACOSX/b.png", "a.png", "a.txt"], ["a.png"]),
        (["__meta__", "a.png", "a.txt", "__x__/b.png"], ["a.png"]),
    ],
)
def test_keys(tmp_path: Path, names: list[str], images: list[str]) -> None:
    pack(tmp_path / "a.tar", [(name, name if name.lower().endswith("txt") else png(i)) for i, name in enumerate(names)])
    captions = [
        image.rpartition(".")[0].removeprefix("./") + (".TXT" if image.isupper() else ".txt") for image in images
    ]
    expected = [
        (f"a.tar/{image}", " ".join(text.lower().split("."))) for image, text in zip(images, captions, strict=True)
    ]
    assert read(tmp_path) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "1.txt", "1.5.png"], "a.tar: sample 1.5: expected a caption in txt or json, found png; add it"),
        (["a.png", "b.txt"], "a.tar: sample a: expected a caption in txt or json, found png; add it"),
        (["a.mask.png", "a.txt"], "a.tar: sample a: expected one of jpg, png, jpeg, webp, found mask.png and txt"),
        (["a.png", "a.txt", "a.png"], "a.tar: sample a: expected one file of each kind, found a.png and a.png; pack"),
        (["a.png", "a.txt", "b.png", "b.txt", "./a.txt"], "expected one file of each kind, found a.txt and ./a.txt; p"),
        (["a.png", "a.txt", "a.TXT"], "a.tar: sample a: expected one file of each kind, found a.txt and a.TXT; pack"),
        (["a\nb.png"], "a.tar: sample a\\nb: expected a caption in txt or json"),
        (["README"], "a.tar: expected samples, found an empty tar file; fetch it again or take it away"),
        ([], "a.tar: expected samples, found an empty tar file; fetch it again or take it away"),
        (["._a.png", "._a.txt"], "a.tar: expected samples, found an empty tar file; fetch it again or take it away"),
    ],
)  # fmt: skip
def test_samples_that_are_none_are_told(tmp_path: Path, names: list[str], message: str) -> None:
    pack(tmp_path / "a.tar", [(name, name if name.lower().endswith("txt") else png(i)) for i, name in enumerate(names)])
    assert message in refused(tmp_path)


def test_an_empty_tar_file_among_others_is_told(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", sound())
    pack(tmp_path / "b.tar", [])
    assert "b.tar: expected samples, found an empty tar file" in refused(tmp_path)
    assert check("wds:*.tar", tmp_path).splits[0].images == 1  # the rest is looked at all the same


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_are_what_they_point_at(tmp_path: Path, form: int) -> None:
    members: list[Member | tarfile.TarInfo] = [*sound(), ("0.txt.bak", "x")]
    for suffix in ("png", "txt"):
        members.append(entry(f"hard.{suffix}", kind=tarfile.LNKTYPE, target=f"0.{suffix}"))
        members.append(entry(f"d/soft.{suffix}", kind=tarfile.SYMTYPE, target=f"../hard.{suffix}"))
    members.pop(2)
    pack(tmp_path / "a.tar", members, form)
    names = ["0.png", "hard.png", "d/soft.png"]
    pairs = load_pairs("wds:*.tar", tmp_path)
    assert pairs_of(pairs) == [(f"a.tar/{name}", "number 0") for name in names]
    with tarfile.open(tmp_path / "a.tar") as tar:
        for name, place in zip(names, pairs.places, strict=True):
            file = tar.extractfile(name)  # follows links too
            assert file is not None and file.read() == place.read() == png(0)


@pytest.mark.parametrize("target", ["no.png", "/etc/passwd", "../0.png", "1.png", "2.png"])
@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_to_what_is_not_there_are_told(tmp_path: Path, target: str, kind: bytes) -> None:
    """1 and 2 are links to each other."""
    links = [entry("1.png", kind=kind, target=target), entry("2.png", kind=kind, target="1.png")]
    pack(tmp_path / "a.tar", [*links, ("1.txt", "x"), ("2.txt", "x")])
    assert refused(tmp_path).startswith(
        "a.tar: sample 1: expected a file, found 1.png, a link to what is not in the tar file; pack with tar --deref"
    )


def with_header(path: Path, name: str, change: Callable[[bytearray], None]) -> None:
    """Change a member's header, and its checksum with it."""
    with tarfile.open(path) as tar:
        offset = tar.getmember(name).offset
    content = bytearray(path.read_bytes())
    header = content[offset : offset + 512]
    change(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[offset : offset + 512] = header
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["png", "txt"])
def test_a_sparse_member_is_told(tmp_path: Path, suffix: str) -> None:
    """As GNU tar --sparse packs it: 512 bytes of data, then a hole up to 4,096."""
    path = pack(tmp_path / "a.tar", [("0.png", png().ljust(512, b"\0")), ("0.txt", "x" * 512)], tarfile.GNU_FORMAT)

    def change(header: bytearray) -> None:
        header[156:157] = tarfile.GNUTYPE_SPARSE
        header[386:410] = b"%011o\0%011o\0" % (0, 512)
        header[410:434] = b"%011o\0%011o\0" % (4096, 0)
        header[483:495] = b"%011o\0" % 4096

    with_header(path, f"0.{suffix}", change)
    with tarfile.open(path) as tar:
        assert tar.getmember(f"0.{suffix}").issparse() and tar.getmember(f"0.{suffix}").size == 4096
    assert (
        refused(tmp_path) == f"a.tar: sample 0: expected a whole file, found 0.{suffix} sparse; pack without --sparse"
    )


@pytest.mark.timeout(20)
def test_a_negative_size_does_not_go_round_in_circles(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", sound(3), tarfile.GNU_FORMAT)

    def change(header: bytearray) -> None:
        header[124:136] = (-1536).to_bytes(12, "big", signed=True)

    with_header(path, "1.png", change)
    assert "a.tar: expected a whole, uncompressed tar file, found a mistake (" in refused(tmp_path)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_names_in_latin_1(tmp_path: Path, form: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=form, encoding="latin-1") as tar:
        for name, content in (
            ("café.png", png()),
            ("café.txt", b"x"),
            ("日本".encode().decode("latin-1") + ".png", png(1)),
        ):
            tar.addfile(entry(name, len(content)), BytesIO(content))
        tar.addfile(entry("日本".encode().decode("latin-1") + ".txt", 1), BytesIO(b"y"))
    assert read(tmp_path) == [("a.tar/café.png", "x"), ("a.tar/日本.png", "y")]
    assert load_pairs("wds:*.tar", tmp_path).fingerprint


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_marks_in_members(tmp_path: Path, encoding: str, suffix: str) -> None:
    text = {"txt": "Zürich", "json": json.dumps({"caption": "Zürich"}, ensure_ascii=False)}[suffix]
    pack(tmp_path / "a.tar", [("0.png", png()), (f"0.{suffix}", text.encode(encoding))])
    assert read(tmp_path) == [("a.tar/0.png", "zürich")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (r'{"caption": "\ud83d"}', "a.tar: sample 0: expected a caption in Unicode, found half of a character"),
        (
            "[" * 200_000,
            "a.tar: sample 0: expected JSON, found brackets that are nested too deeply; pack the sample again",
        ),
        ('{"caption": "x", "id": ' + "7" * 5000 + "}", "found a number of thousands of digits; pack the sample again"),
        ('{"caption": null}', "a.tar: sample 0: expected caption to be text or a list of texts, found null"),
    ],
)
def test_json_that_cannot_be_used_is_told(tmp_path: Path, content: str, message: str) -> None:
    pack(tmp_path / "a.tar", [("0.png", png()), ("0.json", content)])
    assert message in refused(tmp_path)


# Whole files


def test_a_file_without_its_end_mark_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = pack(tmp_path / "a.tar", sound(2))
    with tarfile.open(path) as tar:
        end = tar.getmember("1.txt").offset_data + 512
    path.write_bytes(path.read_bytes()[:end])
    with caplog.at_level(logging.WARNING, "ptmst"):
        assert len(load_pairs("wds:*.tar", tmp_path)) == 2
    line = f"{path}: has no mark at its end, and may have been cut off; compare its size"
    assert caplog.messages == [line] and check("wds:*.tar", tmp_path).remarks == (line,)


@pytest.mark.parametrize("pattern", ["{0..3}.tar", "{0,1,2}.tar", "{0..2}*.tar", "[01].tar{,.no}"])
def test_a_pattern_that_finds_less_than_it_names_is_told(tmp_path: Path, pattern: str) -> None:
    for i in range(2):
        pack(tmp_path / f"{i}.tar", sound(first=i))
    message = refused(tmp_path, f"wds:{pattern}")
    assert message.startswith(f"{pattern}: expected files of ") and ", the first " in message
    assert check(f"wds:{pattern}", tmp_path).splits[0].images == 2


def test_a_pattern_that_finds_other_files_too_is_told(tmp_path: Path) -> None:
    pack(tmp_path / "data/0.tar", sound())
    pack(tmp_path / "data/1.shard", sound(first=1))  # a tar file by its content
    (tmp_path / "data/sub").mkdir()
    assert len(read(tmp_path, "wds:data/*")) == 2
    (tmp_path / "data/README.md").write_text("# Data")
    (tmp_path / "data/sizes.json").write_text("{}")
    assert refused(tmp_path, "wds:data/*") == (
        "data/*: expected tar files alone, found 2 other files of that name, the first data/README.md; end the pattern "
        "with .tar"
    )
    assert len(read(tmp_path, "wds:data/*.tar")) == 1


@pytest.mark.timeout(20)
@pytest.mark.parametrize("pattern", ["{0..99999999999}.tar", "{0..9999}{0..9999}.tar", "{000000..999999999}-*.tar"])
def test_braces_that_name_billions_are_refused(tmp_path: Path, pattern: str) -> None:
    pack(tmp_path / "0.tar", sound())
    assert "expected braces that name at most 1,000,000 files, found more; use *" in refused(tmp_path, f"wds:{pattern}")


def test_a_broken_tar_file_does_not_hide_the_others(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", sound())
    (tmp_path / "1.tar").write_bytes(b"x" * 2000)
    pack(tmp_path / "2.tar", sound(first=2))
    report = check("wds:*.tar", tmp_path)
    assert len(report.problems) == 1 and report.splits[0].images == 2


def test_samples_are_those_of_the_library(tmp_path: Path) -> None:
    """Where a sample's members are adjacent and have one dot."""
    library = pytest.importorskip("webdataset.tariterators")
    members = [*sound(3), ("sub/0.PNG", png(9)), ("sub/0.txt", "nine"), ("README", "x"), ("._0.png", b"x")]
    path = pack(tmp_path / "a.tar", [*members, ("9.cls", "7"), ("9.webp", png(4)), ("9.json", '{"caption": "seven"}')])
    expected = []
    with open(path, "rb") as file:
        for sample in library.group_by_keys({**one, "__url__": ""} for one in library.tar_file_iterator(file)):
            image = sample.get("png", sample.get("webp"))
            text = sample["txt"].decode() if "txt" in sample else json.loads(sample["json"])["caption"]
            expected.append((sample["__key__"], image, text))
    pairs = load_pairs("wds:*.tar", tmp_path)
    keys = [name.removeprefix("a.tar/").rpartition(".")[0] for name in pairs.image_names]
    assert list(zip(keys, [place.read() for place in pairs.places], pairs.captions, strict=True)) == expected


@pytest.mark.parametrize("dots", [1_500, 5_000])
def test_a_name_of_thousands_of_dots_is_read(tmp_path: Path, dots: int) -> None:
    pack(tmp_path / "a.tar", [("a.png", png()), ("a.txt", "one"), (f"a.{'x.' * dots}png", png(1))])
    assert read(tmp_path) == [("a.tar/a.png", "one")]
    pack(tmp_path / "a.tar", [("a.png", png()), ("a.txt", "one"), (f"b.{'x.' * dots}png", png(1))])
    assert "expected a caption in txt or json, found png" in refused(tmp_path)


@pytest.mark.parametrize("marked", [True, False])
def test_a_list_of_captions_written_in_a_txt_is_a_list(tmp_path: Path, marked: bool) -> None:
    pack(tmp_path / "a.tar", [("a.png", png()), ("a.txt", '["A dog.",\n "a\\ncat"]\n')])
    if marked:
        (tmp_path / "dataset_type.txt").write_text("retrieval")
    assert read(tmp_path) == [("a.tar/a.png", "a dog"), ("a.tar/a.png", "a\ncat")]
