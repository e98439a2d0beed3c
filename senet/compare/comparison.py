"""The whole of a comparison, ready to be shown: groups, means, differences, and what must be said beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from senet.compare.collect import SCORES, collect
from senet.compare.groups import Group, group, listed, notes
from senet.compare.intervals import METHODS, RATE, Difference, Mean, differences, mean_of
from senet.errors import ConfigError
from senet.rundir.history import judged

_MOST_PAIRS = 28
"""Those of eight groups. Of more, only the pairs that differ are shown."""
MOST_GROUPS = 30
"""Of more, each is compared with the best alone."""


@dataclass(frozen=True)
class Comparison:
    """Of all runs that were found."""

    folders: list[Path]
    score: str
    """Which of ``SCORES`` the differences are of."""
    counts: dict[str, int]
    """Runs "found" and "finished"."""
    groups: list[Group]
    means: list[dict[str, Mean]]
    """For each group, those of ``SCORES`` that any group has."""
    differences: list[Difference]
    among: int
    """Of how many pairs the intervals hold together."""
    notes: list[str]

    @property
    def title(self) -> str:
        varied = ", ".join(self.groups[0].options)
        finished, count = self.counts["finished"], self.counts["found"]
        return f"finished: {finished} of {count} runs; groups: {len(self.groups)}{varied and f', by {varied}'}"

    @property
    def images(self) -> str:
        """What the accuracies are of: "test", "held-out", or "test or held-out"."""
        return " or ".join(sorted({run.images for each in self.groups for run in each.runs.values()}, reverse=True))

    @property
    def shown_pairs(self) -> list[Difference]:
        """What people are shown of the differences."""
        few = len(self.differences) <= _MOST_PAIRS
        return [each for each in self.differences if few or each.better is not None]

    @property
    def columns(self) -> dict[str, str]:
        """The scores of the table with their headings: of both weights where a run has averaged ones."""
        both = [name for name in self.means[0] if name not in ("last", "best")]
        if "last_averaged" in both:
            return {name: name.replace("_", " ") for name in both}
        return {"last": "last", "best": "best"}

    @property
    def method(self) -> list[str]:
        """Which numbers the differences are of, and how the intervals were made; sentences."""
        if len(self.groups) == 1:
            return []
        rows = (run.epochs[-1] for each in self.groups for run in each.runs.values())
        weights = {"averaged" if judged(row) == "ema" else "raw" for row in rows}
        of = f"{SCORES[self.score]}, {' or '.join(sorted(weights))} weights, as each run reports its result"
        said = [f"Differences, in points of accuracy: {of}."]
        if self.score == "best":
            said.append(
                "The best epoch was chosen by the images it is scored on, which makes each result look too good."
            )
        if self.among:
            said.append(
                f"Intervals: {100 * (1 - RATE):g} % for all together, {100 * (1 - RATE / self.among):.4g} % for each "
                f"(Bonferroni; pairs: {self.among}). If the options made no difference, a pair would be called "
                f"different in at most {100 * RATE:g} % of such tables."
            )
            used = dict.fromkeys(each.method for each in self.differences if not each.why)
            said += [f"{method}: {METHODS[method]}." for method in used]
        if hidden := len(self.differences) - len(self.shown_pairs):
            said.append(f"{hidden} pairs without a difference that can be shown are left out here; --json has all.")
        if self.images != "held-out":
            said.append(
                "Who chooses by test images has no images left to report on: data.holdout holds some out to choose by."
            )
        return said


def compare(folders: Sequence[Path], *, score: str = "last", against: Sequence[str] = ()) -> Comparison:
    """Read the runs and compare them.

    Args:
        score: "last" or "best".
        against: "key=value" of the group that the others are compared with; without any, all pairs are compared.

    Raises:
        ConfigError: what ``collect`` refuses; ``against`` does not name one group.
    """
    found = collect(folders)
    groups = group(found)
    values, said = [each.scores(score) for each in groups], notes(groups, found)
    pairs, among = _pairs(groups, values, _named(groups, against) if against else None, said)
    scored = [[each.scores(name) for name in SCORES] for each in groups]
    used = [index for index in range(len(SCORES)) if any(of[index] for of in scored)]
    means = [{list(SCORES)[index]: mean_of(list(of[index].values())) for index in used} for of in scored]
    return Comparison(
        list(folders),
        score,
        {"found": len(found.finished) + len(found.left_out), "finished": len(found.finished)},
        groups,
        means,
        differences(values, pairs, among),
        among,
        said,
    )


def _pairs(
    groups: Sequence[Group], values: Sequence[Mapping[int, float]], base: int | None, said: list[str]
) -> tuple[list[tuple[int, int]], int]:
    """Which groups are compared, and the number of pairs from which these are; adds to ``said`` what is left out."""
    if few := [str(number) for number, of in enumerate(values, start=1) if len(of) < 2]:
        said.append(f"groups of fewer than two runs, of which nothing can be said: {listed(few)}")
    if len({each.images for each in groups}) > 1:
        said.append("groups that were scored on different images are not compared with each other")
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index, (each, of) in enumerate(zip(groups, values, strict=True)):
        if len(of) > 1:
            kinds.setdefault(each.images, []).append(index)
    every = [pair for alike in kinds.values() for pair in combinations(alike, 2)]
    if base is not None:
        pairs = [(base, first if second == base else second) for first, second in every if base in (first, second)]
        return pairs, len(pairs)
    if sum(map(len, kinds.values())) <= MOST_GROUPS:
        return every, len(every)
    best = [max(alike, key=lambda index: sum(values[index].values()) / len(values[index])) for alike in kinds.values()]
    numbers = ", ".join(str(index + 1) for index in best)
    said.append(
        f"of more than {MOST_GROUPS} groups each is compared with the best alone ({numbers}); "
        "since that is chosen by the results, the intervals are as wide as those of all pairs; --against compares with "
        "one that was chosen beforehand"
    )
    return [pair for pair in every if set(pair) & set(best)], len(every)


def _named(groups: Sequence[Group], against: Sequence[str]) -> int:
    fitting = [index for index, each in enumerate(groups) if all(map(each.has, against))]
    if len(fitting) != 1:
        names = listed([each.name for each in groups], "; ")
        raise ConfigError(f"--against {' '.join(against)} fits {len(fitting)} groups and must fit one of: {names}")
    return fitting[0]
