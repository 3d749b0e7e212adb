"""`python -m bench.ptx --json FILE`: every Triton kernel compiled for Hopper (sm_90), without a GPU.

Registers, spills and shared memory as NVIDIA's assembler counts them, and the width of memory accesses.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench import result
from bench.command import bare_parser, report
from ptmst.kernels.triton_kernels import contrast, matching, shortcut, update
from ptmst.kernels.triton_kernels.tiles import BLOCK, OPTIONS

_CAPABILITY = 90
_TYPES = {
    "p_displacement": "*fp16",
    "p_offsets": "*i64",
    "p_group_offsets": "*i64",
    "p_first_layer": "*i32",
    "p_first_group": "*i32",
    "p_stats": "*fp64",
    "p_losses": "*fp64",
    "p_positives": "*i64",
    "num_params": "i64",
    "lr": "fp32",
    "momentum": "fp32",
    "weight": "fp32",
}
"""Of arguments; other pointers are float32, other numbers int32."""
_DIVISIBLE = ("num_columns", "label_stride", "width")
"""By 16, as pairs and widths most often are. Parameters need not be."""


@dataclass(frozen=True)
class Kernel:
    """A kernel with the constants of one launch."""

    of: Any
    constants: dict[str, Any]
    warps: int = OPTIONS["num_warps"]
    types: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = [f"{k.lower()}={v}" for k, v in self.constants.items() if isinstance(v, bool | str)]
        return " ".join([self.of.fn.__name__, *shown, *(f"{k}={v.lstrip('*')}" for k, v in self.types.items())])


_TILE = {"ROWS": contrast._ROWS, "COLUMNS": contrast._COLUMNS}
KERNELS = (
    *(
        Kernel(of, {"BLOCK": BLOCK})
        for of in (
            shortcut.point_kernel,
            matching.shortcut_residual_kernel,
            matching.vector_residual_kernel,
            update.flat_sgd_kernel,
            update.sgd_ema_kernel,
        )
    ),
    Kernel(matching.group_sums_kernel, {"BLOCK": BLOCK, "SUMMED": matching._SUMMED}),
    *(
        Kernel(of, {"ROWS": contrast._VECTORS, "CHUNK": contrast._CHUNK}, types={"p_units": units})
        for of in (contrast.unit_pairs_kernel, contrast.through_norms_kernel)
        for units in ("*fp32", "*bf16")
    ),
    *(
        Kernel(
            contrast.pairwise_kernel,
            {"KIND": kind, "IDENTITY": identity, "DIFFERENTIATE": True, "OF_LABELS": not identity, **_TILE},
        )
        for kind in ("wbce", "bce", "mse", "siglip")
        for identity in (True, False)
    ),
    *(
        Kernel(of, {"SHARPENED": sharpened, "IDENTITY": identity, **constants})
        for sharpened in (False, True)
        for identity in (True, False)
        for of, constants in (
            (contrast.softmax_stats_rows_kernel, {"CHUNK": contrast._CHUNK}),
            (contrast.softmax_stats_columns_kernel, {"ROWS": contrast._STEP, "STRIP": contrast._STRIP}),
            (contrast.softmax_gradient_kernel, {"OF_LABELS": not identity, **_TILE}),
        )
    ),
    *(
        Kernel(
            contrast.softmax_stats_merge_kernel,
            {"FIRST": False, "SHARPENED": sharpened, "STRIP": contrast._STRIP},
            warps=2,
        )
        for sharpened in (False, True)
    ),
    *(
        Kernel(
            contrast.softmax_coefficients_kernel,
            {"KIND": kind, "STRIP": contrast._COEFFICIENTS},
            warps=4,
            types={"p_rows": "*fp64", "p_columns": "*fp64"},
        )
        for kind in ("infonce", "cwcl", "kl")
    ),
    Kernel(contrast.totals_kernel, {"DIFFERENTIATE": True, "BIASED": True, "SUMMED": contrast._SUMMED}),
)


def compiled(kernel: Kernel) -> dict[str, Any]:
    """What the assembler says of a kernel with aligned pointers."""
    names = kernel.of.arg_names
    signature, attributes, constants = {}, {}, {}
    for number, name in enumerate(names):
        if name in kernel.constants:
            signature[name] = "constexpr"
            constants[(number,)] = kernel.constants[name]
        else:
            default = "*fp32" if name.startswith("p_") else "i32"
            signature[name] = kernel.types.get(name) or _TYPES.get(name, default)
            if name.startswith("p_") or name in _DIVISIBLE:
                attributes[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel.of, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": kernel.warps, "enable_fp_fusion": OPTIONS["enable_fp_fusion"]}
    binary = triton.compile(source, target=GPUTarget("cuda", _CAPABILITY, 32), options=options)
    ptx: str = binary.asm["ptx"]
    numbers = assembled(ptx)
    return {
        "kernel": str(kernel),
        **numbers,
        "shared bytes": binary.metadata.shared,
        "share of threads": share_of_threads(numbers["registers"], kernel.warps),
        **widths(ptx),
    }


def assembled(ptx: str) -> dict[str, int]:
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [str(assembler), "-v", f"--gpu-name=sm_{_CAPABILITY}a", str(path), "-o", str(path) + ".cubin"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    numbers = {
        "registers": r"Used (\d+) registers",
        "spilled bytes stored": r"(\d+) bytes spill stores",
        "spilled bytes loaded": r"(\d+) bytes spill loads",
    }
    return {name: int(_number(pattern, output)) for name, pattern in numbers.items()}


def share_of_threads(registers: int, warps: int) -> float:
    """Share of the 64 warps of a multiprocessor for which its 65,536 registers suffice.

    Each of the 32 threads of a warp gets them in groups of eight.
    """
    blocks = 65_536 // (32 * warps * -(-registers // 8) * 8)
    return min(blocks, 64 // warps) * warps / 64


def widths(ptx: str) -> dict[str, int]:
    """The widest global load and store of a thread, in bytes."""
    widest = {"ld": 0, "st": 0}
    for which, vector, bits in re.findall(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx):
        widest[which] = max(widest[which], int(vector or 1) * int(bits) // 8)
    return {"widest load": widest["ld"], "widest store": widest["st"]}


def _number(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"ptxas: expected {pattern!r} in its output, found {text!r}")
    return match[1]


def main() -> int:
    asked = bare_parser("ptx", __doc__).parse_args()
    about = result.provenance()
    machine = about["machine"] | {"target": f"sm_{_CAPABILITY}"}
    versions = about["versions"] | {"triton": triton.__version__}
    return report(asked.json, [compiled(kernel) for kernel in KERNELS], machine=machine, versions=versions)


if __name__ == "__main__":
    sys.exit(main())
