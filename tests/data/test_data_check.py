"""`check` finds everything that is wrong with a data set, and counts what it holds."""

from __future__ import annotations

import json
import sys
import tarfile
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptmst import cli
from ptmst.data import check as check_module
from ptmst.data import write_scenes
from ptmst.data.check import Report, SplitReport, check
from ptmst.data.karpathy import Karpathy
from ptmst.data.sources import SOURCES
from ptmst.errors import InputError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def lay(root: Path, split: str, *entries: tuple[str, str | list[str]]) -> None:
    value = [{"image": image, "caption": caption} for image, caption in entries]
    (root / f"flickr8k_{split}.json").write_text(json.dumps(value))


def save(root: Path, name: str, *shape: int, seed: int = 0, **how: object) -> None:
    Image.fromarray(noise(*shape, seed=seed)).save(root / name, **how)  # type: ignore[arg-type]


def only(report: Report) -> str:
    (problem,) = report.problems
    return problem.replace(str(report.root), "ROOT")


@pytest.fixture(autouse=True)
def miniatures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published sets have as many images as here."""
    if "published" not in request.node.name:
        monkeypatch.setattr(check_module, "_other_than_published", lambda *_: ())


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Flickr8k's form: two images with three captions in train, one in test."""
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        save(tmp_path, name, 10 + i, 20, 3, seed=i)
    lay(tmp_path, "train", ("a.png", "one"), ("b.png", "two"), ("b.png", "three"))
    lay(tmp_path, "test", ("c.png", ["four", "five"]))
    return tmp_path


def test_a_sound_set_is_counted(sound: Path) -> None:
    report = check("flickr8k", str(sound))
    assert (report.name, report.root, report.problems) == ("flickr8k", sound, ())
    nothing = {"shared": 0, "empty": 0, "missing": 0, "unreadable": 0, "gray": 0, "cmyk": 0, "rotated": 0}
    assert report.splits == (
        SplitReport("train", 2, 3, (1, 1.5, 2), smallest=(20, 10), largest=(20, 11), **nothing),
        SplitReport("test", 1, 2, (2, 2.0, 2), smallest=(20, 12), largest=(20, 12), **nothing),
    )
    head, train, test = report.rows()
    assert len(head) == len(train) == len(test)
    assert train == ("train", "2", "3", "1 / 1.50 / 2", "0", "0", "0", "0", "0", "0", "20×10 … 20×11")


def test_captions_that_images_share_are_counted_in_each_split(tmp_path: Path) -> None:
    """Of one file of all splits, with what recall can be reached on each."""
    for i in range(5):
        save(tmp_path, f"{i}.png", 9, 9, 3, seed=i)
    train = ("0.png,A dog.,train", "1.png,a dog,train", "1.png,a dog!,train", "2.png,a cat,train")
    rows = [*train, "3.png,a dog,test", "4.png,a cat,test", "3.png,two dogs,test"]
    (tmp_path / "x.csv").write_text("\n".join(["filepath,title,split", *rows]))
    report = check("csv:x.csv", tmp_path)
    assert [split.shared for split in report.splits] == [3, 0]
    assert [row[4] for row in report.rows()] == ["shared", "3", "0"]
    (remark,) = report.remarks
    # Three ask for a dog, and the image of two of them comes first; of the dogs' captions two in three are its own.
    ir, tr = 100 * (2 + 1) / 4, 100 * (1 / 3 + 2 / 3 + 1) / 3
    assert remark.startswith(f"{tmp_path}/x.csv: train has 3 captions of 4 that several images have, the first a dog; ")
    assert f"at best IR@1/5/10 {ir:.2f}, 100.00, 100.00, TR@1/5/10 {tr:.2f}, 100.00, 100.00, mean 90." in remark


def test_fewer_than_were_published_are_a_problem(sound: Path) -> None:
    assert check("flickr8k", sound).problems == (
        "flickr8k train: expected 6,000 images with 30,000 captions, found 2 with 3; fetch the annotations again",
        "flickr8k val: expected 1,000 images with 5,000 captions, found no annotations; add them",
        "flickr8k test: expected 1,000 images with 5,000 captions, found 1 with 2; fetch the annotations again",
    )


