"""Compiled outer steps against eager ones: no graph break, no second compilation, and who compiles at all."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from oracles import relative_error
from ptmst.engine import compilation
from ptmst.engine.compilation import compiler
from ptmst.engine.outer_step import OuterStep
from ptmst.engine.recursion import OuterGradient
from ptmst.errors import InputError
from ptmst.students.student import Student
from ptmst.support import torch_compat
from tiny import TEXT_WIDTH, OuterCase, outer_case, three_layers

pytestmark = pytest.mark.slow

WAYS: dict[str, dict[str, Any]] = {
    "path": {"adjoint": 1.0, "adjoint_clip": 0.9},
    "primals": {"keep": "primals", "adjoint": 1.0},
    "nothing": {"keep": "nothing"},
    "chunks": {"chunk": 2, "adjoint": 1.0},
    "bf16": {"precision": "bf16"},
}
GRAPHS = {"path": 2, "primals": 1, "nothing": 2, "chunks": 7, "bf16": 2}
BEHIND_A_TOWER = {"path": 2 + 2, "primals": 1 + 1, "bf16": 2 + 2}
"""The tower is a graph where it is asked without a way back, and one with it."""


CACHE = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is named to begin with, and what a test names is forgotten after it."""
    monkeypatch.setenv(CACHE, "set first, so that it is put back")
    monkeypatch.delenv(CACHE)


@pytest.fixture
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing compiled earlier is found again."""
    monkeypatch.setenv(CACHE, str(tmp_path / "compiled"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(afresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as ever, but run op by op: without the minute that C++ takes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def cases(frozen: bool) -> list[OuterCase]:
    """Other data, spans and batches, of another phase with more pairs."""
    made = []
    for pairs in (6, 20):
        batches = torch.stack([torch.randperm(pairs)[:4] for _ in range(2)])
        c = outer_case(three_layers(frozen), 8, "full", batches, pairs=pairs)
        leaves = {name: leaf + 0.01 * torch.randn_like(leaf) for name, leaf in c.pairs.leaves().items()}
        target = c.target + 0.01 * torch.randn_like(c.target)
        made.append(OuterCase(c.student, c.start, target, c.pairs.replace(leaves), batches))
    return made


def compare(step: OuterStep, c: OuterCase, **how: Any) -> None:
    found = step(c.span, c.pairs, c.batches)
    eager: OuterGradient = OuterStep(c.student, **how)(c.span, c.pairs, c.batches)
    for name, value in eager.grads.items():
        assert relative_error(found.grads[name], value) <= 1e-5, name
    assert relative_error(found.theta_final - c.start, eager.theta_final - c.start) <= 1e-5
    assert relative_error(found.per_group, eager.per_group) <= 1e-5


@pytest.mark.usefixtures("afresh")
def test_a_compiled_step_is_the_eager_one() -> None:
    c = cases(frozen=False)[0]
    step = OuterStep(c.student, adjoint=1.0, compile="on")
    assert step.compiles
    compare(step, c, adjoint=1.0)
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("way", "frozen"),
    [
        *((way, False) for way in GRAPHS if way != "bf16"),
        *((way, True) for way in BEHIND_A_TOWER if way != "bf16"),
        *(pytest.param("bf16", frozen, marks=pytest.mark.exhaustive) for frozen in (False, True)),
    ],
)
def test_each_part_is_one_graph_and_compiled_once(way: str, frozen: bool, caplog: pytest.LogCaptureFixture) -> None:
    graphs = (BEHIND_A_TOWER if frozen else GRAPHS)[way]
    # No function may be compiled again, and those of the second student must not count as such.
    with torch._dynamo.config.patch(recompile_limit=2 if frozen and way != "primals" else 1):
        for students in (1, 2):
            compared = cases(frozen)
            step = OuterStep(compared[0].student, compile="on", **WAYS[way])
            for c in compared:
                compare(step, c, **WAYS[way])
                assert counters["stats"]["unique_graphs"] == students * graphs
    assert not counters["graph_break"]
    assert not [record for record in caplog.records if record.name.startswith("ptmst")]


# What cannot be compiled


class Squared(torch.autograd.Function):
    """Torch's compiler takes no derivative of its own along a direction."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = 2 * ctx.saved_tensors[0] * g
        return out

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = 2 * ctx.saved_tensors[0] * tangent
        return out


class SquaredFeatures(torch.nn.Linear):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = Squared.apply(super().forward(images.flatten(1)))
        return out


EAGERLY = "compile: a part of the step runs eagerly, torch cannot compile it ("


