"""What this installation has and what it lacks."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

from ptmst import kernels
from ptmst.engine import compilation
from ptmst.errors import InputError
from ptmst.support import devices, folders
from ptmst.support.provenance import cpu_name

_PACKAGES = ("ptmst", "torch", "triton", "open_clip_torch", "timm", "safetensors", "numpy", "scikit-learn", "tyro")
_EXTRAS = {"transformers": "text towers from Hugging Face: pip install 'ptmst[hf]'"}


def report() -> list[tuple[str, str]]:
    """(what, finding) lines: versions, devices, which implementation of each kernel runs and why, what is missing."""
    lines = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    lines += [(name, _version(name) or "missing") for name in _PACKAGES]
    lines += [(name, _version(name) or f"missing (optional; {use})") for name, use in _EXTRAS.items()]
    lines.append(("cpu", f"{cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"))
    if torch.cuda.is_available():
        lines.append(("cuda", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"))
    else:
        lines.append(("cuda", "no device found: everything runs on the CPU"))
    lines.append(("cache", _cache()))
    lines.append(("compile", compilation.summary(devices.pick("auto"))))
    lines += [(f"kernel {name}", how) for name, how in kernels.active().items()]
    return lines


def _cache() -> str:
    try:
        return f"{folders.cache_folder()} (text embeddings, compiled code; $PTMST_CACHE names another folder)"
    except InputError as error:
        return f"missing ({error})"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
