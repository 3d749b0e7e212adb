"""Which device a run uses."""

from __future__ import annotations

import torch

from ptmst.config import Device
from ptmst.errors import InputError


def pick(name: Device) -> torch.device:
    """The device of a config. Raises InputError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a CUDA device, found none; use --device cpu, or see `ptmst doctor`")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
