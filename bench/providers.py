"""Every kernel as each provider has it, and its definition in float64 to compare answers with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import COMPILED, OPEN_CLIP, OURS_KERNEL, PLAIN, Contrastive, Flat
from ptmst import kernels
from ptmst.kernels import reference
from ptmst.support import devices

_LR, _MOMENTUM, _DECAY, _TEMPERATURE = 0.1, 0.5, 0.99, 0.07


# Flat vectors


@cache
def vectors(case: Flat, device: torch.device) -> dict[str, Tensor]:
    """All inputs of the flat kernels; offsets and groups stay on the host, as the engine keeps them."""
    # Drawn on the device: a host takes seconds for each.
    draw: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    sizes, parameters = case.layer_sizes(), case.parameters
    layers = len(sizes)
    inputs = {name: torch.randn(parameters, **draw) for name in ("base", "theta", "grad", "buffer")}
    inputs["displacement"] = torch.randn(parameters, **draw).half()
    inputs |= {name: torch.rand(layers, **draw) for name in ("scale", "beta_start", "beta_target")}
    inputs["lr"] = torch.full((2,), _LR, device=device)
    inputs["offsets"] = torch.tensor([0, *accumulate(sizes)])
    inputs["groups"] = torch.tensor([int(i >= layers - 8) for i in range(layers)])
    return inputs


def flat_call(case: Flat, provider: str, v: dict[str, Tensor]) -> Callable[[], Any]:
    """The kernel on `v`, by a provider. For plain torch sizes are constants, as they are when it is compiled."""
    sizes = case.layer_sizes()
    of_groups = [sum(sizes[:-8]), sum(sizes[-8:])]
    ours = provider == OURS_KERNEL

    def per_layer(values: Tensor) -> Tensor:
        return torch.cat([value.expand(n) for value, n in zip(values.unbind(), sizes, strict=True)])

    def dot(a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(a.split(of_groups), b.split(of_groups), strict=True)
        return torch.stack([(p * q).sum() if provider == COMPILED else torch.dot(p, q) for p, q in pairs])

    def point(base: Tensor, displacement: Tensor, scale: Tensor, beta: Tensor) -> Tensor:
        return base + per_layer(beta * scale) * displacement.to(base.dtype)

    def residual(theta: Tensor, start: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        off, moved = theta - target, target - start
        return off, dot(off, off), dot(off, theta - start), dot(moved, moved)

    def descend(theta: Tensor, grad: Tensor, lr: Tensor) -> Tensor:
        parts = zip(theta.split(of_groups), grad.split(of_groups), lr.unbind(), strict=True)
        for part, g, one in parts:
            part.sub_(one * g)
        return theta

    def sgd_ema(param: Tensor, grad: Tensor, buffer: Tensor, ema: Tensor) -> Tensor:
        return reference.sgd_ema_(param, grad, buffer, ema, _LR, _MOMENTUM, _DECAY)

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, dynamic=False) if provider == COMPILED else function

    table = v["offsets"], v["groups"]
    stored = v["base"], v["displacement"], v["scale"]
    if case.kernel == "shortcut_point":
        if ours:
            return partial(kernels.shortcut_point, *stored, v["offsets"], v["beta_target"])
        return partial(compiled(point), *stored, v["beta_target"])
    if case.kernel == "matching_residual":
        if ours:
            return partial(kernels.matching_residual, v["theta"], *stored, *table, v["beta_start"], v["beta_target"], 2)

        def matching(theta: Tensor, *inputs: Tensor) -> Any:
            base, displacement, scale, *betas = inputs
            start, target = (point(base, displacement, scale, beta) for beta in betas)
            return residual(theta, start, target)[:3]

        return partial(compiled(matching), v["theta"], *stored, v["beta_start"], v["beta_target"])
    if case.kernel == "vector_residual":
        points = v["theta"], v["base"], v["grad"]
        return partial(kernels.vector_residual, *points, *table, 2) if ours else partial(compiled(residual), *points)
    if case.kernel == "flat_sgd_":
        changed = v["theta"], v["grad"], v["lr"]
        return partial(kernels.flat_sgd_, *changed, *table) if ours else partial(compiled(descend), *changed)
    leaf = v["theta"], v["grad"], v["buffer"], v["base"]
    if ours:
        return partial(kernels.sgd_ema_, *leaf, _LR, _MOMENTUM, _DECAY)
    return partial(compiled(sgd_ema), *leaf)


def flat_expected(case: Flat, v: dict[str, Tensor], layer: int, part: slice) -> tuple[list[Tensor], list[Tensor]]:
    """One layer in float64: the vectors that a kernel returns or changes, and the terms of its group's sums."""
    theta, base, grad, buffer, half = (v[n][part].double() for n in ("theta", "base", "grad", "buffer", "displacement"))
    factor = {n: (v["scale"] * v[f"beta_{n}"])[layer].double() for n in ("start", "target")}
    if case.kernel == "shortcut_point":
        return [base + factor["target"] * half], []
    if case.kernel in ("matching_residual", "vector_residual"):
        start, target = (base + factor[n] * half for n in ("start", "target"))
        if case.kernel == "vector_residual":
            start, target = base, grad
        off = theta - target
        sums = [off @ off, off @ (theta - start), (target - start) @ (target - start)]
        return [off], sums[: 3 if case.kernel == "vector_residual" else 2]
    if case.kernel == "flat_sgd_":
        return [theta - _LR * grad], []
    momentum = _MOMENTUM * buffer + grad
    param = theta - _LR * momentum
    return [param, momentum, _DECAY * base + (1 - _DECAY) * param], []


