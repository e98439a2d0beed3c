"""What SLURM says, through whichever of its commands the site has. Nothing here changes anything."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from senet.errors import RunError

WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
ACTIVE = WAITING | {"RUNNING", "COMPLETING", "SUSPENDED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"}
LOCAL = "local"
_TIMEOUT_S = 10
_FORMAT = "JobID:|,State:|,Reason:|,RestartCnt:|"
# a person's habits, which would change what is asked, and of which cluster
_HABITS = ("SQUEUE_", "SACCT_", "SINFO_", "SLURM_CLUSTERS")


class NoAnswer(RunError):
    """SLURM's command is there and does not answer. What it was asked is not known, which is not "no"."""


@dataclass(frozen=True)
class JobState:
    """SLURM's view of a job; of one that nobody knows, the defaults."""

    word: str = ""
    """RUNNING, CANCELLED, ..."""
    reason: str = ""
    """Why it waits."""
    restarts: int = 0


def ask(
    *command: str, text: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What a command answers to ``text``, whether it fails or not.

    Raises:
        NoAnswer: not in time.
        OSError: it is not installed.
    """
    if environment is None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_HABITS)}
    try:
        return subprocess.run(
            command, input=text, env=dict(environment), capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} does not answer within {_TIMEOUT_S} s") from None


def query(*command: str) -> str:
    """Output of a command; empty where it is not installed, fails, or does not answer in time."""
    try:
        done = ask(*command)
    except (OSError, NoAnswer):
        return ""
    return "" if done.returncode else done.stdout.strip()


def job_states(job_ids: Collection[str]) -> dict[str, JobState]:
    """SLURM's view of some jobs, asked once for all: from squeue, and from sacct what that has forgotten.

    Raises:
        NoAnswer: squeue fails or is late.
    """
    found = dict.fromkeys(job_ids, JobState())
    if job_ids and shutil.which("squeue"):
        done = ask(
            "squeue", "--noheader", "--all", "--states=all", f"--jobs={','.join(job_ids)}", f"--Format={_FORMAT}"
        )
        if done.returncode and "Invalid job id" not in done.stderr:  # so it says where it knows none of them
            raise NoAnswer(f"squeue does not answer: {' '.join(done.stderr.split())}")
        for line in done.stdout.splitlines():
            job_id, word, reason, restarts = (field.strip() for field in line.split("|")[:4])
            found[job_id] = JobState(word, "" if reason == "None" else reason, int(restarts))
    if forgotten := [job_id for job_id, state in found.items() if not state.word]:
        columns = ("--noheader", "--parsable2", "--format=JobID,State", f"--jobs={','.join(forgotten)}")
        for line in query("sacct", "-X", *columns).splitlines():
            job_id, _, word = line.partition("|")
            found[job_id] = JobState(word.split()[0])  # "CANCELLED by 1000"
    return found


def local_state(job_id: str) -> str:
    """RUNNING while submitit's local controller with that process id lives on this machine, else ENDED."""
    try:
        command = Path(f"/proc/{job_id}/cmdline").read_bytes()
    except OSError:
        return "ENDED"
    return "RUNNING" if b"submitit.local._local" in command else "ENDED"


def state_of(submitted: Mapping[str, Any]) -> JobState:
    """Of what ``slurm/job.json`` tells.

    Raises:
        NoAnswer: as ``job_states``.
    """
    job_id = submitted["job"]
    return JobState(local_state(job_id)) if submitted["cluster"] == LOCAL else job_states([job_id])[job_id]


def site() -> dict[str, str]:
    """``scontrol show config``; {} where it does not answer."""
    lines = query("scontrol", "show", "config").splitlines()
    return {key.strip(): value.strip() for key, mark, value in (line.partition("=") for line in lines) if mark}


def partitions() -> dict[str, dict[str, str]]:
    """Name -> ``scontrol show partition``, hidden ones too; {} where it does not answer."""
    found = {}
    for line in query("scontrol", "--all", "show", "partition", "--oneliner").splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        found[fields["PartitionName"]] = fields
    return found


def accounts() -> set[str]:
    """That this user may charge; empty where there is no accounting."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container that does not know its user
        return set()
    columns = ("--noheader", "--parsable2", "show", "assoc", f"user={user}", "format=account")
    return set(query("sacctmgr", *columns).split())
