"""What only a CUDA device can show: the captured step against the plain one, and the precisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch

from oracles import relative_error
from ptmst import kernels
from ptmst.config import Keep, Precision
from ptmst.engine.outer_step import OuterStep
from ptmst.engine.recursion import OuterGradient
from ptmst.kernels import reference
from ptmst.kernels.layout import CUTS_KEPT
from ptmst.students.heads import ProjectionHead
from ptmst.students.image_towers import ConvNet
from ptmst.students.student import Student
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity
from ptmst.trajectories.shortcut import Displacement, Shortcut

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PAIRS, BATCH, STEPS, TEXT_WIDTH = 12, 4, 3, 6


@cache
def student(frozen: bool) -> Student:
    torch.manual_seed(0)
    tower = ConvNet(16)
    if frozen:
        return Student.from_modules(ProjectionHead(64, 8), ProjectionHead(TEXT_WIDTH, 8), tower=tower).to("cuda")
    return Student.from_modules(tower, ProjectionHead(TEXT_WIDTH, 64)).to("cuda")


def trajectory(of: Student, seed: int) -> Shortcut:
    draw = torch.Generator().manual_seed(seed)
    theta = of.flatten().cpu()
    moved = Displacement.encode(0.05 * torch.randn(len(theta), generator=draw), of.layers)
    on_device = Displacement(moved.values.cuda(), moved.scale.cuda(), moved.norms)
    beta = torch.linspace(0, 1, 4)[:, None].expand(4, of.layers.num_layers).contiguous()
    return Shortcut(of.layers, theta.cuda(), on_device, beta)


def pairs(seed: int) -> SyntheticPairs:
    draw = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(PAIRS, *shape, generator=draw).cuda() for shape in ((3, 16, 16), (TEXT_WIDTH,)))
    return SyntheticPairs(images, texts, FullSimilarity(torch.eye(PAIRS).cuda()), torch.tensor([0.1, 0.07]).cuda())


def batches(seed: int) -> torch.Tensor:
    return torch.randperm(PAIRS, generator=torch.Generator().manual_seed(seed)).view(STEPS, BATCH).cuda()


def copied(found: OuterGradient) -> OuterGradient:
    return replace(found, loss=found.loss.clone(), grads={name: g.clone() for name, g in found.grads.items()})


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("adjoint", "clip"), [(0.0, None), (0.5, 1.0)])
@pytest.mark.parametrize("keep", ["path", "primals"])
def test_the_captured_step_is_the_plain_one(frozen: bool, adjoint: float, clip: float | None, keep: Keep) -> None:
    """Over several steps with other experts, spans, leaves and batches, from one recording; and to the same bits."""
    of = student(frozen)
    plain = OuterStep(of, adjoint=adjoint, adjoint_clip=clip, keep=keep)
    captured = OuterStep(of, adjoint=adjoint, adjoint_clip=clip, keep=keep, compile="on")
    for number in range(3):
        inputs = trajectory(of, number).span(number % 2, 1 + number % 2 + 1), pairs(number), batches(number)
        expected, found = plain(*inputs), copied(captured(*inputs))
        again = captured(*inputs)
        assert relative_error(found.loss.cpu(), expected.loss.cpu()) <= 1e-5
        for name, gradient in expected.grads.items():
            assert relative_error(found.grads[name].cpu(), gradient.cpu()) <= 1e-4, name
            assert torch.equal(found.grads[name], again.grads[name]), name


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precisions_point_the_same_way(precision: Precision) -> None:
    of = student(False)
    inputs = trajectory(of, 0).span(0, 1), pairs(0), batches(0)
    expected, found = OuterStep(of)(*inputs), OuterStep(of, precision=precision)(*inputs)
    for name, gradient in expected.grads.items():
        assert torch.nn.functional.cosine_similarity(found.grads[name].flatten(), gradient.flatten(), 0) >= 0.999, name


def test_the_device_is_that_of_the_host() -> None:
    """In float32; the CPU is checked against float64 elsewhere."""
    of = student(False)
    inputs = trajectory(of, 0).span(0, 1), pairs(0), batches(0)
    found = OuterStep(of, adjoint=1.0)(*inputs)
    on_host = OuterStep(of.to("cpu"), adjoint=1.0)(
        inputs[0].replace({name: value.cpu() for name, value in inputs[0].tensors().items()}),
        inputs[1].replace({name: value.cpu() for name, value in inputs[1].leaves().items()}),
        inputs[2].cpu(),
    )
    of.to("cuda")
    for name, gradient in on_host.grads.items():
        assert relative_error(found.grads[name].cpu(), gradient) <= 1e-3, name


# Kernels. Against float64 all of them are checked by tests/kernels, whose Triton lane runs here on the device.


def flat_inputs(parameters: int) -> list[torch.Tensor]:
    """θ, base, displacement, scale, offsets, groups, β(s), β(t); offsets and groups on the host."""
    draw = torch.Generator("cuda").manual_seed(0)
    theta, base = (torch.randn(parameters, device="cuda", generator=draw) for _ in range(2))
    half = torch.randn(parameters, device="cuda", generator=draw, dtype=torch.float16)
    ends = [0, parameters // 3 + 1, parameters // 2, parameters // 2, parameters]
    numbers = [torch.rand(4, device="cuda", generator=draw) for _ in range(3)]
    return [theta, base, half, numbers[0], torch.tensor(ends), torch.tensor([0, 0, 1, 1]), *numbers[1:]]


def test_kernels_give_the_same_bits_again() -> None:
    inputs = flat_inputs(5_000_001)
    first, second = kernels.matching_residual(*inputs), kernels.matching_residual(*inputs)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    images, texts = torch.randn(2, 3000, 64, device="cuda")
    for kind in ("wbce", "infonce", "kl"):
        losses = [kernels.soft_contrastive(images, texts, kind=kind) for _ in range(2)]
        assert torch.equal(*losses)


def test_kernels_can_be_recorded() -> None:
    """In a CUDA graph, after one call that compiles them and makes their tables; replayed on other numbers, when the
    cut's tables have long made way for those of others."""
    theta, base, half, scale, offsets, groups, start, target = flat_inputs(100_003)

    def run() -> list[torch.Tensor]:
        point = kernels.shortcut_point(base, half, scale, offsets, target)
        return [point, *kernels.matching_residual(theta, base, half, scale, offsets, groups, start, target, 2)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = run()
    points = []
    for number in range(CUTS_KEPT):
        _, other, moved, factor, ends, _, _, beta = flat_inputs(100_004 + number)
        points.append(kernels.shortcut_point(other, moved, factor, ends, beta))
    theta.normal_()
    target.uniform_()
    graph.replay()
    torch.cuda.synchronize()
    assert len(points) == CUTS_KEPT
    assert all(torch.equal(a, b) for a, b in zip(recorded, run(), strict=True))


def test_the_contrastive_loss_can_be_recorded() -> None:
    images, texts = torch.randn(2, 200, 64, device="cuda")
    temperature = torch.tensor(0.07, device="cuda")
    leaves = [v.requires_grad_() for v in (images, texts, temperature)]

    def run(kind: str) -> list[torch.Tensor]:
        value = kernels.soft_contrastive(images, texts, kind=kind, temperature=temperature)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    for kind in ("wbce", "kl"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(kind)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = run(kind)
        with torch.no_grad():
            images.normal_()
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(recorded, run(kind), strict=True)), kind


def test_points_past_two_to_the_31() -> None:
    parameters = 2**31 + 4099
    if torch.cuda.mem_get_info()[0] < 32 * 2**30:
        pytest.skip("32 GB of the device's memory are not free")
    _, base, half, scale, offsets, _, _, beta = flat_inputs(parameters)
    found = kernels.shortcut_point(base, half, scale, offsets, beta)
    last = slice(parameters - 5000, parameters)
    assert torch.equal(found[last], base[last] + (beta * scale)[3] * half[last].float())
    ends = torch.tensor([0, 5000])
    expected = reference.shortcut_point(base[:5000], half[:5000], scale[:1], ends, beta[:1])
    assert torch.equal(found[:5000], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_contrastive_loss_takes_little_memory(dtype: torch.dtype) -> None:
    """In many blocks, with a gradient, and to open_clip's value."""
    from open_clip.loss import ClipLoss

    pairs, width = 16384, 256
    images, texts = (torch.randn(pairs, width, device="cuda") for _ in range(2))
    images, texts = (torch.nn.functional.normalize(v, dim=1).to(dtype).requires_grad_() for v in (images, texts))

    def measured(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        value = function()
        torch.autograd.grad(value, (images, texts))
        torch.cuda.synchronize()
        return value.detach(), torch.cuda.max_memory_allocated() - before

    ours, little = measured(lambda: kernels.soft_contrastive(images, texts, kind="infonce"))
    theirs, much = measured(lambda: ClipLoss()(images, texts, 1 / 0.07))
    assert relative_error(ours.cpu(), theirs.cpu()) <= (1e-5 if dtype == torch.float32 else 2e-2)
    assert 5 * little < much
