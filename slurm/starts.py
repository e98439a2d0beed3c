"""The starts of a job and their launches, as files in ``slurm/`` of its run directory.

SLURM starts a job once, and again after each requeue. A start launches the ranks once, and again after each failure.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from senet.config.options import Config
from senet.errors import Kind
from senet.rundir.files import read_json, read_rows, replace_file, write_json
from senet.rundir.owner import slurm_job
from senet.rundir.phases import SUBMITTED_VARIABLE
from senet.rundir.restarts import newest_checkpoint

NOTIFY_VARIABLE = "SENET_NOTIFY"
_MAY_COME_BACK = 8  # starts, after which SLURM has given up the first


@dataclass(frozen=True)
class Launch:
    """One launch of the ranks, and what the job may use up."""

    run_dir: Path
    job_id: str
    start: int = 0
    """How often SLURM had requeued the job before."""
    number: int = 0
    """How often this start had launched the ranks before."""
    max_requeues: int = 100
    max_restarts: int = 3
    lead_s: int = 120
    """Before the time limit, when SLURM signals the ranks."""
    may_shrink: bool = False
    """See the function."""
    nodes: int = 1
    """Those of the start, of which some may have been lost."""

    @classmethod
    def from_environment(cls) -> Launch:
        """See ``launch_variables``."""
        env = os.environ
        return cls(
            Path(env["SENET_RUN_DIR"]),
            slurm_job(),
            int(env.get("SLURM_RESTART_COUNT", "0")),
            int(env["SENET_LAUNCH"]),
            int(env["SENET_MAX_REQUEUES"]),
            int(env["SENET_MAX_RESTARTS"]),
            int(env["SENET_SIGNAL_LEAD_S"]),
            env["SENET_MAY_SHRINK"] == "1",
            int(env["SLURM_JOB_NUM_NODES"]),
        )

    @property
    def outcome_file(self) -> Path:
        return self._file("status.json")

    @property
    def told_file(self) -> Path:
        """It exists once ``notify`` was told of the end of the job at this start."""
        return self.run_dir / "slurm" / f"{self.job_id}.{self.start}.told"

    @property
    def crash_file(self) -> Path:
        return self._file("crash")

    def _file(self, kind: str) -> Path:
        return self.run_dir / "slurm" / f"{self.job_id}.{self.start}.{self.number}.{kind}"


def may_shrink(config: Config) -> bool:
    """Whether the job goes on without a node that it has lost: with shards it has the same bits."""
    return config.train.shards > 0 and config.slurm.nodes > 1 and config.slurm.max_restarts > 0


def launch_variables(config: Config, run_dir: Path) -> dict[str, str]:
    """What the batch script must know; SENET_LAUNCH it sets itself."""
    return {
        "SENET_RUN_DIR": str(run_dir),
        "SENET_MAX_REQUEUES": str(config.slurm.max_requeues),
        "SENET_MAX_RESTARTS": str(config.slurm.max_restarts),
        "SENET_SIGNAL_LEAD_S": str(config.slurm.signal_lead_s),
        NOTIFY_VARIABLE: config.notify,
        SUBMITTED_VARIABLE: f"{time.time():.3f}",
        "SENET_MAY_SHRINK": str(int(may_shrink(config))),
    }


def record_start(run_dir: Path, job_id: str, start: int, launch: int = 0) -> None:
    """Record the checkpoint from which a launch of a start (0 is the first) begins."""
    row = {"start": start, "launch": launch, "time": time.time(), "host": socket.gethostname()}
    row |= {"checkpoint": newest_checkpoint(run_dir)}
    file = _starts_file(run_dir, job_id)
    replace_file(file, "".join(json.dumps(each) + "\n" for each in [*read_rows(file), row]).encode(), durable=True)


def count_starts(run_dir: Path, job_id: str) -> int:
    """Starts that this job has had."""
    return len({start["start"] for start in starts_of(run_dir, job_id)})


def stop_file(run_dir: Path, job_id: str) -> Path:
    """This file exists if the user wants the job to save and end, and not to be requeued."""
    return run_dir / "slurm" / f"{job_id}.stop"


def idle_steps(run_dir: Path, job_id: str, restarts: int) -> int:
    """How many step numbers to skip, since earlier launches that have not recorded their end may still use them: three
    tries each. Counted from 0 again after 8 starts: SLURM has long given up the first, and each number costs a second.
    """
    used: dict[int, int] = {}  # start -> its launches up to the last one that is silent
    for row in starts_of(run_dir, job_id):
        launch = Launch(run_dir, job_id, row["start"], row["launch"])
        if launch.start < restarts and not read_json(launch.outcome_file).get("ended"):
            used[launch.start] = launch.number + 1
    return 3 * sum(list(used.values())[len(used) // _MAY_COME_BACK * _MAY_COME_BACK :])


def explain(run_dir: Path, job_id: str, start: int, state: str, reason: str, kind: Kind = "") -> None:
    """Write why a start ended into ``status.json``, unless the job has a newer start by now, or the run another job."""
    replaced = any(row["start"] > start for row in starts_of(run_dir, job_id))
    if read_json(run_dir / "slurm" / "job.json").get("job", job_id) == job_id and not replaced:
        status = read_json(run_dir / "status.json")
        facts = {"job": job_id, "state": state, "reason": reason, "kind": kind}
        write_json(run_dir / "status.json", status | facts)


def starts_of(run_dir: Path, job_id: str) -> list[dict[str, Any]]:
    """The launches that were recorded, the first of a start too."""
    rows = read_rows(_starts_file(run_dir, job_id))
    return [{"launch": 0} | row for row in rows if {"start", "checkpoint"} <= row.keys()]


def _starts_file(run_dir: Path, job_id: str) -> Path:
    return run_dir / "slurm" / f"{job_id}.starts.jsonl"
