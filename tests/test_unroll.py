"""Forward over reverse against autograd through autograd, in float64 (METHOD §4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from oracles import Outer, relative_error
from ptmst.config import EncoderConfig, LossKind
from ptmst.contrast import student_loss
from ptmst.encoders import ConvNet, ProjectionHead, image_tower, make_student
from ptmst.errors import InputError
from ptmst.flat import Student
from ptmst.similarity import FullSimilarity, LowRankSimilarity, Similarity
from ptmst.synthetic import SyntheticPairs
from ptmst.unroll import OuterGradient, outer_gradient

PAIRS, TEXT_WIDTH = 4, 6
BATCHES = torch.tensor([[0, 1, 2], [3, 1, 0], [2, 0, 1]])
LEAVES = {"full": ["similarity"], "low-rank": ["diag", "left", "right"]}


def convnet() -> tuple[nn.Module, int]:
    return ConvNet(16), 16


def batchnorm() -> tuple[nn.Module, int]:
    tower = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    with torch.no_grad():
        tower(torch.randn(16, 3, 16, 16))
    return tower.eval(), 16


def timm_tower(name: str, size: int) -> Callable[[], tuple[nn.Module, int]]:
    return lambda: (image_tower(EncoderConfig(image_tower=f"timm:{name}"), size)[0], size)


TOWERS = {
    "convnet": convnet,
    "batchnorm in eval mode": batchnorm,
    "test_nfnet": timm_tower("test_nfnet", 16),
    "test_convnext": timm_tower("test_convnext", 32),
    "test_vit": timm_tower("test_vit", 160),
}


@dataclass(frozen=True)
class Case:
    student: Student
    start: Tensor
    target: Tensor
    pairs: SyntheticPairs
    batches: Tensor
    kind: LossKind = "wbce"

    def gradient(self, adjoint: float, clip: float | None = None) -> OuterGradient:
        return outer_gradient(
            self.student,
            self.start,
            self.target,
            self.pairs,
            self.batches,
            loss=self.kind,
            adjoint=adjoint,
            adjoint_clip=clip,
        )

    @property
    def oracle(self) -> Outer:
        image, text = self.student.layers.group_sizes
        return Outer(
            loss_of=student_loss(self.student, self.kind, 0.07),
            start=self.start,
            target=self.target,
            group_sizes=(image, text),
            leaves=self.pairs.leaves(),
            alpha=ALPHA,
            batches=self.batches,
        )


ALPHA = 1.5


def case(student: Student, size: int, form: str, batches: Tensor = BATCHES, kind: LossKind = "wbce") -> Case:
    """Random pairs, and a span near the student's parameters; all float64."""
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    similarity: Similarity
    if form == "full":
        similarity = FullSimilarity(torch.eye(PAIRS, dtype=torch.float64) + 0.2 * normal(PAIRS, PAIRS))
    else:
        similarity = LowRankSimilarity(1 + 0.1 * normal(PAIRS), 0.4 * normal(PAIRS, 2), 0.4 * normal(PAIRS, 2), ALPHA)
    lr = torch.tensor([0.1, 0.07], dtype=torch.float64)
    pairs = SyntheticPairs(normal(PAIRS, 3, size, size), normal(PAIRS, TEXT_WIDTH), similarity, lr)
    theta = student.flatten()
    start = theta + 0.02 * normal(len(theta))
    return Case(student, start, start + 0.05 * normal(len(theta)), pairs, batches, kind)


@cache
def tower_case(tower: str, form: str) -> Case:
    torch.manual_seed(0)
    module, size = TOWERS[tower]()
    with torch.no_grad():
        width = module(torch.zeros(1, 3, size, size)).shape[1]
    student = Student.from_modules(module.double(), ProjectionHead(TEXT_WIDTH, width).double())
    # Two steps where a step is dear.
    return case(student, size, form, BATCHES if len(student.flatten()) < 100_000 else BATCHES[:2])


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], form: str) -> None:
    assert sorted(found) == sorted(expected) == sorted(["images", "texts", "lr", *LEAVES[form]])
    for name, value in expected.items():
        assert relative_error(found[name], value) <= 1e-9, name


@pytest.mark.parametrize("form", LEAVES)
@pytest.mark.parametrize("tower", TOWERS)
def test_truncated_is_double_backward(tower: str, form: str) -> None:
    c = tower_case(tower, form)
    found = c.gradient(adjoint=0.0)
    assert_alike(found.grads, c.oracle.recursion(adjoint=0.0, clip=None), form)
    lam = 2 * (found.theta_final - c.target) / c.student.layers.expand(_squares(c, c.start - c.target))
    lr = c.student.layers.dot(lam, found.theta_final - c.start) / c.pairs.lr
    assert relative_error(found.grads["lr"], lr) <= 1e-9


@pytest.mark.parametrize("form", LEAVES)
@pytest.mark.parametrize("tower", TOWERS)
def test_exact_is_full_unrolling(tower: str, form: str) -> None:
    c = tower_case(tower, form)
    found = c.gradient(adjoint=1.0)
    loss, gradients = c.oracle.unrolled()
    assert_alike(found.grads, gradients, form)
    assert relative_error(found.loss, loss) <= 1e-12
    assert relative_error(found.per_group.sum(), loss) <= 1e-12
    squares = _squares(c, found.theta_final - c.target) / _squares(c, c.start - c.target)
    assert relative_error(found.per_group, squares) <= 1e-12


