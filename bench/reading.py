"""What tables have in common: results as they lie in files, and means with their spread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Rows = list[dict[str, Any]]
NOT_YET = "Not measured yet."


def read(results: Path, name: str) -> dict[str, Any] | None:
    """What was measured under that name, or none where it was not."""
    file = results / f"{name}.json"
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    return found


def rows(file: Path) -> Rows:
    """The runs that a file holds already."""
    found = read(file.parent, file.stem)
    return [] if found is None else list(found["rows"])


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, to a decimal."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else "–"


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Differences over the seeds that both have."""
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


@dataclass(frozen=True)
class Interval:
    """A mean of paired differences and the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Interval:
        """By Student's t over the pairs, which are seeds; no interval of fewer than two."""
        from scipy.stats import t

        if len(differences) < 2:
            return cls(mean(differences), float("-inf"), float("inf"))
        half = float(t.ppf(0.975, len(differences) - 1)) * stdev(differences) / len(differences) ** 0.5
        return cls(mean(differences), mean(differences) - half, mean(differences) + half)

    def __str__(self) -> str:
        return f"{self.mean:+.1f}" + (f" [{self.low:+.1f}, {self.high:+.1f}]" if isfinite(self.low) else "")
