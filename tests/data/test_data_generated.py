from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import combinations, permutations, repeat
from math import pi, sin, sqrt
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptmst.config import MOST_CAPTIONS
from ptmst.data import digits, load_pairs, write_digits, write_scenes
from ptmst.data.composition import SYNONYMS, Scene, Shape, Vocabulary, compose, describe
from ptmst.data.digits import DIGITS, split_scans
from ptmst.data.generated import Layout, Placed, _lay_out
from ptmst.data.scenes import RADII, SHAPES, _paint
from ptmst.errors import InputError
from ptmst.support import locks, parts

Writer = Callable[..., bool]
WRITERS: dict[str, Writer] = {"scenes": write_scenes, "digits": write_digits}
SPLITS = {"train": 6, "val": 3, "test": 4, "warmup": 2}


@pytest.fixture(params=WRITERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def write(name: str) -> Writer:
    return lambda root, **changed: WRITERS[name](root, **{"image_size": 24, **SPLITS, **changed})


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(write: Writer, tmp_path: Path) -> None:
    one, same, other = (tmp_path / folder for folder in ("one", "same", "other"))
    assert write(one, seed=3) and write(same, seed=3) and write(other, seed=4)
    assert content(one) == content(same)
    shared = {file for file, found in content(one).items() if found == content(other)[file]}
    assert not shared


def test_every_split_loads(write: Writer, name: str, tmp_path: Path) -> None:
    write(tmp_path)
    for split, count in SPLITS.items():
        pairs = load_pairs(name, tmp_path, split, image_size=24)
        assert len(pairs.image_names) == count and len(pairs) == 5 * count
        assert pairs.image_of_text.bincount().tolist() == [5] * count
        for i in range(count):
            assert len({pairs.captions[j] for j in (pairs.image_of_text == i).nonzero().flatten().tolist()}) == 5


def test_files_have_the_published_form(write: Writer, name: str, tmp_path: Path) -> None:
    write(tmp_path, captions=2)
    train = json.loads((tmp_path / f"{name}_train.json").read_text())
    test = json.loads((tmp_path / f"{name}_test.json").read_text())
    assert [entry["image"] for entry in train[:3]] == ["images/train/00000.png"] * 2 + ["images/train/00001.png"]
    assert all(isinstance(entry["caption"], str) and "image_id" in entry for entry in train)
    assert len(test) == 4 and all(len(entry["caption"]) == 2 for entry in test)


@pytest.mark.parametrize("image_size", [16, 33, 64])
def test_images_have_the_size_asked_for_and_show_the_same_scene(write: Writer, tmp_path: Path, image_size: int) -> None:
    small, other = tmp_path / "small", tmp_path / "other"
    write(small)
    write(other, image_size=image_size)
    file = "images/test/00000.png"
    with Image.open(small / file) as a, Image.open(other / file) as b:
        assert b.size == (image_size, image_size) and b.mode == "RGB"
        difference = np.abs(np.asarray(a.resize((8, 8)), float) - np.asarray(b.resize((8, 8)), float))
        ground = np.abs(np.asarray(a.resize((8, 8)), float) - np.asarray(a, float)[-1, -1])
    assert difference.mean() < 0.5 * ground.mean()


def test_the_test_split_does_not_depend_on_the_others(write: Writer, tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", train=9, val=5, warmup=0)
    test = {file: found for file, found in content(tmp_path / "a").items() if "test" in file}
    assert len(test) == 5 and test == {f: c for f, c in content(tmp_path / "b").items() if "test" in f}


def test_a_rerun_writes_nothing(write: Writer, tmp_path: Path) -> None:
    write(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for left in (tmp_path / locks.CLAIM, parts.name(tmp_path / "scenes.json")):
        left.write_bytes(b"")  # by a run that was killed when all was written
    assert write(tmp_path) is False
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_settings_in_the_same_root_are_refused(write: Writer, name: str, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=rf"{name}\.json: .+ found image_size 24 instead of 32, seed 0 instead of 1; "):
        write(tmp_path, image_size=32, seed=1)


def test_an_interrupted_run_is_not_taken_for_a_whole_one(write: Writer, name: str, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    write(tmp_path / "whole", seed=1)
    root = tmp_path / "root"
    write(root, train=9, warmup=3)
    (root / f"{name}.json").unlink()  # as if the run had been stopped just before its end
    with pytest.raises(KeyboardInterrupt):
        write(root, seed=1, progress=stop)
    for split in SPLITS:
        with pytest.raises(InputError, match="expected an annotation file, found none"):
            load_pairs(name, root, split)
    assert write(root, seed=1) is True
    assert content(root) == content(tmp_path / "whole")


@pytest.mark.parametrize("done", [1, 8, 15])
def test_a_killed_run_of_other_settings_leaves_no_image(write: Writer, name: str, tmp_path: Path, done: int) -> None:
    """Killed, that is: nothing but what is on disk at that moment stays."""

    def stop(images: int, _: int) -> None:
        if images == done:
            raise KeyboardInterrupt

    root = tmp_path / "root"
    with pytest.raises(KeyboardInterrupt):
        write(root, seed=1, progress=stop)
    (root / "images" / "test" / "notes.txt").write_text("theirs")
    assert write(root, test=1, warmup=0) is True
    write(tmp_path / "whole", test=1, warmup=0)
    assert content(root) == content(tmp_path / "whole") | {"images/test/notes.txt": b"theirs"}
    assert write(root, test=1, warmup=0) is False


def test_images_of_others_are_not_touched(write: Writer, name: str, tmp_path: Path) -> None:
    theirs = tmp_path / "images" / "val" / "00000.png"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(InputError) as caught:
        write(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: expected a new folder, or one that `ptmst data` has begun, found images/val/00000.png; choose "
        "another root or delete that folder"
    )
    assert content(tmp_path) == {"images/val/00000.png": b"theirs"}


def test_two_rendered_sets_do_not_share_a_root(tmp_path: Path) -> None:
    scenes, numbers = (WRITERS[name] for name in ("scenes", "digits"))
    scenes(tmp_path, image_size=24, **SPLITS)
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"found images/test/00000\.png; choose another root"):
        numbers(tmp_path, image_size=24, **SPLITS)
    assert content(tmp_path) == before


def test_a_deleted_annotation_file_is_written_again(write: Writer, name: str, tmp_path: Path) -> None:
    write(tmp_path)
    before = content(tmp_path)
    (tmp_path / f"{name}_val.json").unlink()
    assert write(tmp_path) is True and content(tmp_path) == before


def test_progress_counts_every_image(write: Writer, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 15) for i in range(1, 16)]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("image_size", 15, "expected at least 16, found 15; raise it"),
        ("train", 0, "expected at least 1, found 0"),
        ("warmup", -1, "expected at least 0, found -1"),
        ("captions", 0, "expected at least 1, found 0"),
        ("captions", 21, "expected at most 20, found 21; lower it"),
        ("seed", -1, "expected at least 0, found -1"),
    ],
)
def test_settings_out_of_range_are_refused(
    write: Writer, tmp_path: Path, setting: str, value: int, message: str
) -> None:
    with pytest.raises(InputError, match=f"{setting}: {message}"):
        write(tmp_path / "root", **{setting: value})
    assert not (tmp_path / "root").exists()


