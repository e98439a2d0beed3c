"""A job that a command waits for, and cancels if it is interrupted."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from senet.errors import FAILED_EXIT_CODE, ConfigError, RunError
from slurm import cluster

POLL_S = 1.0
_CANCEL_S = 60.0  # longer than KillWait as a rule


def end_on_signals() -> None:
    """As Ctrl-C does: the job is cancelled, the folder removed."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) != signal.SIG_IGN:  # nohup: it may take an hour
            signal.signal(each, lambda *_: sys.exit(FAILED_EXIT_CODE))


def scratch_folder(run_dir: Path, purpose: str) -> Path:
    """Beside the run directory, where all nodes see it."""
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{run_dir.name}-{purpose}-", dir=run_dir.parent))
    except OSError as error:
        raise ConfigError(f"{run_dir.parent} cannot be written ({error.strerror}); name another run_dir") from None


def state_of(job_id: str) -> cluster.JobState:
    """The word is ``unknown`` while SLURM does not answer."""
    try:
        return cluster.job_states([job_id])[job_id]
    except cluster.NoAnswer as error:
        return cluster.JobState("unknown", str(error))


def is_over(state: cluster.JobState) -> bool:
    return state.word not in cluster.ACTIVE and state.word != "unknown"


def in_words(state: cluster.JobState) -> str:
    return f"{state.word.lower()} ({state.reason})" if state.reason else state.word.lower()


def cancel(job_id: str, say: Callable[[str], None]) -> None:
    """Cancel a job, and wait until nothing of it runs."""
    try:
        tell_slurm("scancel", job_id)
        until = time.monotonic() + _CANCEL_S
        while cluster.job_states([job_id])[job_id].word in cluster.ACTIVE and time.monotonic() < until:
            time.sleep(POLL_S)
        say(f"job {job_id} is cancelled")
    except RunError as error:
        say(f"{error}; job {job_id} may still run, then cancel it: scancel {job_id}")


def tell_slurm(command: str, job_id: str) -> None:
    """RunError where it does not do it."""
    done = cluster.ask(*command.split(), job_id)
    if done.returncode:
        raise RunError(f"{command} {job_id}: {' '.join(done.stderr.split())}")
