"""What only a CUDA device can show: the captured step against the plain one, and the precisions."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from oracles import relative_error
from ptmst.config import Keep, Precision
from ptmst.encoders import ConvNet, ProjectionHead
from ptmst.flat import Student
from ptmst.shortcut import Displacement, Shortcut
from ptmst.similarity import FullSimilarity
from ptmst.synthetic import SyntheticPairs
from ptmst.unroll import OuterGradient, OuterStep

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
