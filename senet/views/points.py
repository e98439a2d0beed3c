"""The rows of metrics.jsonl as one point for each step. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Point:
    """All numbers of one step."""

    step: int
    train_s: float = 0.0
    """Seconds of training up to here."""
    values: dict[str, float] = field(default_factory=dict)
    """By kind of row and name: ``train/lr``, ``epoch/test_top1``."""


def points(rows: Iterable[Mapping[str, Any]], *, after: int, through: int) -> list[Point]:
    """Of the steps ``after`` < step <= ``through``, in their order; each once, also where a row is there twice."""
    found: dict[int, Point] = {}
    for row in rows:
        step, kind = row.get("step"), row.get("kind")
        if not isinstance(step, int) or not isinstance(kind, str) or not after < step <= through:
            continue  # a person may have added a line
        point = found.setdefault(step, Point(step))
        point.train_s = row.get("train_s", point.train_s)
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
        point.values |= {f"{kind}/{name}": value for name, value in numbers.items()}
    return [found[step] for step in sorted(found)]


def complete_through(checkpoint: Mapping[str, Any]) -> int:
    """The last step to which nothing is added any more, by the manifest of a checkpoint. That is the step of the
    checkpoint, unless the evaluation of an epoch was still to come, whose row has the same step."""
    step, per_epoch = int(checkpoint["step"]), int(checkpoint["steps_per_epoch"])
    awaits_evaluation = step > 0 and step == (checkpoint["epochs_done"] + 1) * per_epoch
    return step - 1 if awaits_evaluation else step
