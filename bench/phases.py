"""`python -m bench.phases PLAN --json FILE`: choices about phases, and about what is learned in them.

On emoji and drawings in a frozen tower's features, where an outer step takes a tenth of a second; on scenes and digits
in pixels of a small tower that is trained. Cells are tried on seeds that nothing is compared on, and scored on val;
`--seeds N` scores N fresh seeds on test too. A stopped run continues where it was.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Literal, get_args
from unittest.mock import patch

import torch

from bench import other_experts, result
from bench.command import bare_parser
from bench.result import Row, Rows
from bench.spread import spread
from bench.tables import NOT_YET, Table, source
from ptmst import DistilledSet, EvaluateConfig, LeafRates, Phase, TrajectoryStore, distill, train_teachers
from ptmst.config import TUNING_SEEDS, DistillConfig, Experiment, OpenPhases
from ptmst.data import write_data
from ptmst.distillation.distill import _drawn
from ptmst.errors import Diverged
from ptmst.evaluation.evaluate import evaluate_experts
from ptmst.presets import experiment
from ptmst.schema import from_json, phase_text
from ptmst.studies.runs import one_by_one, recalls
from ptmst.support import parallel, progress
from ptmst.support.provenance import machine

Data = Literal["emoji", "drawings", "scenes", "digits"]
STEPS, LOOK = 1000, 100
STUDENTS = 3
ALL = "all real pairs"
"""What cells are compared with: the experts of the seed."""
RATES: dict[Data, LeafRates] = {
    "emoji": LeafRates(0.0056, 0.0056, 0.002, 0.033),
    "drawings": LeafRates(0.0056, 0.0056, 0.002, 0.033),
    "scenes": LeafRates(0.02, 0.1, 0.002, 0.1),
    "digits": LeafRates(0.02, 0.1, 0.002, 0.1),
}
"""As tuned for pixels, with η on a linear scale and S free."""
Cell = Mapping[str, Any]
"""Settings of a distillation; `times` are factors on these rates. `experts` are others than those of the experiment: so
many, or of a kind (bench/other_experts.py). With `moving` start ranges grow from the first point to the whole; with
`rows` those of S are kept at a sum of one."""
FREE: dict[str, Any] = {}
LOG: dict[str, Any] = {"lr_scale": "log", "times": LeafRates(1, 1, 10, 1)}
"""η as its logarithm, whose steps are of a few percent, as before."""
UNIT: dict[str, Any] = {"lr_scale": "log", "similarity_range": "unit", "times": LeafRates(1, 1, 25, 3)}
"""S within 0 … 1 too; rates by a few trials on one seed of emoji."""


def one(endpoint: int, last: int, pairs: int = 100) -> dict[str, Any]:
    return {"phases": (Phase(pairs, endpoint, (0, last)),)}


def two(**more: Any) -> dict[str, Any]:
    return {"phases": (Phase(50, 5, (0, 3)), Phase(50, 10, (3, 6))), "steps": STEPS // 2, **more}


def longer(**more: Any) -> dict[str, Any]:
    return {"steps": 4000, "track_recall": 200, **more}


PLANS: dict[str, dict[str, Cell]] = {
    "soft-labels": {
        "S free, η linear": FREE,
        "S free, η log": LOG,
        "S in 0 … 1, η log": UNIT,
        "S in 0 … 1, η linear": UNIT | {"lr_scale": "linear", "times": LeafRates(1, 1, 2, 3)},
        "S = I, η log": UNIT | {"times": LeafRates(1, 1, 25, 0)},
        "rows of S sum to 1, η log": UNIT | {"rows": True},
    },
    "losses": {loss: LOG | {"loss": loss} for loss in ("wbce", "bce", "kl", "mse", "cwcl", "siglip", "infonce")},
    "steps": {
        "S free": longer(**LOG),
        "S free, 16 experts": longer(**LOG, experts=16),
        "S free, a third of its rate": longer(**LOG | {"times": LeafRates(1, 1, 10, 1 / 3)}),
        "S free, rates fall by a cosine": longer(**LOG, rate_decay="cosine"),
        "S pulled by 0.5 %": longer(**LOG, similarity_pull=0.005),
        "S pulled by 2 %": longer(**LOG, similarity_pull=0.02),
        "S in 0 … 1": longer(**UNIT),
        "S in 0 … 1, 16 experts": longer(**UNIT, experts=16),
    },
    "end-points": {
        f"K = {endpoint}, starts 0–{last - 1}": LOG | one(endpoint, last)
        for endpoint, last in ((2, 1), (3, 2), (5, 2), (5, 3), (5, 5), (7, 4), (10, 3), (10, 5), (10, 8))
    }
    | {
        "by the rule": LOG | {"phases": (OpenPhases(100),)},
        "by the search": LOG | {"phases": (OpenPhases(100, by="search"),)},
    },
    "sizes": {
        f"{pairs} pairs, batches of {size}": LOG | one(5, 3, pairs) | {"batch_size": size}
        for pairs, size in ((20, 10), (50, 25), (200, 50), (200, 100), (500, 50), (500, 250))
    },
    "batches": {f"batches of {size}": LOG | {"batch_size": size} for size in (10, 25, 50, 75, 100)},
    "phases": {
        "one phase, K = 5": LOG | one(5, 3),
        "one phase, K = 10": LOG | one(10, 5),
        "two phases": LOG | two(batch_size=25),
        "two phases, batches of 50": LOG | two(),
        "two phases, progressive": LOG | two(batch_size=25, progressive=True),
        "two phases, progressive, batches of 50": LOG | two(progressive=True),
    },
    "more-experts": {
        f"{count} experts, K = {endpoint}, starts 0–{last - 1}": LOG | one(endpoint, last) | {"experts": count}
        for count, endpoint, last in ((16, 5, 3), (16, 10, 5))
    }
    | {
        "16 experts, by the rule, 4 spans a step": LOG
        | {"phases": (OpenPhases(100),), "experts": 16, "spans_per_step": 4, "steps": 250, "track_recall": 25}
    }
    | {"16 experts, by the rule": LOG | {"phases": (OpenPhases(100),), "experts": 16}},
    "ideas": {
        "K = 10, starts 0–4": LOG | one(10, 5),
        "evenly spaced points (MCT)": LOG | one(10, 5) | {"experts": "convex"},
        "end points averaged over experts": LOG | one(10, 5) | {"experts": "averaged"},
        "2 experts": LOG | one(10, 5) | {"experts": 2},
        "16 experts": LOG | one(10, 5) | {"experts": 16},
        "spans of 2 epochs": LOG | one(10, 5) | {"expert_epochs": 2},
        "spans of 3 epochs": LOG | one(10, 5) | {"expert_epochs": 3},
        "start ranges that grow (DATM)": LOG | one(10, 5) | {"moving": True},
    },
    "trajectories": {
        "shortcut, adjoint 0.5": LOG,
        "shortcut, truncated": LOG | {"adjoint": 0.0, "adjoint_clip": None},
        "raw, adjoint 0.5": LOG | {"trajectory": "raw"},
        "raw, truncated": LOG | {"trajectory": "raw", "adjoint": 0.0, "adjoint_clip": None},
    },
}


@dataclass(frozen=True)
class Run:
    data: Data
    plan: str
    cell: str
    seed: int
    work: Path

    @property
    def out(self) -> Path:
        """Where its set is kept."""
        name = re.sub(r"\W+", "-", self.cell).strip("-")
        return self.work / "sets" / f"{self.plan}-{name}-{self.seed}"

    @property
    def settings_of_cell(self) -> Cell:
        return PLANS[self.plan].get(self.cell, {})

    @property
    def store(self) -> Path:
        """Where its experts are."""
        other = self.settings_of_cell.get("experts")
        return self.work / (f"store-{self.seed}" + ("" if other is None else f"-{other}"))


def frozen(data: Data) -> bool:
    """Whether they are looked at by a frozen tower, whose features are distilled."""
    return data in ("emoji", "drawings")


def whole(data: Data) -> Experiment:
    """The experiment that cells change."""
    found = experiment("demo,st-adjoint" if frozen(data) else "ablation,st-adjoint")
    teach = replace(found.teach, data=replace(found.teach.data, name=data))
    return replace(found, data=replace(found.data, name=data), teach=teach)


def settings(run: Run) -> DistillConfig:
    cell = {name: value for name, value in run.settings_of_cell.items() if name not in ("experts", "moving", "rows")}
    times, rates = cell.pop("times", LeafRates(1, 1, 1, 1)), RATES[run.data]
    base = replace(
        whole(run.data).distill,
        image_leaves="features" if frozen(run.data) else "pixels",
        phases=(Phase(100, 5, (0, 3)),),
        steps=STEPS,
        batch_size=50,
        track_recall=LOOK,
        rates=LeafRates(*(getattr(rates, leaf) * getattr(times, leaf) for leaf in vars(rates))),
    )
    return replace(base, **cell, seed=run.seed, threads=1, device="cpu")


def experts(run: Run) -> Path:
    """Those of a run, trained or made unless they exist."""
    planned, other = whole(run.data), run.settings_of_cell.get("experts")
    write_data(replace(planned.data, root=run.work / "data"))
    data = replace(planned.teach.data, root=run.work / "data")
    teach = replace(planned.teach, data=data, endpoints="all", seed=run.seed, workers=1, device="cpu")
    if isinstance(other, int):
        train_teachers(replace(teach, experts=other, out=run.store))
        return run.store
    store = train_teachers(replace(teach, out=run.work / f"store-{run.seed}"))
    return store.path if other is None else other_experts.made(other, store, run.store)


@contextmanager
def growing() -> Iterator[None]:
    """Start ranges that grow from their first point to the whole, evenly, as difficulty-aligned ones do."""

    def drawn(number: int, draw: int, cache: Any, *, config: DistillConfig, **more: Any) -> Any:
        phase = config.phases[number]
        first, last = phase.start
        now = replace(
            phase, start=(first, first + 1 + (last - first) * (draw // config.spans_per_step) // config.steps)
        )
        phases = (*config.phases[:number], now, *config.phases[number + 1 :])
        return _drawn(number, draw, cache, config=replace(config, phases=phases), **more)

    with patch("ptmst.distillation.distill._drawn", drawn):
        yield


@contextmanager
def rows_of_one() -> Iterator[None]:
    """Soft labels whose rows are probabilities, after every outer step."""

    def held(labels: torch.Tensor, config: DistillConfig) -> torch.Tensor:
        labels.clamp_(min=0)
        return labels.div_(labels.sum(1, keepdim=True).clamp(min=1e-6))

    with patch("ptmst.distillation.optimizer._held", held):
        yield


def measure(run: Run) -> Row:
    """Distill, and score the leaves that val chose and the last ones, by two protocols."""
    store, splits = TrajectoryStore.open(run.store), ("val",) if run.seed in TUNING_SEEDS else ("val", "test")
    row: Row = {"cell": run.cell, "seed": run.seed}
    if run.cell == ALL:
        return row | {"experts": {split: _of_experts(store, split) for split in splits}}
    config = settings(run)
    began, resumed = time.process_time(), run.out.exists()
    moving = growing() if run.settings_of_cell.get("moving") else nullcontext()
    rows = rows_of_one() if run.settings_of_cell.get("rows") else nullcontext()
    try:
        with moving, rows:
            made = distill(replace(config, out=run.out), store, resume=True)
    except Diverged as error:
        return row | {"why": str(error).replace(str(run.out), run.out.name)}
    if not resumed:
        row["cpu s"] = time.process_time() - began
    row["phases"] = [phase_text(phase) for phase in from_json(DistillConfig, made.provenance["config"]).phases]
    row["kept after"] = made.provenance["select"]["steps"]
    row["looks"] = EvaluateConfig().protocol
    row["curve"] = [phase.history["recall"].tolist() for phase in made.phases]
    row["loss"] = [float(phase.history["loss"][-20:].sum(1).mean()) for phase in made.phases]
    row["lr"] = [phase.pairs.lr.tolist() for phase in made.phases]
    row["S"] = [_of_labels(pairs.similarity.dense()) for pairs in made]
    last = replace(made, phases=tuple(replace(one, pairs=one.at_end or one.pairs) for one in made.phases))
    row["recall"] = {
        f"{split}, {which}, {protocol}": _recalls(of, split, protocol, run.seed)
        for split in splits
        for which, of in (("best", made), ("last", last))
        for protocol in _PROTOCOLS
    }
    return row


def _of_experts(store: TrajectoryStore, split: Any) -> list[float]:
    config = EvaluateConfig(students=len(store), split=split, device="cpu", threads=1)
    return [student["mean"] for student in evaluate_experts(store, config).students]


def _of_labels(matrix: torch.Tensor) -> dict[str, float]:
    off = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    return {"diagonal": float(matrix.diagonal().mean()), "others": float(off.abs().mean())}


def _recalls(made: DistilledSet, split: Any, protocol: Any, seed: int) -> list[float]:
    config = EvaluateConfig(students=STUDENTS, seed=seed, split=split, protocol=protocol, device="cpu", threads=1)
    return recalls(one_by_one(made, config))


def table(file: Path) -> str:
    """A line for each cell: means over seeds × students, on test where there are fresh seeds."""
    found = result.read(file)
    if found is None:
        return NOT_YET
    rows: Rows = [row for row in found["rows"] if "recall" in row]
    split = "test" if any(name.startswith("test") for row in rows for name in row["recall"]) else "val"
    shown = [row for row in rows if (row["seed"] in TUNING_SEEDS) == (split == "val")]
    experts = [row for row in found["rows"] if row["cell"] == ALL and split in row["experts"]]
    kinds = ["last, at once", "last, as matched", "best look, at once", "best look, as matched"]
    head = Table(["", "seeds", *kinds, "of all", "look", "S_ii", "η", "s"])
    for cell in dict.fromkeys(row["cell"] for row in shown):
        mine = [row for row in shown if row["cell"] == cell]

        def over(name: str, mine: Rows = mine) -> str:
            return spread([value for row in mine for value in row["recall"][f"{split}, {name}"]])

        kept = mean(sum(row["kept after"]) for row in mine)
        diagonal = mean(mean(one["diagonal"] for one in row["S"]) for row in mine)
        eta = mean(mean(map(mean, row["lr"])) for row in mine)
        seconds = [row["cpu s"] for row in mine if "cpu s" in row]
        numbers = (f"{kept:.0f}", f"{diagonal:.1f}", f"{eta:.2f}", f"{mean(seconds):.0f}" if seconds else "")
        names = ("last, per-phase", "last, as-matched", "best, per-phase", "best, as-matched")
        head.add(cell, str(len(mine)), *map(over, names), _of_all(mine, experts, split), *numbers)
    if experts:
        head.add(ALL, str(len(experts)), spread([v for row in experts for v in row["experts"][split]]), *[None] * 8)
    ended = [f"{row['cell']}, seed {row['seed']}" for row in found["rows"] if "why" in row]
    told = f"Ended early: {'; '.join(ended)}. " if ended else ""
    chosen = "" if split == "val" else " and as val prefers for each seed"
    shares = f"Of all: the best looks' share, at once, as matched{chosen}, of what all real pairs of the seed teach. "
    return head.markdown(
        f"Mean recall on {split} in percent, mean ± standard deviation over seeds × {STUDENTS} students that train on "
        "all pairs at once, or in batches as they were matched; of the leaves after the last outer step, and of those "
        f"that were best on val, with the step of that look. {shares if experts else ''}{told}{source(found, ran='')}"
    )


def _of_all(mine: Rows, experts: Rows, split: str) -> str | None:
    """The best looks' share of what all real pairs teach, percent: means over seeds."""
    full = {row["seed"]: mean(row["experts"][split]) for row in experts}
    rows = [row for row in mine if row["seed"] in full]
    if not rows:
        return None

    def share(row: Row, protocol: str) -> float:
        return float(100 * mean(row["recall"][f"{split}, best, {protocol}"]) / full[row["seed"]])

    def chosen(row: Row) -> float:
        return share(row, max(_PROTOCOLS, key=lambda protocol: mean(row["recall"][f"val, best, {protocol}"])))

    shown = [f"{mean(share(row, protocol) for row in rows):.0f} %" for protocol in _PROTOCOLS]
    return ", ".join(shown if split == "val" else [*shown, f"{mean(map(chosen, rows)):.0f} %"])


