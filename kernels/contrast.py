"""The soft-label contrastive losses in tiles: no matrix of all pairs against all pairs but the labels' own.

Image rows are taken in blocks. The logits of a block against all texts are one matrix product; a kernel turns them
into ∂ℓ/∂logits where they lie, and two more products add up the embeddings' gradients. With z = x̂ ŷᵀ/τ + b:

    pairwise losses    ℓ = Σ_ij w_ij f(z_ij, S_ij)                      one pass over the blocks
    softmax losses     ℓ = ½ Σ_rows r(z_i, S_i) + ½ Σ_columns r(…)      a pass that gathers log Σ exp z and what the
                                                                        loss needs of S, and a pass for gradients
    ∂ℓ/∂x̂ = (∂ℓ/∂z) ŷ/τ     ∂ℓ/∂ŷ = (∂ℓ/∂z)ᵀ x̂/τ     ∂ℓ/∂τ = −Σ (∂ℓ/∂z)(z − b)/τ     ∂ℓ/∂b = Σ ∂ℓ/∂z
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ptmst.kernels import reference
from ptmst.kernels.dispatch import implementation
from ptmst.kernels.layout import check
from ptmst.kernels.ops import below_autograd, once, register
from ptmst.kernels.reference import LOSSES, LowRank

_PAIRWISE = ("wbce", "bce", "mse", "siglip")
_TILE = {"cpu": 1 << 24, "cuda": 1 << 25}
"""Logits of a block: 64 MB or 128 MB of them."""
_LOWEST = -3.4e38
_EPS = 1e-6
_SMALLEST_NORM = 1e-12
"""As torch's normalize has it."""


def soft_contrastive(
    image_embeds: Tensor,
    text_embeds: Tensor,
    similarity: Tensor | LowRank | None = None,
    *,
    kind: str = "wbce",
    temperature: float | Tensor = 0.07,
    bias: float | Tensor = 0.0,
) -> Tensor:
    """The loss of `kind` between image_embeds and text_embeds [N, H] under soft labels S → scalar (METHOD §1).

    Kinds: wbce, bce, mse, infonce, kl, cwcl, and siglip (a sum over pairs, by N). logits = cosine / temperature +
    bias; embeddings need not be normalised. S is dense [N, N], a `LowRank` that is never formed, or the identity
    where it is None. Embeddings are float32 or bfloat16 (whose products run in bfloat16 on CUDA); float64 runs in
    plain torch. Differentiable once: in the embeddings, S or its factors, and in temperature and bias where they are
    tensors. Gradients are found together with the value. Memory: a block of logits, 64 MB on a CPU and 128 MB on
    CUDA, unit copies of the embeddings, and gradients. torch.autocast is without effect inside. Raises ValueError for
    a kind or shapes that there are not.
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
    """The op's arguments."""

    image_embeds: Tensor
    text_embeds: Tensor
    temperature: Tensor
    bias: Tensor
    labels: list[Tensor]
    """None: S is the identity; S; or diag, left and right."""
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


