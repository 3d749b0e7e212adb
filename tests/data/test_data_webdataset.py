"""WebDataset's tar files: grouped as the library groups, their images read from where they lie."""

from __future__ import annotations

import gzip
import json
import sys
import tarfile
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptmst import load_pairs
from ptmst.data import denormalize
from ptmst.errors import InputError

needs_library = pytest.mark.skipif(find_spec("webdataset") is None, reason="needs the extra ptmst[wds]")
SIZE = 12


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def png(seed: int = 0, form: str = "png") -> bytes:
    file = BytesIO()
    Image.fromarray(noise(seed)).save(file, form, **({"lossless": True} if form == "webp" else {}))
    return file.getvalue()


def pack(path: Path, members: Mapping[str, bytes | str], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            written = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(written)
            tar.addfile(member, BytesIO(written))
    return path


def pixels(name: str, root: Path, index: int = 0, split: str = "train") -> np.ndarray:
    pairs = load_pairs(name, root, split, image_size=SIZE)
    return denormalize(pairs.images(torch.tensor([index])))[0].permute(1, 2, 0).numpy()


@needs_library
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path, form: int) -> None:
    long = "x" * 90 + "/" + "y" * 90
    with_json = json.dumps({"caption": ["Three!", "שלום"], "url": "x"})
    pack(tmp_path / "b.tar", {"000.png": png(3), "000.json": with_json}, form)
    pack(
        tmp_path / "a.tar",
        {
            "README": "no sample",
            "sub/000.txt": "A cafe\u0301.",
            "sub/000.png": png(1),
            "sub/000.json": "not read",
            f"{long}.PNG": png(2),
            f"{long}.txt": "Two",
        },
        form,
    )
    pairs = load_pairs("wds:*.tar", tmp_path, image_size=SIZE)
    assert pairs.image_names == ("a.tar/sub/000.png", f"a.tar/{long}.PNG", "b.tar/000.png")
    assert pairs.image_paths == tuple(tmp_path / name for name in pairs.image_names)
    assert pairs.captions == ("a cafe\u0301", "two", "three", "שלום") and pairs.image_of_text.tolist() == [0, 1, 2, 2]
    for index in ([0, 1, 2], [2, 0]):
        images = denormalize(pairs.images(torch.tensor(index))).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(images, np.stack([noise(i + 1) for i in index]))


@needs_library
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "jpeg"])
def test_every_kind_of_image(tmp_path: Path, suffix: str) -> None:
    content = png(5, "jpeg" if suffix.startswith("j") else suffix)
    pack(tmp_path / "a.tar", {f"k.{suffix}": content, "k.txt": "x"})
    assert np.array_equal(pixels("wds:a.tar", tmp_path), np.asarray(Image.open(BytesIO(content)).convert("RGB")))


@needs_library
def test_images_are_decoded_side_by_side_from_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptmst.data.pairs.DECODERS", 8)
    pack(tmp_path / "a.tar", {f"{i:03}.{s}": png(i) if s == "png" else "x" for i in range(100) for s in ("png", "txt")})
    pairs = load_pairs("wds:a.tar", tmp_path, image_size=SIZE)
    images = denormalize(pairs.images(torch.arange(100))).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images, np.stack([noise(i) for i in range(100)]))


