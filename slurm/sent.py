"""The job of each cell of a sweep, in its ``slurm/job.json``, also where a submission was killed before it wrote that.

What is sent is written down before sbatch is called. SLURM's queue then tells which array it has become.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from senet.rundir.files import read_json, write_json
from senet.rundir.named import cell_names
from slurm import cluster


def announce(folder: Path, cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Write down what is about to be sent: name -> what its ``job.json`` shall have, in the order of the tasks."""
    jobs = [str(read_json(_job_file(folder, name)).get("job", "")) for name in cell_names(folder)]
    arrays = sorted({job.partition("_")[0] for job in jobs})
    write_json(_file(folder), {"before": arrays, "cells": cells}, durable=True)


def confirm(folder: Path, ids: Sequence[str]) -> None:
    """SLURM has taken them: write the job of each cell."""
    _write(folder, read_json(_file(folder))["cells"], ids)
    forget(folder)


def recover(folder: Path) -> None:
    """Write the jobs of a submission that was killed after sbatch, as far as they still wait or run.

    Raises:
        NoAnswer: SLURM does not say whether there are any.
    """
    if sent := read_json(_file(folder)):
        ids = cluster.jobs_with_logs_in(folder.absolute() / "slurm", folder.absolute().name)
        _write(folder, sent["cells"], [each for each in ids if each.partition("_")[0] not in sent["before"]])


def forget(folder: Path) -> None:
    """Nothing was sent."""
    _file(folder).unlink(missing_ok=True)


def _write(folder: Path, cells: Mapping[str, Mapping[str, Any]], ids: Sequence[str]) -> None:
    names = list(cells)
    for job_id in ids:
        name = names[int(job_id.partition("_")[2] or 0)]
        write_json(_job_file(folder, name), {"job": job_id, **cells[name]})


def _file(folder: Path) -> Path:
    return folder / "slurm" / "sent.json"


def _job_file(folder: Path, name: str) -> Path:
    return folder / name / "slurm" / "job.json"
