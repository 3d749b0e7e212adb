"""Every layout in which data sets come, every kind of image file, and a whole run from each form of one's own."""

from __future__ import annotations

import csv
import json
import tarfile
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oracles import UPRIGHT
from ptmst import DataConfig, EvaluateConfig, Scores, distill, evaluate, load_pairs, train_teachers, write_scenes
from ptmst.data import denormalize
from ptmst.data.sources import source_of
from ptmst.errors import InputError
from tiny import DISTILL, teach_config

CAPTIONS = ("A cafe\u0301 — at NIGHT.", "👩‍👩‍👧 and a 🐕!", "שלום עולם", "one\ttab", 'A "red, round" ball')
CLEANED = ("a cafe\u0301 — at night", "👩‍👩‍👧 and a 🐕", "שלום עולם", "one\ttab", "a red, round ball")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def lay_images(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(10, 14, 3, seed=i)).save(root / name)


def lay_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


# Published layouts

PER_SPLIT = {
    "flickr30k": ("flickr30k_{}.json", "flickr30k-images/{}.jpg"),
    "flickr8k": ("flickr8k_{}.json", "Flicker8k_Dataset/{}_a1b2.jpg"),
    "coco": ("coco_karpathy_{}.json", "val2014/COCO_val2014_{:0>12}.jpg"),
    "cc3m": ("cc3m_captions_{}.json", "GCC_train_{}.jpg"),
}


@pytest.mark.parametrize("name", PER_SPLIT)
def test_a_published_layout_is_read(tmp_path: Path, name: str) -> None:
    file, image = PER_SPLIT[name]
    one, two, three = (image.format(i) for i in range(3))
    lay_images(tmp_path, one, two, three)
    train = [(one, 0), (two, 1), (one, 2), (one, 3), (two, 4)]
    lay_json(tmp_path / file.format("train"), [{"image": n, "caption": CAPTIONS[i], "image_id": n} for n, i in train])
    lay_json(tmp_path / file.format("test"), [{"image": three, "caption": list(CAPTIONS)}])
    pairs = load_pairs(name, tmp_path)
    assert pairs.image_names == (one, two) and pairs.captions == CLEANED
    assert pairs.image_of_text.tolist() == [0, 1, 0, 0, 1]
    test = load_pairs(name, tmp_path, "test", image_size=8)
    assert test.image_names == (three,) and test.captions == CLEANED
    with Image.open(tmp_path / three) as picture:
        expected = np.asarray(picture.resize((8, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(denormalize(test.images(torch.tensor([0])))[0].numpy(), expected)


@pytest.mark.slow
def test_cc3m_is_evaluated_on_the_first_ten_thousand(tmp_path: Path) -> None:
    entries = [{"image": f"GCC_train_{i}.jpg", "caption": f"number {i}"} for i in range(10_002)]
    for split, count in (("train", 10_002), ("val", 10_000), ("test", 10_000)):
        lay_json(tmp_path / f"cc3m_captions_{split}.json", entries)
        found = source_of("cc3m").read(tmp_path, split)
        assert list(found.image_names) == [f"GCC_train_{i}.jpg" for i in range(count)]
        assert list(found.captions) == [f"number {i}" for i in range(count)]


def whole(*images: tuple[str, str], **more: str) -> dict[str, object]:
    """Karpathy's own form, of (file name, split)."""
    sentences = [{"raw": text, "tokens": text.split()} for text in CAPTIONS[:2]]
    return {
        "dataset": "x",
        "images": [{"filename": name, "split": split, "sentences": sentences, **more} for name, split in images],
    }


@pytest.mark.parametrize(
    ("name", "folder"), [("flickr8k", "Flicker8k_Dataset"), ("flickr30k", "flickr30k-images"), ("coco", "val2014")]
)
def test_karpathys_own_file_serves_for_all_splits(tmp_path: Path, name: str, folder: str) -> None:
    lay_images(tmp_path, *(f"{folder}/{i}.jpg" for i in range(4)))
    images = [("0.jpg", "train"), ("1.jpg", "test"), ("2.jpg", "restval"), ("3.jpg", "val")]
    value = whole(*images, **({"filepath": folder} if name == "coco" else {}))
    lay_json(tmp_path / f"dataset_{name}.json", value)
    expected = {"train": (0, 2), "val": (3,), "test": (1,)}
    for split, numbers in expected.items():
        pairs = load_pairs(name, tmp_path, split)
        assert pairs.image_names == tuple(f"{folder}/{i}.jpg" for i in numbers)
        assert pairs.captions == CLEANED[:2] * len(numbers)
        assert pairs.image_of_text.tolist() == [i for i in range(len(numbers)) for _ in range(2)]


def test_a_file_per_split_goes_before_karpathys_own(tmp_path: Path) -> None:
    lay_images(tmp_path, "flickr30k-images/0.jpg", "flickr30k-images/1.jpg")
    lay_json(tmp_path / "dataset_flickr30k.json", whole(("0.jpg", "train")))
    lay_json(tmp_path / "flickr30k_train.json", [{"image": "flickr30k-images/1.jpg", "caption": "x"}])
    assert load_pairs("flickr30k", tmp_path).image_names == ("flickr30k-images/1.jpg",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r'expected \{"images": \[entries\]\}, found a list; lay '),
        ({"images": {}}, r'expected \{"images": \[entries\]\}, found an object; lay '),
        ({"images": ["x"]}, r"image 1 of 1: expected an object, found text"),
        ({"images": [{"filename": "0.jpg", "split": "train"}]}, r'image 1 of 1: expected the key "sentences"'),
        (
            {"images": [{"filename": "0.jpg", "split": "train", "sentences": ["x"]}]},
            r"expected a list of .* as sentences",
        ),
        ({"images": [{"filename": "0.jpg", "split": "train", "sentences": []}]}, r"expected at least one caption"),
        (whole(("../../0.jpg", "train")), r"inside the root folder, found Flicker8k_Dataset/\.\./\.\./0\.jpg"),
        (whole(("0.jpg", "train")), r"found 1 missing, the first Flicker8k_Dataset/0\.jpg; lay "),
        (whole(("0.jpg", "test")), r"expected images of split train, found none"),
    ],
)
def test_mistakes_in_karpathys_own_file_are_told_apart(tmp_path: Path, value: object, message: str) -> None:
    lay_json(tmp_path / "dataset_flickr8k.json", value)
    with pytest.raises(InputError, match=message) as caught:
        load_pairs("flickr8k", tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "dataset_flickr8k.json")) and "\n" not in str(caught.value)


