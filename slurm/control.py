"""What becomes of submitted runs: ``status`` and ``stop``."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from senet.config import ConfigError
from senet.files import read_json
from slurm import cluster
from slurm.batch import stop_file

_COLUMNS = ("run", "job", "slurm", "training", "step", "epoch", "images/s", "test %", "requeues", "reason")


def status(names: list[str]) -> None:
    """Print a line per run directory (default: all submitted ones in ``runs/``): SLURM's word beside the run's own.

    Raises:
        ConfigError: a folder from which nothing was submitted.
    """
    run_dirs = [Path(name) for name in names] or sorted(
        path.parent.parent for path in Path("runs").glob("*/slurm/job.json")
    )
    if not run_dirs:
        raise ConfigError("no run in runs/ was submitted; name a run directory: python slurm/submit.py status RUN_DIR")
    table = [_COLUMNS, *(_row(run_dir) for run_dir in run_dirs)]
    widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def stop(names: list[str]) -> None:
    """Have the job of a run directory save and end; one that only waits in the queue is cancelled.

    Raises:
        ConfigError: no run directory, or no job of it that could be stopped.
    """
    if len(names) != 1:
        raise ConfigError("stop takes one run directory: python slurm/submit.py stop RUN_DIR")
    run_dir = Path(names[0])
    submitted = _submitted(run_dir)
    job_id, state = submitted["job"], _state(submitted)
    if state not in cluster.ACTIVE:
        raise ConfigError(f"job {job_id} of run_dir={run_dir} does not run: it is {state or 'unknown to SLURM'}")
    stop_file(run_dir, job_id).touch()  # the batch script asks for it before it requeues
    if submitted["cluster"] == cluster.LOCAL:
        os.kill(int(job_id), signal.SIGTERM)  # passed on to the ranks
    else:
        # the ranks alone are told; in the queue there are none
        words = ["scancel", job_id] if state in ("PENDING", "REQUEUED") else ["scancel", "--signal=USR2", job_id]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise ConfigError(f"{' '.join(words)}: {' '.join(done.stderr.split())}")
    print(f"job {job_id} ({state}) was asked to stop; see: python slurm/submit.py status {run_dir}")


def _submitted(run_dir: Path) -> dict[str, Any]:
    found = read_json(run_dir / "slurm" / "job.json")
    if not found:
        raise ConfigError(f"run_dir={run_dir}: nothing was submitted from there (no slurm/job.json)")
    return found


def _state(submitted: dict[str, Any]) -> str:
    return cluster.state_of(submitted["cluster"], submitted["job"])


def _row(run_dir: Path) -> tuple[str, ...]:
    submitted, run = _submitted(run_dir), read_json(run_dir / "status.json")
    state = _state(submitted)
    training, reason = str(run.get("state", "not begun")), str(run.get("reason", ""))
    if training == "running" and (state or "unknown") not in cluster.ACTIVE:
        training = f"killed {time.time() - run['heartbeat']:.0f} s ago"
    if state == "FAILED" and not reason:  # not even the batch script could tell
        reason = f"see {run_dir}/slurm/{submitted['job']}_0_log.out"
    return (
        str(run_dir),
        submitted["job"],
        state or "unknown",
        training,
        *(str(run.get(key, "-")) for key in ("step", "epoch", "images_per_s")),
        f"{run['top1']:.2f}" if "top1" in run else "-",
        str(run.get("job_restarts", 0)),
        reason,
    )
