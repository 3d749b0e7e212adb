"""Kills every command that writes at seeded moments, resumes it, and compares what it leaves with an uninterrupted run.

    python -m bench.kills --json bench/results/kills.json

A case is a command and a number. A generator of their own draws the signal, the moment, and whether the resumed run is
killed too. Every file is compared bit by bit, but for what clocks and memory say in JSON. What differs between two
uninterrupted runs is not compared, and named. Whatever else lies there is left behind.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bench.command import bare_parser, collect
from bench.result import Row
from ptmst import __main__ as entry

CLOCKS = {"seconds", "minutes", "peak bytes"}
"""Keys of JSON that no two runs have alike."""
SHOWN = ("course.json", "courses", "live.html")
"""What pages show of a run as it goes: the last seconds before a kill are missing there."""
SIGNALS = {"KILL": 15, "TERM": 2, "INT": 2, "FULL": 1}
"""How often of 20, what happens: FULL is a disk on which nothing can be written any more."""
MOMENTS = {"uniform": 5, "part": 3, "last": 2}
"""How often of 10: at any moment; at the next half-written file after one; and while the last files are written."""
CHAINED = 0.25
"""Of SIGKILLs, those whose resumed run is killed too."""
IN_PROCESS = 0.75
"""Of all runs, those in a fork of this process, which has imported everything: the others are killed in imports too."""
IMPORTED = (
    *(
        f"ptmst.{name}"
        for name in ("cli", "teachers.teach", "distillation.distill", "studies.ablation", "studies.demo", "studies.run")
    ),
    *(f"ptmst.exchange.{name}" for name in ("export", "distilled_sets", "replay_buffers")),
    *("ptmst.report.page", "rich.table", "sklearn.neighbors", "sklearn.feature_extraction.text", "pyarrow.parquet"),
)
LIMIT_S = 900.0
TRIES = 12

DATA = "data --name scenes --train 160 --val 40 --test 40 --warmup 64 --captions 2 --root {run}/data"
READ = "--data.name scenes --data.root {base}/data --data.image-size 32 --encoder.image-width 32"
TEACH = f"teach --experts 2 --epochs 3 --lr 0.05 --endpoints all --batch-size 64 --encoder.warmup-epochs 1 {READ}"
DISTILL = (
    "distill {base}/store --phases 12:2:0-1 12:3:1-2 --steps 16 --inner-steps 2 --batch-size 6 --optimizer adam "
    "--momentum 0.9 --rates.images 0.02 --rates.texts 0.1 --rates.lr 0.002 --rates.similarity 0.1 "
    "--checkpoint-minutes 0"
)
EVALUATE = "evaluate {base}/set --students 3 --epochs 10 --lr-drop 5"
PUBLISHED = "export {base}/set --format ptm-st --out {base}/published"
SOURCES = {
    "data": (DATA.replace("{run}", "{base}"),),
    "store": (f"{TEACH} --out {{base}}/store",),
    "set": (f"{DISTILL} --out {{base}}/set --resume", EVALUATE),
    "published": (PUBLISHED,),
}
"""What makes each folder in `{base}`, from those before it."""


@dataclass(frozen=True)
class Command:
    """A command that writes into the folder `{run}`, from what is in `{base}`."""

    line: str
    weight: int
    """Its share of all kills."""
    last: tuple[str, ...]
    """Patterns of what it writes last, in `{run}`."""
    resume: str = ""
    """What is added to go on."""

    def words(self, work: Path, again: bool = False) -> list[str]:
        line = f"{self.line} {self.resume}" if again else self.line
        words = line.format(base=work / "base", run=work / "run").split()
        return [one for word in words for one in (sorted(_glob(word)) if "*" in word else [word])]


COMMANDS = {
    "ablate": Command(
        "ablate --methods random,ptm-st --pairs 10 --seeds 1 --workers 1 --out {run}/grid", 16, ("grid/recalls*",)
    ),
    "demo": Command("demo --data scenes --quick --out {run}/demo", 12, ("demo/scores/all.json",)),
    "run": Command(
        "run --data scenes --root {base}/data --pairs 8 --track-recall 2 --out {run}/mine",
        12,
        ("mine/scores/all.json",),
    ),
    "distill": Command(DISTILL + " --out {run}/set", 46, ("set/phase-1*", "set/checkpoint-1-00000016*"), "--resume"),
    "teach": Command(TEACH + " --out {run}/store", 36, ("store/expert-001*", "store/.expert-001*")),
    "data": Command(DATA, 24, ("data/scenes_test.json",)),
    "evaluate": Command(EVALUATE + " --out {run}/scores/scores.json", 18, ("scores/.scores*", "scores/scores*")),
    "subset": Command("subset {base}/store --pairs 20 --out {run}/subset", 8, ("subset/.phase*", "subset/phase*")),
    "import set": Command(f"import --distilled {{base}}/published/*.pt --out {{run}}/set {READ}", 8, ("set/phase-1*",)),
    "import buffers": Command("import --networks {base}/buffers/*.pt --out {run}/store", 10, ("store/expert-00*",)),
    "export folder": Command("export {base}/set --out {run}/out", 8, (".out*",)),
    "export hf": Command("export {base}/set --out {run}/out --format hf", 6, (".out*",)),
    "export ptm-st": Command("export {base}/set --out {run}/out --format ptm-st", 4, (".out*",)),
    "report": Command("report {base}/set --out {run}/report.html", 4, (".report*", "report*")),
}
Case = tuple[str, int]


def cases(kills: int) -> list[Case]:
    """So many cases, spread over the commands by their weights, the rarest commands with at least one."""
    total, count = sum(command.weight for command in COMMANDS.values()), dict.fromkeys(COMMANDS, 1)
    while sum(count.values()) < kills:
        count[max(COMMANDS, key=lambda name: COMMANDS[name].weight * kills / total - count[name])] += 1
    return [(name, number) for name in COMMANDS for number in range(count[name])]


def _glob(pattern: str) -> Iterator[str]:
    path = Path(pattern)
    yield from (str(found) for found in path.parent.glob(path.name))


# Runs


def program(words: Sequence[str]) -> int:
    """The command line, where whole runs, the demo and the ablation are those of seconds."""
    from ptmst.config import EvaluateConfig, WriteDataConfig
    from ptmst.presets import experiment
    from ptmst.studies import ablation, demo, run, whole

    base = experiment("scenes-quick")
    encoder = replace(base.teach.encoder, image_width=16, warmup_epochs=1, head_width=16)
    data = replace(base.teach.data, image_size=16)
    tiny = replace(
        base,
        data=WriteDataConfig(name="scenes", image_size=16, train=60, val=20, test=20, warmup=20, captions=2),
        teach=replace(base.teach, data=data, encoder=encoder, experts=1, epochs=5, batch_size=16, endpoints="all"),
        distill=replace(base.distill, steps=4, inner_steps=2, batch_size=5),
        evaluate=EvaluateConfig(students=2, epochs=4, lr_drop=2, batch_size=8),
    )
    for module in (ablation, demo, run):
        module.experiment = lambda *_: tiny  # type: ignore[attr-defined]
    fewer = {"FACTORS": (1.0, 3.0), "REAL_LR": (0.03, 0.1), "REAL_LOSSES": ("wbce",), "RANDOM_LR": (0.03, 0.1)}
    for module, name in ((ablation, "FACTORS"), (ablation, "REAL_LR"), (ablation, "REAL_LOSSES"), (whole, "RANDOM_LR")):
        setattr(module, name, fewer[name])
    sys.argv = ["ptmst", *words]
    return entry.main()


class Run:
    """A run of a command: a process, or a fork of this one, with a session and a pipe of its own."""

    def __init__(self, words: Sequence[str], work: Path, fork: bool) -> None:
        self.began = time.monotonic()
        self.code: int | None = None
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        self._said = os.fdopen(reading, "rb")
        environment = {"OMP_NUM_THREADS": "1", "PTMST_CACHE": str(work / "cache"), "COLUMNS": "200"}
        sys.stdout.flush()
        sys.stderr.flush()
        if not fork:
            tiny = words[0] in ("ablate", "demo", "run")
            program = ["bench.kills", "--json", os.devnull, "--run"] if tiny else ["ptmst"]
            command = [sys.executable, "-m", *program, *words]
            self.pid = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=writing,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=_interruptible,  # noqa: PLW1509
            ).pid
        elif (pid := os.fork()) != 0:
            self.pid = pid
        else:
            os.environ.update(environment)
            _forked(words, writing)
        os.close(writing)

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, until: Callable[[], bool] = lambda: False, limit_s: float = LIMIT_S) -> bool:
        """Until that is so, or the run has ended; whether it lives."""
        while not self.ended() and not until():
            if time.monotonic() - self.began > limit_s:
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.0005)
        return self.code is None

    def said(self) -> str:
        return (self._said.read() or b"").decode(errors="replace").strip()

    def strike(self, how: str) -> None:
        """What the user, the system or the disk does."""
        if how == "FULL":
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        elif how == "INT":  # a terminal tells all
            os.killpg(self.pid, signal.SIGINT)
        else:
            os.kill(self.pid, signal.Signals[f"SIG{how}"])

    def orphans(self) -> list[int]:
        """Processes of this run's session that live on."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(group) == self.pid and state not in "ZX":
                found.append(int(stat.parent.name))
        return found


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where this runs in the background


