"""What differs between the releases of torch that ptmst runs on, 2.11 and later; nothing else asks for a version."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

Function = Callable[..., Any]
_ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters
"""torch 2.14 and later."""


def compile_alone(function: Function, **options: Any) -> Function:
    """torch.compile of a function that counts its compilations by itself, though others share its code."""
    if _ISOLATES:
        options["isolate_recompiles"] = True
    else:
        # 2.11 advises TF32 each time float32 is compiled for CUDA; which of them runs is the user's `precision`.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        function = _with_its_own_code(function)
    compiled: Function = torch.compile(function, **options)
    return compiled


def _with_its_own_code(function: Function) -> Function:
    """The same function behind a code object that no other has: by it, torch before 2.14 counts compilations."""

    def call(*args: Any) -> Any:
        return function(*args)

    return FunctionType(call.__code__.replace(), globals(), "call", None, call.__closure__)
