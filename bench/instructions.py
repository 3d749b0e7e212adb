"""`python -m bench.instructions --json FILE`: the quick demo with other instructions of one processor.

torch, oneDNN and MKL choose instructions by the processor, and sums of other instructions round otherwise. So the demo
runs as it is, twice, and with these libraries held to AVX2. Each result has the SHA-256 of the distilled sets: equal
where every bit is. One thread; a stopped run continues.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.command import bare_parser, collect
from bench.result import Row

_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
WAYS: dict[str, dict[str, str]] = {
    "as it is": {},
    "as it is, again": {},
    "torch and oneDNN with AVX2": _AVX2,
    "torch, oneDNN and MKL with AVX2": _AVX2 | {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
"""Environment variables by name."""


def main() -> int:
    asked = bare_parser("instructions", __doc__).parse_args()
    collect(asked.json, "instructions", tuple(WAYS), lambda row: str(row["way"]), lambda way: [_run(way)])
    return 0


def _run(way: str) -> Row:
    environment = os.environ | WAYS[way] | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--data", "scenes", "--quick", "--quiet", "--out", f"{folder}/demo"]
        command = [sys.executable, "-m", "ptmst", "demo", *flags]
        subprocess.run(command, env=environment, check=True)
        results = json.loads((Path(folder) / "demo" / "results.json").read_text())
        hashes = {name: _fingerprint(Path(folder) / "demo" / name) for name in ("lors", "ptm-st")}
    means = {row["name"]: row["recall"]["mean"]["mean"] for row in results["rows"]}
    found = torch.backends.cpu.get_cpu_capability()
    return {"way": way, "variables": WAYS[way], "processor": found, "mean recall": means, "sets": hashes}


def _fingerprint(folder: Path) -> str:
    hashes: dict[str, str] = json.loads((folder / "distilled.json").read_text())["hashes"]
    return " ".join(digest[:12] for _, digest in sorted(hashes.items()))


if __name__ == "__main__":
    sys.exit(main())