def _forked(words: Sequence[str], stderr: int) -> None:
    code: object = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, entry.stop)  # as the program does in its first line
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(stderr, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        code = program(words)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


# What is there


def state(folder: Path) -> dict[str, str]:
    """The hash of every file, without what clocks say; and every folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if {*path.relative_to(folder).parts} & {*SHOWN}:
            continue
        if path.is_dir():
            found[f"{path.relative_to(folder)}/"] = ""
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = _without_clocks(content)
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def _without_clocks(content: bytes) -> bytes:
    try:
        value = json.loads(content)
    except ValueError:
        return content
    stripped = _stripped(value)
    if stripped == value:
        return content
    stripped.pop("sha256", None)  # over the clocks too
    rows = stripped.get("rows")
    if isinstance(rows, list):  # as they came in
        rows.sort(key=lambda row: json.dumps(row, sort_keys=True))
    return json.dumps(stripped, sort_keys=True).encode()


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(one) for key, one in value.items() if key not in CLOCKS}
    return [_stripped(one) for one in value] if isinstance(value, list) else value


# Kills


class Campaign:
    """Kills in a scratch folder, where what the commands read is made once."""

    def __init__(self, work: Path, fork: bool = True) -> None:
        self._work, self._fork = work.absolute(), fork
        self._base, self._run = self._work / "base", self._work / "run"
        self._base.mkdir(parents=True, exist_ok=True)
        self.whole = cache(self._whole)
        self._made: set[str] = set()

    def _prepare(self, line: str) -> None:
        """What a command reads, each of what comes before it."""
        if "{base}/buffers" in line:
            self._buffers()
        last = max((n for n, name in enumerate(SOURCES) if f"{{base}}/{name}" in line), default=-1)
        for name, lines in list(SOURCES.items())[: last + 1]:
            for source in lines if name not in self._made else ():
                if source != PUBLISHED or not (self._base / name).exists():
                    self._finish(Command(source, 0, ()), self._fork)
            self._made.add(name)

    def _buffers(self) -> None:
        import torch

        (self._base / "buffers").mkdir(exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        shapes = ((64, 3, 3, 3), (64,), (200, 600))
        for number in range(3):
            buffer = [[[torch.randn(s, generator=generator) for s in shapes] for _ in range(6)] for _ in range(2)]
            torch.save(buffer, self._base / "buffers" / f"replay_buffer_{number}.pt")

    def _finish(self, command: Command, fork: bool, again: bool = False) -> tuple[int | None, float, str]:
        run = Run(command.words(self._work, again), self._work, fork)
        run.wait()
        said = run.said()
        if run.code and not again:
            raise RuntimeError(f"{command.line}: expected to run to its end, ended with {run.code}: {said}")
        return run.code, time.monotonic() - run.began, said

    def _whole(self, name: str) -> tuple[dict[str, str], list[str], dict[bool, float]]:
        """What two uninterrupted runs leave alike, what they do not, and how long each way of running takes."""
        self._prepare(COMMANDS[name].line)
        states, times = [], dict[bool, float]()
        for fork in (self._fork, False):
            shutil.rmtree(self._run, ignore_errors=True)
            self._run.mkdir()
            times[fork] = self._finish(COMMANDS[name], fork)[1]
            states.append(state(self._run))
        one, two = states
        unlike = sorted(file for file in one.keys() | two.keys() if one.get(file) != two.get(file))
        return {file: value for file, value in one.items() if file not in unlike}, unlike, times

    def measure(self, case: Case) -> Iterator[Row]:
        """Kill one run and resume it."""
        for attempt in range(TRIES):
            row = self._attempt(case, random.Random(f"{case[0]}-{case[1]}-{attempt}"))
            if row is not None:
                yield {"command": case[0], "number": case[1], "attempt": attempt, **row}
                return
        raise RuntimeError(f"{case}: none of {TRIES} moments came before the end of the run")

    def _attempt(self, case: Case, rng: random.Random) -> Row | None:
        """None where the run ended before the moment."""
        command, (whole, unlike, times) = COMMANDS[case[0]], self.whole(case[0])
        shutil.rmtree(self._run, ignore_errors=True)
        self._run.mkdir()
        if rng.random() < 0.5:
            shutil.rmtree(self._work / "cache", ignore_errors=True)
        how = rng.choices(list(SIGNALS), list(SIGNALS.values()))[0]
        chained = how == "KILL" and rng.random() < CHAINED
        kills, runs = list[Row](), list[Run]()
        for again in (False, True) if chained else (False,):
            fork = self._fork and rng.random() < IN_PROCESS
            run = Run(command.words(self._work, again), self._work, fork)
            runs.append(run)
            one = self._kill(run, command, how, times[fork], rng)
            if one is None and not again:
                return None
            kills += [one | {"fork": fork}] if one is not None else []
        fork = self._fork and rng.random() < IN_PROCESS
        left = sorted(state(self._run))
        code, seconds, said = self._finish(command, fork, again=True)
        found = state(self._run)
        if code == 2 and {name: value for name, value in found.items() if name not in unlike} == whole:
            return None  # nothing was left to do: the same command is refused, as after any run
        torn = [str(path.relative_to(self._work)) for path in (self._work / "cache").rglob(".*.part")]
        orphans = [pid for run in runs for pid in run.orphans()]
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        return {
            "signal": how,
            "kills": kills,
            "files at the kill": sum(not name.endswith("/") for name in left),
            "parts at the kill": sum(name.rstrip("/").endswith(".part") for name in left),
            "resumed": code,
            "resumed s": round(seconds, 2),
            "said": said[-300:] if code else "",
            "missing": sorted(whole.keys() - found.keys()),
            "differing": sorted(name for name in whole if name in found and found[name] != whole[name]),
            "left behind": sorted(found.keys() - whole.keys() - set(unlike)) + torn,
            "not compared": unlike,
            "orphans": len(orphans),
        }

    def _kill(self, run: Run, command: Command, how: str, length: float, rng: random.Random) -> Row | None:
        """Wait for the moment and strike; None where the run ended by itself."""
        mode = rng.choices(list(MOMENTS), list(MOMENTS.values()))[0]
        moment = rng.uniform(0, length * (1.0 if mode == "uniform" else 0.85)) if mode != "last" else 0.0
        after = rng.uniform(0, 0.15)
        run.wait(lambda: time.monotonic() - run.began >= moment)
        if mode == "part":
            run.wait(lambda: any(self._run.rglob(".*.part")))
            after *= rng.choice((0, 0.3))  # at once, or while more is written
        if mode == "last":
            run.wait(lambda: any(found for pattern in command.last for found in self._run.glob(pattern)))
        if mode != "uniform":
            seen = time.monotonic()
            run.wait(lambda: time.monotonic() - seen >= after)
        if run.ended():
            return None
        moment = time.monotonic() - run.began
        run.strike(how)
        run.wait()
        if run.code == 0:  # it had nothing left to do
            return None
        said = run.said()
        row = {"moment": mode, "at s": round(moment, 3), "code": run.code, "traceback": "Traceback" in said}
        return row | ({"said": said[-1000:]} if row["traceback"] else {})


def good(row: Row) -> bool:
    """Whether a killed run was resumed to the same bits, with nothing left behind and no traceback on the way."""
    clean = not any(row[key] for key in ("resumed", "missing", "differing", "left behind", "orphans"))
    return clean and not any(kill["traceback"] for kill in row["kills"])


def main() -> int:
    options = bare_parser("kills", __doc__)
    options.add_argument("--kills", type=int, default=200, help="cases; the first of each command are the same")
    options.add_argument("--only", metavar="WORD", default="", help="commands that have this word in their names")
    options.add_argument("--work", type=Path, default=Path("runs/kills"), metavar="FOLDER", help="scratch folder")
    options.add_argument("--run", nargs="...", help="(run a command line instead)")
    asked = options.parse_args()
    if asked.run is not None:
        signal.signal(signal.SIGINT, entry.stop)
        return program(asked.run)
    for module in IMPORTED:  # once, for all forks
        importlib.import_module(module)
    campaign = Campaign(asked.work)
    asked_for = [case for case in cases(asked.kills) if asked.only in case[0]]
    rows = collect(asked.json, "kills", asked_for, lambda row: (row["command"], row["number"]), campaign.measure)
    bad = [row for row in rows if not good(row)]
    for row in bad:
        print(row)
    print(
        f"{sum(len(row['kills']) for row in rows)} kills of {len(rows)} runs: {len(rows) - len(bad)} as they should be"
    )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
