"""The layer table against numpy, and modules as pure functions of θ."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from oracles import relative_error
from ptmst.errors import InputError
from ptmst.students.layers import LayerTable
from ptmst.students.student import Student
from ptmst.support.devices import arithmetic

TABLE = LayerTable(
    names=("image.a", "image.b", "text.scale", "text.c"),
    shapes=((2, 3), (5,), (), (3, 1, 7)),
    group_of_layer=(0, 0, 1, 1),
)
SIZES = (6, 5, 1, 21)


def test_sizes() -> None:
    assert TABLE.sizes == SIZES
    assert TABLE.group_sizes == (11, 22)
    assert (TABLE.num_layers, TABLE.num_params, TABLE.num_groups) == (4, 33, 2)
    assert TABLE.offsets.dtype == TABLE.groups.dtype == torch.int64
    assert TABLE.offsets.tolist() == [0, 6, 11, 12, 33]
    assert TABLE.groups.tolist() == [0, 0, 1, 1]


def test_against_numpy() -> None:
    a, b = torch.randn(33), torch.randn(33)
    parts = np.split(a.double().numpy(), np.cumsum(SIZES)[:-1])
    for found, part, shape in zip(TABLE.split(a), parts, TABLE.shapes, strict=True):
        np.testing.assert_array_equal(found.numpy(), part.reshape(shape).astype(np.float32))
    norms = [np.linalg.norm(part) for part in parts]
    np.testing.assert_allclose(TABLE.layer_norms(a).numpy(), norms, rtol=1e-7)
    products = (a.double() * b.double()).numpy()
    np.testing.assert_allclose(TABLE.dot(a, b).numpy(), [products[:11].sum(), products[11:].sum()], rtol=1e-5)
    rates = TABLE.expand(torch.tensor([0.5, -2.0]))
    np.testing.assert_array_equal(rates.numpy(), np.repeat([0.5, -2.0], [11, 22]).astype(np.float32))
    layers = TABLE.expand_layers(torch.arange(4.0))
    np.testing.assert_array_equal(layers.numpy(), np.repeat(np.arange(4, dtype=np.float32), SIZES))


def test_flatten_undoes_split() -> None:
    theta = torch.randn(33)
    again = TABLE.flatten(TABLE.split(theta))
    assert torch.equal(again, theta)
    assert again.data_ptr() != theta.data_ptr()


def test_layer_norms_are_summed_in_float64() -> None:
    table = LayerTable(("a",), ((1 << 20,),), (0,), ("all",))
    assert table.layer_norms(torch.full((1 << 20,), 1e-30)).item() == pytest.approx(1e-30 * 2**10, rel=1e-6)


def test_json_round_trip() -> None:
    assert LayerTable.from_json(json.loads(json.dumps(TABLE.to_json()))) == TABLE


@pytest.mark.parametrize(
    ("groups", "names", "message"),
    [
        ((0, 0, 1), ("image", "text"), "expected as many names as shapes and groups; fix the table"),
        ((0, 1, 0, 1), ("image", "text"), "expected the layers of a group side by side; sort the layers by group"),
        ((0, 0, 0, 0), ("image", "text"), r"groups image, text, found groups \[0\]; drop the empty group or give it"),
        ((0, 0, 1, 2), ("image", "text"), r"groups image, text, found groups \[0, 1, 2\]"),
    ],
)
def test_a_broken_table_is_refused(groups: tuple[int, ...], names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"LayerTable: .*{message}"):
        LayerTable(TABLE.names, TABLE.shapes, groups, names)


def test_other_layers_are_refused() -> None:
    parts = list(TABLE.split(torch.zeros(33)))
    with pytest.raises(InputError, match=r"layers: expected \(5,\), found image\.b of shape \(4,\); the table is of"):
        TABLE.flatten([parts[0], torch.zeros(4), *parts[2:]])
    for wrong in (parts[:3], [*parts, parts[0]]):
        with pytest.raises(InputError, match=f"layers: expected 4, found {len(wrong)} tensors"):
            TABLE.flatten(wrong)


def _modules() -> tuple[nn.Sequential, nn.Sequential]:
    image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    text = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5))
    return image.eval(), text


def test_student_is_its_modules() -> None:
    image, text = _modules()
    student = Student.from_modules(image, text)
    assert student.layers.group_names == ("image", "text")
    assert student.layers.names[0] == "image.0.weight"
    assert student.layers.names[-1] == "text.1.bias"
    theta, images, texts = student.flatten(), torch.randn(2, 3, 8, 8), torch.randn(3, 7)
    assert torch.equal(student.embed_images(theta, images), image(images))
    assert torch.equal(student.embed_texts(theta, texts), text(texts))

    other = theta + 0.1
    moved_image, moved_text = student.embed_images(other, images), student.embed_texts(other, texts)
    assert torch.equal(student.flatten(), theta)
    with torch.no_grad():
        for parameter in (*image.parameters(), *text.parameters()):
            parameter.add_(0.1)
    assert torch.allclose(moved_image, image(images), rtol=1e-5, atol=1e-5)
    assert torch.allclose(moved_text, text(texts), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(moved_image, student.embed_images(theta, images), atol=1e-3)


def test_frozen_parameters_are_constants() -> None:
    image, text = _modules()
    image[0].requires_grad_(False)
    student = Student.from_modules(image, text)
    assert "image.0.weight" not in student.layers.names
    assert student.layers.num_params == sum(p.numel() for p in (*image[1:].parameters(), *text.parameters()))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(student.embed_images(student.flatten(), images), image(images))


def test_a_group_without_parameters_is_refused() -> None:
    image, text = _modules()
    with pytest.raises(InputError, match="drop the empty group or give it trainable parameters"):
        Student.from_modules(image.requires_grad_(False), text)


# A frozen tower, and bfloat16


def test_a_frozen_tower_stands_before_the_heads() -> None:
    tower, (_, text) = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten()), _modules()
    head = nn.Linear(4 * 36, 5)
    student = Student.from_modules(head, text, tower=tower)
    assert student.layers.names == ("image.weight", "image.bias", *student.layers.names[2:])
    assert not any("tower" in name for name in student.layers.names)
    assert student.layers.group_sizes == (4 * 36 * 5 + 5, 7 * 5 + 5 + 10)
    assert not any(p.requires_grad for p in tower.parameters())
    assert student.modules == (head, text, tower)
    theta, images, texts = student.flatten() + 0.1, torch.randn(2, 3, 8, 8), torch.randn(3, 7)
    with torch.no_grad():
        features = tower(images)
        expected = F.linear(features, (head.weight + 0.1), head.bias + 0.1)
    assert torch.equal(student.features(images), features)
    assert torch.allclose(student.embed_images(theta, images), expected, rtol=1e-6, atol=1e-6)
    heads = student.heads
    assert heads.tower is None and heads.layers == student.layers
    assert torch.equal(heads.embed_images(theta, features), student.embed_images(theta, images))
    assert torch.equal(heads.embed_texts(theta, texts), student.embed_texts(theta, texts))
    assert torch.equal(heads.features(features), features)


def test_without_a_frozen_tower_images_are_features() -> None:
    student = Student.from_modules(*_modules())
    images = torch.randn(2, 3, 8, 8)
    assert student.tower is None and student.features(images) is images
    assert torch.equal(
        student.heads.embed_images(student.flatten(), images), student.embed_images(student.flatten(), images)
    )
    assert len(student.modules) == 2


def test_a_student_moves_with_its_tower() -> None:
    student = Student.from_modules(nn.Linear(4, 5), nn.Linear(7, 5), tower=nn.Linear(3, 4)).to("meta")
    assert student.device.type == "meta"
    assert all(p.is_meta for module in student.modules for p in module.parameters())


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm2d(3)])
def test_an_impure_tower_is_refused(layer: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^tower module, layer 0: "):
        Student.from_modules(nn.Linear(4, 5), nn.Linear(7, 5), tower=nn.Sequential(layer))


class Products(nn.Module):
    """Every product that towers are made of, and a sum that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        once = F.linear(x, self.weight) + x @ self.weight + torch.einsum("bi,ij->bj", x, self.weight)
        many = (
            torch.bmm(once[None], self.weight[None])[0]
            + torch.addmm(x, once, self.weight)
            + torch.matmul(x, once.T) @ x
        )
        many = many + x.mm(self.weight) + x.addmm(once, self.weight) + x[None].bmm(self.weight[None])[0]
        tokens = many.unflatten(1, (1, 3, 2))
        seen = F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)
        return seen + F.conv1d(seen[:, None], self.weight[:1, None, :1])[:, 0]


