"""Who holds a run directory, as ``owner.json`` says, and whether he is alive. No torch."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from senet.errors import ConfigError
from senet.rundir.files import read_json, read_rows, write_temporary
from senet.rundir.locks import StillHeld, boot, has_ended, lock, this_process

HEARTBEAT_S = 5.0
# Without a heartbeat a holder on another host is dead after this long: a network file system may show for a minute
# what it knew before (NFS: acdirmax), and one beat may come late.
WATCH_S = 75.0
OLD_S = 3600.0
POLL_S = 1.0
_OWN_NAMES = ("owner.json", ".owner.lock", "status.json", "config.yaml", "starts.jsonl", "model.txt", "metrics.jsonl")
_OWN_FOLDERS = ("checkpoints", "tensorboard", "slurm")
_FACTS = {"token", "generation", "heartbeat", "host", "boot", "pid", "pid_started", "job", "job_restarts"}
_CHECKPOINT = re.compile(r"step_\d+\.g(\d+)\.pt")


class Watch:
    """Looks at ``owner.json`` time and again, until it is sure whether a holder on another host is alive.

    No two hosts' clocks are compared: what counts is whether the heartbeat moves while this process watches. Only time
    in which the file could be read counts, so that a file system that is away for both kills nobody.
    """

    def __init__(self, run_dir: Path) -> None:
        self.owner: dict[str, Any] = {}
        """Who held it when last looked at."""
        self.watched_s = 0.0
        self._run_dir = run_dir
        self._looked = 0.0

    def look(self) -> bool | None:
        """Whether the holder is alive; None: not known yet. Writes into the directory."""
        written_s = self._since_written()
        before, self.owner = self.owner, read_owner(self._run_dir)
        alive = is_alive(self.owner)
        if alive is not None:
            return alive
        if min(written_s, time.time() - self.owner["heartbeat"]) > OLD_S:  # by the server's clock and by ours
            return False
        now = time.monotonic()
        if self.owner["token"] != before.get("token"):
            self.watched_s = 0.0
        elif self.owner["heartbeat"] != before["heartbeat"]:
            return True
        else:
            self.watched_s += min(now - self._looked, 2 * POLL_S)
        self._looked = now
        return False if self.watched_s > WATCH_S else None

    def _since_written(self) -> float:
        """Seconds since ``owner.json`` was written, by the one clock that stamps both files.

        A new file also has a client of a network file system ask the server what else is new in the folder.
        """
        path = self._run_dir / "owner.json"
        probe = write_temporary(path, b"", durable=False)
        try:
            return probe.stat().st_mtime - path.stat().st_mtime if path.exists() else 0.0
        finally:
            probe.unlink(missing_ok=True)


def read_owner(run_dir: Path) -> dict[str, Any]:
    """``owner.json``; {} where there is none, or what is left of one after a power cut."""
    owner = read_json(run_dir / "owner.json")
    return owner if owner.keys() >= _FACTS else {}


def next_owner(run_dir: Path, previous: dict[str, Any]) -> dict[str, Any]:
    """This process, as the holder after ``previous``.

    Its generation is above all that ever wrote here: where ``owner.json`` was lost, the other files still tell.
    """
    starts = [row for row in read_rows(run_dir / "starts.jsonl") if {"generation", "resumed_from"} <= row.keys()]
    names = [_CHECKPOINT.match(path.name) for path in run_dir.glob("checkpoints/*")]
    generations = [row["generation"] for row in starts] + [int(name[1]) for name in names if name]
    return {
        "token": secrets.token_hex(8),
        "generation": max([previous.get("generation", 0), *generations]) + 1,
        **this_process(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "job_restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "heartbeat": time.time(),
        "resumed_from": {str(row["generation"]): row["resumed_from"] for row in starts}
        | previous.get("resumed_from", {}),
    }


def is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether a holder is alive, at once; None: on another host, where only his heartbeat can tell."""
    if not owner or owner.get("released"):
        return False
    job = os.environ.get("SLURM_JOB_ID", "")
    if job and owner["job"] == job and owner["job_restarts"] < int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return False  # an earlier start of this very job
    if owner["host"] == socket.gethostname() and owner["boot"] == boot():
        return not has_ended(owner)
    return None


def describe(owner: dict[str, Any]) -> str:
    """Who that is."""
    job = f"job {owner['job']}, " if owner["job"] else ""
    return f"{job}process {owner['pid']} on host {owner['host']}"


def holder(run_dir: Path) -> tuple[str, bool]:
    """Who holds a run directory, and whether that is certain, without watching him; "" where it is free."""
    owner = read_owner(run_dir)
    alive = is_alive(owner)
    if alive is not None:
        return (f"{describe(owner)}, it is running", True) if alive else ("", True)
    age_s = time.time() - owner["heartbeat"]  # two hosts' clocks
    if age_s > OLD_S:
        return "", False
    when = f"{age_s:.0f} s ago" if age_s >= 0 else f"{-age_s:.0f} s ahead of this host's clock"
    return f"{describe(owner)}, last heartbeat {when}", abs(age_s) < WATCH_S


@contextmanager
def nothing_left_if_refused(run_dir: Path) -> Iterator[None]:
    """Where a start is refused, remove the run directory and its parents as far as this start has made them."""
    made = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    try:
        yield
    except ConfigError:
        if made:
            with suppress(OSError, StillHeld):  # not made after all, or somebody uses it by now
                _remove_unused(run_dir)
                for path in made:
                    path.rmdir()
        raise


def _remove_unused(run_dir: Path) -> None:
    with lock(run_dir / ".owner.lock", patience_s=1):
        owner = read_owner(run_dir)
        others = {path.name for path in run_dir.iterdir()} - {"owner.json", ".owner.lock", "checkpoints"}
        if owner.get("released") and owner.items() >= this_process().items() and not others:
            if (run_dir / "checkpoints").exists():
                (run_dir / "checkpoints").rmdir()
            (run_dir / "owner.json").unlink()
            (run_dir / ".owner.lock").unlink()


def remove_leftovers(run_dir: Path) -> None:
    """Temporary files of holders that were killed."""
    for name in _OWN_NAMES:
        for path in run_dir.glob(f"{name}.*.tmp"):
            path.unlink(missing_ok=True)


def refuse_links(run_dir: Path) -> None:
    """What is written goes into the run directory (which may itself be linked to), never to where a link leads.

    Checkpoints are put in place by renames, which replace a link; what else lies there is somebody's own.

    Raises:
        ConfigError: a name that is written to is a symbolic link.
    """
    for name in (*_OWN_NAMES, *_OWN_FOLDERS):
        path = run_dir / name
        if path.is_symlink():
            raise ConfigError(
                f"{path} is a symbolic link, and would be written to; remove it, or link the run directory as a whole"
            )
