"""A frozen tower: features once, one vector-Jacobian product back to the images (docs/method.md §4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ptmst.engine.compilation import Compiler
from ptmst.students.student import Student


def drawn(num_pairs: int, batches: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs to embed for `batches` (int64 [n, B]), and the row of each batch entry among them: [R], [n, B].

    R is known from shapes alone: all pairs, or one row for each batch entry where that is fewer. Then a pair that is
    drawn twice is embedded twice, and its gradient is the sum over its rows.
    """
    if num_pairs <= batches.numel():
        return torch.arange(num_pairs, device=batches.device), batches
    return batches.flatten(), torch.arange(batches.numel(), device=batches.device).view_as(batches)


class Features:
    """The tower's features of many images, `block` at a time, and the way back."""

    def __init__(self, student: Student, block: int, keep_activations: bool, compiler: Compiler | None) -> None:
        tower = student.features
        if student.frozen is not None:
            student.frozen.built()  # not while it is compiled
        self._tower = compiler(tower) if compiler is not None else tower
        self._block, self._keep_activations = block, keep_activations

    def __call__(self, images: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Features [R, Z] of images [R, 3, H, W], and the function from ∂L/∂features to ∂L/∂images.

        That function is to be called once: the activations it needs are kept, or computed again by block.
        """
        rows = len(images)
        # Blocks of one size: nothing is compiled twice. The padding's gradient is 0 and is cut off again.
        padding = images[:1].expand(-rows % self._block, *images.shape[1:])
        blocks = [block.detach().requires_grad_() for block in torch.cat([images, padding]).split(self._block)]
        with torch.set_grad_enabled(self._keep_activations):
            embedded = [self._tower(block) for block in blocks]
        features = torch.cat([part.detach() for part in embedded])

        def back(gradient: Tensor) -> Tensor:
            padded = torch.cat([gradient, gradient.new_zeros(len(features) - rows, *gradient.shape[1:])])
            parts = []
            for i, (block, share) in enumerate(zip(blocks, padded.split(self._block), strict=True)):
                with torch.enable_grad():
                    out = embedded[i] if self._keep_activations else self._tower(block)
                parts += torch.autograd.grad(out, block, share)
            return torch.cat(parts)[:rows]

        return features[:rows], back
