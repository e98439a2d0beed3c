"""The whole of a comparison, ready to be shown: groups, means, differences, and what must be said beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from senet.compare.collect import SCORES, collect
from senet.compare.groups import Group, group, notes
from senet.compare.intervals import METHODS, RATE, Difference, Mean, differences, mean_of, tested_pairs
from senet.errors import ConfigError
from senet.rundir.history import judged

_MOST_PAIRS = 28
"""Those of eight groups. Of more, only the pairs that differ are shown."""


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
        if count := tested_pairs(self.differences):
            said.append(
                f"Intervals: {100 * (1 - RATE):g} % for all together, {100 * (1 - RATE / count):.4g} % for each "
                f"(Bonferroni; pairs: {count}). If the options made no difference, a pair would be called different in "
                f"at most {100 * RATE:g} % of such tables."
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
    base = _named(groups, against) if against else None
    pairs = [
        (first, second) if base is None or first == base else (second, first)
        for first in range(len(groups))
        for second in range(first + 1, len(groups))
        if (base is None or base in (first, second)) and groups[first].images == groups[second].images
    ]
    scored = [[each.scores(name) for name in SCORES] for each in groups]
    used = [index for index in range(len(SCORES)) if any(of[index] for of in scored)]
    means = [{list(SCORES)[index]: mean_of(list(of[index].values())) for index in used} for of in scored]
    said = notes(groups, found)
    if len({each.images for each in groups}) > 1:
        said.append("groups that were scored on different images are not compared with each other")
    return Comparison(
        list(folders),
        score,
        {"found": len(found.finished) + len(found.left_out), "finished": len(found.finished)},
        groups,
        means,
        differences([each.scores(score) for each in groups], pairs),
        said,
    )


def _named(groups: Sequence[Group], against: Sequence[str]) -> int:
    fitting = [index for index, each in enumerate(groups) if set(against) <= set(each.words)]
    if len(fitting) != 1:
        names = "; ".join(each.name for each in groups)
        raise ConfigError(f"--against {' '.join(against)} fits {len(fitting)} groups and must fit one of: {names}")
    return fitting[0]
