"""Where the time of a run went: parts that sum to its wall time, from starts.jsonl and status.json. Pure; no torch.

A start tells how many seconds it has spent in each phase (``phases``), with every heartbeat. Between two starts only
the time of day is known, of the hosts that launched them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from senet.rundir.files import read_json, read_rows
from senet.rundir.phases import WORK

PARTS = {
    "queued": "in SLURM's queue",
    "starting": "starting",
    "waiting": "waiting for data",
    "training": "training",
    "evaluating": "evaluating",
    "saving": "saving",
    "again": "done twice",
    "lost": "lost",
    "not_running": "not running",
}
"""Part -> its name."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Hours:
    """Seconds of one run, or of several together."""

    parts: Mapping[str, float]
    """Seconds by part, all of ``PARTS``."""
    steps_again: int = 0
    """Updates done twice, as far as the last heartbeat before each kill knew them."""
    cut_s: float = 0.0
    """By how much starts overlap, by clocks that do not agree; counted as nothing between them."""

    @property
    def wall_s(self) -> float:
        """The sum of the parts: from the first submission or start to the last heartbeat."""
        return sum(self.parts.values())

    @property
    def effective(self) -> float:
        """Effective training time ratio (arXiv 2410.21680): what ran and is part of the result, of the time in which
        the run was there or waited in a queue. 0 where there was none."""
        available_s = self.wall_s - self.parts["not_running"]
        return sum(self.parts[part] for part in (*WORK, "saving")) / available_s if available_s else 0.0

    def facts(self) -> dict[str, Any]:
        """As status.json has it."""
        return {
            "wall_s": round(self.wall_s, 3),
            "effective": round(self.effective, 4),
            "steps_again": self.steps_again,
            "parts_s": {part: round(seconds, 3) for part, seconds in self.parts.items()},
        }


def read_hours(run_dir: Path) -> Hours | None:
    """Of a run directory; None where its version has not measured it."""
    hours = hours_of(list(read_rows(run_dir / "starts.jsonl")), read_json(run_dir / "status.json"))
    return hours if hours.wall_s else None


def hours_of(starts: Sequence[Row], last: Row) -> Hours:
    """From the rows of starts.jsonl, and the status of the last start."""
    known = _known(starts, last)
    parts, steps, cut_s = dict.fromkeys(PARTS, 0.0), 0, 0.0
    if known and known[0][0].get("submitted"):
        parts["queued"] = max(0.0, known[0][0]["began"] - known[0][0]["submitted"])
    for index, (start, end) in enumerate(known):
        later = known[index + 1][0] if index + 1 < len(known) else None
        spent = _until_its_last_checkpoint(start, end, later) if later else end["spent"]
        for phase, seconds in spent.items():
            parts[phase] += seconds
        if later:
            cut_s += _add_gap(parts, start, end, spent, later)
            steps += max(0, end["done"] - later["resumed_from"])
            _move_repeated(parts, start, spent, later)
    return Hours(parts, steps, cut_s)


def together(several: Iterable[Hours]) -> Hours:
    """Of several runs: their parts added up."""
    found = list(several)
    parts = {part: sum(each.parts[part] for each in found) for part in PARTS}
    return Hours(parts, sum(each.steps_again for each in found), sum(each.cut_s for each in found))


def of_all(run_dirs: Iterable[Path]) -> str:
    """``in_words`` of several runs together; empty where none has measured it."""
    found = [hours for run_dir in run_dirs if (hours := read_hours(run_dir))]
    return in_words(together(found).facts()) if found else ""


def in_words(facts: Mapping[str, Any]) -> str:
    """One line of ``Hours.facts``: the parts of a percent or more, the largest first."""
    shares = {part: seconds / (facts["wall_s"] or 1) for part, seconds in facts["parts_s"].items()}
    largest = sorted(shares, key=lambda part: -shares[part])
    listed = [f"{PARTS[part]} {shares[part]:.0%}" for part in largest if shares[part] >= 0.01]
    return f"{duration(facts['wall_s'])}: {', '.join(listed)}; effective {facts['effective']:.0%}"


def duration(seconds: float) -> str:
    """For people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def _known(starts: Sequence[Row], last: Row) -> list[tuple[Row, Row]]:
    """The starts that were measured, each with its last status. Left out are those of older versions, and those that
    found the run finished and did nothing."""
    ends = [*(start.get("after", {}) for start in starts[1:]), last]
    pairs = [
        (start, end)
        for start, end in zip(starts, ends, strict=False)
        if "began" in start and "resumed_from" in start and {"spent", "done"} <= end.keys()
    ]
    return [
        (start, end)
        for start, end in pairs
        if start.get("after", {}).get("state") != "finished" or end["done"] > start["resumed_from"]
    ]


def _until_its_last_checkpoint(start: Row, end: Row, later: Row) -> dict[str, float]:
    """Seconds of a start in each phase. Where it was killed between a checkpoint and the next heartbeat, the checkpoint
    knows more of its work."""
    spent = dict(end["spent"])
    if end.get("state") == "running":
        left_s = max(0.0, later["began"] - start["began"] - sum(spent.values()))
        for phase in WORK:
            more_s = _kept_s(later, phase) - _kept_s(start, phase) - spent.get(phase, 0.0)
            more_s = min(left_s, max(0.0, more_s))
            spent[phase] = spent.get(phase, 0.0) + more_s
            left_s -= more_s
    return spent


def _kept_s(start: Row, phase: str) -> float:
    """Seconds of a phase in the checkpoint that a start goes on from."""
    seconds: float = start.get("kept", {}).get(phase, 0.0)
    return seconds


def _add_gap(parts: dict[str, float], start: Row, end: Row, spent: Row, later: Row) -> float:
    """The time between a start and the next one. Returns by how much they overlap."""
    ended = start["began"] + sum(spent.values())
    gap_s: float = later["began"] - ended
    if gap_s < 0:
        return -gap_s
    same_job = bool(start.get("job")) and start["job"] == later["job"]
    if later.get("submitted") and not same_job:
        queued_s = min(gap_s, max(0.0, later["began"] - later["submitted"]))
        parts["queued"] += queued_s
        gap_s -= queued_s
    if end.get("state") == "running" or (same_job and end.get("state") == "failed"):
        parts["lost"] += gap_s
    else:
        parts["queued" if same_job else "not_running"] += gap_s
    return 0.0


def _move_repeated(parts: dict[str, float], start: Row, spent: Row, later: Row) -> None:
    """The work of a start that is not in the checkpoint from which the next one went on: from its parts to "again"."""
    for phase in WORK:
        reached_s = _kept_s(start, phase) + spent.get(phase, 0.0)
        twice = min(parts[phase], max(0.0, reached_s - _kept_s(later, phase)))
        parts[phase] -= twice
        parts["again"] += twice
