"""Whether an outer step is compiled, and with what."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from ptmst.config import Compile
from ptmst.errors import InputError
from ptmst.support import folders
from ptmst.support.torch_compat import compile_alone

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
_LOG = logging.getLogger(__name__)
_CACHE = "TORCHINDUCTOR_CACHE_DIR"
# Deterministic: without it Inductor times kernels and keeps the fastest, whose sums may run in another order each time.
_OPTIONS: dict[str, Any] = {"fullgraph": True, "dynamic": False, "options": {"deterministic": True}}


def compiler(mode: Compile, device: torch.device) -> Compiler | None:
    """The compiler for `mode`, without graph breaks; None for eager execution.

    `auto` compiles on CUDA only: on a CPU a big tower takes minutes. What was compiled is kept for later runs in the
    user's cache folder. The same function compiles to the same bits every time, on one machine. Raises InputError
    where `on` lacks a compiler.
    """
    if mode == "off" or (mode == "auto" and device.type != "cuda"):
        return None
    # First of all: torch settles on a folder that does not last as soon as its compiler is asked for anything.
    os.environ.setdefault(_CACHE, str(folders.cache_folder() / "compiled"))
    if (lacking := _lacking(device)) is not None:
        if mode == "on":
            raise InputError(f"compile on: expected {lacking}, found none; install it, or use --compile off")
        _LOG.warning("compile auto: %s is missing, outer steps run eagerly (slower, same results)", lacking)
        return None

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        # Steps of several students share their code.
        return compile_alone(function, **_OPTIONS)

    return compiled


def compiles(mode: Compile, device: torch.device) -> bool:
    """Whether `compiler` would give one."""
    return mode == "on" or (mode == "auto" and device.type == "cuda" and _lacking(device) is None)


def summary(device: torch.device) -> str:
    """Which path an outer step takes on a device, in one line."""
    lacking = _lacking(device)
    if lacking is not None:
        return f"{lacking} is missing: outer steps run eagerly"
    return "outer steps are compiled" if device.type == "cuda" else "outer steps run eagerly; --compile on is available"


def _lacking(device: torch.device) -> str | None:
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler"
    return None
