"""Judge many mutants, in processes that may die of one; what the present code has judged is not judged again."""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import ptmst
from bench import result
from fuzz.judge import HARMLESS, judge
from fuzz.mutations import mutant
from fuzz.samples import FORMS, samples, write_images

LIMIT_S = 20
"""Seconds for one mutant: more is a hang."""
Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--mutants", type=int, default=10_000, help="mutants of all forms together")
    parser.add_argument("--seconds", type=float, default=1800, help="seconds after which no other mutant is begun")
    parser.add_argument("--work", type=Path, default=Path("build/fuzz"), help="folder of what is done already")
    parser.add_argument("--json", type=Path, help="file of results to write")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    done = options.work / f"verdicts-{_code()}.jsonl"
    if options.first is not None:
        _judge_from(options.first, options.mutants, options.seconds, done)
        return
    end = time.monotonic() + options.seconds
    while (first := len(_read(done))) < options.mutants and (left := end - time.monotonic()) > 0:
        given = ["--mutants", str(options.mutants), "--seconds", str(left), "--work", str(options.work)]
        with open(options.work / "errors.txt", "ab") as errors:
            again = [sys.executable, "-m", "fuzz", *given, "--first", str(first)]
            child = subprocess.run(again, check=False, stderr=errors)
        if child.returncode:
            number = len(_read(done))
            _append(done, {**_named(number), "outcome": "died or hung", "detail": f"status {child.returncode}"})
    lines = _read(done)[: options.mutants]
    rows, faults = summary(lines)
    print(*rows, *faults, sep="\n")
    if options.json:
        command = f"PYTHONPATH=tests python -m fuzz --mutants {len(lines)} --json {options.json}"
        result.write(options.json, rows, command=command, faults=faults)
    sys.exit(bool(faults))


def _code() -> str:
    """Names the readers, the judge and the mutations: verdicts on others are no verdicts on these."""
    folders = Path(ptmst.__file__).parent, Path(__file__).parent
    contents = b"".join(path.read_bytes() for folder in folders for path in sorted(folder.rglob("*.py")))
    return hashlib.sha256(contents).hexdigest()[:12]


def _judge_from(first: int, mutants: int, seconds: float, done: Path) -> None:
    torch.set_num_threads(1)
    end = time.monotonic() + seconds
    for number in range(first, mutants):
        if time.monotonic() > end:
            return
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        named = _named(number)
        root = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            write_images(root)
            verdict = judge(named["form"], mutant(named["form"], named["number"], samples(named["form"])), root)
        finally:
            shutil.rmtree(root)
        faulthandler.cancel_dump_traceback_later()
        detail = verdict.detail.replace(str(root), "ROOT")[:1000]
        _append(done, {**named, "outcome": verdict.outcome, "detail": detail, "seconds": verdict.seconds})


def _named(number: int) -> Line:
    """Forms take turns."""
    return {"form": FORMS[number % len(FORMS)], "number": number // len(FORMS)}


def summary(lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """A row for each form, and the verdicts that must not be."""
    rows = []
    for form in FORMS:
        own = [line for line in lines if line["form"] == form]
        counts = {outcome: sum(line["outcome"] == outcome for line in own) for outcome in HARMLESS}
        slowest = max((line.get("seconds", 0.0) for line in own), default=0.0)
        rows.append({"form": form, "mutants": len(own), **counts, "slowest_s": round(slowest, 3)})
    return rows, [line for line in lines if line["outcome"] not in HARMLESS]


def _read(done: Path) -> list[Line]:
    lines = done.read_text("utf-8").splitlines(keepends=True) if done.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _append(done: Path, line: Line) -> None:
    with open(done, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
