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
    user's cache folder. The same function compiles to the same bits every time, on one machine. One that torch cannot
    compile runs eagerly, and a warning says so. Raises InputError where `on` lacks a compiler.
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
        return _or_eagerly(compile_alone(function, **_OPTIONS), function)

    return compiled


def _or_eagerly(compiled: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """What is compiled, until torch cannot: some operations have derivatives that its compiler does not take."""
    works = True

    def call(*args: Any) -> Any:
        nonlocal works
        if works:
            try:
                return compiled(*args)
            except _failures() as error:
                works = False
                reason = str(error).partition("\n")[0] or type(error).__name__
                _LOG.warning("compile: a part of the step runs eagerly, torch cannot compile it (%s)", reason)
        return function(*args)

    return call


def _failures() -> tuple[type[Exception], ...]:
    """What torch raises where it cannot compile, as it traces or as it first runs what it made."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException, AssertionError


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
