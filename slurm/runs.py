"""The run directories that somebody names, also by the id of a job, and their jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from senet.errors import ConfigError
from senet.rundir.files import read_json
from senet.rundir.named import ROOT, below, cell_names, folder_of, is_run, is_sweep, runs_in
from senet.verbs import typed
from slurm import cluster, sent
from slurm.logs import jobs


def runs_of(word: str) -> list[tuple[Path, str]]:
    """Run directories, each with the job of it that was meant, "" for the newest.

    Args:
        word: what ``senet.rundir.named`` takes; or the id of a job, and of an array for all its cells.

    Raises:
        ConfigError: there is none.
    """
    found = meant(word)
    return _of_job(word) if found is None else [(run_dir, "") for run_dir in runs_in(found)]


def meant(word: str) -> Path | None:
    """What a word means; None: it is the id of a job."""
    try:
        return folder_of(word)
    except ConfigError:
        if re.fullmatch(r"\d+(_\d+)?", word):
            return None
        raise


def _of_job(word: str) -> list[tuple[Path, str]]:
    """The run directory that had a job; of an array those of its cells, each with its own."""
    out = Path(cluster.job_fields(word).get("StdOut", ""))
    folders, where = list(below(ROOT, 2)), "SLURM does not know it, and no run in runs/"
    if out.parent.name == "slurm" and out.parent.is_dir():
        folder = out.parent.parent
        if not is_sweep(folder):
            return [(folder, word)]
        folders, where = [folder / cell for cell in cell_names(folder)], f"no cell of {folder}"
    found = []
    for folder in folders:
        had = [str(read_json(folder / "slurm" / "job.json").get("job", "")), *jobs(folder)]
        if own := [job for job in had if word in (job, job.partition("_")[0])]:
            found.append((folder, own[0]))
    if not found:
        raise ConfigError(f"job {word}: {where} had it; name the run directory")
    return found


def jobs_of(word: str, *, several: bool = True) -> dict[Path, dict[str, Any]]:
    """The run directories that a word means, each with the newest job of it, its ``slurm/job.json``; those without are
    left out.

    Args:
        several: whether it may be a folder of runs that is no sweep.

    Raises:
        ConfigError: there is none, or the job that was named is not the newest.
        NoAnswer: a submission was killed, and SLURM does not say what has become of it.
    """
    folder = meant(word)
    if folder is not None:
        sent.recover(folder)
        if not several and not (is_run(folder) or is_sweep(folder)):
            raise ConfigError(f"{folder} is neither a run directory nor a sweep; name one")
    if found := _with_jobs(runs_of(word)):
        return found
    if folder is None:
        raise ConfigError(f"job {word} is not the newest of its run directory; name that")
    here = f"; of cells on this machine tells {typed('sweep')} status {folder.name}" if is_sweep(folder) else ""
    raise ConfigError(f"{folder}: nothing was submitted from there (no slurm/job.json){here}")


def all_jobs() -> dict[Path, dict[str, Any]]:
    """The same of all runs and cells in ``runs/``; ConfigError where there is none."""
    if found := _with_jobs((run_dir, "") for run_dir in below(ROOT, 2)):
        return found
    raise ConfigError(f"no run in runs/ was submitted; name a run directory: {typed('slurm')} status RUN_DIR")


def _with_jobs(run_dirs: Iterable[tuple[Path, str]]) -> dict[Path, dict[str, Any]]:
    found = {run_dir: (read_json(run_dir / "slurm" / "job.json"), job_id) for run_dir, job_id in run_dirs}
    return {run_dir: job for run_dir, (job, job_id) in found.items() if job and job_id in ("", job["job"])}
