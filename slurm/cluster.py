"""What SLURM says, through whichever of its commands the site has. Nothing here changes anything."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ACTIVE = {
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "RESIZING",
    "SIGNALING",
    "STOPPED",
}
_TIMEOUT_S = 10
LOCAL = "local"


def query(*command: str) -> str:
    """Output of a command; empty where it is not installed, fails, or does not answer in time."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def job_state(job_id: str) -> str:
    """SLURM's word for a job (RUNNING, CANCELLED, ...), from squeue, sacct or scontrol; empty: nobody knows it."""
    state = query("squeue", "--noheader", "--jobs", job_id, "--format", "%T")
    state = state or query("sacct", "-X", "--noheader", "--parsable2", "--jobs", job_id, "--format", "State")
    if not state:
        found = re.search(r"JobState=(\S+)", query("scontrol", "show", "job", "--oneliner", job_id))
        state = found[1] if found else ""
    return state.split()[0] if state else ""  # sacct says "CANCELLED by 1000"


def local_state(job_id: str) -> str:
    """RUNNING while submitit's local controller with that process id lives on this machine, else ENDED."""
    try:
        command = Path(f"/proc/{job_id}/cmdline").read_bytes()
    except OSError:
        return "ENDED"
    return "RUNNING" if b"submitit.local._local" in command else "ENDED"


def state_of(cluster: str, job_id: str) -> str:
    """``job_state`` or ``local_state``."""
    return local_state(job_id) if cluster == LOCAL else job_state(job_id)


def site() -> dict[str, str]:
    """``scontrol show config``; {} where it does not answer."""
    lines = query("scontrol", "show", "config").splitlines()
    return {key.strip(): value.strip() for key, mark, value in (line.partition("=") for line in lines) if mark}


def partitions() -> dict[str, dict[str, str]]:
    """Name -> ``scontrol show partition``; {} where it does not answer."""
    found = {}
    for line in query("scontrol", "show", "partition", "--oneliner").splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        found[fields["PartitionName"]] = fields
    return found


def accounts() -> set[str]:
    """That the user may charge; empty where there is no accounting."""
    return set(query("sacctmgr", "--noheader", "--parsable2", "show", "assoc", "format=account").split())
