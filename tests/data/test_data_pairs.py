from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptmst.data import Pairs, denormalize, load_pairs, normalize
from ptmst.data.annotations import ImageBytes
from ptmst.errors import InputError
from ptmst.support import devices

CUDA = torch.cuda.is_available()
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def lay(root: Path, entries: object, split: str = "train", name: str = "flickr30k") -> None:
    (root / f"{name}_{split}.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))


def pairs_of(root: Path, *files: str, size: int = 12) -> Pairs:
    lay(root, [{"image": file, "caption": "a thing"} for file in files])
    return load_pairs("flickr30k", root, image_size=size)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A root with images a, b and c of different sizes, in two folders."""
    (tmp_path / "sub").mkdir()
    for i, file in enumerate(("a.png", "sub/b.png", "sub/c.png")):
        Image.fromarray(noise(20 + i, 31, 3, seed=i)).save(tmp_path / file)
    return tmp_path


def oracle(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    return np.moveaxis((pixels / 255 - MEAN) / STD, -1, 0)


def test_train_entries_are_grouped_by_image(three: Path) -> None:
    lay(three, [
        {"image": "sub/b.png", "caption": "One!", "image_id": 7},
        {"image": "a.png", "caption": "Two", "image_id": 3},
        {"image": "sub/b.png", "caption": ["Three", "Four five"], "image_id": 7},
    ])  # fmt: skip
    pairs = load_pairs("flickr30k", str(three), image_size=8, max_words=1)
    assert pairs.image_names == ("sub/b.png", "a.png")
    assert pairs.image_paths == (three / "sub/b.png", three / "a.png")
    assert pairs.captions == ("one", "two", "three", "four")
    assert pairs.image_of_text.dtype == torch.int64 and pairs.image_of_text.tolist() == [0, 1, 0, 0]
    assert (len(pairs), pairs.name, pairs.split, pairs.image_size) == (4, "flickr30k", "train", 8)


@pytest.mark.parametrize("split", ["val", "test"])
def test_captions_of_val_and_test_may_be_lists_or_strings(three: Path, split: str) -> None:
    lay(
        three,
        [{"image": "a.png", "caption": ["x", "y"]}, {"image": "sub/c.png", "caption": "z"}],
        split,
        "cc3m_captions",
    )
    pairs = load_pairs("cc3m", three, split)
    assert pairs.captions == ("x", "y", "z") and pairs.image_of_text.tolist() == [0, 0, 1]


def test_coco_has_its_own_file_name(three: Path) -> None:
    lay(three, [{"image": "a.png", "caption": "x"}], name="coco_karpathy")
    assert len(load_pairs("coco", three)) == 1


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """So many bytes of the host's memory are free."""
    monkeypatch.setattr(devices, "free_bytes", {torch.device("cpu"): size}.__getitem__)


@pytest.mark.parametrize("free_bytes", [0, 2 * 3 * 3 * 12 * 12 - 1, 2 * 3 * 3 * 12 * 12])
def test_images_equal_an_independent_computation(three: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    free(monkeypatch, free_bytes)
    pairs = pairs_of(three, "a.png", "sub/b.png", "sub/c.png")
    for wanted in ([2, 0, 2], [1, 0], []):  # the second call mixes kept and new images
        images = pairs.images(torch.tensor(wanted, dtype=torch.int64))
        assert images.dtype == torch.float32 and images.shape == (len(wanted), 3, 12, 12)
        for image, i in zip(images, wanted, strict=True):
            np.testing.assert_allclose(image.numpy(), oracle(pairs.image_paths[i], 12), rtol=0, atol=1e-6)


def test_a_split_in_half_of_the_free_memory_is_kept(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = torch.tensor([0])
    free(monkeypatch, 2 * 3 * 12 * 12)
    kept = pairs_of(three, "a.png")
    before, first, after = kept.in_memory, kept.images(indices), kept.in_memory
    assert kept.fits_in_memory and (before, after) == (False, True)
    free(monkeypatch, 2 * 3 * 12 * 12 - 1)
    not_kept = pairs_of(three, "a.png")
    not_kept.images(indices)
    assert not (not_kept.fits_in_memory or not_kept.in_memory)
    (three / "a.png").unlink()
    assert torch.equal(kept.images(indices), first)
    with pytest.raises(InputError, match=r"a\.png"):
        not_kept.images(indices)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_every_color_mode_is_read_as_rgb(tmp_path: Path, mode: str) -> None:
    file = "x.tiff" if mode == "CMYK" else "x.png"
    picture = Image.fromarray(noise(12, 12, 3)).convert(mode)
    picture.save(tmp_path / file)
    pixels = denormalize(pairs_of(tmp_path, file).images(torch.tensor([0])))[0]
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(picture.convert("RGB")))


def test_a_grey_image_is_grey(tmp_path: Path) -> None:
    Image.fromarray(noise(12, 12)).save(tmp_path / "x.png")
    pixels = denormalize(pairs_of(tmp_path, "x.png").images(torch.tensor([0])))[0]
    assert np.array_equal(pixels.numpy(), np.broadcast_to(noise(12, 12), (3, 12, 12)))


def test_exif_orientation_turns_the_image_upright(tmp_path: Path) -> None:
    upright = noise(12, 12, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn counter-clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "x.png", exif=exif)
    pixels = denormalize(pairs_of(tmp_path, "x.png").images(torch.tensor([0])))[0]
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), upright)


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / f"cut.{ending}"
    Image.fromarray(noise(64, 64, 3)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=rf"cut\.{ending}: expected a whole image, found .+; replace the file"):
        pairs_of(tmp_path, path.name).images(torch.tensor([0]))


