"""Every way to compute an outer step: the oracle's gradient, and the memory and work that it promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from oracles import peak_bytes, relative_error
from ptmst.config import EncoderConfig
from ptmst.engine.outer_step import OuterStep
from ptmst.engine.recursion import OuterGradient
from ptmst.errors import InputError
from ptmst.kernels import matching, native, reference, shortcut, update
from ptmst.students.heads import ProjectionHead, make_student
from ptmst.students.image_towers import ConvNet
from ptmst.students.layers import LayerTable
from ptmst.students.student import Student
from ptmst.support.devices import arithmetic
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity
from ptmst.trajectories.shortcut import Displacement, Expert
from ptmst.trajectories.spans import RawSpan, ShortcutSpan, Span
from tiny import LEAVES, TEXT_WIDTH, OuterCase, in_float64, outer_case, three_layers

FOURS = torch.tensor([[0, 1, 2, 3], [3, 1, 0, 5], [4, 0, 1, 2]])
TWICE = torch.tensor([[0, 0, 17, 3], [3, 1, 17, 17]])
"""A pair twice in a batch, and again in the next."""
WAYS: dict[str, dict[str, Any]] = {
    "path": {},
    "primals": {"keep": "primals"},
    "nothing": {"keep": "nothing"},
    "one by one": {"chunk": 1},
    "chunks of 2": {"chunk": 2},
    "a whole batch a chunk": {"chunk": 4},
    "nothing, in chunks": {"keep": "nothing", "chunk": 2},
}
DIALS: list[tuple[float, float | None]] = [(0.0, None), (0.5, 0.9), (1.0, None)]
ASKED = [(way, *dials) for way in WAYS for dials in DIALS if dials[0] == 0 or "nothing" not in way]
CASES = {"trained": (6, FOURS), "frozen, few pairs": (6, FOURS), "frozen, many pairs": (20, TWICE)}


@cache
def small(which: str, form: str) -> OuterCase:
    torch.manual_seed(0)
    pairs, batches = CASES[which]
    if which == "trained":
        student = Student.from_modules(ConvNet(8), ProjectionHead(TEXT_WIDTH, 32))
    else:
        student = Student.from_modules(ProjectionHead(32, 8), ProjectionHead(TEXT_WIDTH, 8), tower=ConvNet(8))
    return outer_case(in_float64(student), 8, form, batches, pairs=pairs)


@cache
def expected(which: str, form: str, adjoint: float, clip: float | None) -> tuple[Tensor, dict[str, Tensor]]:
    c = small(which, form)
    loss, exact = c.oracle.unrolled()
    return loss, exact if (adjoint, clip) == (1.0, None) else c.oracle.recursion(adjoint, clip)


@pytest.mark.slow
@pytest.mark.parametrize("form", LEAVES)
@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize(("way", "adjoint", "clip"), ASKED)
def test_every_way_is_the_oracles(way: str, adjoint: float, clip: float | None, which: str, form: str) -> None:
    c = small(which, form)
    found = c.gradient(adjoint, clip, **WAYS[way])
    loss, gradients = expected(which, form, adjoint, clip)
    assert relative_error(found.loss, loss) <= 1e-11
    assert sorted(found.grads) == sorted(gradients) == sorted(["images", "texts", "lr", *LEAVES[form]])
    for name, value in gradients.items():
        assert relative_error(found.grads[name], value) <= 1e-9, name


@pytest.mark.slow
@pytest.mark.parametrize("which", CASES)
def test_the_dials_are_turned(which: str) -> None:
    """The cases tell the dials apart: no way could pass above by leaving one alone."""
    truncated, both, exact, loose = (expected(which, "full", *dials)[1]["texts"] for dials in [*DIALS, (0.5, None)])
    for other in (truncated, exact, loose):
        assert relative_error(both, other) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("which", CASES)
def test_a_frozen_towers_images_that_no_batch_holds_stay(which: str) -> None:
    c = small(which, "full")
    unseen = sorted(set(range(len(c.pairs))) - set(c.batches.flatten().tolist()))
    for way in WAYS:
        images = c.gradient(0.0, **WAYS[way]).grads["images"]
        assert all(bool((images[i] == 0).all()) for i in unseen)
        assert all(bool((images[i] != 0).any()) for i in set(range(len(c.pairs))) - set(unseen))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("which", CASES)
def test_walking_twice_repeats_the_bits(which: str, chunk: int | None) -> None:
    c = small(which, "low-rank")
    kept, walked = (c.gradient(0.0, keep=keep, chunk=chunk) for keep in ("path", "nothing"))
    assert same(kept, walked)


def same(a: OuterGradient, b: OuterGradient) -> bool:
    mine, theirs = (
        [found.loss, found.per_group, found.theta_final, *(found.grads[name] for name in sorted(found.grads))]
        for found in (a, b)
    )
    return all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", CASES)
def test_a_step_is_used_again(which: str, way: str) -> None:
    """No call leaves anything behind for the next."""
    c = small(which, "full")
    other = replace(c, batches=c.batches.flip(0), target=c.target + 0.01, pairs=_moved(c.pairs))
    step = c.step(adjoint=0.0, **WAYS[way])
    found = [step(case.span, case.pairs, case.batches) for case in (c, other, c)]
    assert same(found[0], c.gradient(0.0, **WAYS[way])) and same(found[0], found[2])
    assert same(found[1], other.gradient(0.0, **WAYS[way]))


def _moved(pairs: SyntheticPairs) -> SyntheticPairs:
    return pairs.replace({name: leaf * 1.1 for name, leaf in pairs.leaves().items()})


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if "nothing" not in way])
@pytest.mark.parametrize("which", CASES)
def test_inputs_are_left_alone(which: str, way: str) -> None:
    c = small(which, "full")
    held = (c.start, c.target, c.student.flatten(), c.batches, *c.pairs.leaves().values())
    before = [value.clone() for value in held]
    c.gradient(0.5, 0.9, **WAYS[way])
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(before, held, strict=True))


# The work


@contextmanager
def asked(tower: nn.Module) -> Iterator[tuple[list[int], list[int]]]:
    """Images in every pass forward, and in every pass back, through a tower."""
    forward: list[int] = []
    back: list[int] = []

    def note(module: nn.Module, grad_in: Any, grad_out: Any) -> None:
        back.append(len(grad_out[0]))

    handles = [
        tower.register_forward_hook(lambda _, inputs, out: forward.append(len(inputs[0]))),
        tower.register_full_backward_hook(note),
    ]
    yield forward, back
    for handle in handles:
        handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize("adjoint", [0.0, 1.0])
@pytest.mark.parametrize("keep", ["path", "primals"])
@pytest.mark.parametrize(
    ("pairs", "chunk", "blocks"),
    [(6, None, [4, 4]), (6, 2, [2, 2, 2]), (6, 1, [1] * 6), (40, None, None), (40, 2, None)],
)
def test_a_frozen_tower_is_asked_once(
    pairs: int, chunk: int | None, blocks: list[int] | None, keep: str, adjoint: float, steps: int
) -> None:
    student = three_layers(frozen=True)
    batches = torch.stack([torch.randperm(pairs)[:4] for _ in range(steps)])
    c = outer_case(student, 8, "full", batches, pairs=pairs)
    # All pairs, or one row a drawn one: whichever is fewer, and never once an inner step.
    size = chunk or 4
    blocks = blocks if blocks is not None else [size] * (4 * steps // size)
    behind: set[int] = set()
    student.modules[0].register_forward_hook(lambda _, inputs, out: behind.add(len(inputs[0])))
    assert student.tower is not None
    with asked(student.tower) as (forward, back):
        c.gradient(adjoint, keep=keep, chunk=chunk)
    # A batch of features is small: chunks would only slow the heads down.
    assert behind == {4}
    assert forward == (blocks if keep == "primals" else [*blocks, *blocks])
    assert back == blocks


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [0.0, 1.0])
def test_a_trained_tower_is_asked_by_chunks(adjoint: float) -> None:
    student = three_layers()
    c = outer_case(student, 8, "full", FOURS, pairs=6)
    seen: list[int] = []
    original = F.silu

    def spy(images: Tensor, inplace: bool = False) -> Tensor:
        seen.append(images.shape[0])
        return original(images, inplace)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "silu", spy)
        for way, (size, passes) in {"path": (4, 2), "primals": (4, 1), "chunks of 2": (2, 4)}.items():
            seen.clear()
            c.gradient(adjoint, **WAYS[way])
            # Step and way back: twice in full; in chunks once more each, for the embeddings. Once before all, to try.
            assert seen == [size] * (1 + passes * 3 * 4 // size), way


# Memory

WIDE, SIDE = 64, 16
ACTIVATIONS = 4 * 4 * WIDE * SIDE**2
"""Bytes of one layer of the wide tower, on a batch of four."""


def wide_tower() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, WIDE, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDE, 8)
    )


def wide_step(steps: int, frozen: bool = False, pairs: int = 8, **how: Any) -> int:
    """Peak of an outer step of `steps` inner steps on batches of four."""
    torch.manual_seed(0)
    head = nn.Linear(TEXT_WIDTH, 8)
    student = Student.from_modules(wide_tower(), head)
    if frozen:
        student = Student.from_modules(nn.Linear(8, 8), head, tower=wide_tower())
    c = outer_case(student, SIDE, "full", torch.arange(4).repeat(steps, 1), pairs=pairs)
    step, span = c.step(**how), c.span
    step(span, c.pairs, c.batches)
    return peak_bytes(lambda: step(span, c.pairs, c.batches))


def grown(**how: Any) -> float:
    """Bytes by which one more inner step raises the peak."""
    return (wide_step(8, **how) - wide_step(3, **how)) / 5


PATH = 4 * sum(value.numel() for value in (*wide_tower().parameters(), *nn.Linear(TEXT_WIDTH, 8).parameters()))
BATCH = 4 * (4 * 3 * SIDE**2 + 4 * TEXT_WIDTH + 4 * 4)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"adjoint": 1.0}, {"chunk": 2}, {"adjoint": 1.0, "chunk": 2}])
def test_a_path_costs_its_parameter_vectors(how: dict[str, Any]) -> None:
    assert PATH <= grown(**how) <= PATH + BATCH + 64
    assert 10 * (PATH + BATCH) < ACTIVATIONS


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"adjoint": 1.0}, {"chunk": 2}])
def test_a_path_costs_its_parameter_vectors_alone(how: dict[str, Any]) -> None:
    assert grown(**how) <= PATH + 64


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 2])
def test_nothing_costs_nothing(chunk: int | None) -> None:
    assert abs(grown(keep="nothing", chunk=chunk)) <= 64


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [0.0, 1.0])
def test_primals_cost_their_activations(adjoint: float) -> None:
    assert grown(keep="primals", adjoint=adjoint) >= 2 * ACTIVATIONS


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [0.0, 1.0])
def test_chunks_hold_a_chunks_activations(adjoint: float) -> None:
    whole, halves, ones = (wide_step(3, adjoint=adjoint, chunk=chunk) for chunk in (None, 2, 1))
    assert halves < 0.6 * whole and ones < 0.6 * halves


@pytest.mark.slow
def test_a_frozen_tower_holds_a_blocks_activations() -> None:
    few, many, kept = (
        wide_step(4, frozen=True, pairs=pairs, chunk=2, keep=keep)
        for pairs, keep in ((4, "path"), (16, "path"), (16, "primals"))
    )
    images = 4 * 12 * 3 * SIDE**2
    assert many - few <= 6 * images < ACTIVATIONS
    assert kept - many >= 3 * ACTIVATIONS


# Precision


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def taught_case(name: str, size: int, batch: int, draw: torch.Generator) -> OuterCase:
    """From a student's start to where eight plain steps on random pairs with hard labels lead."""
    student = make_student(EncoderConfig(image_tower=name, image_width=16), size, 32, (0,))
    start = student.flatten()
    parts = [part.clone().requires_grad_() for part in start.split(student.layers.group_sizes)]
    for _ in range(8):
        theta = torch.cat(parts)
        images = torch.randn(2 * batch, 3, size, size, generator=draw)
        texts = torch.randn(2 * batch, 32, generator=draw)
        logits = F.normalize(student.embed_images(theta, images)) @ F.normalize(student.embed_texts(theta, texts)).T
        labels = torch.arange(2 * batch)
        loss = F.cross_entropy(logits / 0.07, labels) + F.cross_entropy(logits.T / 0.07, labels)
        for part, g in zip(parts, torch.autograd.grad(loss / 2, parts), strict=True):
            part.data -= 0.1 * g
    pairs = 2 * batch
    leaves = SyntheticPairs(
        torch.randn(pairs, 3, size, size, generator=draw),
        torch.randn(pairs, 32, generator=draw),
        FullSimilarity(torch.eye(pairs) + 0.02 * torch.randn(pairs, pairs, generator=draw)),
        torch.tensor([0.1, 0.07]),
    )
    batches = torch.stack([torch.randperm(pairs, generator=draw)[:batch] for _ in range(3)])
    return OuterCase(student, start, torch.cat(parts).detach(), leaves, batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tower", "size", "batch", "draws"),
    [
        ("convnet", 16, 8, 5),
        # Not 16 pixels: there the last stride meets 1 × 1, whose bf16 weight gradient oneDNN leaves unwritten on Intel.
        pytest.param("timm:test_nfnet", 32, 8, 3, marks=pytest.mark.exhaustive),
        pytest.param("timm:test_convnext", 32, 8, 3, marks=pytest.mark.exhaustive),
        ("timm:test_vit", 160, 3, 1),
    ],
)
def test_bf16_keeps_the_direction(tower: str, size: int, batch: int, draws: int) -> None:
    """In the middle of some draws: where a gradient is so badly conditioned that weights rounded once turn it, bf16
    turns it as well."""
    cosines: dict[tuple[str, float], list[float]] = {}
    for seed in range(draws):
        c = taught_case(tower, size, batch, torch.Generator().manual_seed(seed))
        for adjoint in (0.0, 1.0):
            exact, found = (c.gradient(adjoint, precision=precision) for precision in ("fp32", "bf16"))
            for value in (found.loss, found.per_group, found.theta_final, *found.grads.values()):
                assert value.dtype == torch.float32
            for name, value in exact.grads.items():
                assert relative_error(found.grads[name], value) > 1e-5, name
                cosines.setdefault((name, adjoint), []).append(cosine(found.grads[name], value))
    for which, values in cosines.items():
        assert median(values) >= 0.999 and min(values) >= 0.99, (which, values)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_bf16_is_one_arithmetic_in_every_way(way: str) -> None:
    c = taught_case("convnet", 16, 4, torch.Generator().manual_seed(1))
    exact, found = c.gradient(0.0), c.gradient(0.0, precision="bf16", **WAYS[way])
    for name, value in exact.grads.items():
        assert cosine(found.grads[name], value) >= 0.995, name
    assert relative_error(found.theta_final, exact.theta_final) > 1e-6


