"""Means over seeds, and intervals for the differences between them.

Student's t: by scipy. The intervals of a table hold together (Bonferroni): with m pairs each has the confidence
1 - rate / m, so that of all tables in which the options make no difference at most the share ``rate`` calls any pair
different. Holm's procedure would find a little more, but has no intervals that agree with what it finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    mean: float | None
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
    groups: Sequence[Mapping[int, float]], pairs: Sequence[tuple[int, int]], rate: float = RATE
) -> list[Difference]:
    """Of each pair, with intervals that hold for all pairs together.

    Args:
        groups: seed -> score, for each group.
        pairs: indices of two groups each.
        rate: how often at most any pair may be called different where none is.
    """
    found = [_before_intervals(groups, first, second) for first, second in pairs]
    tested = [each for each in found if min(each.n) > 1]
    return [_with_interval(groups, each, rate / len(tested)) if not each.why else each for each in found]


def tested_pairs(found: Sequence[Difference]) -> int:
    """Among how many pairs ``rate`` was shared out. Those without spread count: that they have none is by chance."""
    return sum(min(each.n) > 1 for each in found)


def _samples(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[str, list[float], list[float]]:
    """The scores to be compared: by seed, if one group has all seeds of the other."""
    shared = [seed for seed in first if seed in second]
    if shared and len(shared) == min(len(first), len(second)):
        return PAIRED, [first[seed] for seed in shared], [second[seed] for seed in shared]
    return WELCH, list(first.values()), list(second.values())


def _before_intervals(groups: Sequence[Mapping[int, float]], first: int, second: int) -> Difference:
    method, a, b = _samples(groups[first], groups[second])
    n = (len(a),) if method == PAIRED else (len(a), len(b))
    mean = float(np.mean(b) - np.mean(a)) if a and b else None
    why = ""
    if min(n) < 2:
        why = f"n={min(n)}: nothing can be said"
    else:
        spreads = [np.std(np.subtract(b, a))] if method == PAIRED else [np.std(a), np.std(b)]
        if max(spreads) < _NO_SPREAD:  # the same few images: t would be infinite, and any difference certain
            why = "no spread: nothing can be said" if abs(mean or 0) > _NO_SPREAD else "equal in each run"
    return Difference(first, second, method, n, mean, None, None, why)


def _with_interval(groups: Sequence[Mapping[int, float]], found: Difference, rate: float) -> Difference:
    from scipy import stats  # takes a second

    _, a, b = _samples(groups[found.first], groups[found.second])
    test = stats.ttest_rel(b, a) if found.method == PAIRED else stats.ttest_ind(b, a, equal_var=False)
    low, high = test.confidence_interval(1 - rate)
    return Difference(found.first, found.second, found.method, found.n, found.mean, float(low), float(high), found.why)