def test_all_settings_out_of_range_are_named_at_once(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^2 settings cannot be used:\n  train: .+\n  val: "):
        write(tmp_path / "root", train=0, val=-1)


def test_a_root_that_is_a_file_is_refused(write: Writer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: cannot be used \(File exists\); choose another output folder"):
        write(tmp_path / "file")


def test_a_missing_warmup_split_is_reported(write: Writer, name: str, tmp_path: Path) -> None:
    write(tmp_path, warmup=0)
    with pytest.raises(InputError, match=f"expected an annotation file, found none; .+after deleting {name}.json"):
        load_pairs(name, tmp_path, "warmup")


@pytest.mark.slow
def test_no_scene_is_drawn_twice() -> None:
    # A world of one kind of thing has 36 × 16² + 84 × 16³ scenes; of 9,000 drawn blindly, hundreds would repeat.
    few = Vocabulary(generic="shape", kinds={"circle": ("circle",)})
    splits = compose(few, {"test": 4000, "train": 5000}, np.random.SeedSequence(0))
    assert {split: len(scenes) for split, scenes in splits.items()} == {"test": 4000, "train": 5000}
    assert len({scene for scenes in splits.values() for scene in scenes}) == 9000


def test_things_never_share_a_cell() -> None:
    scenes = compose(SHAPES, {"test": 300}, np.random.SeedSequence(0))["test"]
    assert {len(scene) for scene in scenes} == {2, 3}
    assert all(len({thing.cell for thing in scene}) == len(scene) for scene in scenes)
    assert {cell for scene in scenes for cell in (t.cell for t in scene)} == {
        (r, c) for r in range(3) for c in range(3)
    }


# An independent reader of captions: what they say, checked against the scene.

BESIDE = re.compile(r"^(.+?) (?:(?:to the )?(left|right) of|(above|over|higher than)|(below|under|beneath)) (.+)$")
PLACED = (re.compile(r"^(.+?) ((?:in|at|halfway) .+)$"), re.compile(r"^((?:in|at|halfway) .+) is (.+)$"))
OPENING = re.compile(r"^(a picture of|an image with|here we see) ")
COUNTED = re.compile(r"^(\w+) (?:shape|digit)s: ")


def fits(words: str, thing: Shape, vocabulary: Vocabulary) -> bool:
    true = {"a", "an", "something", vocabulary.generic}
    for attribute in (thing.color, thing.size):
        true |= set(SYNONYMS.get(attribute, (attribute,)))
    for kind in sorted(vocabulary.kinds[thing.kind], key=len, reverse=True):
        words = words.removesuffix(kind).strip()
    return set(words.split()) <= true


def is_true(caption: str, scene: Scene, vocabulary: Vocabulary) -> bool:
    caption = OPENING.sub("", caption)
    if counted := COUNTED.match(caption):
        return {"two": 2, "three": 3}[counted[1]] == len(scene) and is_true(caption[counted.end() :], scene, vocabulary)
    if beside := BESIDE.match(caption):
        one, side, above, below, other = beside.groups()
        return any(
            fits(one, a, vocabulary)
            and fits(other, b, vocabulary)
            and (
                (side == "left" and a.cell[1] < b.cell[1])
                or (side == "right" and a.cell[1] > b.cell[1])
                or (above is not None and a.cell[0] < b.cell[0])
                or (below is not None and a.cell[0] > b.cell[0])
            )
            for a, b in permutations(scene, 2)
        )
    if placed := PLACED[0].match(caption) or PLACED[1].match(caption):
        words, place = sorted(placed.groups(), key=lambda part: bool(re.match(r"(in|at|halfway) ", part)))
        row = 0 if re.search("top|upper", place) else 2 if re.search("bottom|lower", place) else 1
        column = 0 if "left" in place else 2 if "right" in place else 1
        return any(fits(words, thing, vocabulary) and thing.cell == (row, column) for thing in scene)
    parts = re.split(", | and ", caption)
    return len(parts) == len(scene) and any(
        all(map(fits, parts, order, repeat(vocabulary))) for order in permutations(scene)
    )


@pytest.mark.parametrize("vocabulary", [SHAPES, DIGITS], ids=["scenes", "digits"])
def test_captions_are_true_and_tell_something(vocabulary: Vocabulary) -> None:
    scenes = compose(vocabulary, {"test": 200}, np.random.SeedSequence(0))["test"]
    rng = np.random.default_rng(0)
    of_others = 0
    for scene, other in zip(scenes, [*scenes[1:], scenes[0]], strict=True):
        captions = describe(scene, vocabulary, 5, rng)
        assert len(set(captions)) == 5
        for caption in captions:
            assert is_true(caption, scene, vocabulary), (caption, scene)
            of_others += is_true(caption, other, vocabulary)
    assert of_others < 0.1 * 5 * len(scenes)


def test_the_most_captions_of_the_plainest_scene_differ() -> None:
    scene = frozenset({Shape("two", "blue", "small", (0, 0)), Shape("two", "blue", "small", (0, 1))})
    for seed in range(20):
        captions = describe(scene, DIGITS, MOST_CAPTIONS, np.random.default_rng(seed))
        assert len(set(captions)) == MOST_CAPTIONS


AREAS = {  # of a shape of radius 1
    "circle": pi,
    "ring": pi * (1 - 0.55**2),
    "square": 1.7**2,
    "triangle": 3 * sqrt(3) / 4 * 1.1**2,
    "star": 5 * 1.1 * 0.45 * sin(pi / 5),
    "cross": 2 * (2 * 0.7) - 0.7**2,
}


@pytest.mark.parametrize("kind", SHAPES.kinds)
@pytest.mark.parametrize("size", ["small", "large"])
def test_shapes_have_their_place_color_and_area(kind: str, size: str) -> None:
    placed = Placed(Shape(kind, "red", size, (0, 2)), (0.8, 0.2), (210, 110, 10))
    image = _paint(Layout(200, (10, 10, 10), (placed,)), "test", np.random.default_rng(0))
    pixels = np.asarray(image, dtype=float)
    ink = (pixels[..., 0] - 10) / 200
    np.testing.assert_allclose(pixels[..., 1], 10 + 100 * ink, atol=1)
    assert ink.sum() == pytest.approx(AREAS[kind] * (RADII[size] * 200) ** 2, rel=0.06)
    y, x = np.indices(ink.shape) + 0.5
    assert [(ink * x).sum() / ink.sum(), (ink * y).sum() / ink.sum()] == pytest.approx([160, 40], abs=1)


@pytest.mark.parametrize("cell", [(0, 0), (0, 2), (1, 0), (2, 1)])
def test_a_thing_is_laid_out_where_and_as_its_captions_say(cell: tuple[int, int]) -> None:
    row, column = cell
    for seed in range(20):
        thing = Shape("circle", "orange", "large", cell)
        layout = _lay_out(frozenset({thing}), 90, np.random.default_rng(seed))
        (placed,) = layout.placed
        assert (placed.thing, layout.image_size) == (thing, 90)
        assert placed.center == pytest.approx(((column + 0.5) / 3, (row + 0.5) / 3), abs=0.02)
        share = placed.ink[0] / 245
        assert 0.84 <= share <= 1 and placed.ink == pytest.approx((245 * share, 140 * share, 25 * share), abs=1.1)
        assert max(layout.background) <= 130 and max(layout.background) - min(layout.background) <= 20


def test_every_scan_is_dealt_to_one_split() -> None:
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    dealt = {split: {n: [s.tobytes() for s in found] for n, found in d.items()} for split, d in split_scans().items()}
    for label, digit in enumerate(DIGITS.kinds):
        wanted = Counter(np.round(scan * 255 / 16).astype(np.uint8).tobytes() for scan in scans[labels == label])
        assert Counter(scan for found in dealt.values() for scan in found[digit]) == wanted
    for one, other in combinations(dealt.values(), 2):
        assert not {s for found in one.values() for s in found} & {s for found in other.values() for s in found}


def test_a_split_is_painted_with_its_own_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_test_has_ink() -> dict[str, dict[str, list[np.ndarray]]]:
        return {s: {n: [np.full((8, 8), 255 * (s == "test"), np.uint8)] for n in DIGITS.kinds} for s in SPLITS}

    monkeypatch.setattr(digits, "split_scans", only_test_has_ink)
    write_digits(tmp_path, image_size=24, train=1, val=1, test=1, warmup=1)
    for path in tmp_path.rglob("*.png"):
        with Image.open(path) as image:
            assert (len(image.getcolors() or ()) > 1) == (path.parent.name == "test")


def test_a_digit_lies_in_its_cell_in_its_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = np.zeros((8, 8), np.uint8)
    scan[2:6, 2:6] = 255
    monkeypatch.setattr(digits, "split_scans", lambda: {"val": {"two": [scan]}})
    placed = Placed(Shape("two", "red", "large", (2, 0)), (0.2, 0.8), (200, 100, 50))
    image = digits._paint(Layout(100, (0, 0, 0), (placed,)), "val", np.random.default_rng(0))
    assert image.getpixel((20, 80)) == (200, 100, 50)
    left, top, right, bottom = image.getbbox() or (0, 0, 0, 0)
    assert (left + right) / 2 == pytest.approx(20, abs=1) and (top + bottom) / 2 == pytest.approx(80, abs=1)
