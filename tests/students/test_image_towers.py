"""Image towers as they are: derivatives of real architectures, how their images are prepared, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import oracles
from bench.settings import build_tower
from ptmst.config import DataConfig, DistillConfig, EncoderConfig, Keep, KeepOrAuto, LeafRates, Phase, TeachConfig
from ptmst.data import MEAN, STD, load_split, write_scenes
from ptmst.distillation.distill import distill
from ptmst.engine.derivatives import Batch, MixedDerivatives, derivatives, why_not_differentiable
from ptmst.errors import InputError
from ptmst.students import image_towers
from ptmst.students.heads import ProjectionHead
from ptmst.students.image_towers import image_tower, prepared
from ptmst.students.student import Student
from ptmst.support.seeds import seeded
from ptmst.teachers import teach
from ptmst.teachers.teach import train_teachers

pytestmark = pytest.mark.slow  # open_clip and transformers take seconds to import

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
ARCHITECTURES = {
    "timm:nfnet_l0": 64,
    "timm:nf_resnet50": 64,
    "timm:nf_regnet_b1": 64,
    "timm:resnet50": 64,
    "timm:convnext_tiny": 64,
    "timm:vit_tiny_patch16_224": 224,
    "open_clip:ViT-B-32": 224,
}
"""Real ones with random weights, and the smallest pictures that are tried; bench/towers.py tries more."""
_MORE = ("timm:nf_resnet50", "timm:nf_regnet_b1", "timm:resnet50", "open_clip:ViT-B-32")


def tower_student(tower: str, size: int) -> Student:
    module, width = image_tower(EncoderConfig(image_tower=tower), size)
    torch.manual_seed(0)
    return Student.from_modules(module, ProjectionHead(6, width))


@pytest.mark.parametrize(
    "tower", [pytest.param(t, marks=[pytest.mark.exhaustive] if t in _MORE else []) for t in ARCHITECTURES]
)
def test_derivatives_of_a_real_architecture(tower: str) -> None:
    """Forward over reverse, against double backward through a loss written out here."""
    size = ARCHITECTURES[tower]
    student = tower_student(tower, size)
    draw = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 3, size, size, generator=draw), torch.randn(2, 6, generator=draw)
    batch = Batch(images, texts, torch.eye(2) * 0.8 + 0.1)
    theta, lr = student.flatten(), torch.tensor([0.1, 0.05])
    direction = torch.randn(len(theta), generator=draw)
    way = derivatives(student, "wbce", 0.07, in_theta=True, keep="path", chunk=None, compiler=None)
    with torch.no_grad():
        step = way.step(theta, lr, lambda: batch)
        found = step.along(direction)
    moved, expected = double_backward(student, theta, lr, batch, direction)
    assert oracles.relative_error(step.theta - theta, moved) <= 2e-4
    for name, value in expected._asdict().items():
        assert oracles.relative_error(getattr(found, name), value) <= 2e-3, name


def double_backward(
    student: Student, theta: Tensor, lr: Tensor, batch: Batch, direction: Tensor
) -> tuple[Tensor, MixedDerivatives]:
    leaves = [value.clone().requires_grad_() for value in (theta, *batch)]
    at, images, texts, similarity = leaves
    z, t = (
        nn.functional.normalize(e, dim=1) for e in (student.embed_images(at, images), student.embed_texts(at, texts))
    )
    loss = oracles.contrastive("wbce", z @ t.T / 0.07, similarity)
    (g,) = torch.autograd.grad(loss, at, create_graph=True)
    of_theta, of_images, of_texts, of_similarity = torch.autograd.grad(g @ direction, leaves)
    return -student.layers.expand(lr) * g.detach(), MixedDerivatives(of_images, of_texts, of_similarity, of_theta)


@pytest.mark.parametrize(
    ("tower", "size", "of"),
    [
        ("convnet", 32, (MEAN, STD)),
        ("timm:nfnet_l0", 224, IMAGENET),
        ("timm:nf_regnet_b1", 256, IMAGENET),
        ("timm:vit_tiny_patch16_224", 224, HALVES),
        ("open_clip:ViT-B-32", 224, (MEAN, STD)),
        ("open_clip:ViT-B-16-SigLIP-256", 256, HALVES),
        ("open_clip:ViT-L-14", 224, (MEAN, STD)),
    ],
)
def test_images_are_prepared_as_the_tower_wants_them(tower: str, size: int, of: tuple[Any, Any]) -> None:
    """Where an open_clip model's own weights disagree (ViT-L-14), CLIP's."""
    found = prepared(DataConfig(), EncoderConfig(image_tower=tower))
    assert (found.image_size, found.mean, found.std) == (size, *of)


@pytest.mark.parametrize(("tower", "size"), [("test_vit", 96), ("test_vit3", 32)])
def test_a_size_reaches_timm(tower: str, size: int, tmp_path: Path) -> None:
    """One of them takes any images; the other has fewer positions then, resampled from weights of its own size."""
    torch.manual_seed(4)
    weights = timm.create_model(tower).state_dict()
    torch.save({"model": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "w.pt")
    config = EncoderConfig(image_tower=f"timm:{tower}")
    found, width = image_tower(replace(config, image_weights=tmp_path / "w.pt"), size)
    expected = timm.create_model(
        tower, num_classes=0, img_size=size, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(weights)}
    ).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert oracles.relative_error(found(images), expected(images)) <= 1e-5
    again, built = image_tower(config, size)
    first, _ = image_tower(config, size)
    assert built == width and all(map(torch.equal, again.parameters(), first.parameters()))


MARGINS = {
    "timm:test_vit3": (40, 32),
    "timm:mixer_s32_224": (100, 96),
    "timm:gmlp_ti16_224": (100, 96),
    "timm:tnt_s_legacy_patch16_224": (36, 32),
    "timm:visformer_tiny": (36, 34),
    "timm:sequencer2d_s": (34, 28),
    "timm:convnext_atto": (34, 32),
}
"""Sizes of which a tower sees a part, and that part."""


@pytest.mark.parametrize("tower", MARGINS)
def test_a_tower_that_leaves_out_a_margin_is_refused(tower: str) -> None:
    size, seen = MARGINS[tower]
    message = rf"does not take images of {size}×{size} \(the last {size - seen} rows or columns .*image_size {seen},"
    with pytest.raises(InputError, match=f"^image_tower {tower}: {message}"):
        image_tower(EncoderConfig(image_tower=tower), size)


@pytest.mark.parametrize(("tower", "size"), [("xcit_nano_12_p16_224", 32), ("test_vit3", 32), ("test_resnet", 33)])
def test_a_tower_that_sees_all_of_an_image_takes_it(tower: str, size: int) -> None:
    """One has a number for its patches, where others have two; branches of the last begin at zero."""
    module, width = image_tower(EncoderConfig(image_tower=f"timm:{tower}"), size)
    assert module(torch.zeros(2, 3, size, size)).shape == (2, width)


def test_the_reason_is_of_the_size_that_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"images of 100×100 \(First level blocks don't fit evenly"):
        image_tower(EncoderConfig(image_tower="timm:nest_tiny_jx"), 100)


def test_a_tower_of_its_own_size_is_as_before() -> None:
    with seeded(0, "tower"):
        expected = timm.create_model("test_vit", num_classes=0)
    found, _ = image_tower(EncoderConfig(image_tower="timm:test_vit"), 160)
    assert all(map(torch.equal, found.parameters(), expected.parameters()))


@pytest.mark.parametrize(("tower", "size"), [("test_vit", 96), ("test_resnet", 64), ("convnet-16", 32)])
def test_what_is_benched_is_what_a_command_makes(tower: str, size: int) -> None:
    built, width = build_tower(tower, size)
    config = EncoderConfig(image_width=16) if tower == "convnet-16" else EncoderConfig(image_tower=f"timm:{tower}")
    made, features = image_tower(config, size)
    assert width == features
    pairs = zip(built.state_dict().items(), made.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_what_is_set_goes_before_what_the_tower_wants() -> None:
    data = DataConfig(name="scenes", image_size=48, std=(0.1, 0.2, 0.3))
    found = prepared(data, EncoderConfig(image_tower="timm:vit_tiny_patch16_224"))
    assert (found.image_size, found.mean, found.std) == (48, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


@pytest.mark.parametrize("tower", ["timm:nfnet_10", "open_clip:ViT-B-33"])
def test_an_unknown_tower_is_refused_before_its_images_are_read(tower: str) -> None:
    with pytest.raises(InputError, match=r"did you mean"):
        prepared(DataConfig(), EncoderConfig(image_tower=tower))


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    write_scenes(tmp_path / "data", image_size=32, train=24, val=4, test=4, warmup=0, captions=2)
    return DataConfig(name="scenes", root=tmp_path / "data")


def test_a_store_keeps_how_its_images_were_prepared(tmp_path: Path, data: DataConfig) -> None:
    config = TeachConfig(
        out=tmp_path / "store",
        data=DataConfig(name="scenes", root=data.root, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)),
        encoder=EncoderConfig(image_width=4, text_width=8),
        experts=1,
        epochs=1,
        batch_size=24,
        endpoints=(1,),
    )
    kept = train_teachers(config).settings["data"]
    assert (kept["image_size"], kept["mean"], kept["std"]) == (32, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    first = torch.tensor([0])
    plain = load_split(prepared(data, config.encoder), "train").images(first)
    other = load_split(prepared(config.data, config.encoder), "train").images(first)
    pixels = plain * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    expected = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    assert torch.allclose(other, expected, atol=1e-5)


Function = Callable[[Tensor], Tensor]


class OnlyReverse(torch.autograd.Function):
    """A square that can be differentiated in reverse, as often as one likes, but not forward."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return 2 * x * g


