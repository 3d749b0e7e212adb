"""Confidence intervals of differences that are paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, stdev


@dataclass(frozen=True)
class Interval:
    """A mean of paired differences and the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Interval:
        """By Student's t over the pairs, such as seeds or students; infinite ends for fewer than two."""
        from scipy.stats import t

        if len(differences) < 2:
            return cls(mean(differences), float("-inf"), float("inf"))
        half = float(t.ppf(0.975, len(differences) - 1)) * stdev(differences) / len(differences) ** 0.5
        return cls(mean(differences), mean(differences) - half, mean(differences) + half)

    def __str__(self) -> str:
        return f"{self:+.1f}"

    def __format__(self, style: str) -> str:
        low, high = format(self.low, style), format(self.high, style)
        return format(self.mean, style) + (f" [{low}, {high}]" if isfinite(self.low) else "")
