"""Ask SLURM about jobs, partitions and accounts, with the commands that the site has. Read-only."""

from __future__ import annotations

import os
import pwd
import re
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
_FORMAT = "JobArrayID:|,State:|,Reason:|,RestartCnt:|"
# a user's defaults, which would change what is asked, and which cluster
_USER_DEFAULTS = ("SQUEUE_", "SACCT_", "SINFO_", "SLURM_CLUSTERS")


class NoAnswer(RunError):
    """SLURM's command is installed and does not answer: the state is unknown, which is not "there is no job"."""


@dataclass(frozen=True)
class JobState:
    """SLURM's view of a job; the defaults for a job that it does not know."""

    word: str = ""
    """RUNNING, CANCELLED, ..."""
    reason: str = ""
    """Why it waits."""
    restarts: int = 0

    @property
    def waiting(self) -> bool:
        return self.word in WAITING

    @property
    def active(self) -> bool:
        return self.word in ACTIVE


def ask(
    *command: str, text: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command with ``text`` as its input; returns its result even if it fails.

    Raises:
        NoAnswer: not in time.
        OSError: it is not installed.
    """
    if environment is None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_USER_DEFAULTS)}
    try:
        return subprocess.run(
            command, input=text, env=dict(environment), capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} does not answer within {_TIMEOUT_S} s") from None


def query(*command: str) -> str:
    """Output of a command; empty if it is not installed, fails, or does not answer in time."""
    try:
        done = ask(*command)
    except (OSError, NoAnswer):
        return ""
    return "" if done.returncode else done.stdout.strip()


def job_states(job_ids: Collection[str]) -> dict[str, JobState]:
    """SLURM's view of some jobs, in one query: from squeue, and from sacct for jobs that squeue no longer knows.

    Raises:
        NoAnswer: squeue fails or is late.
    """
    found = dict.fromkeys(job_ids, JobState())
    if job_ids and shutil.which("squeue"):
        # of an array the tasks that wait are one job to squeue, unless all tasks are asked for, a line each
        jobs = ",".join(dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids))
        done = ask("squeue", "--noheader", "--all", "--array", "--states=all", f"--jobs={jobs}", f"--Format={_FORMAT}")
        if done.returncode and "Invalid job id" not in done.stderr:  # its error if it knows none of them
            raise NoAnswer(f"squeue does not answer: {' '.join(done.stderr.split())}")
        for line in done.stdout.splitlines():
            job_id, word, reason, restarts = (field.strip() for field in line.split("|")[:4])
            if job_id in found:
                found[job_id] = JobState(word, "" if reason == "None" else reason, int(restarts))
    if forgotten := [job_id for job_id, state in found.items() if not state.word]:
        columns = ("--noheader", "--parsable2", "--format=JobID,State", f"--jobs={','.join(forgotten)}")
        each = ["--array"] if any("_" in job_id for job_id in forgotten) else []  # a line for each task
        for line in query("sacct", "-X", *each, *columns).splitlines():
            job_id, _, word = line.partition("|")
            found[job_id] = JobState(word.split()[0])  # "CANCELLED by 1000"
    return found


def jobs_with_logs_in(folder: Path, name: str) -> list[str]:
    """Ids of the jobs of this name that wait or run, and write their log into a folder; of an array, of each task.

    Raises:
        NoAnswer: squeue fails or is late.
    """
    if not shutil.which("squeue"):
        return []
    done = ask("squeue", "--noheader", "--all", "--array", f"--name={name}", "--Format=JobArrayID:|,STDOUT:|")
    if done.returncode:
        raise NoAnswer(f"squeue does not answer: {' '.join(done.stderr.split())}")
    fields = [line.split("|") for line in done.stdout.splitlines()]
    return [job_id.strip() for job_id, log, *_ in fields if log.strip().startswith(f"{folder}/")]


def job_fields(job_id: str) -> dict[str, str]:
    """``scontrol show job``; {} for a job that it no longer knows, or if it does not answer."""
    line = query("scontrol", "show", "job", "--oneliner", job_id)
    found: dict[str, str] = {}
    for name, value in re.findall(r"(?:^|\s)([A-Z][\w:/]*)=(.*?)(?=\s+[A-Z][\w:/]*=|\s*$)", line):
        found.setdefault(name, value)  # arguments of Command may look like fields, and come after most
    return found


def local_state(job_id: str) -> str:
    """RUNNING while submitit's local controller with that process id lives on this machine, else ENDED."""
    try:
        command = Path(f"/proc/{job_id}/cmdline").read_bytes()
    except OSError:
        return "ENDED"
    return "RUNNING" if b"submitit.local._local" in command else "ENDED"


def state_of(submitted: Mapping[str, Any]) -> JobState:
    """The state of the job in ``slurm/job.json``.

    Raises:
        NoAnswer: as ``job_states``.
    """
    job_id = submitted["job"]
    return JobState(local_state(job_id)) if submitted["cluster"] == LOCAL else job_states([job_id])[job_id]


def site() -> dict[str, str]:
    """``scontrol show config``; {} if it does not answer."""
    lines = query("scontrol", "show", "config").splitlines()
    return {key.strip(): value.strip() for key, mark, value in (line.partition("=") for line in lines) if mark}


def partitions() -> dict[str, dict[str, str]]:
    """Name -> ``scontrol show partition``, hidden ones too; {} if it does not answer."""
    found = {}
    for line in query("scontrol", "--all", "show", "partition", "--oneliner").splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        found[fields["PartitionName"]] = fields
    return found


def accounts() -> set[str]:
    """Accounts that this user may charge; empty without accounting."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container that does not know its user
        return set()
    columns = ("--noheader", "--parsable2", "show", "assoc", f"user={user}", "format=account")
    return set(query("sacctmgr", *columns).split())