def _squares(c: Case, vector: Tensor) -> Tensor:
    return torch.stack([part.square().sum() for part in vector.split(c.student.layers.group_sizes)])


@pytest.mark.parametrize("kind", ["bce", "infonce", "kl", "mse", "cwcl"])
def test_every_loss_is_exact(kind: LossKind) -> None:
    c = replace(tower_case("convnet", "full"), kind=kind)
    assert_alike(c.gradient(adjoint=1.0).grads, c.oracle.unrolled()[1], "full")


@pytest.mark.parametrize("form", LEAVES)
@pytest.mark.parametrize(("adjoint", "clip"), [(0.5, None), (0.5, 0.9), (1.0, 1.0), (1.0, 0.3)])
def test_both_dials(form: str, adjoint: float, clip: float | None) -> None:
    c = tower_case("convnet", form)
    found = c.gradient(adjoint, clip).grads
    assert_alike(found, c.oracle.recursion(adjoint, clip), form)
    # The case must turn the dials: neither the exact gradient nor an unclipped one passes for it.
    assert clip is None or relative_error(found["images"], c.gradient(adjoint).grads["images"]) > 1e-3
    assert relative_error(found["images"], c.gradient(1.0).grads["images"]) > 1e-3


def test_the_recursion_written_out_is_exact() -> None:
    """Oracle against oracle: the explicit Hessian-vector recursion and autograd through the loop."""
    c = tower_case("convnet", "full")
    assert_alike(c.oracle.recursion(1.0, None), c.oracle.unrolled()[1], "full")


@pytest.mark.parametrize("form", LEAVES)
def test_a_pair_twice_in_a_batch(form: str) -> None:
    c = replace(tower_case("convnet", form), batches=torch.tensor([[0, 0, 2], [1, 2, 1]]))
    assert_alike(c.gradient(1.0).grads, c.oracle.unrolled()[1], form)


def test_frozen_tower() -> None:
    encoder = EncoderConfig(image_width=16, freeze_tower=True, head_width=8)
    student = make_student(encoder, 16, TEXT_WIDTH, (0,))
    for module in student.modules:
        module.double()
    c = case(student, 16, "full")
    assert not any("blocks" in name for name in student.layers.names)
    assert_alike(c.gradient(1.0).grads, c.oracle.unrolled()[1], "full")


@pytest.mark.parametrize("leaf", ["images", "texts", "lr", "diag", "left", "right"])
def test_exact_against_finite_differences(leaf: str) -> None:
    c = tower_case("convnet", "low-rank")
    leaves = c.pairs.leaves()
    direction = torch.randn(leaves[leaf].shape, dtype=torch.float64)
    step = 1e-5

    def loss(shift: float) -> Tensor:
        pairs = c.pairs.replace({**leaves, leaf: leaves[leaf] + shift * direction})
        return replace(c, pairs=pairs).gradient(0.0).loss

    slope = (loss(step) - loss(-step)) / (2 * step)
    assert relative_error((c.gradient(1.0).grads[leaf] * direction).sum(), slope) <= 1e-6


def test_inputs_are_left_alone() -> None:
    c = tower_case("convnet", "full")
    before = [v.clone() for v in (c.start, c.target, c.student.flatten(), *c.pairs.leaves().values())]
    c.gradient(0.5, 1.0)
    after = (c.start, c.target, c.student.flatten(), *c.pairs.leaves().values())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_inner_step_moves_nothing() -> None:
    c = tower_case("convnet", "full")
    still = replace(c, batches=BATCHES[:0]).gradient(1.0)
    assert relative_error(still.loss, torch.tensor(2.0)) <= 1e-12
    assert all(bool((g == 0).all()) for g in still.grads.values())


def test_a_still_group_is_named() -> None:
    c = tower_case("convnet", "full")
    target = c.target.clone()
    target[-c.student.layers.group_sizes[1] :] = c.start[-c.student.layers.group_sizes[1] :]
    with pytest.raises(InputError, match=r"^group text: expected a span that moves, found start equal to target"):
        replace(c, target=target).gradient(0.0)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm2d(4), r"image module, layer 1: BatchNorm in train mode .* call \.eval\(\) on it"),
        (nn.BatchNorm2d(4, track_running_stats=False).eval(), r"image module, layer 1: BatchNorm in train mode"),
        (nn.Dropout(0.1), r"image module, layer 1: dropout with p = 0\.1 .* call \.eval\(\) on it or set p = 0"),
        (nn.Dropout2d(0.5), r"image module, layer 1: dropout with p = 0\.5"),
    ],
)
def test_an_impure_student_is_refused(layer: nn.Module, message: str) -> None:
    tower = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match=message):
        Student.from_modules(tower, nn.Linear(3, 4))
    with pytest.raises(InputError, match=message.replace("image module, layer 1", "text module, layer 0")):
        Student.from_modules(nn.Flatten(), nn.Sequential(layer))


def test_dropout_that_drops_nothing_is_taken() -> None:
    Student.from_modules(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.0)), nn.Sequential(nn.Linear(3, 4)))
    Student.from_modules(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).eval(), nn.Sequential(nn.Linear(3, 4)))