@pytest.mark.usefixtures("traced")
def test_what_torch_cannot_compile_runs_eagerly_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    student = Student.from_modules(SquaredFeatures(192, 5), torch.nn.Linear(TEXT_WIDTH, 5))
    batches = torch.tensor([[0, 1, 2], [3, 1, 0]])
    c = outer_case(student, 8, "full", batches)
    step = OuterStep(student, adjoint=1.0, compile="on")
    compare(step, c, adjoint=1.0)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("ptmst")]
    assert said and all(EAGERLY in text for text in said)
    compare(step, c, adjoint=1.0)
    assert len([record for record in caplog.records if record.name.startswith("ptmst")]) == len(said)


@pytest.mark.parametrize("error", [AssertionError("expected size 5==5, stride 1==5"), TorchDynamoException("no")])
def test_a_compiler_that_asserts_gives_way(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []

    def failing(x: int) -> int:
        tried.append(x)
        raise error

    monkeypatch.setattr(compilation, "compile_alone", lambda *_, **__: failing)
    made = compiler("on", torch.device("cpu"))
    assert made is not None
    doubled = made(lambda x: 2 * x)
    assert [doubled(3), doubled(4)] == [6, 8] and tried == [3]
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.getMessage().startswith(EAGERLY)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("of the function itself")])
def test_other_errors_are_not_the_compilers(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr(compilation, "compile_alone", lambda function, **_: function)
    made = compiler("on", torch.device("cpu"))
    assert made is not None
    with pytest.raises(type(error)):
        made(failing)()


# Who compiles


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_a_cpu_runs_as_it_is(mode: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert compiler(mode, torch.device("cpu")) is None
    assert not OuterStep(three_layers(), compile=mode).compiles
    assert compiler("off", torch.device("cuda")) is None
    assert capsys.readouterr() == ("", "") and CACHE not in os.environ


def test_as_it_is_loads_no_compiler() -> None:
    script = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from ptmst import Student
from ptmst.engine.outer_step import OuterStep
before = set(sys.modules)
OuterStep(Student.from_modules(torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)), compile="auto")
print(*sorted(name for name in set(sys.modules) - before if "inductor" in name or "triton" in name))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch._inductor.cpp_builder, "get_cpp_compiler", none)


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.utils._triton

    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: False)


@pytest.mark.usefixtures("no_compiler", "no_triton")
@pytest.mark.parametrize(("device", "lacking"), [("cpu", r"a C\+\+ compiler"), ("cuda", "Triton")])
def test_on_is_refused_without_a_compiler(device: str, lacking: str) -> None:
    message = f"^compile on: expected {lacking}, found none; install it, or use --compile off$"
    with pytest.raises(InputError, match=message):
        compiler("on", torch.device(device))


@pytest.mark.usefixtures("no_compiler")
def test_a_step_is_refused_without_a_compiler() -> None:
    with pytest.raises(InputError, match=r"^compile on: expected a C\+\+ compiler, found none"):
        OuterStep(three_layers(), compile="on")


@pytest.mark.usefixtures("no_triton")
def test_auto_says_that_it_does_not_compile(caplog: pytest.LogCaptureFixture) -> None:
    assert compiler("auto", torch.device("cuda")) is None
    said = "compile auto: Triton is missing, outer steps run eagerly (slower, same results)"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", said)]


@pytest.mark.parametrize("own", [None, "mine"])
def test_what_is_compiled_is_kept_in_the_cache_folder(
    own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own is not None:
        monkeypatch.setenv(CACHE, own)
    made = compiler("on", torch.device("cpu"))
    assert made is not None
    assert os.environ[CACHE] == (own or str(tmp_path / "cache" / "compiled"))


def test_how_a_function_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def spy(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        given.append(options)
        return function

    monkeypatch.setattr(torch, "compile", spy)
    made = compiler("on", torch.device("cpu"))
    assert made is not None
    assert made(abs)(-3) == 3
    [options] = given
    assert options["fullgraph"] and not options["dynamic"] and options["options"] == {"deterministic": True}


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("isolates", [True, False])
def test_functions_of_one_code_are_compiled_each_by_itself(isolates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own means where there are some, and by ours, which older releases need."""
    if isolates and not torch_compat._ISOLATES:
        pytest.skip("torch before 2.14 cannot isolate compilations")
    monkeypatch.setattr(torch_compat, "_ISOLATES", isolates)

    def times(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: factor * x

    with torch._dynamo.config.patch(recompile_limit=1):
        made = [torch_compat.compile_alone(times(factor), fullgraph=True, backend="eager") for factor in (2.0, 3.0)]
        assert [function(torch.ones(1)).item() for function in made] == [2, 3]
    assert counters["stats"]["unique_graphs"] == 2
