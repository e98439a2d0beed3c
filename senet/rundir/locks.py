"""How processes, of this host and of others, keep out of each other's way: locks, and folders of one's own. No torch.

Locks save work and keep nobody safe: on some file systems they exclude nobody, on some there are none. What must happen
once is settled by a rename, or by reading back.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

from senet.errors import RunError
from senet.rundir.files import read_json, write_json

BEAT_S = 5.0
_ABANDONED_S = 180.0  # without a beat; what other hosts tell of a folder may be a minute old
_POLL_S = 0.05
_BUILDER = "builder.json"
log = logging.getLogger(__name__)


class StillHeld(RunError):
    """The holder of a lock has given no sign of life for as long as one was ready to wait; names file and holder."""


@contextmanager
def lock(path: Path, *, patience_s: float) -> Iterator[None]:
    """Hold the lock on a file, which stays there. Waits for as long as its holder gives signs of life.

    Where there are no locks, that is said, and one goes on without.

    Raises:
        StillHeld: no sign of life for ``patience_s``.
        OSError: the file cannot be made; a link is not followed, since what it leads to would be overwritten.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except PermissionError as error:
        if not path.exists():
            raise
        _say_none(path, error)  # another user's
        yield
        return
    try:
        if not _wait(descriptor, path, patience_s):
            yield
            return
        _write(descriptor, json.dumps(this_process()))
        with beating(path):
            yield
        _write(descriptor, "")
    finally:
        os.close(descriptor)  # which releases it


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """Touch a file or folder every few seconds, by which others see that this process goes on."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            with suppress(OSError):  # whoever waits waits less long, no more than that
                os.utime(path)

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(BEAT_S)


@contextmanager
def own_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new hidden folder for what this process makes, until that is renamed out of there. Removed at the end, and so
    are those of processes that were killed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f".{name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    folder.mkdir()
    try:
        write_json(folder / _BUILDER, this_process())
        _remove_abandoned(parent)  # may make the room that is needed
        with beating(folder):
            yield folder
    finally:
        rmtree(folder, ignore_errors=True)  # what cannot be removed the next one tries again
        _remove_abandoned(parent)


def _remove_abandoned(parent: Path) -> None:
    """Call after a change in ``parent``: its time is now, by the clock that stamps the others' beats."""
    now = parent.stat().st_mtime
    for folder in parent.glob(".*.tmp"):
        with suppress(OSError):  # gone meanwhile, somebody else's, or no folder of ours at all
            if has_ended(read_json(folder / _BUILDER)) or now - folder.stat().st_mtime > _ABANDONED_S:
                rmtree(folder, ignore_errors=True)


def this_process() -> dict[str, Any]:
    """What tells this process from all others, for a file that others read."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": boot(), "pid": pid, "pid_started": started_at(pid)}


def has_ended(process: Mapping[str, Any]) -> bool:
    """Whether a process, as ``this_process`` wrote it, is known to have ended. Of other hosts nothing is known."""
    here = process.get("host") == socket.gethostname() and process.get("boot") == boot()
    return here and started_at(process["pid"]) != process["pid_started"]


def boot() -> str:
    """The kernel's boot id and the namespace in which process ids hold."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id} {Path('/proc/self/ns/pid').readlink()}"


def started_at(pid: int) -> int:
    """When a process started, in clock ticks since boot, so that setting the clock does not matter; 0 if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def _wait(descriptor: int, path: Path, patience_s: float) -> bool:
    """Whether the lock is held now; False where there are none."""
    seen, since, told = 0, time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):  # some file systems say EACCES
            pass
        except OSError as error:
            _say_none(path, error)
            return False
        now = time.monotonic()
        if (beat := os.fstat(descriptor).st_mtime_ns) != seen:
            seen, since = beat, now
        if now - since > patience_s:
            raise StillHeld(f"{_holder(path)} holds {path}, and gave no sign of life for {patience_s:g} s")
        if not told and now - since > 1:
            log.info("waiting for %s, which holds %s", _holder(path), path)
            told = True
        time.sleep(_POLL_S)


def _holder(path: Path) -> str:
    process = read_json(path)
    return f"process {process['pid']} on host {process['host']}" if {"pid", "host"} <= process.keys() else "somebody"


def _say_none(path: Path, error: OSError) -> None:
    log.warning("%s cannot be locked (%s); going on without", path, error.strerror)


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
