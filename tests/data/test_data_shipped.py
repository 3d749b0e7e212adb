"""The data set that ships: its archives are whole, no thing is in two splits, and it reads alike in both its forms."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import ptmst
from ptmst.config import WriteDataConfig
from ptmst.data import load_pairs, write_data, write_emoji
from ptmst.data.credits import read_credits
from ptmst.data.shipped import shipped
from ptmst.data.things import thing
from ptmst.errors import InputError

SPLITS = ("train", "val", "test")


class Shown(NamedTuple):
    image: bytes
    captions: list[str]


@pytest.fixture(scope="module")
def index() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((Path(ptmst.__file__).parent / "data" / "emoji" / "emoji.json").read_text())
    return value


@pytest.fixture(scope="module")
def archived() -> dict[str, dict[str, Shown]]:
    """What the archives hold, by split and name without its suffix."""
    found: dict[str, dict[str, Shown]] = {}
    for split in SPLITS:
        members: dict[str, bytes] = {}
        with tarfile.open(shipped() / f"emoji-{split}.tar") as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None and member.name not in members
                members[member.name] = file.read()
        names = {name.removesuffix(".webp") for name in members if name.endswith(".webp")}
        assert members.keys() == {f"{name}{suffix}" for name in names for suffix in (".webp", ".json")}
        found[split] = {n: Shown(members[f"{n}.webp"], json.loads(members[f"{n}.json"])["caption"]) for n in names}
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("emoji")
    assert write_emoji(root) is True
    return root


def test_the_archives_are_those_of_the_index(index: dict[str, Any]) -> None:
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shipped().glob("*.tar")}
    assert index["archives"] == there and len(there) == 3


def test_the_counts_are_those_of_the_index(index: dict[str, Any], archived: dict[str, dict[str, Shown]]) -> None:
    assert index["images"] == {split: len(shown) for split, shown in archived.items()}
    assert index["captions"] == {
        split: sum(len(one.captions) for one in shown.values()) for split, shown in archived.items()
    }
    named = {split: len({thing(one.captions[0]) for one in shown.values()}) for split, shown in archived.items()}
    things = index["things"]
    assert (things["val"], things["test"]) == (named["val"], named["test"])
    # Things of several names that look alike or share a caption count as one.
    assert 0.9 * named["train"] < things["train"] < named["train"]


def test_the_page_on_data_has_its_counts(index: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith("| `emoji` |"))
    counts = ", ".join(f"{index['images'][split]:,} · {index['captions'][split]:,}" for split in SPLITS)
    assert f"| {index['emoji']:,} emoji, " in row and row.endswith(f"| {counts} |")
    things = index["things"]
    told = f"of {sum(things.values()):,} things {things['train']} are for training, {things['val']} for val, "
    assert f"{told}{things['test']} for test" in page


def test_no_thing_is_in_two_splits(archived: dict[str, dict[str, Shown]]) -> None:
    """Neither by its code, nor by its name without what makes no other thing."""
    beside = (
        "and with of the a face person man woman men women people boy girl up down left right north south east west"
    )
    colors = "red orange yellow green blue purple pink brown black white grey light dark large small medium heavy"

    def told(shown: dict[str, Shown]) -> set[frozenset[str]]:
        left_out = {*beside.split(), *colors.split()}
        names = (re.findall(r"[a-z0-9]+", one.captions[0].lower()) for one in shown.values())
        return {frozenset(words) - left_out or frozenset(words) for words in names}

    def codes(shown: dict[str, Shown]) -> set[str]:
        return {name.rpartition("-")[0] for name in shown}

    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        assert not codes(archived[one]) & codes(archived[other])
        assert not told(archived[one]) & told(archived[other])


@pytest.mark.slow
def test_what_looks_alike_or_is_called_alike_is_in_one_split(archived: dict[str, dict[str, Shown]]) -> None:
    """By the correlation of gray pictures of 16 pixels, as numpy has it, and by whole captions."""

    def small(one: Shown) -> np.ndarray:
        with Image.open(BytesIO(one.image)) as image:
            return np.asarray(image.convert("L").resize((16, 16)), np.float64).ravel()

    seen = {split: np.stack([small(one) for one in shown.values()]) for split, shown in archived.items()}
    said = {split: {c.lower() for one in shown.values() for c in one.captions} for split, shown in archived.items()}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        together = np.corrcoef(np.concatenate([seen[one], seen[other]]))
        assert together[: len(seen[one]), len(seen[one]) :].max() < 0.98
        assert not said[one] & said[other]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_thing_is_asked_for_once(archived: dict[str, dict[str, Shown]], split: str) -> None:
    names = [thing(shown.captions[0]) for shown in archived[split].values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("blue heart", "red heart", "hearts"), "heart"),
        (("cat", "cat face", "black cat", "a cat"), "cat"),
        (("full moon", "crescent moon"), "moon"),
        (("one o’clock", "twelve-thirty"), "clock"),
        (("man: blond hair", "person with blond hair"), "blond hair"),
        (("woman", "woman"), "woman"),
        (("An Apple.", "some apples"), "apple"),
    ],
)
def test_names_of_one_thing(names: tuple[str, ...], told: str) -> None:
    assert {thing(name) for name in names} == {told}
    assert thing("glass of milk") != thing("milk")


def test_every_caption_says_something(archived: dict[str, dict[str, Shown]]) -> None:
    for shown in archived.values():
        for one in shown.values():
            assert one.captions and all(re.search(r"\w\w", caption) for caption in one.captions)
            words = [frozenset(re.findall(r"\w+", caption.lower())) for caption in one.captions]
            assert len(words) == len(set(words))


@pytest.mark.slow
def test_every_picture_is_of_64_pixels_and_shows_something(archived: dict[str, dict[str, Shown]]) -> None:
    for shown in archived.values():
        for name, one in shown.items():
            with Image.open(BytesIO(one.image)) as image:
                assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (64, 64))
                assert np.ptp(np.asarray(image), axis=(0, 1)).any(), name


def test_no_picture_is_there_twice(archived: dict[str, dict[str, Shown]]) -> None:
    images = [one.image for shown in archived.values() for one in shown.values()]
    assert len(images) == len(set(images))


def test_the_licenses_of_all_works_travel_with_them() -> None:
    text = (shipped() / "LICENSES.txt").read_text("utf-8")
    credits = read_credits(shipped())
    assert credits is not None and f"SPDX-License-Identifier: {credits.license}" in text
    for license in credits.license.split(" AND "):
        assert any(f"{license}, https://" in line for line in credits.credits)
    drawn = [line for line in credits.credits if not line.startswith("Captions")]
    assert len(drawn) == 7
    for line in drawn:
        name, address = re.fullmatch(r"(.+), (https://github\.com/\S+)\. .+ Changed\.", line).groups()  # type: ignore[union-attr]
        assert name in text and address in text
    for beginning in (
        "Apache License",
        "Attribution 4.0 International",
        "Permission is hereby granted",
        "UNICODE LICENSE",
    ):
        assert beginning in text


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_files_and_archives_read_alike(written: Path, split: str) -> None:
    pytest.importorskip("braceexpand", reason="needs the extra ptmst[wds]")
    files, tars = load_pairs("emoji", written, split, 64), load_pairs("wds:emoji-{split}.tar", shipped(), split, 64)

    def told(pairs: ptmst.Pairs) -> list[tuple[str, str]]:
        names = [Path(name).name for name in pairs.image_names]
        return [(names[i], caption) for i, caption in zip(pairs.image_of_text.tolist(), pairs.captions, strict=True)]

    assert told(files) == told(tars)
    some = torch.arange(0, len(files.image_names), 16)
    assert torch.equal(files.pixels(some), tars.pixels(some))


@pytest.mark.slow
def test_it_is_written_as_it_ships(written: Path, archived: dict[str, dict[str, Shown]]) -> None:
    shown = {name: one for split in archived.values() for name, one in split.items()}
    assert {path.stem: path.read_bytes() for path in (written / "images").iterdir()} == {
        name: one.image for name, one in shown.items()
    }
    assert (written / "LICENSES.txt").read_bytes() == (shipped() / "LICENSES.txt").read_bytes()
    assert (written / "credits.json").read_bytes() == (shipped() / "credits.json").read_bytes()
    assert write_data(WriteDataConfig("emoji", written)) is False


def test_settings_that_it_does_not_have_are_refused(tmp_path: Path) -> None:
    changed = {"image_size": 48, "train": 9, "val": 9, "test": 9, "warmup": 9, "captions": 2, "seed": 1}
    for name in ("emoji", "drawings", "stamps"):
        config = WriteDataConfig(name, tmp_path / "data")
        assert list(config.problems()) == []
        for setting, value in changed.items():
            (problem,) = replace(config, **{setting: value}).problems()  # type: ignore[arg-type]
            assert (
                problem == f"{setting}: expected it with scenes and digits alone, found it set for {name}; leave it out"
            )
    with pytest.raises(InputError, match=r"image_size: expected it with scenes and digits alone, .+ leave it out"):
        write_data(WriteDataConfig("emoji", tmp_path / "data", image_size=48))
    assert not (tmp_path / "data").exists()
