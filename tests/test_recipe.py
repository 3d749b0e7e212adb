"""What stores and sets record: it comes back, and files of earlier releases stay readable."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ptmst import DistilledSet, EvaluateConfig, TrajectoryStore, distill, evaluate, evaluate_experts, schema
from ptmst.config import (
    DataConfig,
    DistillConfig,
    EncoderConfig,
    Experiment,
    TeachConfig,
    WriteDataConfig,
)
from ptmst.config import (
    EvaluateConfig as Evaluation,
)
from ptmst.data import MEAN, STD
from ptmst.errors import InputError
from ptmst.evaluation.scores import read_scores
from ptmst.recipe import Fingerprints, Recipe
from ptmst.teachers.teach import train_teachers
from tiny import DISTILL, RECIPE, teach_config, tiny_store

EARLIER = Path(__file__).parent / "earlier" / "0.1.0"


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what an earlier release wrote, as the current one: the data's path in it is relative."""
    shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(tmp_path / "earlier")
    return tmp_path / "earlier"


NOW = (56.25, 625 / 12)
"""Mean recall of the set's two students as this release draws and trains them."""


def test_what_an_earlier_release_wrote_can_be_scored(earlier: Path) -> None:
    """Experts as it did; fresh students start elsewhere, since their heads are drawn by numbers of our own."""
    config = EvaluateConfig(students=2, epochs=5, every=5, batch_size=6, protocol="per-phase", device="cpu")
    # Another instruction set rounds otherwise, and may turn one of 8 images or 16 captions.
    near = 0.0 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 12.5
    for found, path in (
        (evaluate_experts(TrajectoryStore.open("store"), config), "store/scores.json"),
        (evaluate(DistilledSet.load("set"), config), "set/scores.json"),
    ):
        expected = read_scores(Path(path))
        if path.startswith("store"):
            for one, other in zip(found.students, expected.students, strict=True):
                assert one == pytest.approx(other, abs=near)
        else:
            assert [student["mean"] for student in found.students] == pytest.approx(NOW, abs=near or 6.25)
        told = ("versions", "seconds", "ties", "config", "scored")
        assert {k: v for k, v in found.provenance.items() if k not in told} == {
            k: v for k, v in expected.provenance.items() if k not in told
        }
        # What later releases tell besides has the value that it had then.
        scored = {key: value for key, value in found.provenance["scored"].items() if key != "sha256"}
        assert scored == {"data": "scenes", **expected.provenance["scored"]}
        if "config" in expected.provenance:
            assert schema.agrees(
                expected.provenance["config"], schema.from_json(Evaluation, found.provenance["config"])
            )


def test_a_store_of_an_earlier_release_grows(earlier: Path) -> None:
    """Asked for with the settings that it was made with, it takes a third expert."""
    encoder, data = EncoderConfig(image_width=8, text_width=32), DataConfig("scenes", Path("data"), image_size=16)
    config = TeachConfig(
        Path("store"), data, encoder, experts=3, epochs=3, batch_size=16, endpoints="all", device="cpu"
    )
    assert len(train_teachers(config)) == 3
    with pytest.raises(InputError, match=r"lr: 0\.1 in the store, 0\.2 asked for"):
        train_teachers(replace(config, lr=0.2))


def forget(path: Path, *keys: str) -> None:
    """Take a setting out of a JSON file, as if it had been written before there was one."""
    value: dict[str, Any] = json.loads(path.read_text())
    value.pop("sha256", None)
    inner = value
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    path.write_text(json.dumps(value))


