"""`python -m bench.before PYTHON --json FILE`: what users wait for, before and after, in one run.

PYTHON is the interpreter of another environment, in which a worktree of an earlier commit is installed. Both run the
same command lines in turn, each with a cache of its own: on a quiet machine, and beside a process that is always busy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.command import bare_parser, report

_ROUNDS = 2
"""Of what is quick; of these the quicker one counts."""


@dataclass(frozen=True)
class Stage:
    """A command line of both."""

    name: str
    arguments: tuple[str, ...]
    out: str = ""
    """What its output folder is called, before the number of the round."""
    threads: int | None = None
    fresh: bool = False
    """With an empty cache."""
    rounds: int = 1


def stages(folder: str) -> tuple[Stage, ...]:
    """In an order in which each finds what it needs."""
    teach = ("teach", "--preset", "demo", "--data.root", f"{folder}/data")
    distill = ("distill", f"{folder}/cold-0", "--preset", "demo", "--steps", "20")
    evaluate = ("evaluate", f"{folder}/two-0", "--preset", "demo")
    start = (*evaluate, "--students", "1", "--epochs", "0")
    return (
        Stage("four experts × 10 epochs, empty cache", teach, "cold", fresh=True),
        Stage("four experts × 10 epochs, kept features", teach, "kept"),
        Stage("40 outer steps, 2 threads", distill, "two", threads=2),
        Stage("40 outer steps, 1 thread", distill, "one", threads=1),
        Stage("three students", evaluate, rounds=_ROUNDS),
        Stage("from command to the end of a first epoch", start, rounds=_ROUNDS),
    )


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Beside so many processes that compute all the time."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def run(python: Path, arguments: Sequence[str], work: Path, environment: Mapping[str, str] | None = None) -> None:
    """A command line of an environment, in a folder."""
    command = [str(python), "-m", "ptmst", *arguments, "--quiet"]
    env = os.environ | {"PYTHONSAFEPATH": "1"} | dict(environment or {})
    subprocess.run(command, check=True, env=env, cwd=work)


def taken(python: Path, stage: Stage, work: Path) -> float:
    """Seconds of the quickest round."""
    cache, times = work / "cache", []
    environment = {"PTMST_CACHE": str(cache)}
    if stage.threads is not None:
        environment["OMP_NUM_THREADS"] = str(stage.threads)
    for number in range(stage.rounds):
        if stage.fresh:
            shutil.rmtree(cache, ignore_errors=True)
        out = ("--out", str(work / f"{stage.out}-{number}")) if stage.out else ()
        began = time.perf_counter()
        run(python, (*stage.arguments, *out), work, environment)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> int:
    options = bare_parser("before", __doc__)
    options.add_argument("python", type=Path, metavar="PYTHON", help="interpreter of the earlier environment")
    options.add_argument("--commit", required=True, help="what is installed there")
    options.add_argument("--work", type=Path, default=Path("runs/before"), metavar="FOLDER", help="may be removed")
    asked = options.parse_args()
    pythons = {"before": asked.python.absolute(), "after": Path(sys.executable)}
    rows: list[dict[str, Any]] = []
    for beside in (0, 1):
        folders = {which: (asked.work / f"{which}-{beside}").absolute() for which in pythons}
        for which, folder in folders.items():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            run(pythons[which], ("data", "--name", "emoji", "--root", str(folder / "data")), folder)
        with busy(beside):
            both = zip(*(stages(str(folder)) for folder in folders.values()), strict=True)
            for pair in both:
                row: dict[str, Any] = {"wait": pair[0].name, "busy processes beside": beside}
                for (which, folder), stage in zip(folders.items(), pair, strict=True):
                    row[f"{which} s"] = taken(pythons[which], stage, folder)
                print(row, file=sys.stderr, flush=True)
                rows.append(row)
    return report(asked.json, rows, before=asked.commit)


if __name__ == "__main__":
    sys.exit(main())
