"""A job that SLURM lets live without the host of its batch script, where nothing would end it or start it again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

from senet.distributed.environment import host_answers
from senet.distributed.preemption import StopFlag
from slurm import cluster

_LIMIT_S = 900.0  # SLURM gives a host up after SlurmdTimeout (300 s) and a third
_POLL_S = 10.0
_LOOKS = 3
_SLOWEST = 6


def requeue_if_alone(job_id: str, node: int, stop: StopFlag) -> None:
    """For the first rank of a host other than srun's, after it has failed. If that host does not answer, requeue the
    job once SLURM does not reach it either. Returns at once where srun, which then ends this rank, or its host answers;
    or where SLURM does not answer either, since then this host is the one that is cut off.

    Args:
        node: number of this host in the job, 1 and up; the later ones look less often.
    """
    host, port = os.environ["SLURM_SRUN_COMM_HOST"], int(os.environ["SLURM_SRUN_COMM_PORT"])
    until, lost = time.monotonic() + _LIMIT_S, 0
    while not stop and not host_answers(host, port) and time.monotonic() < until:
        if not (job := cluster.query("scontrol", "show", "job", "--oneliner", job_id)):
            return
        lost = lost + 1 if _is_lost(job) else 0
        if lost == _LOOKS:
            print(f"slurm: the host of the batch script does not answer; job {job_id} is requeued", file=sys.stderr)
            subprocess.run(["scontrol", "requeue", job_id])
            return
        stop.wait(_POLL_S * min(node, _SLOWEST))


def _is_lost(job: str) -> bool:
    """Whether SLURM does not reach the host of the batch script of this start."""
    if f" Restarts={os.environ.get('SLURM_RESTART_COUNT', '0')} " not in job:
        return False
    [host] = re.findall(r" BatchHost=(\S+)", job) or [""]
    node = cluster.query("scontrol", "show", "node", "--oneliner", host)
    return re.search(r" State=(\S*\*|(\S*\+)?(DOWN|NOT_RESPONDING)(\+|\s|$))", node) is not None
