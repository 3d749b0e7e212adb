"""`python -m bench.corrections --demos FOLDER --json FILE`: how much two corrections change numbers of earlier runs.

FOLDER is that of `python -m bench.demo`. Its sets and experts are scored in both ways of counting ties: by expectation
and in the student's favor. The lengths of spans of its experts are summed as they were, by torch.dot in float32 with
one thread and with two, and compared with float64.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from unittest import mock

import torch
from torch import Tensor

from bench import result
from bench.demo import DEMOS
from ptmst import DistilledSet, TrajectoryStore, evaluate
from ptmst.evaluation import metrics, scorer
from ptmst.evaluation.evaluate import evaluate_experts
from ptmst.presets import experiment

_DATA = ("demo-scenes", "demo-digits")


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m bench.corrections", description=__doc__)
    options.add_argument("--demos", type=Path, required=True, metavar="FOLDER", help="folder of `python -m bench.demo`")
    options.add_argument("--json", type=Path, required=True, metavar="FILE", help="results")
    asked = options.parse_args()
    rows: result.Rows = []
    for name in _DATA:
        folder = asked.demos / DEMOS[name][0]
        rows += [*_ties(name, folder), *_sums(name, TrajectoryStore.open(folder / "store"))]
    result.write(asked.json, rows)
    return 0


def _ties(name: str, folder: Path) -> Iterator[result.Row]:
    config = replace(experiment("scenes").evaluate, root=folder / "data")
    for which in ("lors", "ptm-st", "store"):
        with _both_ways() as in_favor:
            if which == "store":
                scores = evaluate_experts(TrajectoryStore.open(folder / which), config)
            else:
                scores = evaluate(DistilledSet.load(folder / which), config)
        before = {metric: mean(student[metric] for student in in_favor) for metric in metrics.METRICS}
        after = {metric: scores.mean(metric) for metric in metrics.METRICS}
        yield {"what": "ties", "data": name, "trained on": which, "in favor": before, "expected": after}


@contextmanager
def _both_ways() -> Iterator[list[dict[str, float]]]:
    """Recalls of every student that is scored, with ties in its favor."""
    found: list[dict[str, float]] = []

    def both(images: Tensor, texts: Tensor, image_of_text: Tensor) -> dict[str, float]:
        found.append(_in_favor(images, texts, image_of_text))
        return metrics.retrieval_recall(images, texts, image_of_text)

    with mock.patch.object(scorer, "retrieval_recall", both):
        yield found


def _in_favor(images: Tensor, texts: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """A rank is the number of strictly higher scores."""
    scores = texts @ images.T
    own = scores.gather(1, image_of_text[:, None])
    of_texts = (scores > own).sum(1)
    owned = image_of_text == torch.arange(len(images))[:, None]
    scores = images @ texts.T
    best = scores.masked_fill(~owned, float("-inf")).amax(1, keepdim=True)
    of_images = (scores > best).sum(1)
    recall = {
        f"{name}{k}": 100.0 * (ranks < k).double().mean().item()
        for name, ranks in (("ir", of_texts), ("tr", of_images))
        for k in (1, 5, 10)
    }
    return recall | {"mean": mean(recall.values())}


def _sums(name: str, store: TrajectoryStore) -> Iterator[result.Row]:
    raw, sizes = store.expert(0).raw(), store.layers.group_sizes
    threads = torch.get_num_threads()
    worst = {}
    for count in (1, 2):
        torch.set_num_threads(count)
        worst[str(count)] = max(
            abs(float(torch.dot(part, part)) / float(part.double() @ part.double()) - 1)
            for s, t in pairwise(range(store.epochs + 1))
            for part in (raw.point(t) - raw.point(s)).split(sizes)
        )
    torch.set_num_threads(threads)
    parameters = store.layers.num_params
    yield {"what": "sums", "data": name, "parameters": parameters, "largest relative error by threads": worst}


if __name__ == "__main__":
    sys.exit(main())
