"""Embeddings that ship with a data set: taken before any tower, the same with and without it installed."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from ptmst.config import EncoderConfig
from ptmst.data import clean_caption
from ptmst.data.shipped import emoji
from ptmst.errors import InputError
from ptmst.students import kept_texts
from ptmst.students.kept_texts import key_of, read_texts, shipped_texts, write_texts
from ptmst.students.text_towers import PackagedText, TextTower, embed_captions, keep_texts, text_tower
from tiny import install, tiny_bert

CAPTIONS = ["a red star", "naïve café", "two green boxes beside one ring", ""]
TOWER = EncoderConfig(text_tower="pypi:a-tower")


def written(folder: Path, captions: list[str] = CAPTIONS) -> tuple[Path, Tensor]:
    texts = torch.randn(len(captions), 6)
    path = folder / "texts.safetensors"
    write_texts(path, "pypi:a-tower", "hf:of a tower", "of a folder", captions, texts)
    return path, texts


def test_the_file_is_as_it_is_described(tmp_path: Path) -> None:
    path, texts = written(tmp_path)
    numbers = [struct.unpack(">q", hashlib.sha256(one.encode()).digest()[:8])[0] for one in CAPTIONS]
    order = np.argsort(numbers)
    with safe_open(path, framework="np") as file:
        keys, kept = file.get_tensor("keys"), file.get_tensor("texts")
        about = json.loads(file.metadata()["about"])
    assert (keys.dtype, kept.dtype) == (np.int64, np.float16)
    np.testing.assert_array_equal(keys, np.array(numbers)[order])
    np.testing.assert_array_equal(kept, texts.numpy().astype(np.float16)[order])
    content = hashlib.sha256(keys.tobytes() + kept.tobytes()).hexdigest()
    names = {"tower": "pypi:a-tower", "fingerprint": "hf:of a tower", "folder_sha256": "of a folder"}
    assert about == {**names, "sha256": content}
    before = path.read_bytes()
    again = [2, 0, 3, 1]
    write_texts(path, **names, captions=[CAPTIONS[i] for i in again], texts=texts[again])
    assert path.read_bytes() == before


def test_captions_are_looked_up(tmp_path: Path) -> None:
    captions = [f"caption {number}" for number in range(200)]
    path, texts = written(tmp_path, captions)
    kept = read_texts(path)
    asked = [7, 199, 7, 0]
    found = kept.of([captions[i] for i in asked])
    assert found is not None and torch.equal(found, texts[asked].half().float())
    none = kept.of([])
    assert none is not None and none.shape == (0, 6)
    least, greatest = (min(captions, key=key_of), max(captions, key=key_of))
    assert kept.of([least, greatest]) is not None
    for other in ("caption 200", "Caption 7", "caption 7 "):
        assert kept.of([captions[0], other]) is None
    assert len({key_of(f"{number}") < 0 for number in range(20)}) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "other metadata", "no safetensors"])
def test_a_damaged_file_is_told_in_one_line(damage: str, tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    whole = path.read_bytes()
    changes = {
        "cut": whole[:-5],
        "changed": whole[:-1] + bytes([whole[-1] ^ 1]),
        "other metadata": whole.replace(b"about", b"abaut"),
        "no safetensors": b"nothing",
    }
    path.write_bytes(changes[damage])
    with pytest.raises(InputError, match=r"^.*: expected kept embeddings, found a damaged file \(.*\); install ptmst"):
        read_texts(path)


# With a tower in a package


@pytest.fixture
def bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tower in an installed package, of whose embeddings some are kept where those of ptmst would be."""
    site = tmp_path / "site"
    folder = tiny_bert(site / "a_tower" / "model", CAPTIONS)
    install(site, "a-tower", monkeypatch)
    shipped = tmp_path / "shipped.safetensors"
    keep_texts(shipped, "pypi:a-tower", [*CAPTIONS, CAPTIONS[0]])
    monkeypatch.setattr(kept_texts, "SHIPPED", shipped)
    return folder


def real(folder: Path) -> TextTower:
    return text_tower(EncoderConfig(text_tower=f"hf:{folder}"))


def uninstalled(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder.parents[1])])


@pytest.mark.slow
def test_kept_embeddings_are_those_of_the_tower(bert: Path) -> None:
    tower = text_tower(TOWER)
    assert isinstance(tower, PackagedText)
    assert (tower.width, tower.fingerprint) == (16, real(bert).fingerprint)
    asked = [CAPTIONS[2], CAPTIONS[0], CAPTIONS[2]]
    expected = real(bert).embed(asked)
    found = embed_captions(tower, asked)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.half().float())
    assert float((found - expected).abs().max()) <= 2**-11 * float(expected.abs().max()) + 1e-5
    # By whatever name the tower goes.
    assert torch.equal(embed_captions(real(bert), asked), found)


