"""What a run has come to, in one word, by its files and by what SLURM says of its job. No torch."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from senet.rundir.files import is_full, read_json
from senet.rundir.history import judged
from senet.rundir.owner import holder, read_owner
from senet.rundir.restarts import last_restart

WORDS = {
    "finished": "it has been trained to its end",
    "stopped": "saved and ended after a signal; the same command goes on",
    "failed": "ended by an error",
    "killed": "ended without a word",
    "training": "a process trains it",
    "starting": "a process or a job has it, and has not begun to train",
    "ending": "it has reported its end, and its job is still there",
    "suspended": "its job is suspended by SLURM",
    "waiting": "its job is in SLURM's queue",
    "submitted": "it has a job; SLURM was not asked about it, or does not answer",
    "not begun": "there is neither a start nor a job of it",
}
"""Of a job that has ended while its run said nothing it is SLURM's own word: cancelled, timeout, out_of_memory."""
TAKEN = ("training", "starting", "ending", "suspended", "waiting", "submitted")
"""The states in which no other process may begin it."""
_WIDEST = 100  # characters of a reason in a table


class Job(Protocol):
    """What SLURM says of a job."""

    @property
    def word(self) -> str:
        """RUNNING, CANCELLED, ...; empty where SLURM does not know it."""

    @property
    def reason(self) -> str:
        """Why it waits."""

    @property
    def restarts(self) -> int:
        """How often SLURM has requeued it."""

    @property
    def waiting(self) -> bool:
        """Whether it is in the queue."""

    @property
    def active(self) -> bool:
        """Whether it waits, runs or ends."""


@dataclass(frozen=True)
class State:
    """What a run has come to."""

    word: str
    """One of ``WORDS``, or SLURM's."""
    reason: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    """status.json."""

    @property
    def short(self) -> str:
        """The reason without the remedy that may follow, for a table; ``why`` says all of it."""
        text = re.split(r"; |\. ", self.reason)[0]
        return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."

    @property
    def score(self) -> str:
        """Of the last epoch, in percent."""
        result = self.status.get("result") or {}  # a start that found nothing left to train has this alone
        top1 = self.status.get("top1", result.get(f"{judged(result)}_top1"))
        return "-" if top1 is None else f"{top1:.2f}"


def state_of(run_dir: Path, job: Job | None = None) -> State:
    """Of a run directory, which need not be there.

    Args:
        job: what SLURM says of the job in ``slurm/job.json``; None if it was not asked, or does not answer.
    """
    status, sent = read_json(run_dir / "status.json"), read_json(run_dir / "slurm" / "job.json")
    told = status if _is_of_newest(status, sent) else {}
    if job is not None and job.active:
        return State(*_in_queue(run_dir, told, str(sent.get("job")), job), status)
    said, reason = str(told.get("state", "")), str(told.get("reason", ""))
    if said == "finished":
        return State(said, reason, status)
    if _is_held(run_dir, sent, job):
        return State("training" if said == "running" else "starting", "", status)
    if job is None and not _is_over(run_dir, told, sent):
        last = f"; it was {said}: {reason}".removesuffix(": ") if said else ""
        return State("submitted", f"job {sent['job']}{last}", status)
    if said in ("stopped", "failed"):
        return State(said, reason, status)
    ended = job.word.lower() if job is not None else ""
    if not said and not ended:
        return State("not begun", f"SLURM does not know job {sent.get('job')}" if job is not None else "", status)
    silent = f"silent for {time.time() - told['heartbeat']:.0f} s" if "heartbeat" in told else ""
    return State(ended or "killed", "No space left on device" if is_full(run_dir) else silent, status)


def over_file(run_dir: Path, job_id: str) -> Path:
    """This file exists once a job was stopped by its user, and cannot take up the run again."""
    return run_dir / "slurm" / f"{job_id}.over"


def _is_of_newest(status: Mapping[str, Any], sent: Mapping[str, Any]) -> bool:
    """Whether it is of the newest job, or younger than that."""
    if not sent or status.get("job") == sent["job"]:
        return True
    other, own = (str(of.get("job", "")).partition("_")[0] for of in (status, sent))
    if other.isdecimal() and sent.get("cluster") != "local":
        return int(other) > int(own)  # SLURM counts them up
    # clocks of two hosts, if it was trained elsewhere without a job
    return bool(status.get("heartbeat", 0.0) > sent.get("submitted", math.inf))


def _in_queue(run_dir: Path, told: Mapping[str, Any], job_id: str, job: Job) -> tuple[str, str]:
    """Of a job that waits, runs or ends."""
    said, reason = str(told.get("state", "")), str(told.get("reason", ""))
    if said == "failed" and last_restart(run_dir, job_id):
        said = ""  # its ranks are being launched again
    has_ended = said in ("finished", "stopped", "failed") and told.get("job_restarts", 0) >= job.restarts
    if job.waiting:
        return "waiting", job.reason
    if job.word in ("SUSPENDED", "STOPPED"):
        return "suspended", ""
    if has_ended or job.word not in ("RUNNING", "SIGNALING"):
        return "ending", reason
    return ("training" if said == "running" and told.get("job_restarts", 0) == job.restarts else "starting"), ""


def _is_held(run_dir: Path, sent: Mapping[str, Any], job: Job | None) -> bool:
    """By a process that is alive, for certain."""
    if job is not None and job.word and read_owner(run_dir).get("job") == sent.get("job"):
        return False  # the heartbeat of a job is believed for a while, though it has ended
    who, is_certain = holder(run_dir)
    return bool(who) and is_certain


def _is_over(run_dir: Path, told: Mapping[str, Any], sent: Mapping[str, Any]) -> bool:
    """Whether nothing is known of a job that may still take up the run. One that was stopped by a signal may wait."""
    if not sent or sent.get("cluster") == "local" or over_file(run_dir, sent["job"]).exists():
        return True
    if told.get("state") == "failed":
        return not last_restart(run_dir, sent["job"])
    return bool(told) and told.get("job") != sent["job"]  # trained on without a job