def flat_check(case: Flat, provider: str, device: torch.device) -> None:
    """Run once more on the initial tensors and compare with float64, layer by layer to save memory."""
    vectors.cache_clear()
    before, v = vectors(case, device), dict(vectors(case, device))
    changed = {"flat_sgd_": ["theta"], "sgd_ema_": ["theta", "buffer", "base"]}.get(case.kernel, [])
    v |= {name: v[name].clone() for name in changed}
    answer = flat_call(case, provider, v)()
    outputs = [v[name] for name in changed] or list(answer if isinstance(answer, tuple) else [answer])
    parts = [torch.zeros(2, dtype=torch.float64) for _ in outputs]
    sums: list[list[Tensor]] = [[], []]
    ends = [0, *accumulate(case.layer_sizes())]
    for layer, part in enumerate(map(slice, ends, ends[1:])):
        made, terms = flat_expected(case, before, layer, part)
        for n, expected in enumerate(made):
            off = outputs[n][part].double() - expected
            parts[n] += torch.stack([off @ off, expected @ expected]).cpu()
        if terms:
            sums[int(before["groups"][layer])].append(torch.stack(terms))
    # torch.dot in float32 loses digits over tens of millions of products.
    allowed = 1e-2 if provider == PLAIN else 1e-4
    for off, whole in parts[: len(made)]:
        assert float((off / whole).sqrt()) <= 1e-5, case
    for n, total in enumerate(outputs[len(made) :]):
        expected = torch.stack([torch.stack(group)[:, n].sum() for group in sums])
        assert float((total.double() - expected).norm() / expected.norm()) <= allowed, case


# The contrastive loss