def test_as_many_as_were_published_are_sound(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(sound, "d.png", 13, 20, 3, seed=9)
    lay(sound, "val", ("d.png", ["six"]))
    source = SOURCES["flickr8k"]
    assert isinstance(source, Karpathy)
    counts = {"train": (2, 3), "val": (1, 1), "test": (1, 2)}
    monkeypatch.setitem(SOURCES, "flickr8k", replace(source, published=counts))
    assert check("flickr8k", sound).problems == ()


def test_splits_that_were_published_are_missed_where_their_counts_are_not_known(tmp_path: Path) -> None:
    save(tmp_path, "a.png", 9, 9, 3)
    (tmp_path / "cc3m_captions_train.json").write_text(json.dumps([{"image": "a.png", "caption": "one"}]))
    assert check("cc3m", tmp_path).problems == (
        "cc3m val: expected annotations, found no annotations; add them",
        "cc3m test: expected annotations, found no annotations; add them",
    )


@pytest.mark.parametrize(
    ("name", "images", "captions"),
    [("flickr8k", 8_000, 40_000), ("flickr30k", 31_014, 155_070), ("coco", 123_287, 616_767)],
)
def test_published_counts_add_up(name: str, images: int, captions: int) -> None:
    """Karpathy's splits of all images of the set (Karpathy & Fei-Fei 2015; COCO with restval)."""
    source = SOURCES[name]
    assert isinstance(source, Karpathy)
    assert tuple(map(sum, zip(*source.published.values(), strict=True))) == (images, captions)


def test_an_image_is_one_however_its_path_is_written(sound: Path) -> None:
    lay(sound, "test", ("./a.png", ["four"]), (str(sound / "c.png"), ["five"]))
    assert only(check("flickr8k", sound)).startswith("train and test: 1 image in each of them: a.png")


def test_how_images_are_stored_is_counted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path, "gray.jpg", 9, 9)
    Image.fromarray(noise(9, 9).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(noise(8, 8, 4), mode="CMYK").save(tmp_path / "cmyk.jpg")
    save(tmp_path, "rotated.jpg", 5, 30, 3, exif=exif)
    lay(tmp_path, "train", *((name, "x") for name in ("gray.jpg", "deep.png", "cmyk.jpg", "rotated.jpg")))
    report = check("flickr8k", tmp_path)
    (train,) = report.splits
    assert (train.gray, train.cmyk, train.rotated, report.problems) == (2, 1, 1, ())
    assert (train.smallest, train.largest) == ((8, 8), (5, 30))  # upright


def transparent(path: Path, seed: int) -> None:
    """A picture of which nothing is seen, whatever its colors are."""
    hidden = noise(9, 9, 4, seed=seed)
    hidden[..., 3] = 0
    Image.fromarray(hidden).save(path)


def test_pictures_of_a_single_color_are_told(tmp_path: Path) -> None:
    save(tmp_path, "a.png", 9, 9, 3)
    transparent(tmp_path / "b.png", 1)
    Image.new("L", (4, 4), 7).save(tmp_path / "c.png")
    transparent(tmp_path / "d.png", 2)
    lay(tmp_path, "train", *((name, "x") for name in ("a.png", "b.png", "c.png")))
    lay(tmp_path, "test", ("d.png", "y"))
    report = check("flickr8k", tmp_path)
    assert only(report) == (
        "ROOT/flickr8k_test.json: expected images that show something, found 1 image of the same single color; what is "
        "transparent lies on white: save them on a background that they can be seen on"
    )
    assert f"{tmp_path}/flickr8k_train.json: 2 images of a single color, once on white: b.png, c.png" in report.remarks


def test_pictures_of_one_color_each_are_no_mistake(tmp_path: Path) -> None:
    """Swatches differ."""
    for name in ("red", "blue"):
        Image.new("RGB", (4, 4), name).save(tmp_path / f"{name}.png")
    lay(tmp_path, "train", ("red.png", "red"), ("blue.png", "blue"))
    report = check("flickr8k", tmp_path)
    assert report.problems == () and len(report.remarks) == 1


def test_nothing_stops_it(sound: Path) -> None:
    """One of each: every other problem is found all the same."""
    (sound / "text.jpg").write_text("hello")
    content = (sound / "a.png").read_bytes()
    (sound / "cut.png").write_bytes(content[: len(content) // 2])
    (sound / "same.png").write_bytes((sound / "c.png").read_bytes())
    entries = [
        {"image": "a.png"},
        *({"image": f"no{i}.png", "caption": "x"} for i in range(12)),
        *({"image": name, "caption": "x"} for name in ("text.jpg", "cut.png", "same.png", "a.png", "c.png")),
        {"image": "b.png", "caption": ["(...)", "two", " "]},
    ]
    (sound / "flickr8k_train.json").write_text(json.dumps(entries))
    (sound / "flickr8k_val.json").write_text("[")
    report = check("flickr8k", sound)
    problems = [problem.replace(str(sound), "ROOT") for problem in report.problems]
    assert [split.split for split in report.splits] == ["train", "test"]
    train = report.splits[0]
    assert (train.images, train.captions, train.missing, train.unreadable, train.empty) == (18, 18, 12, 2, 2)
    assert problems[0].startswith('ROOT/flickr8k_train.json: entry 1 of 19: expected the key "caption"')
    missing = ", ".join(f"no{i}.png" for i in range(10))
    assert problems[1].startswith(
        f"ROOT/flickr8k_train.json: 12 images missing under ROOT: {missing} and 2 more; lay flickr8k_train.json and"
    )
    assert problems[2] == "ROOT/text.jpg: expected a whole image, found no kind of image; replace the file"
    assert problems[3].startswith("ROOT/cut.png: expected a whole image, found ")
    assert problems[4:] == [
        "ROOT/flickr8k_train.json: 2 captions without a word (empty, or such as nan or none) left out, of b.png; write "
        "them, or leave out their rows",
        "ROOT/flickr8k_val.json: expected JSON, found Expecting value in line 1; fix the file or fetch it again",
        "train and test: 1 image in each of them: c.png; keep each in one",
        "train and test: 1 image of the same bytes: same.png = c.png; keep one of each",
    ]
    assert not any("\n" in problem for problem in problems)


def test_the_same_bytes_across_splits_are_a_leak_within_one_they_are_not(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        save(tmp_path, name, 8, 8, 3, seed=i)
        for copy in ("one", "two"):
            (tmp_path / f"{copy}-{name}").write_bytes((tmp_path / name).read_bytes())
    lay(tmp_path, "train", *((name, "x") for name in ("a.png", "one-a.png", "two-a.png", "b.png", "c.png")))
    lay(tmp_path, "test", ("one-b.png", "x"), ("two-c.png", "x"))
    assert check("flickr8k", tmp_path).problems == (
        "train and test: 2 images of the same bytes: b.png = one-b.png, c.png = two-c.png; keep one of each",
    )


def test_only_the_first_of_many_broken_images_and_entries_are_named(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(13)]
    for name in names:
        (tmp_path / name).touch()
    rows = [*names, *["/etc/passwd"] * 12]
    (tmp_path / "{0..9}.csv").write_text("filepath,title\n" + "".join(f"{name},x\n" for name in rows))
    report = check("csv:{0..9}.csv", tmp_path)
    assert len(report.problems) == 22 and report.splits[0].unreadable == 13
    assert report.problems[10].endswith("{0..9}.csv: 2 more entries that cannot be used")
    assert report.problems[21].endswith("{0..9}.csv: 3 more images that cannot be read")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [11, 15])
def test_a_huge_image_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    save(tmp_path, "a.png", side, side, 3)
    lay(tmp_path, "train", ("a.png", "x"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "a.png: expected an image of at most 100 pixels, found more (" in only(check("flickr8k", tmp_path))


def test_where_there_is_nothing_the_remedy_is_named(tmp_path: Path) -> None:
    report = check("flickr8k", tmp_path)
    assert report.splits == () and len(report.rows()) == 1
    assert only(report).startswith("ROOT/flickr8k_train.json: expected an annotation file, found none; lay ")
    assert only(check("csv:x.csv", tmp_path)).startswith("ROOT/x.csv: expected a CSV file, found no such file")


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data set: expected .*found 'flickr'; did you mean"):
        check("flickr", tmp_path)


def test_karpathys_own_file_has_three_splits(tmp_path: Path) -> None:
    images = []
    (tmp_path / "val2014").mkdir()
    for i, split in enumerate(("train", "restval", "val", "test", "test")):
        save(tmp_path, f"val2014/{i}.jpg", 9, 9, 3, seed=i)
        images.append({"filename": f"{i}.jpg", "filepath": "val2014", "split": split, "sentences": [{"raw": "x"}]})
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [*images, {"filename": "5.jpg"}]}))
    report = check("coco", tmp_path)
    assert [(split.split, split.images) for split in report.splits] == [("train", 2), ("val", 1), ("test", 2)]
    assert only(report).startswith('ROOT/dataset_coco.json: image 6 of 6: expected the key "split"')


def test_a_table_has_the_splits_that_its_rows_name(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path, f"{i}.png", 9, 9, 3, seed=i)
    (tmp_path / "x.csv").write_text(
        "filepath,title,split\n0.png,x,test\n1.png,x,train\n1.png,y,train\n2.png,x,valid\n2.png,x\n"
    )
    report = check("csv:x.csv", tmp_path)
    assert [(split.split, split.images, split.captions) for split in report.splits] == [("train", 1, 2), ("test", 1, 1)]
    assert [problem.replace(str(tmp_path), "ROOT") for problem in report.problems] == [
        "ROOT/x.csv: line 5: expected split to be train, val, test, warmup, found 'valid'; rename it",
        "ROOT/x.csv: line 6: expected 3 cells, as in the header, found 2; put a cell that holds the separator in "
        "double quotes",
    ]


def test_a_file_per_split(tmp_path: Path) -> None:
    for i, split in enumerate(("val", "warmup")):
        save(tmp_path, f"{i}.png", 9, 9, 3, seed=i)
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"image": f"{i}.png", "caption": "x"}))
    report = check("jsonl:{split}.jsonl", tmp_path)
    assert [split.split for split in report.splits] == ["val", "warmup"] and not report.problems