def test_where_there_is_no_file_both_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"flickr8k_train\.json: expected .+ \(Karpathy's dataset_flickr8k\.json does"):
        load_pairs("flickr8k", tmp_path)


# Image files


def pixels_of(root: Path, file: str, size: int) -> np.ndarray:
    """uint8 [size, size, 3] as the engine sees them."""
    (root / "pairs.csv").write_text(f"filepath,title\n{file},x\n")
    pairs = load_pairs("csv:pairs.csv", root, image_size=size)
    return denormalize(pairs.images(torch.tensor([0])))[0].permute(1, 2, 0).numpy()


def test_a_grey_jpeg(tmp_path: Path) -> None:
    Image.fromarray(noise(16, 16)).save(tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.mode == "L"
        gray = np.asarray(image)
    assert np.array_equal(pixels_of(tmp_path, "x.jpg", 16), np.stack([gray] * 3, -1))


def test_a_cmyk_jpeg(tmp_path: Path) -> None:
    Image.fromarray(noise(16, 16, 4), mode="CMYK").save(tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.mode == "CMYK"
        ink = np.asarray(image).astype(float)
    expected = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    assert np.abs(pixels_of(tmp_path, "x.jpg", 16) - expected).max() <= 1


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_rotated_jpeg_is_read_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(noise(16, 16, 3))
    stored.save(tmp_path / "plain.jpg")
    stored.save(tmp_path / "x.jpg", exif=exif)
    with Image.open(tmp_path / "plain.jpg") as image:
        expected = UPRIGHT[orientation](np.asarray(image))
    assert np.array_equal(pixels_of(tmp_path, "x.jpg", 16), expected)


def test_an_image_of_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "x.png")
    assert np.array_equal(pixels_of(tmp_path, "x.png", 8), np.broadcast_to([10, 20, 30], (8, 8, 3)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [0, bytes(range(0, 256, 16))])
def test_a_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    palette, indices = noise(16, 3, seed=1), noise(12, 12) % 16
    image = Image.fromarray(indices, mode="P")
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "x.png", transparency=transparency)
    shares = np.array(list(transparency) if isinstance(transparency, bytes) else [0] + [255] * 15)[indices, None] / 255
    on_white = palette[indices] * shares + 255 * (1 - shares)
    assert np.abs(pixels_of(tmp_path, "x.png", 12) - on_white).max() <= 1


def test_of_16_bits_the_upper_8_are_kept(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (12, 12), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.array_equal(pixels_of(tmp_path, "x.png", 12), np.stack([values // 256] * 3, -1))


@pytest.mark.slow
def test_a_large_photo(tmp_path: Path) -> None:
    Image.fromarray(noise(3, 4, 3)).resize((4000, 3000), Image.Resampling.NEAREST).save(tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.size == (4000, 3000)
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels_of(tmp_path, "x.jpg", 32), expected)


def test_a_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(InputError, match=r"x\.jpg: expected a whole image, found .*truncated.*; replace the file"):
        pixels_of(tmp_path, "x.jpg", 8)


def test_text_named_jpg_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("<html>404 Not Found</html>")
    with pytest.raises(InputError, match=r"x\.jpg: expected a whole image, found an HTML page; replace the file$"):
        pixels_of(tmp_path, "x.jpg", 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [11, 15])  # PIL warns of the first, and refuses the second
def test_a_huge_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    Image.fromarray(noise(side, side, 3)).save(tmp_path / "x.png")
    Image.fromarray(noise(10, 10, 3)).save(tmp_path / "y.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"x\.png: expected an image of at most 100 pixels, found more \(.+\); scale"):
        pixels_of(tmp_path, "x.png", 8)
    assert np.array_equal(pixels_of(tmp_path, "y.png", 10), noise(10, 10, 3))


# Whole runs


def entries(root: Path, split: str) -> list[tuple[str, list[str]]]:
    """(image, captions) of a rendered split."""
    found: dict[str, list[str]] = {}
    for entry in json.loads((root / f"scenes_{split}.json").read_text("utf-8")):
        captions = entry["caption"]
        found.setdefault(entry["image"], []).extend(captions if isinstance(captions, list) else [captions])
    return list(found.items())


def lay_csv(root: Path) -> None:
    with open(root / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "title", "split"])
        for split in ("train", "test"):
            rows.writerows([image, text, split] for image, texts in entries(root, split) for text in texts)


def lay_jsonl(root: Path) -> None:
    for split in ("train", "test"):
        lines = [json.dumps({"image": image, "caption": texts}) for image, texts in entries(root, split)]
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def lay_wds(root: Path) -> None:
    for split in ("train", "test"):
        listed = entries(root, split)
        for number, part in enumerate((listed[: len(listed) // 2], listed[len(listed) // 2 :])):
            with tarfile.open(root / f"{split}-{number}.tar", "w") as tar:
                for i, (image, texts) in enumerate(part):
                    for suffix, content in (
                        ("png", (root / image).read_bytes()),
                        ("json", json.dumps({"caption": texts}).encode()),
                    ):
                        member = tarfile.TarInfo(f"{i:03}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, BytesIO(content))


@cache
def run(root: Path, name: str) -> tuple[bytes, Scores]:
    """The distilled images and the recall of two students, all with the same seeds."""
    config = teach_config(root)
    data = DataConfig(name=name, root=root, image_size=16)
    store = train_teachers(replace(config, out=root / f"store-{name.partition(':')[0]}", data=data))
    assert store.settings["data"]["name"] == name
    distilled = distill(replace(DISTILL, steps=2), store)
    scores = evaluate(distilled, EvaluateConfig(students=2, epochs=2, lr_drop=1, every=2, batch_size=5, device="cpu"))
    return b"".join(phase.images.numpy().tobytes() for phase in distilled), scores


def odd_images(root: Path, names: list[str]) -> None:
    """Noise, and the first of them gray, CMYK, rotated, of one pixel, and large."""
    lay_images(root, *names)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(9, 9)).save(root / names[0])
    Image.fromarray(noise(8, 8, 4), mode="CMYK").save(root / names[1])
    Image.fromarray(noise(5, 30, 3)).save(root / names[2], exif=exif)
    Image.fromarray(noise(1, 1, 3)).save(root / names[3])
    Image.fromarray(noise(1500, 2000, 3)).save(root / names[4])


@pytest.mark.slow
@pytest.mark.parametrize("name", PER_SPLIT)
def test_a_whole_run_on_a_published_layout_equals_one_on_a_table(tmp_path: Path, name: str) -> None:
    file, image = PER_SPLIT[name]
    names = [image.format(i) for i in range(32)]
    odd_images(tmp_path, names)
    for split, mine in (("train", names[:24]), ("test", names[20:])):
        captions = [(n, f"{CAPTIONS[i % 5]} {i}") for i, n in enumerate(mine)]
        lay_json(tmp_path / file.format(split), [{"image": n, "caption": caption} for n, caption in captions])
        with (tmp_path / f"{split}.csv").open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows([("filepath", "title"), *captions])
    images, scores = run(tmp_path, name)
    expected_images, expected = run(tmp_path, "csv:{split}.csv")
    assert images == expected_images and scores.students == expected.students


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, image_size=16, train=24, val=1, test=8, warmup=0, captions=2)
    for lay in (lay_csv, lay_jsonl, lay_wds):
        lay(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "csv:pairs.csv",
        "jsonl:{split}.jsonl",
        pytest.param(
            "wds:{split}-*.tar",
            marks=pytest.mark.skipif(find_spec("webdataset") is None, reason="needs the extra ptmst[wds]"),
        ),
    ],
)
def test_a_whole_run_from_files_of_ones_own_equals_one_from_karpathys_form(scenes: Path, name: str) -> None:
    images, scores = run(scenes, name)
    expected_images, expected = run(scenes, "scenes")
    assert images == expected_images and scores.students == expected.students
