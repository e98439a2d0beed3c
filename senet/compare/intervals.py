"""Means over seeds, and intervals for the differences between them.

Student's t: by scipy. The intervals of a table hold together (Bonferroni): with m pairs each has the confidence
1 - rate / m, so that of all tables in which the options make no difference at most the share ``rate`` calls any pair
different. Holm's procedure would find a little more, but has no intervals that agree with what it finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

RATE = 0.05
_NO_SPREAD = 1e-6  # points; less than one image of any split
PAIRED, WELCH = "paired", "Welch"
METHODS = {
    PAIRED: "Student's t of the differences between runs of the same seed (scipy.stats.ttest_rel)",
    WELCH: "Welch's t, for groups that do not share their seeds (scipy.stats.ttest_ind, equal_var=False)",
}


class Mean(NamedTuple):
    """Of some runs."""

    mean: float | None
    """None without any run."""
    std: float | None
    """Of the sample, with n - 1; None for less than two runs."""
    n: int


@dataclass(frozen=True)
class Difference:
    """The mean of group ``second`` minus that of group ``first``, in points."""

    first: int
    second: int
    method: str
    """One of ``METHODS``."""
    n: tuple[int, ...]
    """Pairs of runs, or runs of the first group and of the second."""
    left_out: int
    """Runs whose seeds the other group does not have, where they are paired."""
    mean: float
    low: float | None
    high: float | None
    """The interval; None where there is none."""
    why: str
    """Why there is none, else ""."""

    @property
    def better(self) -> int | None:
        """The better group; None where the interval holds 0, or there is none."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return None
        return self.second if self.low > 0 else self.first


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and sample standard deviation."""
    mean = float(np.mean(values)) if len(values) else None
    return Mean(mean, float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def differences(
    groups: Sequence[Mapping[int, float]], pairs: Sequence[tuple[int, int]], among: int = 0, rate: float = RATE
) -> list[Difference]:
    """Of each pair, with intervals that hold for all pairs together.

    Args:
        groups: seed -> score, for each group; at least two of each that is in a pair.
        pairs: indices of two groups each.
        among: of how many pairs these were chosen by their scores; 0: they were not.
        rate: how often at most any pair may be called different where none is.
    """
    found, alike = list[Difference](), dict[tuple[str, tuple[int, ...]], list[int]]()
    samples = [_samples(groups[first], groups[second]) for first, second in pairs]
    for (first, second), (method, a, b) in zip(pairs, samples, strict=True):
        n = (len(a),) if method == PAIRED else (len(a), len(b))
        left_out = len(groups[first]) + len(groups[second]) - len(a) - len(b)
        mean = float(np.mean(b) - np.mean(a))
        why = _why_not(method, a, b, mean)
        if not why:
            alike.setdefault((method, n), []).append(len(found))
        found.append(Difference(first, second, method, n, left_out, mean, None, None, why))
    for (method, _), indices in alike.items():
        low, high = _intervals(method, [samples[index][1:] for index in indices], rate / (among or len(pairs)))
        for index, *ends in zip(indices, low, high, strict=True):
            found[index] = replace(found[index], low=float(ends[0]), high=float(ends[1]))
    return found


def _samples(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[str, list[float], list[float]]:
    """The scores to be compared: by seed, if one group has all seeds of the other."""
    shared = [seed for seed in first if seed in second]
    if len(shared) == min(len(first), len(second)):
        return PAIRED, [first[seed] for seed in shared], [second[seed] for seed in shared]
    return WELCH, list(first.values()), list(second.values())


def _why_not(method: str, a: Sequence[float], b: Sequence[float], mean: float) -> str:
    """Of the same few images t would be infinite, and any difference certain."""
    spreads = [np.std(np.subtract(b, a))] if method == PAIRED else [np.std(a), np.std(b)]
    if max(spreads) >= _NO_SPREAD:
        return ""
    return "no spread: nothing can be said" if abs(mean) > _NO_SPREAD else "equal in each run"


def _intervals(
    method: str, samples: Sequence[tuple[list[float], list[float]]], rate: float
) -> tuple[Sequence[float], Sequence[float]]:
    """Both ends, for pairs with the same numbers of runs. One call: it takes milliseconds for one pair, too."""
    from scipy import stats  # takes a second

    a, b = ([pair[which] for pair in samples] for which in (0, 1))
    test = stats.ttest_rel(b, a, axis=1) if method == PAIRED else stats.ttest_ind(b, a, axis=1, equal_var=False)
    low, high = test.confidence_interval(1 - rate)
    return low, high
