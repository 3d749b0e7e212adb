"""Classes of images: what digits are written with, what is read, what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from ptmst.data import load_pairs, write_digits, write_scenes
from ptmst.data.classes import FILE, read_classes, write_classes
from ptmst.data.composition import Shape
from ptmst.data.digits import FIRST
from ptmst.errors import InputError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.slow
def test_the_class_of_digits_is_the_first_one_that_is_read(tmp_path: Path) -> None:
    write_digits(tmp_path, image_size=16, train=2, val=2, test=150, warmup=0, captions=20)
    pairs = load_pairs("digits", tmp_path, "test", image_size=16)
    classes = pairs.classes()
    assert classes is not None and classes.names == NAMES and len(classes.labels) == 150
    told = 0
    for image, label in enumerate(classes.labels.tolist()):
        captions = [pairs.captions[j] for j in (pairs.image_of_text == image).nonzero().flatten().tolist()]
        assert any(classes.names[label] in caption.split() for caption in captions)
        # Places that captions tell: nothing lies before the first digit.
        corner = [c for c in captions if "in the top left corner" in c or "at the upper left" in c]
        for caption in corner:
            named = [name for name in NAMES if name in caption.split()]
            told += len(named)
            assert named in ([], [classes.names[label]])
    assert told > 10
    assert load_pairs("digits", tmp_path, "train", image_size=16).classes() is None


def test_prompts_are_true_of_a_first_digit(tmp_path: Path) -> None:
    """Nothing lies before the first one: what is said of it, a digit in the top row or left of others can be."""
    write_digits(tmp_path, image_size=16, train=1, val=1, test=1, warmup=0, captions=1)
    prompts = json.loads((tmp_path / FILE).read_text())["prompts"]
    assert list(prompts) == list(NAMES)
    top = {"in the top left corner", "at the upper left", "at the top centre"}
    before = {"above a digit", "over a digit", "to the left of a digit", "left of a digit"}
    for name, texts in prompts.items():
        assert sorted(texts) == sorted(f"a {name} {where}" for where in top | before)


def test_the_first_digit_is_found_as_one_reads() -> None:
    def digit(kind: str, row: int, column: int) -> Shape:
        return Shape(kind, "red", "large", (row, column))

    assert FIRST.class_of(frozenset({digit("five", 1, 0), digit("two", 0, 2)})) == "two"
    assert FIRST.class_of(frozenset({digit("five", 1, 0), digit("two", 1, 1), digit("nine", 2, 0)})) == "five"


def test_digits_without_their_classes_are_written_anew(tmp_path: Path) -> None:
    write = partial(write_digits, tmp_path, image_size=16, train=1, val=1, test=2, warmup=0)
    assert write()
    before = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).unlink()
    assert write() and (tmp_path / FILE).read_bytes() == before
    assert not write()


def test_scenes_have_no_classes(tmp_path: Path) -> None:
    write_scenes(tmp_path, image_size=16, train=1, val=1, test=1, warmup=0)
    assert load_pairs("scenes", tmp_path, "test", image_size=16).classes() is None


def test_images_without_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": ["An A!", "one a"], "b": ["b"]}, {"x.png": "b", "z.png": "a"})
    found = read_classes(tmp_path, ["x.png", "y.png", "z.png"])
    assert found is not None and found.labels.tolist() == [1, -1, 0]
    assert found.names == ("a", "b") and found.prompts == (("an a", "one a"), ("b",))
    assert read_classes(tmp_path, ["y.png"]) is None
    assert read_classes(tmp_path / "elsewhere", ["x.png"]) is None


def test_images_are_named_however_their_path_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_classes(tmp_path, {"a": ["a"], "b": ["b"]}, {"./img/4.png": "b", str(tmp_path / "img/5.png"): "a"})
    found = read_classes(tmp_path, ["img/4.png", "img/5.png"])
    assert found is not None and found.labels.tolist() == [1, 0] and not caplog.messages
    write_classes(tmp_path, {"a": ["a"], "b": ["b"]}, {"s.tar/x.png": "b", "./s.tar/./y.png": "b"})
    found = read_classes(tmp_path, ["s.tar/./x.png", "s.tar/y.png"])
    assert found is not None and found.labels.tolist() == [1, 1]
    write_classes(tmp_path, {"a": ["a"], "b": ["b"]}, {"x.png": "a", "./x.png": "b"})
    with pytest.raises(InputError, match=r"expected one class of \./x\.png, found a second one under another spelling"):
        read_classes(tmp_path, ["x.png"])
    write_classes(tmp_path, {"a": ["a"]}, {"../x.png": "a"})
    with pytest.raises(
        InputError, match=r"classes\.json: images: expected an image inside the root folder, found \.\./x"
    ):
        read_classes(tmp_path, ["x.png"])


@pytest.mark.parametrize(("names", "told"), [({"x.png": "a"}, "1 of 3"), ({"4.png": "a"}, "0 of 3")])
def test_images_that_are_not_named_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: dict[str, str], told: str
) -> None:
    write_classes(tmp_path, {"a": ["a"]}, names)
    found = read_classes(tmp_path, ["x.png", "img/4.png", "z.png"])
    assert (found is None) == told.startswith("0")
    first = "x.png" if found is None else "img/4.png"
    assert caplog.messages == [f"{tmp_path / FILE}: {told} images have a class; {first} is one without"]
    assert caplog.records[0].levelname == "WARNING"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": {}}, 'expected {"prompts": {class: [texts]}, "images": {image: class}}, found other keys'),
        ({"images": ["a"]}, 'expected {"prompts": {class: [texts]}, "images": {image: class}}, found other keys'),
        ({"prompts": {"a": "text"}}, "expected a list of texts as prompts of a, found text"),
        ({"prompts": {"a": []}}, "expected a list of texts as prompts of a, found a list"),
        ({"images": {"x.png": "c"}}, "expected a class with prompts for x.png, found 'c'; add its prompts"),
        ({"images": {"x.png": ["a"]}}, "expected a class with prompts for x.png, found ['a']; add its prompts"),
        ({"version": 2}, "expected version 1 of the classes format, found 2"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    value = {"format": "ptmst-classes", "version": 1, "prompts": {"a": ["an a"]}, "images": {"x.png": "a"}}
    (tmp_path / FILE).write_text(json.dumps(value | changes))
    with pytest.raises(InputError) as caught:
        read_classes(tmp_path, ["x.png"])
    assert message in str(caught.value) and str(caught.value).startswith(str(tmp_path / FILE))