def test_heads_are_float32_beside_a_bf16_tower() -> None:
    """θ holds heads only, so the inner loop differs by the features alone."""
    student = three_layers(frozen=True)
    c = outer_case(student, 8, "full", FOURS, pairs=6)
    exact, found = c.gradient(0.0), c.gradient(0.0, precision="bf16")
    assert relative_error(found.grads["texts"], exact.grads["texts"]) > 1e-5
    with torch.no_grad():
        features = student.in_bf16().features(c.pairs.images)
    assert relative_error(features, student.features(c.pairs.images)) > 1e-4
    behind = replace(c, student=student.heads, pairs=replace(c.pairs, images=features))
    assert same(behind.gradient(0.0), replace(behind, student=student.in_bf16().heads).gradient(0.0))
    inner = behind.gradient(0.0)
    assert torch.equal(found.grads["texts"], inner.grads["texts"])
    assert torch.equal(found.theta_final, inner.theta_final)


def test_tf32_is_refused_without_cuda() -> None:
    message = r"^precision tf32: expected a CUDA device, found none; use fp32 or bf16 here$"
    with pytest.raises(InputError, match=message):
        OuterStep(three_layers(), precision="tf32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adjoint": 0.5, "keep": "nothing"}, "keep: expected path or primals with adjoint 0.5, found nothing"),
        ({"keep": "primals", "chunk": 2}, "keep and chunk: expected one way to spend memory, found primals"),
        ({"chunk": 0}, "chunk: expected at least 1, found 0; raise it"),
        ({"adjoint": -0.1}, "adjoint: expected at least 0, found -0.1; raise it"),
        ({"adjoint": 1.1}, r"adjoint: expected 0 \(truncated\) to 1 \(exact\), found 1.1; lower it"),
        ({"adjoint_clip": 0.0}, "adjoint_clip: expected a positive number, found 0.0; raise it or leave it out"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        OuterStep(three_layers(), **settings)


Flags = tuple[Any, ...]
BACKENDS: Any = torch.backends
PARTS = BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn


def flags() -> Flags:
    """By the newer names, which can always be read."""
    conv = BACKENDS.cudnn
    return *(part.fp32_precision for part in PARTS), conv.deterministic, conv.benchmark


def older_names() -> Flags:
    """Raises where the two kinds of names contradict each other; compiled code reads these."""
    return (
        BACKENDS.cuda.matmul.allow_tf32,
        BACKENDS.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


FLAGS: dict[str, Callable[[], None]] = {
    "as torch begins": lambda: None,
    "products, by an older name": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "no convolutions, by an older name": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "products in bf16": lambda: torch.set_float32_matmul_precision("medium"),
    "products, by a newer name": lambda: setattr(PARTS[0], "fp32_precision", "tf32"),
    "no convolutions, by a newer name": lambda: setattr(PARTS[2], "fp32_precision", "ieee"),
    "everything": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "fast algorithms": lambda: setattr(BACKENDS.cudnn, "benchmark", True),
}
IN = {
    False: ("ieee", "ieee", "ieee", "ieee", True, False),
    True: ("tf32", "tf32", "tf32", "tf32", True, False),
}


@pytest.fixture(params=list(FLAGS))
def other_flags(request: pytest.FixtureRequest) -> Iterator[Flags]:
    whole, before, cudnn = BACKENDS.fp32_precision, flags(), BACKENDS.cudnn
    FLAGS[request.param]()
    yield flags()
    BACKENDS.fp32_precision = whole
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = True, *before[-2:]
    for part, value in zip(PARTS, before, strict=False):
        part.fp32_precision = value
    older_names()


@pytest.mark.parametrize(("precision", "fast"), [("fp32", False), ("bf16", False), ("tf32", True)])
def test_arithmetic_is_put_back(precision: Any, fast: bool, other_flags: Flags) -> None:
    with arithmetic(precision):
        assert flags() == IN[fast]
        assert older_names() == (fast, fast, "high" if fast else "highest")
    assert flags() == other_flags
    with pytest.raises(KeyError), arithmetic(precision):
        dict[str, int]()["no such key"]
    assert flags() == other_flags


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "fast"), [("fp32", False), ("tf32", True)])
def test_a_step_runs_in_its_arithmetic(
    precision: str, fast: bool, other_flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = three_layers(frozen=True)
    seen: list[Flags] = []
    assert student.tower is not None
    student.tower.register_forward_hook(lambda *_: seen.append(flags()))
    c = outer_case(student, 8, "full")
    # tf32 is granted to what lies on CUDA, or says so.
    with monkeypatch.context() as patch:
        patch.setattr(Student, "device", torch.device("cuda"))
        step = c.step(precision=precision)
    step(c.span, c.pairs, c.batches)
    assert set(seen) == {IN[fast]}
    assert flags() == other_flags


# What a CUDA graph forbids


class OnDevice(TorchDispatchMode):
    """Raises where a number is read on the host, or made from one there: a recording can do neither.

    Ops are seen below function transforms. That a tensor lies on another device cannot be seen on a CPU; what is
    made of Python numbers (`torch.tensor`) would have to be copied there.
    """

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "lift_fresh", "masked_select", "_unique2")
    exempt = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [
            v for v in (args[1] if func.overloadpacket.__name__ in ("index", "index_put") else ()) if v is not None
        ]
        reads = func.overloadpacket.__name__ in self.FORBIDDEN or any(mask.dtype == torch.bool for mask in masks)
        assert self.exempt or not reads, func
        return func(*args, **(kwargs or {}))


