"""Means with their spread, and differences that are paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, to one decimal."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else "–"


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Differences over the seeds that both have."""
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
