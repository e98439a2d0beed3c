"""What submitit pickles: plain values, and how one task becomes one rank. No torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

import senet
from senet.command import leave, trace_crashes
from senet.distributed.preemption import StopFlag
from senet.distributed.roster import own_name
from senet.errors import FAILED_EXIT_CODE, STOPPED_EXIT_CODE, ConfigError
from senet.rundir.mirror import mirror_status
from slurm import starts
from slurm.guard import requeue_if_alone
from train_ddp import main, refuse

LOCAL_REQUEUE_EXIT_CODE = 144  # at this code submitit's local executor starts its tasks again
LOCAL_STARTS = 6  # at most so many starts in all (submitit.local.local.Controller.run)


@dataclass(frozen=True)
class Job:
    """Called once in each task of each start; keeps no progress, since every start unpickles it as it was submitted."""

    run_dir: str
    """Absolute."""
    config: str
    """The YAML file of resolved options."""
    code: str
    """The folder that ``senet`` must be imported from."""
    max_requeues: int
    """For the local executor; the batch script of a SLURM job has its own."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The first code of this project that runs in a task. Installs our signal handlers, and keeps submitit from
        installing its own, which would requeue from one rank in the middle of a step."""
        self.__dict__.update(state)
        if "SUBMITIT_EXECUTOR" in os.environ:
            self.__dict__["stop"] = StopFlag.install()
            submitit.JobEnvironment._handle_signals = lambda *_: None  # type: ignore[method-assign]

    def __call__(self) -> None:
        """Train. Returns when the training is finished, else ends the process with the code of ``train_ddp``."""
        stop: StopFlag = self.__dict__["stop"] if "stop" in self.__dict__ else StopFlag.install()
        trace_crashes()
        task = submitit.JobEnvironment()
        os.environ |= {
            "RANK": str(task.global_rank),
            "WORLD_SIZE": str(task.num_tasks),
            "LOCAL_RANK": str(task.local_rank),
            # after the loss of a node not all of the job's
            "LOCAL_WORLD_SIZE": str(task.num_tasks // int(os.environ.get("SLURM_STEP_NUM_NODES", task.num_nodes))),
        }
        print(f"slurm: {own_name()} begins", file=sys.stderr, flush=True)  # in its log, which is appended to
        if task.global_rank == 0:
            mirror_status({"state": "starting"})  # shows that SLURM has started rank 0
        if task.cluster == "local" and task.global_rank == 0:  # also if a signal ends it before the training
            stop.before_leaving(lambda code, _: os._exit(self._end_of_local_start(task.job_id, code)))
        if starts.stop_file(Path(self.run_dir), task.job_id).exists():
            stop.leave(STOPPED_EXIT_CODE, "SIGUSR2")  # the one that was sent may have come before a rank could hear it
        code = self._train(stop)
        if (
            code == FAILED_EXIT_CODE
            and task.node > 0
            and task.local_rank == 0
            and os.environ["SENET_MAY_SHRINK"] == "1"
        ):
            requeue_if_alone(task.job_id, task.node, stop)
        if task.cluster == "local" and task.global_rank == 0:
            code = self._end_of_local_start(task.job_id, code)
        if code:
            leave(code)

    def _train(self, stop: StopFlag) -> int:
        imported_from = Path(senet.__file__).resolve().parent.parent
        if imported_from != Path(self.code).resolve():
            text = f"senet was imported from {imported_from}, the job was submitted with {self.code}"
            return refuse(ConfigError(f"{text}; remove the other one from PYTHONPATH and slurm.setup"), stop)
        return main([self.config], stop)

    def _end_of_local_start(self, job_id: str, code: int) -> int:
        """Without a batch script, the exit code of rank 0 decides whether all tasks start again."""
        run_dir = Path(self.run_dir)
        restarts = starts.count_starts(run_dir, job_id)
        starts.record_start(run_dir, job_id, restarts)
        if code != STOPPED_EXIT_CODE or starts.stop_file(run_dir, job_id).exists():
            return code
        if restarts >= self.max_requeues:
            reason = f"slurm.max_requeues={self.max_requeues} is used up"
        elif restarts + 1 >= LOCAL_STARTS:
            reason = f"submitit's local executor starts a job {LOCAL_STARTS} times at most; submit again to go on"
        else:
            return LOCAL_REQUEUE_EXIT_CODE
        starts.explain(run_dir, job_id, restarts, "stopped", reason, "requeues are used up")
        return code
