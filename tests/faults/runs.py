"""Runs that are disturbed: their options, how tests observe them, and how they recover."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.harness import checkpoints, descendants, rows, started, tiny, wait_until

if TYPE_CHECKING:
    from tests.faults.conftest import Trial

EVERY = 7
"""Updates between checkpoints."""
EPOCHS = 2
LAST = EPOCHS * 22
"""Updates of the whole run."""
ALL_ON = (
    f"train.epochs={EPOCHS}",
    "train.accumulate=2",
    "log.every_steps=1",
    f"checkpoint.every_steps={EVERY}",
)


def options(data_root: Path, run_dir: Path, *more: str) -> list[str]:
    """Arguments of a small run with everything on that has state; ``more`` may set any of it anew."""
    return tiny(*ALL_ON, f"data.root={data_root}", f"run_dir={run_dir}", *more)


def last_step(run_dir: Path) -> int:
    """The newest row of metrics.jsonl; 0 where there is none."""
    found = rows(run_dir)
    return int(found[-1]["step"]) if found else 0


def newest_step(run_dir: Path) -> int:
    """Of the checkpoints by name; 0 where there is none."""
    return max((int(path.name[5:14]) for path in checkpoints(run_dir)), default=0)


def ranks_of(launcher: psutil.Popen) -> dict[int, psutil.Process]:
    """The processes of a launch by rank."""
    found = {}
    for process in descendants(launcher):
        with suppress(psutil.Error, KeyError):  # it has just ended, or has not yet called exec
            if any(part.endswith("train_ddp.py") for part in process.cmdline()):
                found[int(process.environ()["RANK"])] = process
    return found


def recover(trial: Trial, command: Sequence[str], run_dir: Path, log: Path) -> None:
    """The same command again, to its end."""
    reached, began = last_step(run_dir), time.monotonic()
    trial.lost(max(0, reached - newest_step(run_dir)))
    with started(command, log) as process:
        wait_until(lambda: last_step(run_dir) > reached or process.poll() is not None)
        trial.recovered(time.monotonic() - began)
        assert process.wait(400) == 0, log.read_text()
    assert "finished: " in log.read_text()
    assert [row["step"] for row in rows(run_dir)] == list(range(1, LAST + 1))