def test_bf16_takes_halves_and_gives_whole_numbers() -> None:
    student = Student.from_modules(nn.Conv2d(3, 4, 3), nn.Linear(7, 5)).in_bf16()
    theta, images = student.flatten(), torch.randn(2, 3, 8, 8)
    weight, bias = (part.to(torch.bfloat16) for part in student.layers.split(theta)[:2])
    found = student.embed_images(theta, images)
    assert found.dtype == torch.float32
    assert torch.equal(found, F.conv2d(images.to(torch.bfloat16), weight, bias).float())


class Watch(TorchDispatchMode):
    """The types that products and sums come out in, by the op's name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, first = func.overloadpacket.__name__, out[0] if isinstance(out, tuple) else out
        if name in ("mm", "bmm", "addmm", "convolution", "add") or "attention" in name:
            self.found.setdefault("attention" if "attention" in name else name, set()).add(first.dtype)
        return out


def test_bf16_is_in_every_product_of_a_tower_alone() -> None:
    exact = Student.from_modules(Products(), nn.Linear(6, 6))
    half, theta, x = exact.in_bf16(), exact.flatten(), torch.randn(6, 6)
    with torch.no_grad(), Watch() as of_images:
        found = half.embed_images(theta, x)
    kinds = {name: {torch.bfloat16} for name in ("mm", "bmm", "addmm", "convolution", "attention")}
    assert of_images.found == kinds | {"add": {torch.float32}}
    assert found.dtype == torch.float32
    with torch.no_grad(), Watch() as of_texts:
        assert torch.equal(half.embed_texts(theta, x), exact.embed_texts(theta, x))
    assert of_texts.found == {"addmm": {torch.float32}}
    assert torch.equal(half.heads.embed_images(theta, x), found)


def attention(block: str) -> nn.Module:
    """open_clip's is torch's own module: one function, in which no product is seen by itself."""
    if block == "open_clip":
        whole: nn.Module = pytest.importorskip("open_clip.transformer").ResidualAttentionBlock(8, 2)
        return whole
    parts: Any = pytest.importorskip("timm.models.vision_transformer").Block(8, 2)
    parts.attn.fused_attn = "fused" in block
    module: nn.Module = parts
    return module


def assert_in_halves(watch: Watch, found: Tensor, expected: Tensor) -> None:
    assert {dtype for name, types in watch.found.items() if name != "add" for dtype in types} == {torch.bfloat16}
    assert found.dtype == torch.float32
    assert 1e-4 < relative_error(found, expected) < 2e-2


@pytest.mark.parametrize("block", ["open_clip", "timm, fused", "timm"])
@pytest.mark.parametrize("training", [False, True])
def test_bf16_reaches_into_attention(block: str, training: bool) -> None:
    exact = Student.from_modules(attention(block).train(training), nn.Linear(6, 6))
    tokens = torch.randn(3, 5, 8)
    with torch.no_grad(), Watch() as watch:
        found = exact.in_bf16().embed_images(exact.flatten(), tokens)
    assert ("attention" in watch.found) == (block != "timm")
    assert_in_halves(watch, found, exact.embed_images(exact.flatten(), tokens))


@pytest.mark.parametrize("block", ["open_clip", "timm, fused", "timm"])
def test_bf16_reaches_into_attention_that_is_differentiated_twice(block: str) -> None:
    """By its plain form, which alone has a forward-mode derivative."""
    exact = Student.from_modules(attention(block), nn.Linear(6, 6))
    theta, tokens = exact.flatten(), torch.randn(3, 5, 8)
    direction = torch.randn(len(theta))

    def moved(student: Student) -> Tensor:
        gradient = torch.func.grad(lambda theta: student.embed_images(theta, tokens).square().sum())
        found: Tensor = torch.func.jvp(gradient, (theta,), (direction,))[1]
        return found

    with sdpa_kernel(SDPBackend.MATH):
        expected = moved(exact)
        with arithmetic("bf16"), Watch() as watch:
            found = moved(exact.in_bf16())
    assert_in_halves(watch, found, expected)
    assert "bmm" in watch.found and not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()


def test_bf16_heads_behind_a_tower_stay_whole() -> None:
    student = Student.from_modules(nn.Linear(4, 5), nn.Linear(7, 5), tower=nn.Linear(3, 4))
    theta, images, texts = student.flatten(), torch.randn(2, 3), torch.randn(2, 7)
    half = student.in_bf16()
    features = half.features(images)
    assert features.dtype == torch.float32 and not torch.equal(features, student.features(images))
    assert torch.equal(half.heads.embed_images(theta, features), student.heads.embed_images(theta, features))
    assert torch.equal(half.embed_images(theta, images), student.heads.embed_images(theta, features))
    assert torch.equal(half.embed_texts(theta, texts), student.embed_texts(theta, texts))


def test_a_table_of_modules() -> None:
    """A group for each, its trainable parameters in order; as a student has them."""
    image, text = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Linear(5, 2)
    image[1].bias.requires_grad_(False)
    table = LayerTable.of(image=image, text=text)
    assert table.names == ("image.0.weight", "image.0.bias", "image.1.weight", "text.weight", "text.bias")
    assert table.shapes == ((4, 3), (4,), (2, 4), (2, 5), (2,))
    assert (table.group_of_layer, table.group_names) == ((0, 0, 0, 1, 1), ("image", "text"))
    assert table == Student.from_modules(image, text).layers
    assert LayerTable.of(network=text).group_names == ("network",)
    with pytest.raises(InputError, match="expected layers in each of the groups a, b"):
        LayerTable.of(a=text, b=nn.GELU())


@pytest.mark.parametrize("groups", [1, 4])
def test_a_depthwise_tower_gets_its_images_channels_last(groups: int) -> None:
    """Where groups are as many as channels; what it makes of them is the same."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 8, 3, groups=groups)
    tower = nn.Sequential(nn.Conv2d(3, 4, 1), convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    plain = copy.deepcopy(tower)
    seen: list[torch.Tensor] = []
    tower.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    student = Student.from_modules(nn.Linear(8, 5).double(), nn.Linear(3, 5).double(), tower=tower)
    images = torch.randn(6, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    features = student.features(images)
    expected = plain(images)
    assert torch.allclose(features, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    (found,) = torch.autograd.grad(features, images, weights)
    (wanted,) = torch.autograd.grad(expected, images, weights)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == (groups == 4)