@needs_library
def test_folders_are_passed_over_and_links_are_what_they_point_at(tmp_path: Path) -> None:
    with tarfile.open(pack(tmp_path / "a.tar", {"k.png": png(), "k.txt": "x"}), "a") as tar:
        for name, kind, target in (
            ("folder.d", tarfile.DIRTYPE, ""),
            ("deep/soft.png", tarfile.SYMTYPE, "../hard.png"),  # relative to its folder, and before what it points at
            ("hard.png", tarfile.LNKTYPE, "k.png"),  # the whole name
            ("deep/soft.txt", tarfile.SYMTYPE, "../k.txt"),
            ("hard.txt", tarfile.LNKTYPE, "./k.txt"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    assert load_pairs("wds:a.tar", tmp_path).image_names == ("a.tar/k.png", "a.tar/deep/soft.png", "a.tar/hard.png")
    for index in range(3):
        assert np.array_equal(pixels("wds:a.tar", tmp_path, index), noise(0))


@needs_library
def test_braces_and_splits(tmp_path: Path) -> None:
    for i, name in enumerate(("train/00", "train/01", "train/02", "test/00")):
        pack(tmp_path / f"{name}.tar", {"k.png": png(i), "k.txt": f"text {i}"})
    assert load_pairs("wds:{split}/{00..01}.tar", tmp_path).captions == ("text 0", "text 1")
    assert load_pairs("wds:{split}/*.tar", tmp_path).captions == ("text 0", "text 1", "text 2")
    assert load_pairs("wds:{split}/*.tar", tmp_path, "test").captions == ("text 3",)
    assert load_pairs(f"wds:{tmp_path}/**/02.tar", tmp_path).image_names == ("train/02.tar/k.png",)
    assert len(load_pairs("wds:*/*.tar", tmp_path)) == 4
    with pytest.raises(InputError, match=r"val/\*\.tar: expected tar files of that name, found none; check the"):
        load_pairs("wds:{split}/*.tar", tmp_path, "val")
    with pytest.raises(InputError, match=r"train/\*\.tar: expected \{split\} in the pattern, for split test, found"):
        load_pairs("wds:train/*.tar", tmp_path, "test")


@needs_library
def test_the_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    for root in (tmp_path / "[one]", tmp_path / "{two,2}"):
        pack(root / "a.tar", {"k.png": png(), "k.txt": "x"})
    one, two = (load_pairs("wds:a.tar", tmp_path / name) for name in ("[one]", "{two,2}"))
    assert one.fingerprint == two.fingerprint


@needs_library
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, r"a\.tar: expected samples, found an empty tar file; fetch it again"),
        ({"README": "x"}, r"a\.tar: expected samples, found an empty tar file; fetch it again"),
        ({"k.png": b"", "k.cls": "3"}, r"sample k: expected a caption in txt or json, found cls and png; add it"),
        ({"k.txt": "x", "k.gif": b""}, r"sample k: expected one of jpg, png, jpeg, webp, found gif and txt; add it"),
        ({"k.png": b"", "k.txt": b"\xff"}, r"sample k: expected text in UTF-8, found other bytes"),
        ({"k.png": b"", "k.json": "{"}, r"sample k: expected JSON, found Expecting property name"),
        ({"k.png": b"", "k.json": "[]"}, r'sample k: expected "caption" in its json, found a list without it'),
        ({"k.png": b"", "k.json": '{"caption": 3}'}, r"sample k: expected caption to be text or a list of texts"),
        ({"k.png": b"", "k.txt": "x", "k.PNG": b""}, r"sample k: expected one file of each kind, found k\.png and"),
    ],
)  # fmt: skip
def test_broken_samples_are_told_apart(tmp_path: Path, members: dict[str, bytes | str], message: str) -> None:
    pack(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=message) as caught:
        load_pairs("wds:*.tar", tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


@needs_library
def test_a_broken_image_is_named_by_tar_and_member(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", {"k.png": png()[:200], "k.txt": "x"})
    with pytest.raises(InputError, match=r"a\.tar/k\.png: expected a whole image, found "):
        pixels("wds:a.tar", tmp_path)


SOUND = {f"{i}.{suffix}": png(i) if suffix == "png" else "x" for i in range(3) for suffix in ("png", "txt")}


@needs_library
@pytest.mark.parametrize("damage", ["no tar", "empty", "compressed", "cut in a member", "header", "two in a row"])
def test_a_damaged_tar_file_is_refused(tmp_path: Path, damage: str) -> None:
    content = pack(tmp_path / "a.tar", SOUND).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        header, data = tar.getmember("2.png").offset, tar.getmember("1.png").offset_data
    (tmp_path / "a.tar").write_bytes(
        {
            "no tar": b"hello" * 1000,
            "empty": b"",
            "compressed": gzip.compress(content),
            "cut in a member": content[: data + 100],
            "header": content[:header] + b"#" * 512 + content[header + 512 :],
            "two in a row": content * 2,
        }[damage]
    )
    found = "a gzip archive; unpack it" if damage == "compressed" else r"a mistake \(.+\)"
    with pytest.raises(InputError, match=rf"a\.tar: expected a whole, uncompressed tar file, found {found}"):
        load_pairs("wds:*.tar", tmp_path)


@needs_library
def test_tar_files_outside_the_root_are_refused(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", SOUND)
    (tmp_path / "root").mkdir()
    for pattern in ("../a.tar", f"{tmp_path}/a.tar"):
        with pytest.raises(InputError, match=r"expected an image inside the root folder, found .*a\.tar"):
            load_pairs(f"wds:{pattern}", tmp_path / "root")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / "a.tar", SOUND)
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(InputError, match=r'wds: expected the package braceexpand, found none .+ "ptmst\[wds\]"$'):
        load_pairs("wds:*.tar", tmp_path)
