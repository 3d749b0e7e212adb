"""Scores of students, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ptmst.errors import InputError
from ptmst.evaluation.metrics import METRICS, ZERO_SHOT
from ptmst.support import files

SCORES = "scores.json"
_VERSION = 1


@dataclass(frozen=True)
class Scores:
    """What several students reach, percent: recalls by the names in METRICS, and ZERO_SHOT where there are classes."""

    students: tuple[Mapping[str, float], ...]
    provenance: Mapping[str, Any]
    """Protocol, selection, seed and what was evaluated; JSON values."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what was measured."""
        return (*METRICS, *([ZERO_SHOT] if ZERO_SHOT in self.students[0] else []))

    @property
    def ties(self) -> str:
        """How equal scores were counted: `expected`, or `in favor` of the student as ptmst did at first."""
        return str(self.provenance.get("ties", "in favor"))

    @property
    def counts_equal_captions(self) -> bool:
        """Whether equal captions of different images counted as correct."""
        return bool(self.provenance.get("config", {}).get("count_equal_captions", False))

    @property
    def scored_data(self) -> str:
        """The name of the data that were scored; of early files, which scored the set's own, that of those."""
        return str(self.provenance.get("scored", {}).get("data", self.provenance.get("data", "")))

    def mean(self, metric: str = "mean") -> float:
        """Mean of a metric over students, percent; by default of the mean recall."""
        return mean(student[metric] for student in self.students)

    def std(self, metric: str = "mean") -> float:
        """Sample standard deviation over students; 0 for a single one."""
        return stdev(student[metric] for student in self.students) if len(self.students) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The content of a score file: summary, students and provenance (format: docs/formats.md)."""
        summary = {metric: {"mean": self.mean(metric), "std": self.std(metric)} for metric in self.metrics}
        return {"summary": summary, "students": [dict(s) for s in self.students], "provenance": dict(self.provenance)}


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores as JSON, with their summary."""
    files.write_json(path, {"format": "ptmst-score-file", "version": _VERSION, **scores.to_json()})


def read_scores(path: Path) -> Scores:
    """Scores that `write_scores` wrote. Raises InputError for a file that holds none."""
    value = files.read_json(path, "score file", _VERSION)
    try:
        scores = Scores(tuple(value["students"]), value["provenance"])
        whole = bool(scores.students) and all(set(METRICS) <= student.keys() for student in scores.students)
        whole = whole and {"split", "pairs"} <= scores.provenance.keys()
        whole = whole and bool({"config", "experts"} & scores.provenance.keys())
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{path}: expected a score file, found other contents; run `ptmst evaluate` again")
    return scores