class Tiles(Protocol):
    """A device's kernels on a tile: logits z [B, N], contiguous, whose row 0 is the partner of column `first`.

    labels [B, N] with unit stride along rows; none: S is the identity. z becomes ∂ℓ/∂z where it lies, and d_labels
    [B, N] takes ∂ℓ/∂S where it is given. Sums are added to.
    """

    def pairwise(
        self,
        kind: str,
        z: Tensor,
        labels: Tensor | None,
        d_labels: Tensor | None,
        first: int,
        weights: Tensor,
        differentiate: bool,
        sums: Tensor,
    ) -> None:
        """weights float32 [2] of pairs with S > ½ and of the rest; sums float64 [4]: ℓ without its weight of the
        one and of the other, Σ z ∂ℓ/∂z, Σ ∂ℓ/∂z. Without `differentiate` z stays."""

    def lines(self, kind: str, z: Tensor, labels: Tensor | None, first: int, rows: Tensor, columns: Tensor) -> None:
        """rows float64 [B, 5] is written, columns float64 [5, N] goes on from tile to tile. m = max z and Σ exp(z −
        m) are numbers 0 and 2; linear losses: Σ S, Σ S (z − m) are 3 and 4; kl, with x = 10 S: m′ = max x is 1,
        Σ exp(x − m′), Σ exp(x − m′)((x − m′) − (z − m)) are 3 and 4."""

    def softmax(
        self,
        kind: str,
        z: Tensor,
        labels: Tensor | None,
        d_labels: Tensor | None,
        first: int,
        rows: Tensor,
        columns: Tensor,
        sums: Tensor,
    ) -> None:
        """rows float32 [B, 5], columns float32 [5, N]: m = max z and w = a/Σ exp(z − m), so that a times the softmax p
        of z is w exp(z − m); then of linear losses u, v with ∂ℓ/∂z = (a p − u S)/2, ∂ℓ/∂S = −u (z − v)/2; of kl, with
        q the softmax of x = 10 S, m′ = max x, a/Σ exp(x − m′), v with ∂ℓ/∂z = a (p − q)/2, ∂ℓ/∂S = 5 a q (x − z − v).
        Rows and columns add up. sums float64 [2]: Σ z ∂ℓ/∂z, Σ ∂ℓ/∂z."""


class _Labels:
    """Soft labels by blocks of rows, and the gradient of what they are made of."""

    def __init__(self, labels: list[Tensor], alpha: float, differentiate: bool) -> None:
        self._labels = [v.float().contiguous() for v in labels]
        self._factor = alpha / labels[1].shape[1] if len(labels) == 3 else 0.0
        self._differentiate = differentiate and bool(labels)
        self.gradients = [torch.zeros_like(v) for v in self._labels] if self._differentiate else []

    def rows(self, block: slice) -> Tensor | None:
        if len(self._labels) != 3:
            return self._labels[0][block] if self._labels else None
        diag, left, right = self._labels
        rows = torch.mm(left[block] * self._factor, right.T)
        rows.diagonal(block.start).add_(diag[block])
        return rows

    def gradient(self, block: slice, like: Tensor) -> Tensor | None:
        """Where a tile's kernel writes ∂ℓ/∂S of these rows."""
        if not self._differentiate:
            return None
        return self.gradients[0][block] if len(self._labels) == 1 else torch.empty_like(like)

    def add(self, block: slice, gradient: Tensor | None) -> None:
        if gradient is None or len(self._labels) != 3:
            return
        _, left, right = self._labels
        d_diag, d_left, d_right = self.gradients
        d_diag[block] = gradient.diagonal(block.start)
        torch.mm(gradient, right, out=d_left[block]).mul_(self._factor)
        d_right.addmm_(gradient.T, left[block], alpha=self._factor)

    def positives(self, blocks: list[slice], n: int, device: torch.device) -> Tensor:
        """How many of all pairs have S > ½."""
        if not self._labels:
            return torch.full((), float(n), dtype=torch.float64, device=device)
        counts = [(rows > 0.5).sum() for block in blocks if (rows := self.rows(block)) is not None]
        return torch.stack(counts).sum().double()


class _Found(NamedTuple):
    value: Tensor
    gradients: list[Tensor]
    """Of image_embeds, text_embeds, temperature, bias, and the labels where they are asked for; or none."""


