"""Which run directories there are, which runs count, and what each of them has reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from senet.errors import ConfigError
from senet.rundir.history import Run, judged, read_run
from senet.rundir.named import cells_not_begun, runs_in
from senet.rundir.standing import State, state_of

SCORES = {
    "last": "last epoch",
    "best": "best epoch",
    "last_raw": "last epoch, raw weights",
    "best_raw": "best epoch, raw weights",
    "last_averaged": "last epoch, averaged weights",
    "best_averaged": "best epoch, averaged weights",
}
"""Accuracies of a run in percent. The first two are of the weights that the run reports as its result."""


@dataclass(frozen=True)
class Collected:
    """The runs that were found. Only those that have finished enter any statistics."""

    finished: list[Run]
    unfinished: list[Run]
    left_out: dict[Path, str]
    """Run directory -> why its run does not count: how it ended, or that it goes on."""


def collect(folders: Sequence[Path]) -> Collected:
    """The runs of these folders: run directories, or folders of run directories at any depth.

    Raises:
        ConfigError: a folder holds no run directory, or none of the runs has finished.
    """
    missing = [cell for folder in folders for cell in cells_not_begun(folder)]
    found = Collected([], [], {cell: _why(state_of(cell)) for cell in missing})
    run_dirs: dict[Path, Path] = {}  # each once, however often and by whatever path it is named
    for each in [run_dir for folder in folders for run_dir in runs_in(folder)]:
        run_dirs.setdefault(each.resolve(), each)
    for folder in run_dirs.values():
        state = state_of(folder)
        run = read_run(folder) if (folder / "metrics.jsonl").exists() else None
        if run is not None and run.epochs and state.status.get("state") == "finished":  # or sent again
            found.finished.append(run)
            continue
        found.left_out[folder] = _why(state)
        if run is not None:
            found.unfinished.append(run)
    if not found.finished:
        raise ConfigError(f"of {len(found.left_out)} runs none has finished; only runs that have are compared")
    return found


def _why(state: State) -> str:
    word = "finished, without a row of an epoch" if state.word == "finished" else state.word
    return f"{word} ({state.short})" if state.reason and word in ("stopped", "failed") else word


def scores(run: Run) -> dict[str, float]:
    """The accuracies of ``SCORES``, in percent; averaged weights where the run has them."""
    last = run.epochs[-1]
    found = {"last": last[f"{judged(last)}_top1"], "best": last["best_top1"]}
    for name, key in (("raw", "test_top1"), ("averaged", "ema_top1")):
        values = [row[key] for row in run.epochs if key in row]
        if values:
            found |= {f"last_{name}": values[-1], f"best_{name}": max(values)}
    return {name: float(value) for name, value in found.items()}