@pytest.mark.slow
def test_a_setting_that_an_old_file_lacks_takes_its_default(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_store(tmp_path_factory)
    shutil.copytree(source.path, tmp_path / "store")
    forget(tmp_path / "store" / "store.json", "settings", "precision")
    forget(tmp_path / "store" / "store.json", "settings", "data", "max_words")
    store = TrajectoryStore.open(tmp_path / "store")
    assert store.recipe == source.recipe
    assert store.recipe.differences(replace(source.recipe, text_width=7)) == [("text_width", 32, 7)]
    again = replace(teach_config(source.path.parent), out=store.path)
    assert len(train_teachers(again)) == 2

    config = replace(DISTILL, out=tmp_path / "set", steps=1)
    distill(config, store)
    (tmp_path / "set" / "distilled.json").unlink()
    forget(tmp_path / "set" / "run.json", "config", "blend")
    assert len(distill(config, store, resume=True)) == 2
    (tmp_path / "set" / "distilled.json").unlink()
    with pytest.raises(InputError, match="expected a run of these settings and this store"):
        distill(replace(config, blend=0.5), store, resume=True)


def test_a_recipe_comes_back() -> None:
    assert Recipe.from_json(json.loads(json.dumps(RECIPE.to_json()))) == replace(
        RECIPE, data=replace(RECIPE.data, mean=MEAN, std=STD), teaching=recorded(RECIPE)
    )
    read = replace(RECIPE, fingerprints=replace(RECIPE.fingerprints, images="of images"))
    assert Recipe.from_json(read.to_json()).fingerprints == read.fingerprints
    bare = replace(RECIPE, teaching=None)
    again = Recipe.from_json(bare.to_json())
    assert again.teaching is None and (again.seed, again.temperature, again.precision) == (0, 0.07, "fp32")
    trained = replace(RECIPE, teaching=TeachConfig(seed=3, temperature=0.2, precision="tf32"))
    again = Recipe.from_json(trained.to_json())
    assert (again.seed, again.temperature, again.precision) == (3, 0.2, "tf32")


def recorded(recipe: Recipe) -> TeachConfig:
    """The teaching that comes back: with the data and the encoder of the recipe."""
    assert recipe.teaching is not None
    return replace(recipe.teaching, data=recipe.data, encoder=recipe.encoder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.clear(), "expected a store or set with an encoder and data, found one without; stores from"),
        (lambda r: r.pop("text_width"), "expected a complete record of data and encoder, found one without 'text_wi"),
        (lambda r: r.pop("text_fingerprint"), "expected a complete record .* found one without 'text_fingerprint'"),
        (lambda r: r["data"].pop("image_size"), "expected a complete record .* found one without image_size"),
        (lambda r: r.update(speed=3), "unknown setting speed"),
        (lambda r: r["encoder"].update(image_widht=3), "unknown setting image_widht; did you mean image_width"),
        (lambda r: r["encoder"].update(image_width="3"), "expected int, found '3'"),
    ],
)
def test_a_record_that_cannot_be_is_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    record = json.loads(json.dumps(RECIPE.to_json()))
    change(record)
    with pytest.raises(InputError, match=message):
        Recipe.from_json(record)


def test_only_what_decides_a_result_differs() -> None:
    """Paths do not, nor the width of heads that a trained tower's own width decides; content does."""
    elsewhere = replace(
        RECIPE,
        data=replace(RECIPE.data, root=Path("/elsewhere")),
        encoder=replace(RECIPE.encoder, image_weights=Path("w.pt"), text_weights=Path("t.pt"), head_width=9),
    )
    assert RECIPE.differences(elsewhere) == []
    frozen = replace(RECIPE, encoder=replace(RECIPE.encoder, freeze_tower=True))
    heads = replace(frozen, encoder=replace(frozen.encoder, head_width=9))
    assert frozen.differences(heads) == [("encoder.head_width", None, 9)]
    other = replace(RECIPE, fingerprints=Fingerprints("other data", "of texts", "weights"))
    assert [name for name, _, _ in RECIPE.differences(other)] == ["data_fingerprint", "image_weights_sha256"]
    one, two = (
        replace(RECIPE, fingerprints=replace(RECIPE.fingerprints, images=images)) for images in ("these", "those")
    )
    assert one.differences(two) == [("data_content", "these", "those")]
    assert RECIPE.differences(one) == one.differences(RECIPE) == one.differences(one) == []


PLACES = {"root", "image_weights", "text_tower", "text_weights"}
PASSING = {
    WriteDataConfig: {"root"},
    DataConfig: {"root"},
    EncoderConfig: {"image_weights", "text_weights"},
    TeachConfig: {"out", "device", "workers", "threads", "keep_start"},
    DistillConfig: {"out", *PLACES, "device", "threads", "checkpoint_minutes", "track"},
    Evaluation: {*PLACES, "on_root", "device", "threads"},
    Experiment: {"about", "source"},
}


@pytest.mark.parametrize("kind", PASSING, ids=lambda kind: kind.__name__)
def test_all_settings_decide_but_those_for_where(kind: Any) -> None:
    names = {f.name for f in dataclasses.fields(kind)}
    assert schema.decisive(kind()).keys() == names - PASSING[kind]


@dataclass(frozen=True)
class Inner:
    size: int = 3
    where: str = dataclasses.field(default="here", metadata={"decides": False})


@dataclass(frozen=True)
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)
    rate: float = 0.5


def test_records_agree_where_what_decides_is_alike() -> None:
    assert schema.decisive(Outer(Inner(4, "there"))) == {"inner": {"size": 4}, "rate": 0.5}
    assert schema.agrees({"inner": {"size": 3, "where": "there"}}, Outer())
    assert schema.agrees({}, Outer(Inner(where="there")))
    assert not schema.agrees({"rate": 0.25}, Outer())
    with pytest.raises(InputError, match="unknown setting speed"):
        schema.agrees({"speed": 1}, Outer())


@pytest.mark.parametrize(
    ("file", "read"), [("store/store.json", TrajectoryStore.open), ("set/distilled.json", DistilledSet.load)]
)
def test_a_record_that_cannot_be_names_its_file(earlier: Path, file: str, read: Callable[[Path], object]) -> None:
    path = earlier / file
    forget(path, "settings", "text_width")
    with pytest.raises(InputError, match=rf"^{path}: expected a complete record .* found one without 'text_width'$"):
        read(path.parent)