@contextmanager
def on_device() -> Iterator[None]:
    """As OnDevice, and for what reaches no dispatcher. The tables of a shortcut's layers stay on the host."""
    mode = OnDevice()  # type: ignore[no-untyped-call]

    def refused(*_: Any) -> Any:
        assert mode.exempt, "read on the host"

    def on_host(original: Any, *tables: Any) -> Any:
        mode.exempt = True
        try:
            with pytest.MonkeyPatch.context() as inside:
                for name, kept in originals.items():
                    inside.setattr(Tensor, name, kept)
                return original(*tables)
        finally:
            mode.exempt = False

    originals = {name: getattr(Tensor, name) for name in ("tolist", "numpy", "cpu")}
    with pytest.MonkeyPatch.context() as patch, mode:
        for name in originals:
            patch.setattr(Tensor, name, refused)
        patch.setattr(reference, "_per_parameter", partial(on_host, reference._per_parameter))
        for module in (matching, native, reference, shortcut, update):
            patch.setattr(module, "cut", partial(on_host, module.cut))
        yield


@pytest.mark.parametrize(
    "read",
    [
        lambda value: value.sum().item(),
        lambda value: bool(value.any()),
        lambda value: float(value[0]),
        lambda value: int(value.sum()),
        lambda value: value.tolist(),
        lambda value: value.nonzero(),
        lambda value: value[value > 0],
        lambda value: value.cpu(),
        lambda value: torch.tensor([1.0, 2.0]) * value,
        torch.func.grad(lambda v: v.sum() * v.sum().item()),
        lambda value: torch.func.jvp(lambda v: v * v.max().item(), (value,), (value,)),
    ],
)
def test_reads_on_the_host_are_seen(read: Any) -> None:
    value = torch.ones(2)
    with pytest.raises(AssertionError), on_device():
        read(value)
    read(value)


