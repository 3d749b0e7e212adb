"""Rows of a page, by hand: a random subset, a set of two phases, and all real pairs."""

from __future__ import annotations

from dataclasses import replace

import torch

from ptmst import DistilledSet, FullSimilarity, Scores, SyntheticPairs
from ptmst.data import normalize
from ptmst.evaluation.metrics import METRICS, TIES
from ptmst.report.tables import Row
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
