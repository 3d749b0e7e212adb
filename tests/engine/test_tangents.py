"""Students that torch cannot look into: their outer gradient is that of torch's own operations, or they are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oracles import relative_error
from ptmst.engine import tangents
from ptmst.engine.derivatives import why_not_differentiable
from ptmst.engine.outer_step import OuterStep
from ptmst.errors import InputError
from ptmst.students.student import Student
from tiny import TEXT_WIDTH, OuterCase, outer_case

Function = Callable[[Tensor], Tensor]


class Square(torch.autograd.Function):
    """With all derivatives, in torch's operations."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out: Tensor = 2 * x * g
        return out

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out: Tensor = 2 * x * tangent
        return out


class Detached(Square):
    """Its own derivative is right, the derivative of that is lost: what is saved has no history."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.x = inputs[0].detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        out: Tensor = 2 * ctx.x * g
        return out

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        out: Tensor = 2 * ctx.x * tangent
        return out


class Forgetful(Square):
    """Along a direction it does not move."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return torch.zeros_like(tangent)


class Old(torch.autograd.Function):
    """As functions were written before torch.func."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out: Tensor = 2 * x * g
        return out


class OnlyFloat32(Square):
    """As a kernel that knows no other type."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("expected float32")
        return x.square()


def apply(function: type[torch.autograd.Function]) -> Function:
    def applied(x: Tensor) -> Tensor:
        out: Tensor = function.apply(x)
        return out

    return applied


class Tower(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(48, 6), function, nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.last(self.function(self.first(images.flatten(1))))
        return out


def case_of(function: Function, wrap: Callable[[nn.Module], nn.Module] = lambda module: module) -> OuterCase:
    torch.manual_seed(0)
    student = Student.from_modules(wrap(Tower(function)), nn.Linear(TEXT_WIDTH, 5))
    return outer_case(student, 4, "full")


def assert_alike(found: OuterCase, expected: OuterCase, **how: Any) -> None:
    a, b = (case.step(adjoint=1.0, **how)(case.span, case.pairs, case.batches) for case in (found, expected))
    for name, value in b.grads.items():
        assert relative_error(a.grads[name], value) <= 1e-5, name


@pytest.mark.parametrize("keep", ["path", "primals"])
@pytest.mark.parametrize("function", [Square, OnlyFloat32])
def test_a_function_with_all_derivatives_is_as_good_as_torchs_own(
    function: type[torch.autograd.Function], keep: str
) -> None:
    assert_alike(case_of(apply(function)), case_of(torch.square), keep=keep)


def test_kinks_are_no_loss() -> None:
    assert_alike(case_of(lambda x: apply(Square)(torch.relu(x))), case_of(lambda x: torch.relu(x).square()))


@pytest.mark.parametrize(
    ("function", "keep", "reason"),
    [
        (Detached, "path", r"its derivative along a direction is off by \d+% from finite differences"),
        (Detached, "primals", r"its derivative along a direction is off by \d+% from finite differences"),
        (Forgetful, "path", r"its derivative along a direction is off by \d+% from finite differences"),
        (Old, "path", "In order to use an autograd.Function with functorch"),
    ],
)
def test_lost_derivatives_are_refused(function: type[torch.autograd.Function], keep: Any, reason: str) -> None:
    case = case_of(apply(function))
    message = (
        rf"^student: expected modules that keep {keep} can differentiate, found a part that it cannot "
        rf"\({reason}.*\); give the module without torch\.compile, .* and write"
    )
    with pytest.raises(InputError, match=message):
        case.gradient(1.0, keep=keep)
    found = why_not_differentiable(case.student, keep, True, case.pairs.images[:2], case.pairs.texts[:2])
    assert found is not None


def scripted(tower: nn.Module) -> Any:
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)))


def traced(tower: nn.Module) -> Any:
    return torch.jit.trace(tower, torch.randn(4, 3, 4, 4))


class Checkpointed(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Any:
        return checkpoint(self.tower, images, use_reentrant=False)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("keep", ["nothing", "path", "primals"])
@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (scripted, "The stateless API can't be used with Jitted modules"),
        (traced, "The stateless API can't be used with Jitted modules"),
        (Checkpointed, "torch.func.* don't yet support saved tensor hooks"),
    ],
)
def test_a_student_that_torch_cannot_differentiate_is_refused(
    wrap: Callable[[nn.Module], nn.Module], reason: str, keep: Any
) -> None:
    case = case_of(torch.square, wrap)
    step = OuterStep(case.student, keep=keep)
    for _ in range(2):  # the second time as the first
        with pytest.raises(InputError, match=rf"^student: expected modules that keep {keep} can .* \({reason}"):
            step(case.span, case.pairs, case.batches)


def test_an_error_that_is_not_of_the_student_stays_what_it_is() -> None:
    case = case_of(torch.square)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        OuterStep(case.student)(case.span, replace(case.pairs, texts=case.pairs.texts[:, :-1]), case.batches)


def test_behind_a_frozen_tower_nothing_is_differentiated_twice() -> None:
    tower = Tower(apply(Detached))
    student = Student.from_modules(nn.Linear(5, 4), nn.Linear(TEXT_WIDTH, 4), tower=tower)
    plain = Tower(torch.square)
    plain.load_state_dict(tower.state_dict())
    same = Student.from_modules(*student.modules[:2], tower=plain)
    case = outer_case(student, 4, "full")
    assert_alike(case, replace(case, student=same))


@pytest.mark.slow
@pytest.mark.parametrize("part", [False, True])
def test_a_compiled_tower_has_the_derivatives_of_the_plain_one(part: bool) -> None:
    """Or it is refused, by releases of torch that lose them."""

    def wrap(tower: Any) -> Any:
        if part:
            tower.first = torch.compile(tower.first, backend="aot_eager")
            return tower
        return torch.compile(tower, backend="aot_eager")

    case = case_of(torch.square, wrap)
    assert tangents.opaque(case.student, case.start, case.pairs.images, case.pairs.texts)
    if why_not_differentiable(case.student, "path", True, case.pairs.images, case.pairs.texts) is None:
        assert_alike(case, case_of(torch.square))
    else:
        with pytest.raises(InputError, match=r"without torch\.compile"):
            case.gradient(1.0)


def test_students_of_torchs_own_operations_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptmst.engine.outer_step.why_not_differentiable", None)
    case = case_of(torch.square)
    assert not tangents.opaque(case.student, case.start, case.pairs.images, case.pairs.texts)
    OuterStep(case.student)(case.span, case.pairs, case.batches)
