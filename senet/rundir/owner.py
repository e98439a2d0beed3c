"""Which process holds a run directory, by ``owner.json``, and whether it is alive. No torch."""

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
from senet.rundir.named import is_sweep
from senet.rundir.profiles import REQUEST

HEARTBEAT_S = 5.0
# After so long without a heartbeat, a holder on another host counts as dead. A network file system may show data that
# is a minute old (NFS: acdirmax), and one heartbeat may come late.
WATCH_S = 75.0
OLD_S = 3600.0  # a heartbeat that is older is not watched
POLL_S = 1.0
_OWN_NAMES = (
    *("owner.json", ".owner.lock", "status.json", "config.yaml", "starts.jsonl", "restarts.jsonl", "model.txt"),
    *("metrics.jsonl", "launch.json", "views.json", "metrics.csv", "mlflow.db", ".sync.lock"),
)
_OWN_FOLDERS = ("checkpoints", "tensorboard", "wandb", "slurm", "profile", "flight_recorder")
_FACTS = {"token", "generation", "heartbeat", "host", "boot", "pid", "pid_started", "job", "job_restarts"}
_CHECKPOINT = re.compile(r"step_\d+\.g(\d+)\.pt")


class Watch:
    """Reads ``owner.json`` again and again, until it is certain whether a holder on another host is alive.

    The clocks of two hosts are not compared: what counts is whether the heartbeat changes while this process watches.
    Only time in which the file could be read counts: while no host can reach the file system, nobody is taken for dead.
    """

    def __init__(self, run_dir: Path) -> None:
        self.owner: dict[str, Any] = {}
        """What the file said at the last look."""
        self.watched_s = 0.0
        self._run_dir = run_dir
        self._looked = 0.0

    def look(self) -> bool | None:
        """Whether the holder is alive; None: not known yet. Writes a temporary file into the directory."""
        written_s = self._since_written()
        before, self.owner = self.owner, read_owner(self._run_dir)
        alive = is_alive(self.owner)
        if alive is not None:
            return alive
        if min(written_s, time.time() - self.owner["heartbeat"]) > OLD_S:  # by the server's clock and by this host's
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
        """Seconds since ``owner.json`` was written, by the clock of the file system, which stamps both files.

        A new file also makes this host ask the server of a network file system what has changed in the folder.
        """
        path = self._run_dir / "owner.json"
        probe = write_temporary(path, b"", durable=False)
        try:
            return probe.stat().st_mtime - path.stat().st_mtime if path.exists() else 0.0
        finally:
            probe.unlink(missing_ok=True)


def read_owner(run_dir: Path) -> dict[str, Any]:
    """``owner.json``; {} where it is missing, or incomplete after a power cut."""
    owner = read_json(run_dir / "owner.json")
    return owner if owner.keys() >= _FACTS else {}


def next_owner(run_dir: Path, previous: dict[str, Any]) -> dict[str, Any]:
    """This process, as the holder after ``previous``.

    Its generation is higher than all that ever wrote here. If ``owner.json`` was lost, other files still show them.
    """
    starts = [row for row in read_rows(run_dir / "starts.jsonl") if {"generation", "resumed_from"} <= row.keys()]
    names = [_CHECKPOINT.match(path.name) for path in run_dir.glob("checkpoints/*")]
    generations = [row["generation"] for row in starts] + [int(name[1]) for name in names if name]
    return {
        "token": secrets.token_hex(8),
        "generation": max([previous.get("generation", 0), *generations]) + 1,
        **this_process(),
        "job": slurm_job(),
        "job_restarts": _launch()[0],
        "job_launch": _launch()[1],
        "heartbeat": time.time(),
        "resumed_from": {str(row["generation"]): row["resumed_from"] for row in starts}
        | previous.get("resumed_from", {}),
    }


def is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether a holder is alive, without waiting. None: it is on another host, and only its heartbeat can show it."""
    if not owner or owner.get("released"):
        return False
    job = slurm_job()
    if job and owner["job"] == job and (owner["job_restarts"], owner.get("job_launch", 0)) < _launch():
        return False  # an earlier start of this job, or an earlier launch of this start
    if owner["host"] == socket.gethostname() and owner["boot"] == boot():
        return not has_ended(owner)
    return None


def slurm_job() -> str:
    """The id of the job of this process: ``123``, or ``123_4`` in an array. There SLURM_JOB_ID is another number, which
    for one of the tasks is that of the whole array. Empty outside of a job."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def _launch() -> tuple[int, int]:
    """How often the job of this process was requeued, and how often this start of it had launched its ranks before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")), int(os.environ.get("SENET_LAUNCH", "0"))


def describe(owner: dict[str, Any]) -> str:
    """Its job, process and host, for a message."""
    job = f"job {owner['job']}, " if owner["job"] else ""
    return f"{job}process {owner['pid']} on host {owner['host']}"


def holder(run_dir: Path) -> tuple[str, bool]:
    """Who holds a run directory ("": nobody), and whether that is certain. Without watching the heartbeat."""
    owner = read_owner(run_dir)
    alive = is_alive(owner)
    if alive is not None:
        return (f"{describe(owner)}, it is running", True) if alive else ("", True)
    age_s = time.time() - owner["heartbeat"]  # compares the clocks of two hosts, so it may be wrong
    if age_s > OLD_S:
        return "", False
    when = f"{age_s:.0f} s ago" if age_s >= 0 else f"{-age_s:.0f} s ahead of this host's clock"
    return f"{describe(owner)}, last heartbeat {when}", abs(age_s) < WATCH_S


@contextmanager
def nothing_left_if_refused(run_dir: Path) -> Iterator[None]:
    """If a start is refused, remove the run directory and its parents, as far as this start has made them."""
    refuse_folder(run_dir)
    made = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    try:
        yield
    except ConfigError:
        if made:
            with suppress(OSError, StillHeld):  # it was not made, or somebody uses it now
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
    """Temporary files of holders that were killed, and what nobody waits for any more."""
    (run_dir / REQUEST).unlink(missing_ok=True)
    for name in _OWN_NAMES:
        for path in run_dir.glob(f"{name}.*.tmp"):
            path.unlink(missing_ok=True)


def refuse_folder(run_dir: Path) -> None:
    """Raises ConfigError: this user may not look into the run directory, or a folder above it, or a sweep has it."""
    try:
        of_a_sweep = is_sweep(run_dir)
    except PermissionError as error:
        raise ConfigError(f"run_dir={run_dir} cannot be read ({error.strerror}); choose another run_dir") from None
    if of_a_sweep:
        raise ConfigError(
            f"run_dir={run_dir} is the folder of a sweep, whose cells are below it; choose another run_dir"
        )


def refuse_links(run_dir: Path) -> None:
    """No file is written through a symbolic link inside the run directory. The directory itself may be a link.

    Checkpoints need no check: they are put in place by renames, which replace a link.

    Raises:
        ConfigError: a name that is written to is a symbolic link.
    """
    for name in (*_OWN_NAMES, *_OWN_FOLDERS):
        path = run_dir / name
        if path.is_symlink():
            raise ConfigError(
                f"{path} is a symbolic link, and would be written to; remove it, or link the run directory as a whole"
            )