def shortcut_span(layers: LayerTable, base: Tensor) -> ShortcutSpan:
    delta = 0.05 * torch.randn(layers.num_params)
    norms = torch.rand(3, layers.num_layers) + 0.5
    return Expert(layers, base, {3: Displacement.encode(delta, layers)}, norms).shortcut(3).span(1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("form", LEAVES)
@pytest.mark.parametrize("kind", [RawSpan, ShortcutSpan])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"keep": "nothing"},
        {"adjoint": 1.0, "adjoint_clip": 0.9},
        {"keep": "primals"},
        {"keep": "primals", "adjoint": 1.0, "adjoint_clip": 0.9},
        {"chunk": 2, "adjoint": 1.0, "adjoint_clip": 0.9, "precision": "bf16"},
    ],
)
def test_nothing_is_read_on_the_host(how: dict[str, Any], frozen: bool, kind: type[Span], form: str) -> None:
    c = outer_case(three_layers(frozen), 8, form, FOURS, pairs=6)
    span: Span = c.span if kind is RawSpan else shortcut_span(c.student.layers, c.start)
    step = c.step(**how)
    # The layers' tables are made once, on the host, before anything is recorded.
    assert len(c.student.layers.offsets) == len(c.student.layers.groups) + 1
    with on_device():
        found = step(span, c.pairs, c.batches)
    assert all(bool(value.isfinite().all()) for value in found.grads.values())
