"""What a run directory, and the processes of this host, tell of a run that has ended or does not move."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from senet.distributed import hangs
from senet.distributed.roster import Process
from senet.follow import last_rows
from senet.rundir.collectives import FOLDER, read
from senet.rundir.files import is_full, read_json, read_rows
from senet.rundir.locks import boot, started_at
from senet.rundir.owner import WATCH_S, is_alive, read_owner
from senet.rundir.restarts import LAUNCH_FILE, newest_checkpoint
from senet.why.collectives import unfinished


@dataclass(frozen=True)
class Fact:
    """A piece of evidence."""

    where: str
    """A file of the run directory, with its line where it has several: ``restarts.jsonl:2``; or ``SLURM``."""
    text: str


@dataclass(frozen=True)
class Job:
    """The job of a run, as SLURM and its files have it."""

    id: str
    word: str = ""
    """SLURM's state; empty where SLURM does not know it."""
    local: bool = False
    """Without SLURM: slurm.cluster=local."""
    active: bool = False
    """Whether SLURM still has it in its queue, waiting or running."""
    waiting: bool = False
    reason: str = ""
    """SLURM's, why it waits."""
    restarts: int = 0
    """How often SLURM has requeued it."""
    facts: Sequence[Fact] = ()
    """SLURM's words, for a person."""
    last_end: Mapping[str, Any] = field(default_factory=dict)
    """What the last launch has left: its status, ``ended`` if its batch script saw its end, ``slurm``: what SLURM had
    announced then, preempted or time limit; and ``file``."""
    was_started: bool = False
    was_stopped: bool = False
    """By ``slurm stop``."""


@dataclass(frozen=True)
class Evidence:
    """All that the rules look at."""

    run_dir: Path
    status: Mapping[str, Any] = field(default_factory=dict)
    """status.json."""
    owner: Mapping[str, Any] = field(default_factory=dict)
    """owner.json."""
    alive: bool | None = False
    """Whether the holder lives. None: it is on another host, and its last heartbeat is not old."""
    silent_s: float = 0.0
    """Since the holder's last heartbeat."""
    launch: Mapping[str, Any] = field(default_factory=dict)
    """launch.json, if it is about a launch after the last heartbeat: its end as launch.sh saw it."""
    checkpoint: str = ""
    """Name of the newest; empty if there is none."""
    failures: Sequence[Mapping[str, Any]] = ()
    """Rows of restarts.jsonl."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """Last row of starts.jsonl."""
    still_s: float = 0.0
    """Since the last row of metrics.jsonl."""
    last_step: int = 0
    """Of that row; status.json may be some seconds older."""
    pace_s: float = 0.0
    """Seconds of training between its last two rows."""
    processes: Mapping[int, str] = field(default_factory=dict)
    """Rank -> state of its process, of those on this host."""
    lines: Sequence[Fact] = ()
    """Of the logs, those that tell something."""
    checked: Sequence[Fact] = ()
    """What the check of the nodes in front of the last start found."""
    avoided: Sequence[Fact] = ()
    """Nodes that the run's jobs do not get any more."""
    is_full: bool = False
    """Whether the file system of the run directory has no room."""
    job: Job | None = None
    collective: Sequence[Fact] = ()
    """The one that did not come to its end, where the ranks have left records of them."""

    @property
    def host(self) -> str:
        """Of rank 0."""
        return str(self.owner.get("host", ""))

    @property
    def is_starting(self) -> bool:
        """Whether status.json is still that of the start before."""
        return bool(self.owner.get("generation", 0) != self.status.get("generation", 0))


def gather(run_dir: Path) -> Evidence:
    """Read a run directory, without what SLURM knows."""
    status, owner = read_json(run_dir / "status.json"), read_owner(run_dir)
    silent_s = time.time() - owner.get("heartbeat", 0.0)
    alive = is_alive(owner)
    if alive is None and abs(silent_s) > WATCH_S:
        alive = False
    launch = read_json(run_dir / LAUNCH_FILE)
    rows = [row for row in last_rows(run_dir / "metrics.jsonl", 3) if "train_s" in row]
    metrics = run_dir / "metrics.jsonl"
    return Evidence(
        run_dir,
        status,
        owner,
        alive,
        silent_s,
        launch if launch.get("time", 0.0) >= owner.get("heartbeat", 0.0) else {},
        newest_checkpoint(run_dir),
        list(read_rows(run_dir / "restarts.jsonl")),
        ([*read_rows(run_dir / "starts.jsonl")] or [{}])[-1],
        time.time() - metrics.stat().st_mtime if rows else 0.0,
        rows[-1]["step"] if rows else 0,
        rows[-1]["train_s"] - rows[-2]["train_s"] if len(rows) > 1 else 0.0,
        _processes(owner) if alive else {},
        is_full=is_full(run_dir),
        collective=_collective(run_dir, status.get("generation", 0)),
    )


def _collective(run_dir: Path, generation: int) -> list[Fact]:
    text = unfinished(read(run_dir, generation))
    return [Fact(f"{FOLDER}/g{generation:04}.*", text)] if text else []


def _processes(owner: Mapping[str, Any]) -> dict[int, str]:
    """Those that have the same parent as rank 0, if they are on this host."""
    if owner["host"] != socket.gethostname() or owner["boot"] != boot():
        return {}
    launcher = _parent(owner["pid"])
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        with suppress(OSError, KeyError, ValueError):  # it has ended, or is another user's, or is no rank
            if _parent(pid) == launcher:
                words = (path / "environ").read_bytes().split(b"\0")
                variables = dict(os.fsdecode(word).split("=", 1) for word in words if b"=" in word)
                found[int(variables["RANK"])] = hangs.state(Process(owner["host"], owner["boot"], pid, started_at(pid)))
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