@pytest.mark.slow
def test_captions_that_are_not_kept_are_embedded_by_the_tower(bert: Path) -> None:
    tower, asked = text_tower(TOWER), ["a green star", CAPTIONS[0]]
    expected = real(bert).embed(asked)
    assert torch.allclose(embed_captions(tower, asked), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_kept_embeddings_need_no_tower_and_others_say_how_to_get_it(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_it = embed_captions(text_tower(TOWER), CAPTIONS)
    uninstalled(monkeypatch, bert)
    tower = text_tower(TOWER)
    assert torch.equal(embed_captions(tower, CAPTIONS), with_it)
    with pytest.raises(InputError) as refused:
        embed_captions(tower, [*CAPTIONS, "a green star"])
    assert str(refused.value) == (
        "text_tower pypi:a-tower: expected captions whose embeddings are kept, found 'a green star', which takes the "
        "tower itself; check the name, and install it if you trust it"
    )


@pytest.mark.slow
def test_another_tower_does_not_take_them(bert: Path, tmp_path: Path) -> None:
    other = real(tiny_bert(tmp_path / "other", CAPTIONS, seed=6))
    assert torch.equal(embed_captions(other, CAPTIONS), other.embed(CAPTIONS))
    assert not torch.allclose(embed_captions(other, CAPTIONS), embed_captions(text_tower(TOWER), CAPTIONS), atol=0.1)


@pytest.mark.slow
def test_a_package_whose_files_are_others_embeds_nothing(bert: Path) -> None:
    (bert / "config.json").write_text((bert / "config.json").read_text().replace('"gelu"', '"relu"'))
    tower = text_tower(TOWER)
    assert len(embed_captions(tower, CAPTIONS)) == len(CAPTIONS)
    message = rf"^text_tower pypi:a-tower: expected the files that its kept embeddings are of, found others in {bert}; "
    with pytest.raises(InputError, match=message):
        embed_captions(tower, ["a green star"])


@pytest.mark.slow
def test_a_package_of_which_nothing_is_kept_is_a_tower_of_its_folder(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_texts, "SHIPPED", tmp_path / "none")
    assert shipped_texts() is None
    tower = text_tower(TOWER)
    assert tower.fingerprint == real(bert).fingerprint
    assert torch.equal(tower.embed(CAPTIONS), real(bert).embed(CAPTIONS))
    uninstalled(monkeypatch, bert)
    with pytest.raises(
        InputError, match=r"^pypi:a-tower: expected an installed package, found none; check the name, and install it"
    ):
        text_tower(TOWER)


@pytest.mark.slow
def test_nothing_heavy_is_imported_for_them(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    code = (
        "import sys, pathlib\n"
        "from ptmst.config import EncoderConfig\n"
        "from ptmst.students import kept_texts\n"
        "from ptmst.students.text_towers import embed_captions, text_tower\n"
        f"kept_texts.SHIPPED = pathlib.Path({str(path)!r})\n"
        "tower = text_tower(EncoderConfig(text_tower='pypi:a-tower'))\n"
        f"assert embed_captions(tower, {CAPTIONS!r}).shape == (4, 6)\n"
        "print(*sorted({'transformers', 'timm', 'open_clip'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


# Those that ship


@pytest.mark.slow
@pytest.mark.parametrize("every", [50, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_the_shipped_embeddings_are_those_of_the_installed_tower(every: int) -> None:
    """To the rounding of float16."""
    kept = shipped_texts()
    if kept is None:
        pytest.skip("no embeddings ship with this installation")
    try:
        metadata.distribution(kept.tower.removeprefix("pypi:"))
    except metadata.PackageNotFoundError:
        pytest.skip(f"{kept.tower} is not installed")
    pytest.importorskip("transformers")
    samples = emoji().samples(lambda: None)
    captions = sorted({clean_caption(caption) for *_, captions in samples for caption in captions})
    assert len(captions) == len(kept.keys) > 5000
    asked = captions[::every]
    found, expected = kept.of(asked), PackagedText(kept).embed(asked)
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=2e-6)


def test_a_tower_that_keeps_none_does_not_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged() -> None:
        raise InputError("texts.safetensors: damaged")

    monkeypatch.setattr("ptmst.students.text_towers.shipped_texts", damaged)
    assert embed_captions(text_tower(EncoderConfig(text_width=8)), ["a red star"]).shape == (1, 8)
