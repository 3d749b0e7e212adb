"""`python -m bench.gpu --out FOLDER`: check and measure on a CUDA device, in order of importance, checks first.

Parts run in parallel, each in its own process, and take turns on the device to measure. Each result is a line of
FOLDER/rows.jsonl as soon as it is there; FOLDER/gpu-NAME.json has all of them and belongs into bench/results. The same
command with the same FOLDER continues with what is missing or failed. The exit code is 1 if something failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType

import torch

from bench import result
from bench.gpu import BEGAN
from bench.gpu.parts import CORES, STAGES, Part, parts
from bench.gpu.rows import Folder
from bench.gpu.runner import Runner
from ptmst.cli.doctor import report
from ptmst.errors import InputError


def main() -> int:
    asked = _parser().parse_args()
    chosen = _chosen(asked.only.split(","), parts(asked.dry))
    if not torch.cuda.is_available():
        raise InputError("bench.gpu: expected a CUDA device, found none; on a CPU, use bench.outer and bench.kernels")
    about = result.provenance(cuda=True)
    setting = f"{about['machine']['gpu']}, torch {about['versions']['torch']}{', dry' if asked.dry else ''}"
    folder = Folder(asked.out, setting, call=f"{BEGAN:.3f}")
    until = BEGAN + 60 * asked.minutes if asked.minutes else float("inf")
    command = [sys.executable, "-m", "bench.gpu.worker", *(["--dry"] if asked.dry else [])]
    signal.signal(signal.SIGTERM, _interrupt)
    with folder.claimed():
        folder.append("call", **about, doctor=dict(report()), dry=asked.dry)
        gigabytes = torch.cuda.mem_get_info()[1] / 1e9
        runner = Runner(folder, chosen, command, until, len(os.sched_getaffinity(0)), gigabytes)
        try:
            runner.run()
        finally:
            runner.stop()
            print("\n".join(runner.summary()), flush=True)
    return 1 if runner.failed() else 0


def _parser() -> argparse.ArgumentParser:
    table = [f"  {part.name:34} {part.stage:9} {part.seconds:4.0f} s" for part in parts(dry=False)]
    options = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        epilog="\n".join([f"parts, and about how long each takes on {CORES} cores and an H100 (estimates):", *table]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="results")
    options.add_argument("--minutes", type=float, metavar="N", help="start nothing that would not end in time")
    options.add_argument(
        "--only", metavar="PARTS", default="*", help=f"{', '.join(STAGES)} or names, with * and commas, as outer-*,flat"
    )
    options.add_argument("--dry", action="store_true", help="small cases, to test that everything runs: no measurement")
    return options


def _chosen(words: list[str], all_parts: tuple[Part, ...]) -> list[Part]:
    """Raises InputError for words that name no part."""

    def named(word: str, part: Part) -> bool:
        return part.stage == word or fnmatch(part.name, word)

    if unknown := [word for word in words if not any(named(word, part) for part in all_parts)]:
        expected = f"{', '.join(STAGES)} or names of parts"
        raise InputError(f"--only: expected {expected}, found {', '.join(unknown)}; --help lists them")
    return [part for part in all_parts if any(named(word, part) for word in words)]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
