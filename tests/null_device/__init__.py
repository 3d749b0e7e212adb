"""A CUDA device that is not there, under which the host's side of the CUDA path runs on any machine.

A CUDA build of torch that is started with `build`'s environment sees one H100. Its kernels do nothing. Allocations,
copies, what a capture forbids and the number of launches are those of a real one (runtime.c says what else). So it
shows crashes, tensors on two devices, forbidden calls, launches and memory. It shows nothing about numbers or time:
what a kernel would have written is whatever was in memory, mostly zeros.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
_SOURCES = ("runtime.c", "blas.c", "driver.c")
_LIBRARY = "libcuda.so.1"
_CUDA = "13"
"""Whose functions it has; their names and arguments change with that number."""


def lacking() -> str | None:
    """Why the null device cannot be had here, in one line; none where it can."""
    import torch

    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "the null device: expected Linux on x86-64"
    if (torch.version.cuda or "none").split(".")[0] != _CUDA:
        return f"the null device: expected a torch built for CUDA {_CUDA}, found {torch.version.cuda}"
    if _compiler() is None:
        return "the null device: expected a C compiler, found none"
    if len(_headers()) < 2:
        return "the null device: expected CUDA's headers beside torch and Triton, found none"
    if torch.cuda.is_available():
        return "the null device: a real one is there"
    return None


def build(folder: Path) -> dict[str, str]:
    """Build it into an empty folder; the environment that puts a Python process on it.

    What is compiled under it is kept in that folder too, since a real device of this name must never meet it: kernels
    were chosen there by times that mean nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library, compiler = folder / _LIBRARY, _compiler()
    assert compiler is not None
    flags = ["-std=gnu17", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{_LIBRARY}"]
    headers = [f"-I{path}" for path in _headers()]
    sources = [str(HERE / name) for name in _SOURCES]
    subprocess.run([compiler, *flags, *headers, "-o", str(library), *sources, "-ldl", "-lpthread"], check=True)
    return {
        "LD_PRELOAD": str(library),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        # The interpreter is for machines without a device.
        "TRITON_INTERPRET": "0",
    }


def counts() -> dict[str, int]:
    """What this process has done on the device so far, by the names in null.h. Raises OSError where it is not on it."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "null_names"):
        raise OSError("expected a process on the null device, found one that is not; start it with build's environment")
    names = ctypes.cast(library.null_names, ctypes.POINTER(ctypes.c_char_p))
    values = ctypes.cast(library.null_values, ctypes.POINTER(ctypes.c_long))
    found: dict[str, int] = {}
    while (name := names[len(found)]) is not None:
        found[name.decode()] = values[len(found)]
    return found


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")


def _headers() -> list[Path]:
    """Folders with CUDA's headers: torch's own, which lack a part that Triton brings."""
    wanted = (("nvidia", "cu13/include/cublas_v2.h"), ("triton", "backends/nvidia/include/crt/host_defines.h"))
    found = []
    for package, file in wanted:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            if (path := Path(place) / file).exists():
                found.append(path.parent.parent if path.parent.name == "crt" else path.parent)
    return found