class _Embeddings:
    """Unit embeddings, the images' over the temperature, and the products that logits and gradients are made of."""

    def __init__(self, inputs: _Inputs) -> None:
        self.temperature, self.bias = inputs.temperature.float(), inputs.bias.float()
        self._raw = inputs.image_embeds.contiguous(), inputs.text_embeds.contiguous()
        norms = [v.float().norm(dim=1, keepdim=True).clamp_min(_SMALLEST_NORM) for v in self._raw]
        self._scales = norms[0] * self.temperature, norms[1]
        self._half = inputs.image_embeds.dtype == torch.bfloat16 and inputs.image_embeds.is_cuda
        dtype = torch.bfloat16 if self._half else torch.float32
        self._units = tuple((v / scale).to(dtype) for v, scale in zip(self._raw, self._scales, strict=True))
        self._gradients = tuple(torch.empty_like(v, dtype=torch.float32) for v in self._raw)

    def logits(self, block: slice) -> Tensor:
        images, texts = self._units
        if self._half:
            return torch.mm(images[block], texts.T, out_dtype=torch.float32).add_(self.bias)
        return torch.addmm(self.bias, images[block], texts.T)

    def add(self, block: slice, slopes: Tensor) -> None:
        """Take ∂ℓ/∂z of a block of rows in; the first block is the first to come."""
        (images, texts), (of_images, of_texts) = self._units, self._gradients
        if self._half:
            slopes = slopes.bfloat16()
            of_images[block] = torch.mm(slopes, texts, out_dtype=torch.float32)
            along = torch.mm(slopes.T, images[block], out_dtype=torch.float32)
            of_texts.copy_(along) if block.start == 0 else of_texts.add_(along)
        else:
            torch.mm(slopes, texts, out=of_images[block])
            if block.start == 0:
                torch.mm(slopes.T, images[block], out=of_texts)
            else:
                of_texts.addmm_(slopes.T, images[block])

    def gradients(self) -> list[Tensor]:
        """Of the embeddings as they were given: across their directions, over their lengths."""
        found = []
        lengths = self.temperature.reciprocal(), torch.ones_like(self.temperature)
        scaled = zip(self._gradients, self._units, self._scales, lengths, self._raw, strict=True)
        for gradient, vector, scale, length, raw in scaled:
            radial = (gradient * vector).sum(1, keepdim=True) / length.square()
            found.append(gradient.addcmul_(vector, radial, value=-1).div_(scale).to(raw.dtype))
        return found


def _tiled(tiles: Tiles, inputs: _Inputs, differentiate: bool, of_labels: bool) -> _Found:
    # Autocast would make the products half, and kernels read float32.
    with torch.autocast(inputs.image_embeds.device.type, enabled=False):
        return _over_blocks(tiles, inputs, differentiate, of_labels)


