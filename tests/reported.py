"""What pages show, by hand: rows (a random subset, a set of two phases, all real pairs), examples, a run's course."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ptmst import DistilledSet, FullSimilarity, Moment, Scores, SyntheticPairs
from ptmst.data import normalize
from ptmst.evaluation.metrics import METRICS, TIES
from ptmst.report.live import Recorder
from ptmst.report.tables import Row
from ptmst.retrieval.examples import Example
from ptmst.synthetic.distilled_set import DistilledPhase
from tiny import RECIPE


def scores(first: float, students: int = 3) -> Scores:
    values = ({metric: first + 3 * i + i * i for i, metric in enumerate(METRICS, start=n)} for n in range(students))
    config = {"protocol": "per-phase", "select": "last", "seed": 7}
    return Scores(tuple(values), {"split": "val", "ties": TIES, "config": config, "pairs": 7})


def distilled(history: bool = True, phases: int = 2) -> DistilledSet:
    made = []
    draw = torch.Generator().manual_seed(0)
    for number, count in enumerate((3, 4)[:phases]):
        pixels = torch.arange(count)[:, None, None, None].expand(-1, 3, 8, 8) * 60 + 20 * number
        lr = torch.tensor([0.1, 0.2])
        pairs = SyntheticPairs(
            normalize(pixels.byte()), torch.randn(count, 5, generator=draw), FullSimilarity.identity(count), lr
        )
        steps = {"loss": torch.rand(30, 2, generator=draw), "lr": torch.rand(30, 2, generator=draw)} if history else {}
        captions = tuple(f'caption {number}.{i} <b>&"x"\'</b><script>' for i in range(count))
        made.append(DistilledPhase(pairs, lr, captions, steps))
    return DistilledSet(tuple(made), {"method": "<by hand>"}, RECIPE.to_json())


def rows() -> list[Row]:
    return [
        Row("random <pairs>", scores(10.0), 7, distilled(history=False, phases=1)),
        Row("ours", scores(20.0), 1234, distilled()),
        Row(
            "all",
            replace(scores(60.0, students=1), provenance={"split": "val", "ties": TIES, "experts": [0], "epochs": 3}),
            24000,
        ),
    ]


def examples() -> list[Example]:
    pictures = [torch.full((3, 8, 8), 40 * level, dtype=torch.uint8) for level in range(5)]
    found = [(one, level == 2) for level, one in enumerate(pictures)]
    captions = [("a caption", True), ("another one", False), ("a third", False)]
    names = ("random <pairs>", "ours", "all")
    return [Example("a caption", pictures[2], dict.fromkeys(names, found), dict.fromkeys(names, captions))]


class _Store:
    """What a recorder takes of one."""

    settings = RECIPE.to_json()


def recorder(path: Path) -> Recorder:
    store: Any = _Store()
    return Recorder(path, "mine", store)


def moment(step: int, steps: int, phase: int = 0, recall: float | None = None, begun: bool = True) -> Moment:
    """Of a run whose numbers follow from the step; the first of a run that is resumed has not `begun`."""
    loss, lr = {"image": 1 / (1 + step), "text": 2.0 + step}, {"image": 0.1 + step, "text": 0.2}
    gradient = {"images": 10.0**-step, "lr": 3.0}
    pixels, similarity = torch.full((9, 3, 8, 8), step % 200, dtype=torch.uint8), FullSimilarity.identity(9)
    pairs = SyntheticPairs(normalize(pixels), torch.zeros(9, 5), similarity, torch.tensor([0.1, 0.2]))
    return Moment(phase, step, steps, lr, loss if begun else {}, gradient if begun else {}, recall, pairs)


def course(path: Path) -> Path:
    """The file of a run of four steps."""
    record = recorder(path)
    record(moment(0, 4, begun=False))
    for step in range(1, 5):
        record(moment(step, 4, recall=12.5 if step == 4 else None))
    return path
