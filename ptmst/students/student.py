"""Modules as pure functions of one flat parameter vector θ, cut into layers, which belong to groups."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ptmst.errors import InputError
from ptmst.students.frozen import FrozenTower
from ptmst.students.layers import LayerTable


class Student:
    """An image module and a text module as pure functions of θ [P]: their trainable parameters, images first.

    Parameters with `requires_grad=False` and all buffers are constants of the functions. A frozen image tower may
    stand before the image module: then θ holds heads only, and the tower computes features once
    (docs/method.md §4).
    """

    def __init__(
        self,
        image_module: nn.Module,
        text_module: nn.Module,
        layers: LayerTable,
        frozen: FrozenTower | None = None,
        bf16: bool = False,
    ) -> None:
        self.layers = layers
        self.frozen = frozen
        self._bf16 = bf16
        self._modules: tuple[nn.Module, ...] = (image_module, text_module)
        self._names = tuple(tuple(name for name, p in m.named_parameters() if p.requires_grad) for m in self._modules)

    @classmethod
    def from_modules(
        cls,
        image_module: nn.Module,
        text_module: nn.Module,
        *,
        tower: nn.Module | FrozenTower | None = None,
    ) -> Student:
        """Group 0 holds the image module's trainable parameters, group 1 the text module's, in registration order.

        `tower` is frozen here, and embeds images before the image module does. Raises InputError for modules that are
        no pure function of θ: BatchNorm or Dropout in train mode.
        """
        if isinstance(tower, nn.Module):
            _refuse_impure("tower", tower)
            tower = FrozenTower.of(tower)
        for prefix, module in (("image", image_module), ("text", text_module)):
            _refuse_impure(prefix, module)
        return cls(image_module, text_module, LayerTable.of(image=image_module, text=text_module), tower)

    @property
    def tower(self) -> nn.Module | None:
        """The frozen tower's module, which is built where it is not yet; None where no tower is frozen."""
        return None if self.frozen is None else self.frozen.built().tower

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The image module, the text module, and the tower where one is frozen."""
        tower = self.tower
        return self._modules if tower is None else (*self._modules, tower)

    @property
    def heads(self) -> Student:
        """The student behind its frozen tower: its "images" are features. Itself, where no tower is frozen."""
        image_module, text_module = self._modules
        return Student(image_module, text_module, self.layers, bf16=self._bf16 and self.frozen is None)

    def in_bf16(self) -> Student:
        """The same functions, computed in bfloat16; θ, inputs and embeddings stay float32."""
        image_module, text_module = self._modules
        return Student(image_module, text_module, self.layers, self.frozen, bf16=True)

    @property
    def device(self) -> torch.device:
        """The device of its modules."""
        return next(p for module in self._modules for p in module.parameters()).device

    def flatten(self) -> Tensor:
        """The modules' present parameters as a new vector θ [P]."""
        parameters = (p for module in self._modules for p in module.parameters() if p.requires_grad)
        return self.layers.flatten([p.detach() for p in parameters])

    @torch.no_grad()
    def take(self, theta: Tensor) -> None:
        """Give its modules the parameters θ [P], in place."""
        for group, part in enumerate(theta.split(self.layers.group_sizes)):
            named = dict(self._modules[group].named_parameters())
            for name, value in zip(self._names[group], self.layers.split_group(part, group), strict=True):
                named[name].copy_(value)

    def features(self, images: Tensor) -> Tensor:
        """What the frozen tower makes of images: [B, 3, H, W] → [B, Z]; the images, where no tower is frozen."""
        if self.frozen is None:
            return images
        with self._products(tower=True):
            return self.frozen(images, plain=self._bf16)

    def embed(self, theta: Tensor, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """`embed_images` and `embed_texts` of one θ, whose gradient is then put together once."""
        of_images, of_texts = theta.split(self.layers.group_sizes)
        return self._call(0, of_images, self.features(images)), self._call(1, of_texts, texts)

    def embed_images(self, theta: Tensor, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, H], not normalized."""
        return self._call(0, theta.split(self.layers.group_sizes)[0], self.features(images))

    def embed_texts(self, theta: Tensor, texts: Tensor) -> Tensor:
        """Text-tower embeddings [B, D] → [B, H], not normalized."""
        return self._call(1, theta.split(self.layers.group_sizes)[1], texts)

    def to(self, device: torch.device | str) -> Student:
        """Move its modules to a device, in place; returns the student."""
        for module in self._modules:
            module.to(device)
        if self.frozen is not None:
            self.frozen.to(device)
        return self

    def _call(self, group: int, part: Tensor, batch: Tensor) -> Tensor:
        named = dict(zip(self._names[group], self.layers.split_group(part, group), strict=True))
        # Heads are a thousandth of a tower's work, and near the loss, where small errors grow.
        with self._products(tower=group == 0 and self.frozen is None):
            out: Tensor = torch.func.functional_call(self._modules[group], named, (batch,))
        return out

    def _products(self, tower: bool) -> AbstractContextManager[None]:
        return _HalfProducts() if self._bf16 and tower else nullcontext()


_PRODUCTS = frozenset(
    {
        F.linear,
        F.conv1d,
        F.conv2d,
        F.conv3d,
        F.multi_head_attention_forward,  # while this mode handles it, what it calls is not seen
        F.scaled_dot_product_attention,
        torch.einsum,
        torch.matmul,
        torch.mm,
        torch.bmm,
        torch.addmm,
        torch.baddbmm,
        Tensor.matmul,
        Tensor.__matmul__,
        Tensor.mm,
        Tensor.bmm,
        Tensor.addmm,
        Tensor.baddbmm,
    }
)


class _HalfProducts(TorchFunctionMode):
    """Matrix products and convolutions of bfloat16 factors; all else, and what they return, stays as it is.

    torch.autocast does the same, but mixes types up inside function transforms.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func not in _PRODUCTS:
            return func(*args, **named)
        out = func(*map(_half, args), **{name: _half(value) for name, value in named.items()})
        return tuple(map(_whole, out)) if isinstance(out, tuple) else _whole(out)


def _half(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _whole(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _refuse_impure(prefix: str, module: nn.Module) -> None:
    for name, part in module.named_modules():
        label = f"{prefix} module, layer {name or '(itself)'}"
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (part.training or part.running_mean is None):
            raise InputError(
                f"{label}: BatchNorm in train mode makes the loss depend on more than θ; "
                "expected frozen statistics: call .eval() on it, or use a tower with group or layer norm"
            )
        if part.training and (p := _drop_probability(part)) > 0:
            raise InputError(
                f"{label}: dropout with p = {p} draws another mask at each use, so its outer gradient belongs to "
                "no loss; call .eval() on it or set p = 0"
            )


def _drop_probability(module: nn.Module) -> float:
    """Of dropout layers, of attention's own dropout, and of timm's DropPath, which is no torch class."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return float(module.p)
    if isinstance(module, nn.MultiheadAttention):
        return float(module.dropout)
    return float(getattr(module, "drop_prob", None) or 0.0)