@pytest.mark.skipif(find_spec("webdataset") is None, reason="needs the extra ptmst[wds]")
def test_tar_files(tmp_path: Path) -> None:
    for split, seeds in (("train", (0, 1)), ("test", (1, 2))):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as tar:
            for seed in seeds:
                image = BytesIO()
                Image.fromarray(noise(9, 9, 3, seed=seed)).save(image, "png")
                for suffix, content in (("png", image.getvalue()), ("txt", b"x" if seed else b"...")):
                    member = tarfile.TarInfo(f"{seed}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))
    report = check("wds:{split}-*.tar", tmp_path)
    assert [(split.split, split.images) for split in report.splits] == [("train", 1), ("test", 2)]
    assert [problem.replace(str(tmp_path), "ROOT") for problem in report.problems] == [
        "ROOT/train-*.tar: 1 caption without a word (empty, or such as nan or none) left out, of train-0.tar/0.png; "
        "write them, or leave out their rows",
        "train and test: 1 image of the same bytes: train-0.tar/1.png = test-0.tar/1.png; keep one of each",
    ]


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    assert "ptmst[wds]" in only(check("wds:*.tar", tmp_path))


def test_progress_goes_to_stderr_alone(
    sound: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptmst.support.progress._LINE_EVERY_S", 0.0)
    check("flickr8k", sound)
    out, err = capsys.readouterr()
    assert out == "" and "check train: 2/2" in err and "check test: 1/1" in err


def test_the_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path / "data", image_size=16, train=3, val=2, test=2, warmup=0)
    assert cli.main(["data", "check", "scenes", "--root", str(tmp_path / "data")]) == 0
    assert "sound" in capsys.readouterr().out
    (tmp_path / "data" / "images" / "test" / "00001.png").write_bytes(b"no picture")
    assert cli.main(["data", "check", "scenes", "--root", str(tmp_path / "data")]) == 2
    out, err = capsys.readouterr()
    assert "images/test/00001.png" in out
    assert "data: expected a sound data set, found 1 problem, named above" in err
    assert cli.main(["data", "check", "scene"]) == 2
    assert "did you mean scenes" in capsys.readouterr().err
