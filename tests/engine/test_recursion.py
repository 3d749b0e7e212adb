"""Forward over reverse against autograd through autograd, in float64 (docs/method.md §4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from oracles import relative_error
from ptmst.config import EncoderConfig, LossKind
from ptmst.engine.outer_step import OuterStep, outer_gradient
from ptmst.engine.recursion import Adjoint, Carry, Damped, Truncated
from ptmst.errors import InputError
from ptmst.students.heads import make_student
from ptmst.students.layers import LayerTable
from ptmst.students.student import Student
from tiny import BATCHES, LEAVES, TEXT_WIDTH, TOWERS, OuterCase, in_float64, outer_case, three_layers, tower_case


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], form: str) -> None:
    assert sorted(found) == sorted(expected) == sorted(["images", "texts", "lr", *LEAVES[form]])
    for name, value in expected.items():
        assert relative_error(found[name], value) <= 1e-9, name


@pytest.mark.slow
@pytest.mark.parametrize("form", LEAVES)
@pytest.mark.parametrize("tower", TOWERS)
def test_truncated_is_double_backward(tower: str, form: str) -> None:
    c = tower_case(tower, form)
    found = c.gradient(adjoint=0.0)
    assert_alike(found.grads, c.oracle.recursion(adjoint=0.0, clip=None), form)
    lam = 2 * (found.theta_final - c.target) / c.student.layers.expand(_squares(c, c.start - c.target))
    lr = c.student.layers.dot(lam, found.theta_final - c.start) / c.pairs.lr
    assert relative_error(found.grads["lr"], lr) <= 1e-9


@pytest.mark.slow
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


def _squares(c: OuterCase, vector: Tensor) -> Tensor:
    return torch.stack([part.square().sum() for part in vector.split(c.student.layers.group_sizes)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bce", "infonce", "kl", "mse", "cwcl"])
def test_every_loss_is_exact(kind: LossKind) -> None:
    c = replace(tower_case("convnet", "full"), kind=kind)
    assert_alike(c.gradient(adjoint=1.0).grads, c.oracle.unrolled()[1], "full")


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("form", LEAVES)
def test_a_pair_twice_in_a_batch(form: str) -> None:
    c = replace(tower_case("convnet", form), batches=torch.tensor([[0, 0, 2], [1, 2, 1]]))
    assert_alike(c.gradient(1.0).grads, c.oracle.unrolled()[1], form)


def test_frozen_tower() -> None:
    encoder = EncoderConfig(image_width=16, freeze_tower=True, head_width=8)
    c = outer_case(in_float64(make_student(encoder, 16, TEXT_WIDTH, (0,))), 16, "full")
    assert not any("blocks" in name for name in c.student.layers.names)
    assert_alike(c.gradient(1.0).grads, c.oracle.unrolled()[1], "full")


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_function_call_is_one_outer_step() -> None:
    c = tower_case("convnet", "low-rank")
    found = outer_gradient(
        c.student, c.start, c.target, c.pairs, c.batches, loss="kl", temperature=0.2, adjoint=0.5, adjoint_clip=0.9
    )
    expected = replace(c, kind="kl").gradient(0.5, 0.9, temperature=0.2)
    assert torch.equal(found.loss, expected.loss) and torch.equal(found.theta_final, expected.theta_final)
    assert all(torch.equal(found.grads[name], value) for name, value in expected.grads.items())
    # The case must turn the dials.
    for other in (c.gradient(0.5, 0.9), replace(c, kind="kl").gradient(0.5, 0.9)):
        assert relative_error(found.theta_final - c.start, other.theta_final - c.start) > 1e-3


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


# The adjoint as an object


@dataclass(frozen=True)
class Halved:
    """A user's own: half of what the exact recursion adds, without a bound."""

    moves = True

    def begin(self, layers: LayerTable, steps: int, last: Tensor) -> Carry:
        return lambda i, adjoint, change: adjoint + 0.5 * change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adjoint", "share", "clip"),
    [
        (Truncated(), 0.0, None),
        (Damped(), 1.0, None),
        (Damped(0.3), 0.3, None),
        (Damped(0.5, 0.7), 0.5, 0.7),
        (Halved(), 0.5, None),
    ],
)
def test_an_adjoint_is_a_share_and_a_clip_or_an_object(adjoint: Adjoint, share: float, clip: float | None) -> None:
    case = tower_case("convnet", "full")
    by_object = case.step(adjoint=adjoint)(case.span, case.pairs, case.batches).grads
    for name, expected in case.oracle.recursion(share, clip).items():
        assert relative_error(by_object[name], expected) <= 1e-9, name
    if not isinstance(adjoint, Halved):
        by_number = case.gradient(share, clip).grads
        assert all(torch.equal(by_object[name], value) for name, value in by_number.items())


@pytest.mark.slow
def test_steps_of_several_adjoints_share_their_derivatives() -> None:
    case = tower_case("convnet", "full")
    exact = case.step(adjoint=1.0)
    damped = exact.with_adjoint(0.5, 0.7)
    for step, share, clip in ((damped, 0.5, 0.7), (exact, 1.0, None), (exact.with_adjoint(Halved()), 0.5, None)):
        found = step(case.span, case.pairs, case.batches).grads
        for name, expected in case.oracle.recursion(share, clip).items():
            assert relative_error(found[name], expected) <= 1e-9, name
    with pytest.raises(
        InputError, match=r"^adjoint: expected one like Damped\(.*\), found 0.0; make another OuterStep"
    ):
        exact.with_adjoint(0.0)
    with pytest.raises(InputError, match=r"^adjoint: expected one like Truncated\(\), found Halved"):
        case.step().with_adjoint(Halved())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Damped(0.0), r"^share: expected above 0, up to 1 \(exact\), found 0.0; Truncated\(\) is share 0$"),
        (lambda: Damped(1.5), r"^share: expected above 0, up to 1 \(exact\), found 1.5"),
        (lambda: Damped(0.5, 0.0), "^clip: expected a positive number, found 0.0; raise it or leave it out$"),
        (
            lambda: OuterStep(three_layers(), adjoint=Damped(0.5), adjoint_clip=1.0),
            r"^adjoint_clip: expected none beside Damped\(share=0.5, clip=None\), found 1.0; give the clip to Damped$",
        ),
        (lambda: OuterStep(three_layers(), adjoint=Halved(), keep="nothing"), "^keep: expected path or primals"),
    ],
)
def test_an_adjoint_that_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