def _over_blocks(tiles: Tiles, inputs: _Inputs, differentiate: bool, of_labels: bool) -> _Found:
    n, device = len(inputs.image_embeds), inputs.image_embeds.device
    embeddings, soft = _Embeddings(inputs), _Labels(inputs.labels, inputs.alpha, of_labels)
    blocks = list(_blocks(n, max(1, _TILE[device.type] // n)))
    over = _pairwise if inputs.kind in _PAIRWISE else _softmax
    value, along, slopes = over(tiles, inputs.kind, embeddings, soft, blocks, n, differentiate)
    value = value.to(inputs.image_embeds.dtype)
    if not differentiate:
        return _Found(value, [])
    of_temperature = -(along - embeddings.bias * slopes) / embeddings.temperature
    numbers = [of_temperature.to(inputs.temperature.dtype), slopes.to(inputs.bias.dtype)]
    of_soft = [gradient.to(v.dtype) for gradient, v in zip(soft.gradients, inputs.labels, strict=False)]
    return _Found(value, [*embeddings.gradients(), *numbers, *of_soft])


def _pairwise(
    tiles: Tiles, kind: str, embeddings: _Embeddings, soft: _Labels, blocks: list[slice], n: int, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    device = embeddings.bias.device
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    if kind == "wbce":
        positive = soft.positives(blocks, n, device)
        weights = 0.5 / (torch.stack([positive, n * n - positive]) + _EPS)
    else:
        weights = torch.full((2,), 1 / n if kind == "siglip" else 1 / n**2, dtype=torch.float64, device=device)
    for block in blocks:
        z, rows = embeddings.logits(block), soft.rows(block)
        d_rows = soft.gradient(block, z)
        tiles.pairwise(kind, z, rows, d_rows, block.start, weights.float(), differentiate, sums)
        if differentiate:
            embeddings.add(block, z)
            soft.add(block, d_rows)
        del z, rows, d_rows  # before the next block takes as much
    return (sums[:2] * weights).sum(), sums[2], sums[3]


def _softmax(
    tiles: Tiles, kind: str, embeddings: _Embeddings, soft: _Labels, blocks: list[slice], n: int, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    form, device = "kl" if kind == "kl" else "linear", embeddings.bias.device
    rows = torch.empty(n, 5, dtype=torch.float64, device=device)
    columns = torch.zeros(5, n, dtype=torch.float64, device=device)
    columns[:2] = _LOWEST
    z = None
    for block in blocks:
        z = None
        z = embeddings.logits(block)
        tiles.lines(form, z, soft.rows(block), block.start, rows[block], columns)
    (of_rows, row_value), (of_columns, column_value) = (_line(kind, numbers, n) for numbers in (rows.T, columns))
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    if differentiate:
        of_rows = of_rows.T.contiguous()
        for block in blocks:
            if z is None or len(blocks) > 1:  # a single block's logits are still there
                z = None
                z = embeddings.logits(block)
            d_rows = soft.gradient(block, z)
            tiles.softmax(form, z, soft.rows(block), d_rows, block.start, of_rows[block], of_columns, sums)
            embeddings.add(block, z)
            soft.add(block, d_rows)
    # A bias takes no part in a softmax.
    return (row_value + column_value) / 2, sums[0] - embeddings.bias * sums[1], torch.zeros_like(sums[1])


def _line(kind: str, numbers: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Of rows or columns [5, N] as `Tiles.lines` leaves them: what `Tiles.softmax` takes [5, N], and the loss."""
    peak, sharp_peak, total, second, third = numbers
    log_total = total.log()
    if kind == "kl":
        a, mean = 1 / n**2, third / second
        of_line = [peak, a / total, sharp_peak, a / second, mean + sharp_peak - peak]
        return torch.stack(of_line).float(), a * (mean - second.log() + log_total).sum()
    # The line's loss is −u Σ S log p.
    weight = second + _EPS if kind == "cwcl" else torch.ones_like(second)
    u, sum_log = 1 / (n * weight), third - second * log_total
    v = peak + log_total + (sum_log / weight if kind == "cwcl" else 0)
    return torch.stack([peak, second * u / total, u, v, u]).float(), -(u * sum_log).sum()


def _blocks(n: int, size: int) -> Iterator[slice]:
    for first in range(0, n, size):
        yield slice(first, min(n, first + size))


def _plain(inputs: _Inputs) -> Tensor:
    """By the definition, all pairs in memory."""
    with torch.autocast(inputs.image_embeds.device.type, enabled=False):
        return reference.soft_contrastive(
            inputs.image_embeds,
            inputs.text_embeds,
            inputs.similarity,
            kind=inputs.kind,
            temperature=inputs.temperature,
            bias=inputs.bias,
        )


def _tiles(image_embeds: Tensor) -> Tiles | None:
    """None: plain torch runs."""
    kernels: Any = implementation(image_embeds)
    return None if kernels is reference else kernels


def _run_value(*args: Any) -> Tensor:
    inputs = _Inputs(*args)
    _check(inputs)
    tiles = _tiles(inputs.image_embeds)
    return _plain(inputs) if tiles is None else _tiled(tiles, inputs, differentiate=False, of_labels=False).value


def _run_gradients(*args: Any) -> list[Tensor]:
    inputs, of_labels = _Inputs(*args[:-1]), args[-1]
    _check(inputs)
    tiles = _tiles(inputs.image_embeds)
    assert tiles is not None
    value, gradients = _tiled(tiles, inputs, differentiate=True, of_labels=of_labels)
    return [value, *gradients]


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
    """The gradients are there when the value is: a backward pass only scales them."""

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
            value, ctx.there = value.detach(), wanted
        else:
            inputs = _inputs(tensors, alpha, kind)
            value, *gradients = below_autograd(_GRADIENTS_OP, *inputs, any(wanted[4:]))
            ctx.there = [True] * len(gradients)
        ctx.save_for_backward(*tensors, *gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        count = len(ctx.needs_input_grad) - 2
        inputs, gradients = ctx.saved_tensors[:count], iter(ctx.saved_tensors[count:])
        found = [next(gradients) if there else None for there in ctx.there]
        found += [None] * (count - len(found))
        with torch.no_grad():
            scaled = [
                gradient * incoming[0] if gradient is not None and wanted else None
                for gradient, wanted in zip(found, ctx.needs_input_grad[2:], strict=True)
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
