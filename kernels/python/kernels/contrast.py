"""The soft-label contrastive losses in tiles: no N × N matrix in memory, except labels that are given as one.

Image rows are processed in blocks. One matrix product gives the logits of a block against all texts, a kernel
overwrites them with ∂ℓ/∂z, and two more products accumulate the gradients of the embeddings. With z = x̂ŷᵀ/τ + b:

    pairwise losses    ℓ = Σ_ij w_ij f(z_ij, S_ij)                      one pass over the blocks
    softmax losses     ℓ = ½ Σ_rows r(z_i, S_i) + ½ Σ_columns r(…)      one pass for the statistics of rows and columns
                                                                        (steps.py), one for the gradients
    ∂ℓ/∂x̂ = (∂ℓ/∂z) ŷ/τ     ∂ℓ/∂ŷ = (∂ℓ/∂z)ᵀ x̂/τ     ∂ℓ/∂τ = −Σ (∂ℓ/∂z)(x̂ŷᵀ/τ)/τ     ∂ℓ/∂b = Σ ∂ℓ/∂z
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptmst.kernels import reference
from ptmst.kernels.dispatch import TiledImplementation, implementation, in_tiles
from ptmst.kernels.layout import check
from ptmst.kernels.ops import below_autograd, once, register
from ptmst.kernels.reference import LOSSES, LowRank
from ptmst.kernels.steps import NUM_STATS

_PAIRWISE = ("wbce", "bce", "mse", "siglip")
_TILE = {"cpu": 1 << 24, "cuda": 1 << 25}
"""Logits per block: 64 MB or 128 MB."""


def soft_contrastive(
    image_embeds: Tensor,
    text_embeds: Tensor,
    similarity: Tensor | LowRank | None = None,
    *,
    kind: str = "wbce",
    temperature: float | Tensor = 0.07,
    bias: float | Tensor = 0.0,
) -> Tensor:
    """The loss of `kind` between image_embeds and text_embeds [N, H] under soft labels S → scalar (docs/method.md §1).

    Kinds: wbce, bce, mse, infonce, kl, cwcl, and siglip (a sum over pairs, divided by N). logits = cosine / temperature
    + bias; embeddings need not be normalized. S is dense [N, N], a `LowRank` that is never formed, or None for the
    identity. Embeddings are float32 or bfloat16 (with products in bfloat16 on CUDA); float64 runs in plain torch.
    Differentiable once: in the embeddings, S or its factors, and in temperature and bias where they are tensors.
    Gradients are computed together with the value. Memory: a block of logits (64 MB on a CPU, 128 MB on CUDA), unit
    copies of the embeddings, and gradients. torch.autocast has no effect inside. Raises ValueError for an unknown kind
    and for shapes or types that do not match.
    """
    if kind not in LOSSES:
        raise ValueError(f"kind: expected {', '.join(LOSSES)}, found {kind}")
    if similarity is None:
        labels, alpha = [], 0.0
    elif isinstance(similarity, Tensor):
        labels, alpha = [similarity], 0.0
    else:
        labels, alpha = [similarity.diag, similarity.left, similarity.right], float(similarity.alpha)
    wide, device = torch.float64, image_embeds.device
    numbers = (
        v.to(device) if isinstance(v, Tensor) else torch.full((), v, dtype=wide, device=device)
        for v in (temperature, bias)
    )
    value: Tensor = _VALUE_OP(image_embeds, text_embeds, *numbers, labels, alpha, kind)
    return value


class _Inputs(NamedTuple):
    """The arguments of the op."""

    image_embeds: Tensor
    text_embeds: Tensor
    temperature: Tensor
    bias: Tensor
    labels: list[Tensor]
    """Empty for the identity, [S], or [diag, left, right]."""
    alpha: float
    kind: str

    @property
    def similarity(self) -> Tensor | LowRank | None:
        if len(self.labels) == 3:
            diag, left, right = self.labels
            return _Factors(diag, left, right, self.alpha)
        return self.labels[0] if self.labels else None


def _inputs(tensors: Sequence[Tensor], alpha: float, kind: str) -> _Inputs:
    image_embeds, text_embeds, temperature, bias, *labels = tensors
    return _Inputs(image_embeds, text_embeds, temperature, bias, labels, alpha, kind)


class _Factors(NamedTuple):
    diag: Tensor
    left: Tensor
    right: Tensor
    alpha: float


def _check(inputs: _Inputs) -> None:
    image_embeds, labels = inputs.image_embeds, inputs.labels
    if image_embeds.dim() != 2 or len(image_embeds) == 0:
        raise ValueError(f"image_embeds: expected shape [N, H], found {tuple(image_embeds.shape)}")
    n, dtype = len(image_embeds), image_embeds.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise ValueError(f"image_embeds: expected float32, bfloat16 or float64, found {dtype}")
    expected = {
        "image_embeds": (image_embeds, dtype, tuple(image_embeds.shape)),
        "text_embeds": (inputs.text_embeds, dtype, tuple(image_embeds.shape)),
        "temperature": (inputs.temperature, inputs.temperature.dtype, ()),
        "bias": (inputs.bias, inputs.bias.dtype, ()),
    }
    if len(labels) == 1:
        expected["similarity"] = (labels[0], labels[0].dtype, (n, n))
    elif labels:
        rank = labels[1].shape[-1]
        shapes = {"diag": (n,), "left": (n, rank), "right": (n, rank)}
        expected |= {name: (v, v.dtype, shapes[name]) for name, v in zip(shapes, labels, strict=True)}
    check(expected)


class _Labels:
    """Soft labels by blocks of rows, and the gradients of the tensors that they are made of."""

    def __init__(self, labels: list[Tensor], alpha: float, differentiate: bool) -> None:
        self._labels = [v.float().contiguous() for v in labels]
        self._factor = alpha / labels[1].shape[1] if len(labels) == 3 else 0.0
        self._differentiate = differentiate and bool(labels)
        self.gradients = [torch.empty_like(v) for v in self._labels] if self._differentiate else []

    def rows(self, block: slice) -> Tensor | None:
        if len(self._labels) != 3:
            return self._labels[0][block] if self._labels else None
        diag, left, right = self._labels
        rows = torch.mm(left[block] * self._factor, right.T)
        rows.diagonal(block.start).add_(diag[block])
        return rows

    def gradient(self, block: slice, like: Tensor) -> Tensor | None:
        """The buffer for ∂ℓ/∂S of these rows; None where it is not needed."""
        if not self._differentiate:
            return None
        return self.gradients[0][block] if len(self._labels) == 1 else torch.empty_like(like)

    def add(self, block: slice, gradient: Tensor | None) -> None:
        """Accumulate ∂ℓ/∂S of a block of rows."""
        if gradient is None or len(self._labels) != 3:
            return
        _, left, right = self._labels
        d_diag, d_left, d_right = self.gradients
        d_diag[block] = gradient.diagonal(block.start)
        torch.mm(gradient, right, out=d_left[block]).mul_(self._factor)
        d_right.addmm_(gradient.T, left[block], alpha=self._factor, beta=_beta(block))

    def positives(self, blocks: list[slice]) -> Tensor | None:
        """The number of pairs with S > ½; None for the identity."""
        counts = [(rows > 0.5).sum() for block in blocks if (rows := self.rows(block)) is not None]
        return torch.stack(counts).sum() if len(counts) > 1 else counts[0] if counts else None


class _Embeddings:
    """Unit embeddings, those of images divided by the temperature, and the matrix products with them."""

    def __init__(self, tiles: TiledImplementation, inputs: _Inputs) -> None:
        self._tiles, self._temperature, self._type = tiles, inputs.temperature, inputs.image_embeds.dtype
        raw = inputs.image_embeds.contiguous(), inputs.text_embeds.contiguous()
        half = self._type == torch.bfloat16 and raw[0].is_cuda
        self._factors = torch.bfloat16 if half else torch.float32
        self._sums: dict[str, Any] = {"out_dtype": torch.float32} if half else {}
        self._units, self._scales = tiles.unit_pairs(*raw, self._temperature, self._factors)
        self._gradients = torch.empty_like(raw[0], dtype=torch.float32), torch.empty_like(raw[1], dtype=torch.float32)

    def cosines(self, block: slice) -> Tensor:
        """Cosines over the temperature, of a block of images with all texts."""
        images, texts = self._units
        return torch.mm(images[block], texts.T, **self._sums)

    def add(self, block: slice, slopes: Tensor) -> None:
        """Accumulate ∂ℓ/∂z of a block of rows, the first block first."""
        (images, texts), (of_images, of_texts) = self._units, self._gradients
        slopes = slopes.to(self._factors)
        torch.mm(slopes, texts, out=of_images[block], **self._sums)
        torch.addmm(of_texts, slopes.T, images[block], beta=_beta(block), out=of_texts, **self._sums)

    def gradients(self) -> list[Tensor]:
        """∂ℓ/∂image_embeds and ∂ℓ/∂text_embeds."""
        return self._tiles.through_norms(self._gradients, self._units, self._scales, self._temperature, self._type)


def _beta(block: slice) -> int:
    """The factor of what an accumulator holds: 0 for the first block, 1 for the others."""
    return int(block.start > 0)


def _tiled(tiles: TiledImplementation, inputs: _Inputs, differentiate: bool, of_labels: bool) -> list[Tensor]:
    """The loss and, to `differentiate`, its gradients in image_embeds, text_embeds, temperature, bias and, with
    `of_labels`, labels."""
    # Autocast would compute products in half precision, and the kernels read float32.
    with torch.autocast(inputs.image_embeds.device.type, enabled=False):
        return _over_blocks(tiles, inputs, differentiate, of_labels)


def _over_blocks(tiles: TiledImplementation, inputs: _Inputs, differentiate: bool, of_labels: bool) -> list[Tensor]:
    n = len(inputs.image_embeds)
    embeddings, soft = _Embeddings(tiles, inputs), _Labels(inputs.labels, inputs.alpha, of_labels)
    blocks = list(_blocks(n, max(1, _TILE[inputs.image_embeds.device.type] // n)))
    over = _pairwise if inputs.kind in _PAIRWISE else _softmax
    sums = over(tiles, inputs, embeddings, soft, blocks, differentiate)
    value, *numbers = tiles.totals(*sums, inputs.temperature, inputs.bias, inputs.image_embeds.dtype)
    if not differentiate:
        return [value]
    of_soft = [gradient.to(v.dtype) for gradient, v in zip(soft.gradients, inputs.labels, strict=False)]
    return [value, *embeddings.gradients(), *numbers, *of_soft]


def _pairwise(
    tiles: TiledImplementation,
    inputs: _Inputs,
    embeddings: _Embeddings,
    soft: _Labels,
    blocks: list[slice],
    differentiate: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    positives = soft.positives(blocks) if inputs.kind == "wbce" else None
    sums = []
    for block in blocks:
        z, rows = embeddings.cosines(block), soft.rows(block)
        d_rows = soft.gradient(block, z)
        sums.append(tiles.pairwise(inputs.kind, z, rows, d_rows, block.start, inputs.bias, positives, differentiate))
        if differentiate:
            embeddings.add(block, z)
            soft.add(block, d_rows)
        del z, rows, d_rows  # to free them before the next block is allocated
    losses, along, slopes = map(_joined, zip(*sums, strict=True))
    return (losses, along, slopes) if differentiate else (losses, None, None)


def _softmax(
    tiles: TiledImplementation,
    inputs: _Inputs,
    embeddings: _Embeddings,
    soft: _Labels,
    blocks: list[slice],
    differentiate: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    n, device, form = len(inputs.image_embeds), inputs.bias.device, "kl" if inputs.kind == "kl" else "linear"
    shapes = (n, NUM_STATS), (NUM_STATS, n)
    rows, columns = (torch.empty(shape, dtype=torch.float64, device=device) for shape in shapes)
    z = None
    for block in blocks:
        z = None
        z = embeddings.cosines(block)
        tiles.softmax_stats(form, z, soft.rows(block), block.start, rows[block], columns)
    of_rows, of_columns, losses = tiles.softmax_coefficients(inputs.kind, rows, columns)
    if not differentiate:
        return losses, None, None
    sums = []
    for block in blocks:
        if z is None or len(blocks) > 1:  # the logits of a single block are still there
            z = None
            z = embeddings.cosines(block)
        d_rows = soft.gradient(block, z)
        of_block = of_rows[block]
        sums.append(tiles.softmax_gradient(form, z, soft.rows(block), d_rows, block.start, of_block, of_columns))
        embeddings.add(block, z)
        soft.add(block, d_rows)
    # A softmax does not depend on a bias.
    return losses, _joined(sums), None


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _blocks(n: int, size: int) -> Iterator[slice]:
    for first in range(0, n, size):
        yield slice(first, min(n, first + size))


def _plain(inputs: _Inputs) -> Tensor:
    """By the definition, with all pairs in memory."""
    with torch.autocast(inputs.image_embeds.device.type, enabled=False):
        return reference.soft_contrastive(
            inputs.image_embeds,
            inputs.text_embeds,
            inputs.similarity,
            kind=inputs.kind,
            temperature=inputs.temperature,
            bias=inputs.bias,
        )


def _tiles(image_embeds: Tensor) -> TiledImplementation | None:
    """None: the definition runs, in plain torch."""
    kernels = implementation(image_embeds)
    return kernels if in_tiles(kernels) else None


def _run_value(*args: Any) -> Tensor:
    inputs = _Inputs(*args)
    _check(inputs)
    tiles = _tiles(inputs.image_embeds)
    return _plain(inputs) if tiles is None else _tiled(tiles, inputs, differentiate=False, of_labels=False)[0]


def _run_gradients(*args: Any) -> list[Tensor]:
    inputs, of_labels = _Inputs(*args[:-1]), args[-1]
    _check(inputs)
    tiles = _tiles(inputs.image_embeds)
    assert tiles is not None
    return _tiled(tiles, inputs, differentiate=True, of_labels=of_labels)


def _fake_value(*args: Any) -> Tensor:
    inputs = _Inputs(*args)
    _check(inputs)
    return inputs.image_embeds.new_empty(())


def _fake_gradients(*args: Any) -> list[Tensor]:
    inputs, of_labels = _Inputs(*args[:-1]), args[-1]
    differentiable = [*inputs[:4], *(inputs.labels if of_labels else [])]
    gradients = (torch.empty_like(v, memory_format=torch.contiguous_format) for v in differentiable)
    return [_fake_value(*inputs), *gradients]


class _Loss(torch.autograd.Function):
    """The forward pass computes the gradients too; the backward pass only scales them."""

    @staticmethod
    def forward(ctx: Any, alpha: float, kind: str, *tensors: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[2:]
        if _tiles(tensors[0]) is None:
            leaves = [v.detach().requires_grad_(n) for v, n in zip(tensors, wanted, strict=True)]
            inputs = _inputs(leaves, alpha, kind)
            _check(inputs)
            with torch.enable_grad(), torch.autocast(leaves[0].device.type, enabled=False):
                value = _plain(inputs)
                gradients = list(torch.autograd.grad(value, [v for v in leaves if v.requires_grad]))
            value, ctx.computed = value.detach(), wanted
        else:
            inputs = _inputs(tensors, alpha, kind)
            value, *gradients = below_autograd(_GRADIENTS_OP, *inputs, any(wanted[4:]))
            ctx.computed = [True] * len(gradients)
        ctx.save_for_backward(*tensors, *gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        count = len(ctx.needs_input_grad) - 2
        inputs, gradients = ctx.saved_tensors[:count], iter(ctx.saved_tensors[count:])
        of_inputs = [next(gradients) if computed else None for computed in ctx.computed]
        of_inputs += [None] * (count - len(of_inputs))
        with torch.no_grad():
            scaled = [
                gradient * incoming[0] if gradient is not None and wanted else None
                for gradient, wanted in zip(of_inputs, ctx.needs_input_grad[2:], strict=True)
            ]
        return None, None, *once("soft_contrastive", scaled, [*inputs, *incoming])


def _with_gradient(*args: Any) -> Any:
    inputs = _Inputs(*args)
    return _Loss.apply(inputs.alpha, inputs.kind, *inputs[:4], *inputs.labels)


_SIGNATURE = (
    "(Tensor image_embeds, Tensor text_embeds, Tensor temperature, Tensor bias, Tensor[] labels, float alpha, str kind"
)
_VALUE_OP = register(f"soft_contrastive{_SIGNATURE}) -> Tensor", _run_value, _fake_value, _with_gradient)
_GRADIENTS_OP = register(
    f"soft_contrastive_gradients{_SIGNATURE}, bool of_labels) -> Tensor[]", _run_gradients, _fake_gradients
)