def test_a_file_that_is_no_image_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(InputError, match=r"x\.png: expected a whole image"):
        pairs_of(tmp_path, "x.png").images(torch.tensor([0]))


def test_denormalize_undoes_normalize() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    assert torch.equal(denormalize(normalize(pixels)), pixels)
    assert torch.equal(denormalize(normalize(pixels[0])), pixels[0])


DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")])]


@pytest.mark.parametrize("device", DEVICES)
def test_every_pixel_is_normalized_to_the_same_bits_on_every_device(device: str) -> None:
    """Each operation rounded to float32, in NumPy: it divides by 255, as no product with 1/255 does."""
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(3, 16, 16)
    mean, std = (values.astype(np.float32)[:, None, None] for values in (MEAN, STD))
    expected = (pixels.numpy().astype(np.float32) / np.float32(255) - mean) / std
    assert np.array_equal(normalize(pixels.to(device)).cpu().numpy(), expected)


def test_denormalize_clamps_rather_than_wraps() -> None:
    images = torch.stack([torch.full((3, 1, 1), -9.0), torch.full((3, 1, 1), 9.0)]).requires_grad_()
    assert denormalize(images).flatten().tolist() == [0, 0, 0, 255, 255, 255]


def test_fingerprint_follows_the_content_not_the_place(three: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "root"
    here = pairs_of(three, "a.png", "sub/b.png")
    shutil.copytree(three, elsewhere)
    assert load_pairs("flickr30k", elsewhere, image_size=12).fingerprint == here.fingerprint
    others = [
        dataclasses.replace(here, image_names=("a.png", "sub/c.png")),
        dataclasses.replace(here, captions=("a thing", "another")),
        dataclasses.replace(here, image_of_text=torch.tensor([1, 0])),
        dataclasses.replace(here, image_size=13),
    ]
    assert len({here.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_pairs_are_frozen(three: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        pairs_of(three, "a.png").split = "test"  # type: ignore[misc]


ENTRY = {"image": "a.png", "caption": "x"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ('[\n{"image": "a.png",\n"caption" "x"}]', r"flickr30k_train\.json: expected JSON, found .+ in line 3; fix"),
        ({"a.png": "x"}, r"expected a list of entries, found an object"),
        ("null", r"expected a list of entries, found null"),
        ([], r"expected at least one entry, found an empty list"),
        ([ENTRY, "a.png"], r'entry 2 of 2: expected \{"image": …, "caption": …\}, found text'),
        ([ENTRY, {"image": "a.png"}], r"""entry 2 of 2: expected the key "caption", found \['image'\]; add it"""),
        ([{"caption": "x"}], r"""entry 1 of 1: expected the key "image", found \['caption'\]"""),
        ([{"image": 3, "caption": "x"}], r"entry 1 of 1: expected image to be a path, found a number"),
        ([{"image": "a.png", "caption": []}], r"entry 1 of 1: expected at least one caption, found an empty list"),
        ([{"image": "a.png", "caption": 3}], r"expected caption to be text or a list of texts, found a number"),
        ([{"image": "a.png", "caption": ["x", None]}], r"expected caption to be text or a list of texts, found null"),
        ([{"image": "/etc/x.png", "caption": "x"}], r"expected an image inside the root folder, found /etc/x\.png"),
        ([{"image": "sub/../../x.png", "caption": "x"}], r"inside the root folder, found sub/\.\./\.\./x\.png"),
        (
            [ENTRY, {"image": "sub/no.png", "caption": "x"}, {"image": "nowhere/b.png", "caption": "x"}],
            r"found 2 missing, the first sub/no\.png; lay .+ flickr30k-images in ",
        ),
        ([{"image": "sub", "caption": "x"}], r"found 1 missing, the first sub;"),
        ([{"image": "a.png/b.png", "caption": "x"}], r"found 1 missing, the first a\.png/b\.png;"),
    ],
)
def test_broken_annotations_are_told_apart(three: Path, entries: object, message: str) -> None:
    lay(three, entries)
    with pytest.raises(InputError, match=message) as caught:
        load_pairs("flickr30k", three)
    assert str(caught.value).startswith(str(three / "flickr30k_train.json")) and "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8_are_named(three: Path) -> None:
    (three / "flickr30k_train.json").write_bytes(b'["\xff"]')
    with pytest.raises(InputError, match=r"expected text in UTF-8, found other bytes at offset 2"):
        load_pairs("flickr30k", three)


@pytest.mark.parametrize(
    ("name", "file", "remedy"),
    [
        ("scenes", "scenes_val.json", "`ptmst data --name scenes --root ROOT`"),
        ("digits", "digits_val.json", "`ptmst data --name digits --root ROOT`"),
        ("flickr30k", "flickr30k_val.json", "lay flickr30k_val.json from storage.googleapis.com/"),
        ("coco", "coco_karpathy_val.json", "folders train2014 and val2014 in ROOT"),
        ("cc3m", "cc3m_captions_val.json", 'a list of {"image": path, "caption": text}, in ROOT'),
    ],
)
def test_a_missing_annotation_file_comes_with_its_remedy(tmp_path: Path, name: str, file: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        load_pairs(name, tmp_path, "val")
    message = str(caught.value)
    assert f"{tmp_path / file}: expected an annotation file, found none; " in message
    assert remedy.replace("ROOT", str(tmp_path)) in message


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "flickr",
            "train",
            r"data set: expected emoji, .+, found 'flickr'; did you mean flickr8k or flickr30k\?",
        ),
        ("qqq", "train", r"found 'qqq'; choose one of them"),
        ("coco", "warmup", r"split of coco: expected train, val, test, found 'warmup'"),
        ("scenes", "tests", r"split of scenes: expected train, val, test, warmup, found 'tests'; did you mean test\?"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path, name: str, split: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_pairs(name, tmp_path, split)


@pytest.mark.parametrize("setting", ["image_size", "max_words"])
def test_sizes_must_be_positive(three: Path, setting: str) -> None:
    with pytest.raises(InputError, match=rf"{setting}: expected a positive number, found 0; raise it"):
        load_pairs("flickr30k", three, **{setting: 0})  # type: ignore[arg-type]


def test_content_is_read_once_in_a_process_as_long_as_it_stays(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[Path]()
    original = ImageBytes.read

    def watched(place: ImageBytes) -> bytes:
        read.append(place.file)
        return original(place)

    monkeypatch.setattr(ImageBytes, "read", watched)
    names = ("a.png", "sub/b.png", "sub/c.png")
    digests = [hashlib.sha256((three / name).read_bytes()).digest() for name in names]
    expected = hashlib.sha256(b"".join(digests)).hexdigest()
    for _ in range(2):
        assert pairs_of(three, *names).content_hash() == expected and len(read) == 3
    assert pairs_of(three, *names[::-1]).content_hash() != expected and len(read) == 6
    (three / "a.png").write_bytes((three / "sub/b.png").read_bytes() + b" ")
    assert pairs_of(three, *names).content_hash() != expected and len(read) == 9
    pairs_of(three, *names).take_content_hash("told")
    assert pairs_of(three, *names).content_hash() == "told" and len(read) == 9
    pairs = pairs_of(three, *names)
    (three / "a.png").unlink()
    pairs.take_content_hash("of nothing")
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        pairs.content_hash()
