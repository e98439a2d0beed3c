"""The run directories that somebody names: one, or those of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from senet.config.load import named_path
from senet.errors import ConfigError
from senet.rundir.files import read_json
from senet.sweep import record
from senet.verbs import typed
from slurm import sent


def submitted(run_dir: Path) -> dict[str, Any]:
    """``slurm/job.json``.

    Raises:
        ConfigError: there is none.
    """
    found = read_json(run_dir / "slurm" / "job.json")
    if not found:
        raise ConfigError(f"run_dir={run_dir}: nothing was submitted from there (no slurm/job.json)")
    return found


def named(names: Sequence[str]) -> list[Path]:
    """Those of these names, a sweep as its cells that were submitted; without a name all in ``runs/``.

    Raises:
        ConfigError: a folder from which nothing was submitted.
    """
    run_dirs = [run_dir for name in names for run_dir in one_or_cells(name)]
    if not names:
        jobs = [*Path("runs").glob("*/slurm/job.json")]
        jobs += [job for file in Path("runs").glob(f"*/{record.FILE}") for job in file.parent.glob("*/slurm/job.json")]
        run_dirs = sorted(job.parent.parent for job in jobs)
    if not run_dirs:
        raise ConfigError(f"no run in runs/ was submitted; name a run directory: {typed('slurm')} status RUN_DIR")
    return run_dirs


def one_or_cells(name: str) -> list[Path]:
    """A run directory; of a sweep, by its name or folder, those of its cells that were submitted.

    Raises:
        ConfigError: none of its cells was.
        NoAnswer: a submission was killed, and SLURM does not say what has become of it.
    """
    if not is_sweep(name):
        return [named_path(name)]
    folder = record.folder_of(name)
    sent.recover(folder)
    cells = [folder / cell for cell in record.names(folder)]
    found = [cell for cell in cells if (cell / "slurm" / "job.json").exists()]
    if not found:
        text = f"no cell of the sweep {folder} was submitted; of those on this machine tells"
        raise ConfigError(f"{text} {typed('sweep')} status {folder.name}")
    return found


def is_sweep(name: str) -> bool:
    """Whether it is the name or the folder of a sweep."""
    try:
        record.folder_of(name)
    except ConfigError:
        return False
    return True
