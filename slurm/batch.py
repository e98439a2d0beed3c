"""The decisions of the batch script before and after srun; batch.sh carries them out.

    python -m slurm.batch begin               a port, or a reason not to start
    python -m slurm.batch end JOB LOST        finished, requeue, cancel or failed

JOB is the output of ``scontrol show job --oneliner``, LOST the job's hosts that do not answer. Reads and writes files
in ``$SENET_RUN_DIR`` only. The outcome of this start is in ``$SENET_STATUS_FILE``, to which rank 0 copies its status;
``status.json`` may be another start's by then.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from senet.command import BUS_ERROR
from senet.errors import FAILED_EXIT_CODE, STOPPED_EXIT_CODE
from senet.rundir.files import patiently, read_json, read_rows, replace_file, write_json

STARTS_WITHOUT_PROGRESS = 3
_PORTS_BELOW_EPHEMERAL = 12_000
_MAY_COME_BACK = 8  # starts, after which SLURM has given up the first


def begin(run_dir: Path, job_id: str, restarts: int, max_requeues: int) -> str:
    """Record this start; only once, if called again.

    Returns:
        Why the job must not start; empty if it may.
    """
    recorded = _starts(run_dir, job_id)
    starts = [start for start in recorded if start["start"] < restarts]
    newest = newest_checkpoint(run_dir)
    fruitless = [start for start in starts[-STARTS_WITHOUT_PROGRESS:] if start["checkpoint"] == newest]
    if len(fruitless) == STARTS_WITHOUT_PROGRESS:
        return (
            f"{STARTS_WITHOUT_PROGRESS} starts in a row ended without a new checkpoint (newest: {newest or 'none'}); "
            f"lower checkpoint.every_steps, or give more time (slurm.time, the partition's GraceTime)"
        )
    if restarts > max_requeues:
        return f"slurm.max_requeues={max_requeues} is used up; submit again to go on"
    if len(starts) == len(recorded):
        record_start(run_dir, job_id, restarts)
    return ""


def end(
    run_dir: Path, job_id: str, restarts: int, max_requeues: int, job: str, outcome: dict[str, Any], lost: str = ""
) -> str:
    """``finished``, ``requeue``, ``cancel`` (the user asked for the stop), or why the job has failed.

    Args:
        job: SLURM's view of it, as ``Key=Value`` words.
        outcome: the last status of this start, {} if no rank wrote one.
        lost: hosts of the job that do not answer. If there are any, they have failed, and not the training.
    """
    state, reason = outcome.get("state", ""), str(outcome.get("reason", ""))
    if state == "finished":
        return "finished"
    if state in ("refused", "port_taken") or (state == "failed" and not lost):
        return reason or state
    if stop_file(run_dir, job_id).exists():
        return "cancel"
    # if not, SLURM has already cancelled or requeued it
    running = _field(job, "JobState") in ("RUNNING", "SIGNALING")
    # may be killed before it can report a stop, in the first second of a start or with too short a GraceTime
    preempted = _field(job, "PreemptTime") not in ("", "None", "Unknown")
    if not running:
        return f"stopped, and not requeued: SLURM has the job as {_field(job, 'JobState') or 'unknown'}"
    if not (state == "stopped" or preempted or lost):
        return "a rank ended and reported no reason: see the logs" if state else "rank 0 did not start: see its log"
    if restarts >= max_requeues:
        return f"slurm.max_requeues={max_requeues} is used up; submit again to go on"
    return "requeue"


def idle_steps(run_dir: Path, job_id: str, restarts: int) -> int:
    """How many step numbers to skip, since earlier starts that have not recorded their end may still use them: three
    tries each. Counted from 0 again after 8 starts: SLURM has long given up the first, and each number costs a second.
    """
    silent = sum(not read_json(_outcome_file(run_dir, job_id, start)).get("ended") for start in range(restarts))
    return 3 * (silent % _MAY_COME_BACK)


def newest_checkpoint(run_dir: Path) -> str:
    """Name of the checkpoint that was published last, without reading it; empty if there is none."""
    found = (run_dir / "checkpoints").glob("step_*.pt")
    return max(((path.stat().st_mtime_ns, path.name) for path in found), default=(0, ""))[1]


def record_start(run_dir: Path, job_id: str, start: int) -> None:
    """Record the checkpoint from which a start (0 is the first) begins."""
    row = {"start": start, "time": time.time(), "host": socket.gethostname(), "checkpoint": newest_checkpoint(run_dir)}
    file = _starts_file(run_dir, job_id)
    replace_file(file, "".join(json.dumps(each) + "\n" for each in [*read_rows(file), row]).encode(), durable=True)


def count_starts(run_dir: Path, job_id: str) -> int:
    """Starts that this job has had."""
    return len({start["start"] for start in _starts(run_dir, job_id)})


def stop_file(run_dir: Path, job_id: str) -> Path:
    """This file exists if the user wants the job to save and end, and not to be requeued."""
    return run_dir / "slurm" / f"{job_id}.stop"


def free_port() -> int:
    """A port on which no process listens, below those that the kernel gives to outgoing connections.

    Another process may take it before rank 0 does; then rank 0 reports ``port_taken``.
    """
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    high = first_ephemeral if first_ephemeral > 2 * 1024 else 32_768
    for _ in range(1000):
        port = random.randrange(max(1024, high - _PORTS_BELOW_EPHEMERAL), high)
        try:
            with _listen(port):
                return port
        except OSError:
            continue
    raise RuntimeError(f"no free port below {high}")


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def explain(run_dir: Path, job_id: str, start: int, state: str, reason: str) -> None:
    """Write why a start ended into ``status.json``, unless the job has a newer start by now, or the run another job."""
    replaced = any(row["start"] > start for row in _starts(run_dir, job_id))
    if read_json(run_dir / "slurm" / "job.json").get("job", job_id) == job_id and not replaced:
        status = read_json(run_dir / "status.json")
        write_json(run_dir / "status.json", status | {"job": job_id, "state": state, "reason": reason})


def _starts(run_dir: Path, job_id: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(_starts_file(run_dir, job_id)) if {"start", "checkpoint"} <= row.keys()]


def _outcome_file(run_dir: Path, job_id: str, start: int) -> Path:
    return run_dir / "slurm" / f"{job_id}.{start}.status.json"


def _starts_file(run_dir: Path, job_id: str) -> Path:
    return run_dir / "slurm" / f"{job_id}.starts.jsonl"


def _field(job: str, name: str) -> str:
    found = re.search(rf"(?:^|\s){name}=(\S*)", job)
    return found[1] if found else ""


def _crash_file(run_dir: Path, job_id: str, start: int) -> Path:
    return run_dir / "slurm" / f"{job_id}.{start}.crash"


def _crash(file: Path) -> str:
    """The signal and where, from the file of a rank that crashed; empty if none did."""
    try:
        first = file.read_text().partition("\n")[0].removeprefix("Fatal Python error: ")
    except FileNotFoundError:
        return ""
    why = f" ({BUS_ERROR})" if first == "Bus error" else ""
    return f"a rank crashed: {first}{why}; where: {file}" if first else ""


def main(argv: list[str]) -> int:
    """Print for batch.sh: shell assignments, or one word; the exit code is that of the job."""
    run_dir, job_id = Path(os.environ["SENET_RUN_DIR"]), os.environ["SLURM_JOB_ID"]
    budget = int(os.environ.get("SLURM_RESTART_COUNT", "0")), int(os.environ["SENET_MAX_REQUEUES"])
    outcome_file = _outcome_file(run_dir, job_id, budget[0])
    if argv[0] == "begin":
        outcome_file.unlink(missing_ok=True)
        _crash_file(run_dir, job_id, budget[0]).unlink(missing_ok=True)
        if stop_file(run_dir, job_id).exists():
            return FAILED_EXIT_CODE
        if reason := begin(run_dir, job_id, *budget):
            write_json(outcome_file, {"state": "failed", "reason": reason})
            return FAILED_EXIT_CODE
        print(f"export MASTER_PORT={free_port()}; idle_steps={idle_steps(run_dir, job_id, budget[0])}")
        return 0
    outcome, lost = read_json(outcome_file), ", ".join(argv[2].split())
    with suppress(OSError):  # only a note for later starts: the job can end without it
        write_json(outcome_file, outcome | {"ended": not lost}, limit_s=10)
    verdict = end(run_dir, job_id, *budget, argv[1], outcome, lost)
    if verdict == "requeue" and lost:
        reason = f"no answer from {lost}; the job starts again when SLURM gives it up (SlurmdTimeout)"
        explain(run_dir, job_id, budget[0], "stopped", reason)
    if verdict in ("finished", "requeue", "cancel"):
        print(verdict)
        return 0
    if crash := _crash(_crash_file(run_dir, job_id, budget[0])):
        verdict = f"{verdict}; {crash}"
    print("failed")
    print(f"slurm: job {job_id} ends here: {verdict}", file=sys.stderr)
    stopped = outcome.get("state") == "stopped"
    explain(run_dir, job_id, budget[0], "stopped" if stopped else "failed", verdict)
    return STOPPED_EXIT_CODE if stopped else FAILED_EXIT_CODE


if __name__ == "__main__":
    sys.exit(patiently(lambda: main(sys.argv[1:])))
