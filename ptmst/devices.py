"""Which device a run uses."""

from __future__ import annotations

import torch

from ptmst.errors import InputError


def pick(name: str) -> torch.device:
    """The device called auto, cpu or cuda; auto is CUDA where there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: expected auto, cpu or cuda, found {name}; mend the name")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a CUDA device, found none; use --device cpu, or see `ptmst doctor`")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
