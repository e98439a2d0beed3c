"""The decisions of the batch script before and after srun; batch.sh carries them out.

    python -m slurm.batch begin                      a port, or a reason not to start
    python -m slurm.batch tell CAUSE                 notify that it is not requeued
    python -m slurm.batch end JOB LOST HOSTS ENDED   finished, relaunch, requeue, cancel or failed

A job is started by SLURM, once and after each requeue; a start launches the ranks, once and after each failure.

JOB is the output of ``SLURM_TIME_FORMAT=%s scontrol show job --oneliner``, HOSTS are those of this launch, LOST those
that do not answer, ENDED what srun has said of the first task of whose failure it heard. Reads and writes files in
``$SENET_RUN_DIR`` only. The outcome of this launch is in ``$SENET_STATUS_FILE``, to which rank 0 copies its status;
``status.json`` may be another start's by then.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from senet.command import BUS_ERROR
from senet.errors import FAILED_EXIT_CODE, STOPPED_EXIT_CODE, Kind
from senet.rundir.files import patiently, write_json
from senet.rundir.mirror import ENDS, forget_outcome, read_outcome
from senet.rundir.restarts import WITHOUT_A_WORD, launch_again, newest_checkpoint
from slurm import nodes
from slurm.logs import parse_ended
from slurm.ports import free_port
from slurm.starts import NOTIFY_VARIABLE, Launch, explain, idle_steps, record_start, starts_of, stop_file

STARTS_WITHOUT_PROGRESS = 3


def begin(launch: Launch) -> str:
    """Record this launch; only once, if called again.

    Returns:
        Why the job must not start; empty if it may.
    """
    recorded = starts_of(launch.run_dir, launch.job_id)
    starts = [row for row in recorded if row["start"] < launch.start and row["launch"] == 0]
    newest = newest_checkpoint(launch.run_dir)
    fruitless = [row for row in starts[-STARTS_WITHOUT_PROGRESS:] if row["checkpoint"] == newest]
    if len(fruitless) == STARTS_WITHOUT_PROGRESS:
        return (
            f"{STARTS_WITHOUT_PROGRESS} starts in a row ended without a new checkpoint (newest: {newest or 'none'}); "
            f"lower checkpoint.every_steps, or give more time (slurm.time, the partition's GraceTime)"
        )
    if launch.start > launch.max_requeues:
        return _used_up(launch)
    if (launch.start, launch.number) not in [(row["start"], row["launch"]) for row in recorded]:
        record_start(launch.run_dir, launch.job_id, launch.start, launch.number)
    return ""


def end(launch: Launch, job: str, outcome: dict[str, Any], lost: Sequence[str] = (), hosts: Sequence[str] = ()) -> str:
    """``finished``, ``relaunch``, ``requeue``, ``cancel`` (the user asked for the stop), or why the job has failed.

    Args:
        job: SLURM's view of it, as ``Key=Value`` words.
        outcome: the last status of this launch, {} if no rank wrote one; with what srun knows, where no rank told
            of its end.
        lost: hosts that do not answer. If there are any, they have failed, and not the training.
        hosts: all of this launch. ``relaunch`` is followed by those to go on with, where they are not all.
    """
    state, reason = outcome.get("state", ""), str(outcome.get("reason", ""))
    failed = state == "failed" and not lost
    if state == "finished":
        return "finished"
    if state in ("refused", "port_taken"):
        return reason or state
    if stop_file(launch.run_dir, launch.job_id).exists():
        return reason if failed else "cancel"
    if _field(job, "JobState") not in ("RUNNING", "SIGNALING"):  # SLURM has already cancelled or requeued it
        seen = _field(job, "JobState") or "unknown"
        return reason if failed else f"stopped, and not requeued: SLURM has the job as {seen}"
    # a rank may be killed before it can report a stop, in the first second of a start or with too short a GraceTime
    preempted = is_preempted(job)
    shrunk = 0 < len(hosts) < launch.nodes
    if not state and not (preempted or lost or shrunk):
        return f"rank 0 did not start{f'; {reason}' if reason else ': see its log'}"
    # the signal before the time limit, which is sent once, comes up to a minute early
    stays = not announced(launch, job)
    if failed or (state and not (state == "stopped" or preempted or lost)):
        reason = reason or "a rank ended and reported no reason: see the logs"
        if crash := _crash(launch.crash_file):
            reason = f"{reason.removesuffix(WITHOUT_A_WORD)}; {crash}"
        if why := _why_not(launch, outcome | {"reason": reason}, at_once=stays):
            return why
        if stays:
            return "relaunch"
    elif lost and stays and state != "stopped" and (left := _hosts_left(launch, lost, hosts)):
        known = {"reason": f"no answer from {', '.join(lost)}", "failure": {"host": ", ".join(lost)}}
        if not _why_not(launch, outcome | known | {"state": "running"}):
            return f"relaunch {' '.join(left)}"
    if launch.start >= launch.max_requeues:
        return _used_up(launch)
    return "requeue"


def _used_up(launch: Launch) -> str:
    return f"slurm.max_requeues={launch.max_requeues} is used up; submit again to go on"


def _why_not(launch: Launch, outcome: dict[str, Any], *, at_once: bool = True) -> str:
    """Record the failure; see ``launch_again``."""
    return launch_again(
        launch.run_dir,
        outcome,
        most=launch.max_restarts,
        option="slurm.max_restarts",
        job=launch.job_id,
        start=launch.start,
        launch=launch.number,
        at_once=at_once,
    )


def _hosts_left(launch: Launch, lost: Sequence[str], hosts: Sequence[str]) -> list[str]:
    """The hosts, a power of two of them, on which the ranks can be launched without those that are lost."""
    left = [host for host in hosts if host not in lost]
    return left[: 1 << (len(left).bit_length() - 1)] if launch.may_shrink and left else []


def is_preempted(job: str) -> bool:
    """Whether SLURM has told the job to make room."""
    return _field(job, "PreemptTime") not in ("", "None", "Unknown")


def announced(launch: Launch, job: str) -> str:
    """What SLURM had told this start: that it is ``preempted``, or that its ``time limit`` is near. Empty: neither."""
    if is_preempted(job):
        return "preempted"
    return "time limit" if _left_s(job) <= launch.lead_s + 60 else ""


def _field(job: str, name: str) -> str:
    found = re.search(rf"(?:^|\s){name}=(\S*)", job)
    return found[1] if found else ""


def _left_s(job: str) -> float:
    """Seconds until the time limit of this start."""
    try:
        return float(_field(job, "EndTime")) - time.time()
    except ValueError:  # Unknown: there is none
        return math.inf


def _crash(file: Path) -> str:
    """The signal and where, from the file of a rank that crashed; empty if none did."""
    try:
        first = file.read_text().partition("\n")[0].removeprefix("Fatal Python error: ")
    except FileNotFoundError:
        return ""
    why = f" ({BUS_ERROR})" if first == "Bus error" else ""
    return f"a rank crashed: {first}{why}; where: {file}" if first else ""


def _tell(launch: Launch, state: str, cause: str) -> None:
    """``notify``, once for each start that is the last one; not where it has found the run finished."""
    if not (notify := os.environ.get(NOTIFY_VARIABLE)):
        return
    from senet.notify import message, tell, was_finished

    if state == "finished" and was_finished(launch.run_dir):
        return
    try:
        launch.told_file.touch(exist_ok=False)
    except FileExistsError:
        return
    except OSError as error:
        print(f"slurm: {launch.told_file} not written: {error}", file=sys.stderr)
    tell(notify, message(launch.run_dir, state, cause, launch.job_id))


def main(argv: list[str]) -> int:
    """Print for batch.sh: shell assignments, or what to do; the exit code is that of the job."""
    launch = Launch.from_environment()
    where = launch.run_dir, launch.job_id, launch.start
    if argv[0] == "begin":
        forget_outcome(launch.outcome_file)
        launch.crash_file.unlink(missing_ok=True)
        if stop_file(launch.run_dir, launch.job_id).exists():
            return FAILED_EXIT_CODE
        if reason := begin(launch):
            refused = {"state": "refused", "reason": reason, "kind": "requeues are used up"}
            write_json(launch.outcome_file, refused)
            return FAILED_EXIT_CODE
        print(f"export MASTER_PORT={free_port()}; idle_steps={idle_steps(*where)}")
        return 0
    if argv[0] == "tell":
        _tell(launch, "stopped", argv[1])
        return 0
    lost, hosts = (list(dict.fromkeys(words.split())) for words in argv[2:4])
    outcome = read_outcome(launch.outcome_file)
    # three words: from a batch.sh of before, where the job runs the code of the checkout (slurm.snapshot=false)
    if outcome.get("state") not in ENDS and len(argv) > 4:
        outcome |= parse_ended(argv[4])
    with suppress(OSError):  # only a note for later starts: the job can end without it
        write_json(launch.outcome_file, outcome | {"ended": not lost, "slurm": announced(launch, argv[1])}, limit_s=10)
    verdict = end(launch, argv[1], outcome, lost, hosts)
    if verdict == "requeue" and lost:
        reason = f"no answer from {', '.join(lost)}; the job starts again when SLURM gives it up (SlurmdTimeout)"
        explain(*where, "stopped", reason, "node lost")
    if verdict.split()[0] in ("finished", "relaunch", "requeue", "cancel"):
        print(verdict)
        if verdict == "finished":
            _tell(launch, verdict, "")
        return 0
    kind: Kind = "requeues are used up" if verdict == _used_up(launch) else outcome.get("kind", "")
    if outcome.get("state") != "refused":  # by the check itself, or for the user's mistake
        verdict += nodes.known_before(nodes.check_file(*where), verdict)
    print("failed")
    print(f"slurm: job {launch.job_id} ends here: {verdict}", file=sys.stderr)
    stopped = outcome.get("state") == "stopped"
    explain(*where, "stopped" if stopped else "failed", verdict, kind)
    _tell(launch, outcome["state"] if outcome.get("state") in ("stopped", "refused") else "failed", verdict)
    return STOPPED_EXIT_CODE if stopped else FAILED_EXIT_CODE


if __name__ == "__main__":
    sys.exit(patiently(lambda: main(sys.argv[1:])))
