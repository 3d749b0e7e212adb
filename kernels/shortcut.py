"""Points of a shortcut trajectory, decoded from half precision."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ptmst.kernels import reference
from ptmst.kernels.dispatch import native


def shortcut_point(base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor) -> Tensor:
    """θ = base + β · scale · displacement, layer by layer (METHOD §2).

    base float32 [P], displacement float16 [P], scale and beta float32 [L], offsets int64 [L+1] → float32 [P].
    Every implementation gives the same bits. Raises ValueError for shapes or types that do not belong together; a
    gradient through it raises too.
    """
    _check(base, displacement, scale, offsets, beta)
    library = native()
    if library is None or base.device.type != "cpu":
        return reference.shortcut_point(base, displacement, scale, offsets, beta)
    base, displacement = base.contiguous(), displacement.contiguous()
    scale, offsets, beta = scale.contiguous(), offsets.cpu().contiguous(), beta.contiguous()
    theta = torch.empty_like(base)
    library.ptmst_shortcut_point(
        theta.data_ptr(),
        base.data_ptr(),
        displacement.data_ptr(),
        scale.data_ptr(),
        beta.data_ptr(),
        offsets.data_ptr(),
        len(scale),
        torch.get_num_threads(),
    )
    return theta


def _check(base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor) -> None:
    parameters, layers = base.numel(), scale.numel()
    expected = {
        "base": (base, torch.float32, (parameters,)),
        "displacement": (displacement, torch.float16, (parameters,)),
        "scale": (scale, torch.float32, (layers,)),
        "offsets": (offsets, torch.int64, (layers + 1,)),
        "beta": (beta, torch.float32, (layers,)),
    }
    for name, (tensor, dtype, shape) in expected.items():
        if tensor.dtype != dtype or tensor.shape != shape:
            raise ValueError(
                f"{name}: expected {dtype} of shape {shape}, found {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(f"{name}: expected a tensor without gradient, since this kernel has none; detach it")
        if name != "offsets" and tensor.device != base.device:
            raise ValueError(f"{name}: expected it on {base.device}, as base is, found it on {tensor.device}")
    ends = offsets.tolist()
    if ends[0] != 0 or ends[-1] != parameters or any(b < a for a, b in pairwise(ends)):
        raise ValueError(f"offsets: expected them to rise from 0 to {parameters}, found {ends[0]} … {ends[-1]}")
