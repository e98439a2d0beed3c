"""What a run directory tells of its run. Only reads files; needs neither torch nor the code that trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from senet.config.renamed import of_a_run
from senet.errors import ConfigError
from senet.rundir.files import read_json, read_rows
from senet.rundir.hours import Hours, hours_of

_CAUSES = {"stopped": "preempted", "running": "killed", "failed": "failed", "finished": "finished"}
_BY_A_PERSON = ("SIGINT", "SIGHUP")  # Ctrl-C; the terminal was closed


@dataclass(frozen=True)
class Interruption:
    """Where the run was resumed, and what had ended the start before."""

    step: int
    """Updates done at the checkpoint that it was resumed from."""
    cause: str
    """See ``cause``; not "finished"."""
    reason: str
    """The signal or the error, where there was one."""


@dataclass(frozen=True)
class Run:
    """The content of a run directory."""

    name: str
    """Last part of the option ``run_dir``, so that a copy of the folder has the same name."""
    folder: Path
    options: dict[str, Any]
    """Flat, "optim.lr". Without the group ``slurm``, whose variables may hold what others should not read."""
    epochs: list[dict[str, Any]]
    """Rows of metrics.jsonl, one per epoch; percent, nats, seconds."""
    intervals: list[dict[str, Any]]
    """Rows of metrics.jsonl, one per log interval."""
    starts: list[dict[str, Any]]
    """Rows of starts.jsonl."""
    status: dict[str, Any]
    """status.json as it was left; {} where there is none."""

    @property
    def steps_per_epoch(self) -> float | None:
        """Updates per epoch, as the rows show; None before the end of the first epoch."""
        return self.epochs[-1]["step"] / self.epochs[-1]["epoch"] if self.epochs else None

    @property
    def interruptions(self) -> list[Interruption]:
        """One for each start after the first. Starts of a run that had finished do not count."""
        return [
            Interruption(int(start["resumed_from"]), cause(start), str(start.get("after", {}).get("reason", "")))
            for start in self.starts[1:]
            if cause(start) != "finished"
        ]

    @property
    def changes(self) -> dict[int, list[str]]:
        """Number of updates done -> the options that a start changed there, "optim.lr: 0.1 -> 0.03"."""
        return {int(start["resumed_from"]): found for start in self.starts if (found := changed(start))}

    @property
    def requeues(self) -> int:
        """How often SLURM requeued a job of this run, over all its jobs."""
        last: dict[str, int] = {}
        for ended in [*(start.get("after", {}) for start in self.starts), self.status]:
            if ended.get("job"):
                last[ended["job"]] = max(last.get(ended["job"], 0), int(ended.get("job_restarts", 0)))
        return sum(last.values())

    @property
    def hours(self) -> Hours | None:
        """Where its time went; None where its version has not measured it."""
        hours = hours_of(self.starts, self.status)
        return hours if hours.wall_s else None

    @property
    def images(self) -> str:
        """Which images the epochs were evaluated on: "test", or "held-out" ones of the training split."""
        return "held-out" if self.options.get("data.holdout") else "test"


def read_run(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        ConfigError: it is not a run directory.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name a run directory")
    if not (folder / "metrics.jsonl").exists():
        raise ConfigError(f"{folder} is no run directory: it holds no metrics.jsonl; name what run_dir was in training")
    rows = list(read_rows(folder / "metrics.jsonl"))
    options = read_options(folder / "config.yaml")
    return Run(
        name=Path(str(options.get("run_dir") or folder.resolve())).name,
        folder=folder,
        options=options,
        epochs=[row for row in rows if row.get("kind") == "epoch"],
        intervals=[row for row in rows if row.get("kind") == "train"],
        starts=list(read_rows(folder / "starts.jsonl")),
        status=read_json(folder / "status.json"),
    )


def cause(start: Mapping[str, Any]) -> str:
    """How the start before this one ended.

    interrupted: saved and ended after a signal from a terminal. preempted: likewise after another signal. killed: ended
    without writing anything. failed: by an error. finished. unknown: the files of older versions do not say it.
    """
    after = start.get("after", {})
    if after.get("state") == "stopped" and after.get("reason") in _BY_A_PERSON:
        return "interrupted"
    return _CAUSES.get(after.get("state", ""), "unknown")


def changed(start: Mapping[str, Any]) -> list[str]:
    """The options that a start changed, "optim.lr: 0.1 -> 0.03", and the jump of the learning rate, if it made one."""
    options = start.get("changed") or {}
    found = [f"{key}: {was} -> {now}" for key, (was, now) in options.items()]
    if jump := start.get("lr"):
        found.append(f"the learning rate: {jump[0]:.4g} -> {jump[1]:.4g}")
    return found


def judged(row: Mapping[str, Any]) -> str:
    """Which scores in the row of an epoch are its result: "ema", of averaged weights, or "test", of raw ones."""
    # rows of older versions do not say it; there it was the averaged weights, if there were any
    averaged = row.get("weights", "averaged" if "ema_top1" in row else "raw") == "averaged"
    return "ema" if averaged else "test"


def names(runs: Sequence[Run]) -> list[str]:
    """A different name for each run."""
    found: list[str] = []
    for run in runs:
        name, number = run.name, 1
        while name in found:
            number += 1
            name = f"{run.name} ({number})"
        found.append(name)
    return found


def read_options(path: Path) -> dict[str, Any]:
    """Of a run's config.yaml, flat, "optim.lr"; without the group ``slurm``. {} where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); restore or remove it") from None
    flat: dict[str, Any] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[str(key)] = value
    return {key: value for key, value in of_a_run(flat).items() if not key.startswith("slurm.")}