def only_reverse(x: Tensor) -> Tensor:
    found: Tensor = OnlyReverse.apply(x)
    return found


def only_once(x: Tensor) -> Tensor:
    """Fused attention has no second derivative."""
    heads = x[:, None, None, :].expand(-1, 1, 2, -1)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return nn.functional.scaled_dot_product_attention(heads, heads, heads).flatten(1)


def odd_tower(function: Function) -> nn.Module:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * 32 * 32, 8)

        def forward(self, images: Tensor) -> Tensor:
            return function(self.linear(images.flatten(1)))

    return Odd()


@pytest.mark.parametrize(
    ("function", "keep", "works"),
    [
        (only_once, "path", False),
        (only_once, "primals", False),
        (only_reverse, "path", False),
        (only_reverse, "primals", True),
    ],
)
def test_what_cannot_be_differentiated_is_known(function: Function, keep: Keep, works: bool) -> None:
    student = Student.from_modules(
        odd_tower(function), ProjectionHead(6, odd_tower(function)(torch.zeros(1, 3, 32, 32)).shape[1])
    )
    reason = why_not_differentiable(student, keep, True, torch.zeros(2, 3, 32, 32), torch.ones(2, 6))
    assert (reason is None) == works


@pytest.mark.parametrize("frozen", [False, True])
def test_a_tower_that_cannot_be_differentiated_is_refused_before_teaching(
    tmp_path: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    config = odd_teaching(tmp_path, data, monkeypatch, only_once, frozen)
    if frozen:  # its heads are differentiated, it is not
        assert len(train_teachers(config)) == 1
        return
    message = r"image_tower convnet: expected a tower that can be differentiated twice, .*towers\.md\), or freeze it"
    monkeypatch.setattr(teach, "warm_tower", None)  # which takes minutes, and comes later
    with pytest.raises(InputError, match=message):
        train_teachers(config)
    assert not Path(config.out).exists()


def test_a_tower_without_forward_mode_wants_its_primals_kept(
    tmp_path: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = train_teachers(odd_teaching(tmp_path, data, monkeypatch, only_reverse, frozen=False))

    def settings(keep: KeepOrAuto) -> DistillConfig:
        return DistillConfig(
            phases=(Phase(4, 1, (0, 1)),), steps=1, inner_steps=1, batch_size=4, keep=keep, rates=LeafRates(1, 1, 0, 1)
        )

    with pytest.raises(
        InputError, match=r"image_tower convnet: expected a tower that keep path can .*try keep primals"
    ):
        distill(settings("path"), store)
    for keep in ("primals", "auto"):
        made = distill(settings(keep), store)
        assert made.num_pairs == 4 and made.provenance["config"]["keep"] == "primals"


def odd_teaching(
    folder: Path,
    data: DataConfig,
    monkeypatch: pytest.MonkeyPatch,
    function: Function,
    frozen: bool,
) -> TeachConfig:
    monkeypatch.setattr(image_towers, "ConvNet", lambda width: odd_tower(function))
    encoder = EncoderConfig(freeze_tower=frozen, head_width=8, text_width=8)
    return TeachConfig(
        out=folder / "store", data=data, encoder=encoder, experts=1, epochs=1, batch_size=24, endpoints=(1,)
    )


def test_every_openclip_model_names_its_size() -> None:
    for name in open_clip.list_models():
        assert prepared(DataConfig(), EncoderConfig(image_tower=f"open_clip:{name}")).image_size