def steps_table(files: Mapping[str, Path]) -> str:
    """Recall by outer steps, a line for each data set and cell; `files` by data set."""
    table = Table(["", "", "seeds", *(f"{step:,}" for step in _STEPS), "best", "at the end", "as matched"], left=(0, 1))
    sources, protocols = [], set()
    for data, file in files.items():
        if (found := result.read(file)) is None:
            continue
        rows: Rows = [row for row in found["rows"] if "recall" in row and row["seed"] in TUNING_SEEDS]
        for cell in dict.fromkeys(row["cell"] for row in rows):
            mine = [row for row in rows if row["cell"] == cell]
            protocols |= {row.get("looks", "per-phase") for row in mine}
            every = PLANS["steps"][cell]["track_recall"]
            looks = [[row["curve"][0][step // every - 1] for row in mine] for step in _STEPS]
            last = [
                [value for row in mine for value in row["recall"][f"val, last, {protocol}"]]
                for protocol in ("per-phase", "as-matched")
            ]
            best = f"{mean(max(row['curve'][0]) for row in mine):.1f}"
            table.add(data, cell, str(len(mine)), *(f"{mean(one):.1f}" for one in looks), best, *map(spread, last))
        sources.append(f"{data}: {source(found, ran='')}")
    if not sources:
        return NOT_YET
    seen = {"per-phase": "all pairs at once", "as-matched": "batches as matched"}
    return table.markdown(
        "Mean recall on val in percent by outer steps, of the averaged leaves at that look: one student a look, whose "
        f"batches are {' or '.join(seen[one] for one in sorted(protocols))}. At the end {STUDENTS} students, that see "
        f"all pairs at once, or as matched: mean ± standard deviation. {' '.join(sources)}"
    )


_PROTOCOLS = ("per-phase", "as-matched")
_STEPS = (200, 400, 1000, 2000, 4000)


def main() -> int:
    options = bare_parser("phases", __doc__)
    options.add_argument("plan", choices=PLANS)
    options.add_argument("--data", choices=get_args(Data), default="emoji", help="what it is tried on")
    options.add_argument("--seeds", type=int, default=0, metavar="N", help="fresh seeds that are scored on test")
    options.add_argument("--tuning-seeds", type=int, default=1, metavar="N", help="seeds that are scored on val alone")
    options.add_argument("--cells", metavar="WORDS", default="", help="only cells whose name has these words in it")
    options.add_argument("--workers", type=int, default=2, metavar="N", help="runs at once, a thread each")
    options.add_argument("--work", type=Path, default=Path("runs/phases"), metavar="FOLDER", help="may be removed")
    asked = options.parse_args()
    seeds = [*TUNING_SEEDS[: asked.tuning_seeds], *range(asked.seeds)]
    run = partial(Run, asked.data, asked.plan, work=asked.work / asked.data)
    cells = [*(cell for cell in PLANS[asked.plan] if asked.cells in cell), ALL]
    runs = [run(cell, seed) for seed in seeds for cell in cells]
    rows = [row for row in result.rows(asked.json) if row["cell"] in (*PLANS[asked.plan], ALL)]
    done = {(row["cell"], row["seed"]) for row in rows}
    left = [run for run in runs if (run.cell, run.seed) not in done]
    with (
        parallel.processes(asked.workers) as workers,
        progress.bar(asked.plan, len(runs), len(runs) - len(left)) as bar,
    ):
        stores = {run.store: run for run in left}
        # Some are made from others.
        made = {store for store, run in stores.items() if "experts" in run.settings_of_cell}
        for some in (stores.keys() - made, made):
            for path in workers.completed(experts, [stores[store] for store in sorted(some)]):
                bar.note(path.name)
        for row in workers.completed(measure, left):
            rows.append(row)
            result.write(asked.json, rows, machine=machine() | {"threads": 1})
            bar.advance(f"{row['cell']}, seed {row['seed']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
