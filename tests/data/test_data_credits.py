"""Whose data they are travels from the folder to all that is made of it, and decides nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ptmst import (
    DistilledSet,
    Phase,
    TrajectoryStore,
    distill,
    train_teachers,
    write_scenes,
)
from ptmst.data.check import check
from ptmst.data.credits import Credits, read_credits, write_credits
from ptmst.errors import InputError
from ptmst.exchange.export import export
from ptmst.recipe import Recipe
from tiny import DISTILL, RECIPE, teach_config

CREDITS = Credits("CC-BY-4.0 AND MIT", ("Owls, by A. Nobody, CC-BY-4.0", "Captions, by B: “c”, MIT"))
HEAD = {"format": "ptmst-credits", "version": 1}


def test_what_is_written_is_read_and_a_user_may_write_it(tmp_path: Path) -> None:
    assert read_credits(tmp_path) is None
    write_credits(tmp_path, CREDITS)
    assert read_credits(tmp_path) == CREDITS
    own = {**HEAD, "license": CREDITS.license, "credits": list(CREDITS.credits)}
    (tmp_path / "credits.json").write_text(json.dumps(own))
    assert read_credits(tmp_path) == CREDITS
    (tmp_path / "credits.json").write_text(json.dumps({**HEAD, "license": "CC0-1.0"}))
    assert read_credits(tmp_path) == Credits("CC0-1.0")
    assert CREDITS.line == ("Owls, by A. Nobody, CC-BY-4.0; Captions, by B: “c”, MIT; license: CC-BY-4.0 AND MIT")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a credits in JSON, found a damaged file"),
        ('["MIT"]', "expected a credits, found something else"),
        ('{"by": "me"}', "expected a credits, found something else"),
        ({**HEAD, "version": 9, "license": "MIT"}, "expected version 1 of the credits format, found 9"),
        ({**HEAD}, 'expected {"license": text, "credits": [texts]}, each text a line, found something else'),
        ({**HEAD, "license": ["MIT"]}, 'expected {"license": text, "credits": [texts]}'),
        ({**HEAD, "license": " "}, 'expected {"license": text, "credits": [texts]}'),
        ({**HEAD, "license": "MIT\n---"}, 'expected {"license": text, "credits": [texts]}'),
        ({**HEAD, "license": "MIT", "credits": "me"}, 'expected {"license": text, "credits": [texts]}'),
        ({**HEAD, "license": "MIT", "credits": ["me", 1]}, 'expected {"license": text, "credits": [texts]}'),
        ({**HEAD, "license": "MIT", "credits": ["me\u2028you"]}, 'expected {"license": text, "credits": [texts]}'),
    ],
)
def test_a_broken_file_is_refused_in_a_line(tmp_path: Path, content: object, message: str) -> None:
    write_scenes(tmp_path, image_size=16, train=2, val=1, test=1, warmup=0, captions=1)
    (tmp_path / "credits.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_credits(tmp_path)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'credits.json'}: ") and message in told and "\n" not in told
    assert check("scenes", tmp_path).problems == (told,)


def test_a_damaged_file_of_ours_is_refused(tmp_path: Path) -> None:
    write_credits(tmp_path, CREDITS)
    path = tmp_path / "credits.json"
    path.write_text(path.read_text("utf-8").replace("Nobody", "Anybody"), "utf-8")
    with pytest.raises(InputError, match="checksum mismatch"):
        read_credits(tmp_path)


def test_a_recipe_records_them_and_they_decide_nothing() -> None:
    with_credits = replace(RECIPE, credits=CREDITS)
    record = json.loads(json.dumps(with_credits.to_json()))
    assert record["credits"] == {"license": "CC-BY-4.0 AND MIT", "credits": list(CREDITS.credits)}
    assert Recipe.from_json(record).credits == CREDITS
    assert "credits" not in RECIPE.to_json() and Recipe.from_json(RECIPE.to_json()).credits is None
    for other in (RECIPE, replace(RECIPE, credits=Credits("MIT"))):
        assert with_credits.differences(other) == [] == other.differences(with_credits)
    with pytest.raises(InputError, match="credits: expected"):
        Recipe.from_json({**record, "credits": {"license": 1}})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    """Experts on scenes that are said to be of somebody."""
    folder = tmp_path_factory.mktemp("credited")
    write_scenes(folder / "data", image_size=16, train=24, val=8, test=8, warmup=0, captions=2)
    write_credits(folder / "data", CREDITS)
    return train_teachers(replace(teach_config(folder), experts=1))


@pytest.fixture(scope="module")
def distilled(store: TrajectoryStore) -> DistilledSet:
    return distill(replace(DISTILL, phases=(Phase(8, 2, (0, 1)),), steps=1, device="cpu"), store)


@pytest.mark.slow
def test_they_go_from_the_folder_to_the_store_and_to_the_set(
    store: TrajectoryStore, distilled: DistilledSet, tmp_path: Path
) -> None:
    assert TrajectoryStore.open(store.path).recipe.credits == CREDITS
    distilled.save(tmp_path / "set")
    assert DistilledSet.load(tmp_path / "set").recipe.credits == CREDITS
    told = json.loads((tmp_path / "set" / "distilled.json").read_text("utf-8"))
    assert "Owls, by A. Nobody, CC-BY-4.0" in json.dumps(told, ensure_ascii=False)


@pytest.mark.slow
def test_they_go_into_exported_folders_and_cards(distilled: DistilledSet, tmp_path: Path) -> None:
    export(distilled, tmp_path / "folder", "folder")
    told = (tmp_path / "folder" / "README.md").read_text("utf-8")
    assert all(f"* {line}\n" in told for line in CREDITS.credits) and "License of the data: CC-BY-4.0 AND MIT." in told
    pytest.importorskip("pyarrow", reason="needs the extra ptmst[hf]")
    export(distilled, tmp_path / "hf", "hf")
    _, head, card = (tmp_path / "hf" / "README.md").read_text("utf-8").split("---\n", 2)
    assert "license: other\nlicense_name: cc-by-4.0-and-mit\nlicense_link: README.md\n" in head
    assert all(f"* {line}\n" in card for line in CREDITS.credits)
    assert DistilledSet.load(tmp_path / "hf").recipe.credits == CREDITS


@pytest.mark.slow
def test_new_credits_do_not_make_a_store_another(store: TrajectoryStore) -> None:
    data = store.path.parent / "data"
    config = replace(teach_config(store.path.parent), experts=1)
    try:
        write_credits(data, Credits("MIT"))
        assert train_teachers(config).fingerprint == store.fingerprint
        (data / "credits.json").unlink()
        assert train_teachers(config).fingerprint == store.fingerprint
    finally:
        write_credits(data, CREDITS)
