"""What a run directory says of its run. Reads files only, needs neither torch nor the code that trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from senet.errors import ConfigError
from senet.rundir.files import read_json, read_rows

_CAUSES = {"stopped": "preempted", "running": "killed", "failed": "failed", "finished": "finished"}
_BY_A_PERSON = ("SIGINT", "SIGHUP")  # Ctrl-C, a terminal that was closed


@dataclass(frozen=True)
class Interruption:
    """Where the run was taken up again, and what had ended the start before."""

    step: int
    """Updates done at the checkpoint that it went on from."""
    cause: str
    """See ``cause``; not "finished"."""
    reason: str
    """The signal or the error, where there was one."""


@dataclass(frozen=True)
class Run:
    """The files of a run directory, read."""

    name: str
    """Last part of ``run_dir`` as it was configured, so that a copy has the same name."""
    folder: Path
    options: dict[str, Any]
    """Flat, "optim.lr"; without the group ``slurm``, whose environment is not for everybody."""
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
        """Updates; None before the end of the first epoch."""
        return self.epochs[-1]["step"] / self.epochs[-1]["epoch"] if self.epochs else None

    @property
    def interruptions(self) -> list[Interruption]:
        """One for each start but the first; a finished run that was only looked at again does not count."""
        return [
            Interruption(int(start["resumed_from"]), cause(start), str(start.get("after", {}).get("reason", "")))
            for start in self.starts[1:]
            if cause(start) != "finished"
        ]

    @property
    def changes(self) -> dict[int, list[str]]:
        """By the updates done then: the options that a start changed, "optim.lr: 0.1 -> 0.03"."""
        return {int(start["resumed_from"]): found for start in self.starts if (found := changed(start))}

    @property
    def requeues(self) -> int:
        """How often SLURM took up the same job again, over all jobs of the run."""
        last: dict[str, int] = {}
        for ended in [*(start.get("after", {}) for start in self.starts), self.status]:
            if ended.get("job"):
                last[ended["job"]] = max(last.get(ended["job"], 0), int(ended.get("job_restarts", 0)))
        return sum(last.values())

    @property
    def images(self) -> str:
        """What the epochs were judged on, in a word: "test" images, or "held-out" ones of the training split."""
        return "held-out" if self.options.get("data.holdout") else "test"


def read_run(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        ConfigError: it is none.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name a run directory")
    if not (folder / "metrics.jsonl").exists():
        raise ConfigError(f"{folder} is no run directory: it holds no metrics.jsonl; name what run_dir was in training")
    rows = list(read_rows(folder / "metrics.jsonl"))
    options = _options(folder / "config.yaml")
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
    """How the start before this one ended. interrupted: saved and left after a signal of a person's terminal.
    preempted: after another one. killed: ended without a word. failed: by an error. finished. unknown: the files do not
    say (they are of an older version).
    """
    after = start.get("after", {})
    if after.get("state") == "stopped" and after.get("reason") in _BY_A_PERSON:
        return "interrupted"
    return _CAUSES.get(after.get("state", ""), "unknown")


def changed(start: Mapping[str, Any]) -> list[str]:
    """The options that a start changed, "optim.lr: 0.1 -> 0.03", and the learning rate where it jumped by that."""
    options = start.get("changed") or {}
    found = [f"{key}: {was} -> {now}" for key, (was, now) in options.items()]
    if jump := start.get("lr"):
        found.append(f"the learning rate: {jump[0]:.4g} -> {jump[1]:.4g}")
    return found


def judged(row: Mapping[str, Any]) -> str:
    """The prefix of what counts as the result in the row of an epoch: "ema", averaged weights, or "test", raw ones."""
    # older versions, whose rows do not say, took the averaged weights wherever there were any
    averaged = row.get("weights", "averaged" if "ema_top1" in row else "raw") == "averaged"
    return "ema" if averaged else "test"


def names(runs: Sequence[Run]) -> list[str]:
    """One for each run, all different."""
    found: list[str] = []
    for run in runs:
        name, number = run.name, 1
        while name in found:
            number += 1
            name = f"{run.name} ({number})"
        found.append(name)
    return found


def _options(path: Path) -> dict[str, Any]:
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
    return {key: value for key, value in flat.items() if not key.startswith("slurm.")}
