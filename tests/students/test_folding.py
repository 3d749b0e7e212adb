"""Towers with BatchNorm inside their convolutions: the same function in float64, or the tower itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from ptmst.config import EncoderConfig
from ptmst.students.folding import folded
from ptmst.students.heads import make_student


def random_statistics(tower: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with norms that do something."""
    rng = torch.Generator().manual_seed(seed)
    for part in tower.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.weight.data, part.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=rng))  # type: ignore[union-attr]
            for values in (part.bias.data, part.running_mean):
                values.copy_(torch.randn(values.shape, generator=rng))  # type: ignore[union-attr]
    return tower.eval()


def norms(tower: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in tower.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050"])
def test_a_folded_tower_is_the_same_function_and_gradient(name: str) -> None:
    tower = random_statistics(timm.create_model(name, num_classes=0)).double()
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    faster = folded(tower, 32)
    assert norms(tower) > 10 and norms(faster) == 0
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    weights = torch.randn(1, 1, generator=torch.Generator().manual_seed(2)).double()
    expected, found = tower(images), faster(images)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.detach().abs().max()))
    gradients = [torch.autograd.grad((out * weights).square().sum(), images)[0] for out in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-7, atol=1e-9 * float(gradients[0].abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in tower.state_dict().items())
    assert not any(parameter.requires_grad for parameter in faster.parameters())


class Otherwise(nn.Module):
    """Registered in another order than it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.second(self.first(images))).mean((2, 3))  # type: ignore[no-any-return]


def without_statistics() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()).eval()


def training() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten())


def nothing() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4), nn.Flatten()).eval()


def otherwise() -> nn.Module:
    return random_statistics(Otherwise())


@pytest.mark.parametrize("made", [otherwise, without_statistics, training, nothing])
def test_what_cannot_be_folded_stays(made: Callable[[], nn.Module]) -> None:
    tower = made()
    before = [type(part) for part in tower.modules()]
    assert folded(tower, 8) is tower and [type(part) for part in tower.modules()] == before


@pytest.mark.slow
def test_students_see_through_a_folded_tower_and_keep_their_own() -> None:
    config = EncoderConfig(image_tower="timm:resnet18", image_weights=None, freeze_tower=True)
    student = make_student(config, 32, 8, (0,))
    assert student.tower is not None and norms(student.tower) == 20
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    calls: list[int] = []
    student.tower.register_forward_hook(lambda *_: calls.append(1))
    features = student.features(images)
    assert not calls
    torch.testing.assert_close(features, student.tower(images), rtol=1e-3, atol=1e-3 * float(features.abs().max()))
    student.in_bf16().features(images)
    assert len(calls) == 2