@cache
def embeddings(case: Contrastive, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    draw: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    images = torch.randn(case.pairs, case.width, **draw)
    texts = images + torch.randn(case.pairs, case.width, **draw)
    labels = torch.rand(case.pairs, case.pairs, **draw) if case.labels == "dense" else None
    return F.normalize(images, dim=1), F.normalize(texts, dim=1), labels


def contrastive_call(case: Contrastive, provider: str, device: torch.device) -> Callable[[], list[Tensor]]:
    """Value and gradients of both embeddings, and of dense labels."""
    images, texts, labels = embeddings(case, device)
    leaves = [v.clone().requires_grad_() for v in (images, texts, labels) if v is not None]
    loss: Callable[..., Tensor]
    if provider == OPEN_CLIP:
        from open_clip.loss import ClipLoss

        # Made once: it caches the labels of a batch size.
        clip = ClipLoss(cache_labels=True)

        def loss(a: Tensor, b: Tensor) -> Tensor:
            value: Tensor = clip(a, b, 1 / _TEMPERATURE)
            return value
    else:
        function = kernels.soft_contrastive if provider == OURS_KERNEL else reference.soft_contrastive

        def loss(a: Tensor, b: Tensor, s: Tensor | None = None) -> Tensor:
            return function(a, b, s, kind=case.kind, temperature=_TEMPERATURE)

        if provider == COMPILED:
            loss = torch.compile(loss, fullgraph=True, dynamic=False)

    def call() -> list[Tensor]:
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    return call


@cache
def contrastive_expected(case: Contrastive, device: torch.device) -> list[Tensor]:
    """In float64; if not all logits fit in memory, the value and the gradient of the first images."""
    images, texts, labels = (None if v is None else v.double() for v in embeddings(case, device))
    assert images is not None and texts is not None
    if case.pairs <= 4096:
        leaves = [v.requires_grad_() for v in (images, texts, labels) if v is not None]
        value = reference.soft_contrastive(*leaves, kind=case.kind, temperature=_TEMPERATURE)
        return [value.detach(), *torch.autograd.grad(value, leaves)]
    assert case.kind == "infonce" and labels is None
    return infonce_in_blocks(images, texts, first=64)


def infonce_in_blocks(images: Tensor, texts: Tensor, first: int, rows: int = 1024) -> list[Tensor]:
    """InfoNCE with labels at the identity, so many rows of logits at a time; and the gradient of the `first` images."""
    # |z| ≤ 1/0.07, so float64 needs no peaks.
    n = len(images)
    row_sums, column_sums = torch.empty_like(images[:, 0]), torch.zeros_like(images[:, 0])
    for block in torch.arange(n, device=images.device).split(rows):
        weights = (images[block] @ texts.T / _TEMPERATURE).exp()
        row_sums[block] = weights.sum(1)
        column_sums += weights.sum(0)
    own = (images * texts).sum(1) / _TEMPERATURE
    weights = (images[:first] @ texts.T / _TEMPERATURE).exp()
    slopes = (weights / row_sums[:first, None] + weights / column_sums) / 2
    slopes.diagonal().sub_(1)
    along = slopes @ texts / (n * _TEMPERATURE)
    units = images[:first]
    value = (row_sums.log() + column_sums.log() - 2 * own).mean() / 2
    return [value, along - units * (along * units).sum(1, keepdim=True)]


def contrastive_check(case: Contrastive, provider: str, answer: list[Tensor], device: torch.device) -> None:
    """What a call returned, against float64."""
    expected = contrastive_expected(case, device)
    for a, b in zip(answer, expected, strict=False):
        part = a if a.dim() == 0 else a[: len(b)]
        if provider == OPEN_CLIP and a.dim():
            # It does not normalize the embeddings: its gradient has a part along them, ours has none.
            units = embeddings(case, device)[0 if a is answer[1] else 1]
            assert units is not None
            units = units[: len(b)]
            part = part - units * (part * units).sum(1, keepdim=True)
        # In float32 the definitions of kl and wbce lose digits where pairs are matched well.
        assert float((part.double() - b).norm() / b.norm()) <= (1e-4 if provider == OURS_KERNEL else 1e-2), case


def applies(case: Contrastive, provider: str) -> bool:
    """open_clip has this loss with hard labels only."""
    return provider != OPEN_CLIP or (case.kind == "infonce" and case.labels == "identity")


def lacking_memory(case: Contrastive, provider: str, device: torch.device) -> str | None:
    """Why a provider cannot be measured, in one line."""
    needed, free = case.needs() / 2**30, devices.free_bytes(device) / 2**30
    if provider == OURS_KERNEL or needed <= free:
        return None
    return f"{needed:.0f} GB needed for all pairs, {free:.0f} are free"
