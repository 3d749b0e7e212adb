"""`python -m bench.gpu.worker`: the process of one part, which `python -m bench.gpu` starts."""

from __future__ import annotations

import argparse
import ctypes
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

import torch

from bench.gpu.parts import parts
from bench.gpu.rows import WHOLE, Folder, Sheet, Spoilt, describe
from bench.gpu.timing import release

FAILED, SPOILT = 4, 3
"""Exit codes: the process could not continue, and its sheet says why; the device accepts no more work from it."""
_DIE_WITH_PARENT = 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.worker", description=__doc__)
    parser.add_argument("part")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--setting", required=True)
    parser.add_argument("--call", required=True)
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--dry", action="store_true")
    asked = parser.parse_args()
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    (part,) = (part for part in parts(asked.dry) if part.name == asked.part)
    sheet = Sheet(Folder(asked.out, asked.setting, asked.call), part.name, asked.until, _check)
    sheet.begin(WHOLE, 0)
    began = time.perf_counter()
    try:
        module, function = part.function.split(".")
        getattr(import_module(f"bench.gpu.{module}"), function)(sheet, *part.arguments)
    except Spoilt as error:
        print(error, flush=True)
        return SPOILT
    except Exception as error:
        traceback.print_exc()
        sheet.answer(WHOLE, failed=describe(error))
        return FAILED
    if sheet.whole:
        sheet.answer(WHOLE, seconds=round(time.perf_counter() - began, 2))
    return 0


def _check() -> None:
    """Raises if the device accepts no more work. Frees what a failed row, and its error, held."""
    torch.cuda.synchronize()
    release()


if __name__ == "__main__":
    sys.exit(main())
