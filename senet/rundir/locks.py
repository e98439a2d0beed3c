"""Locks between processes, on this host and others, and temporary folders of a process. No torch.

Locks only avoid double work; nothing becomes wrong without them. On some file systems they do not exclude other hosts,
on some there are none. What must happen only once is decided by a rename, or by reading back what was written.
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
_ABANDONED_S = 180.0  # without a beat; what this host knows of a folder may be a minute old
_POLL_S = 0.05
_SILENT_S = 5.0  # the ranks of one start wait a moment for each other as a matter of course
_BUILDER = "builder.json"
log = logging.getLogger(__name__)


class StillHeld(RunError):
    """The holder of a lock gave no sign of life for the time that was allowed. Names the file and the holder."""


@contextmanager
def lock(path: Path, *, patience_s: float) -> Iterator[None]:
    """Hold the lock on a file, which is not deleted afterwards. Waits while another holder gives signs of life.

    Where the file system has no locks, a warning is logged, and the caller goes on without one.

    Raises:
        StillHeld: no sign of life for ``patience_s``.
        OSError: the file cannot be made. A symbolic link is not followed: its target would be overwritten.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except PermissionError as error:
        if not path.exists():
            raise
        _warn_no_lock(path, error)  # the file belongs to another user
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
    """Touch a file or folder every few seconds, so that others see that this process is alive."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            with suppress(OSError):  # at worst, others stop waiting too early: see the top of this file
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
    """A new hidden folder for the work of this process, until the result is renamed to its place. Removed at the end,
    together with the folders of processes that were killed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f".{name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    folder.mkdir()
    try:
        write_json(folder / _BUILDER, this_process())
        _remove_abandoned(parent)  # this may free the space that is needed
        with beating(folder):
            yield folder
    finally:
        rmtree(folder, ignore_errors=True)  # what is left is removed by the next process
        _remove_abandoned(parent)


def _remove_abandoned(parent: Path) -> None:
    """Call after a change in ``parent``: its time of change is then now, by the clock that stamps the beats too."""
    now = parent.stat().st_mtime
    for folder in parent.glob(".*.tmp"):
        with suppress(OSError):  # removed meanwhile, of another user, or not made by own_folder
            if has_ended(read_json(folder / _BUILDER)) or now - folder.stat().st_mtime > _ABANDONED_S:
                rmtree(folder, ignore_errors=True)


def this_process() -> dict[str, Any]:
    """What identifies this process, for a file that others read."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": boot(), "pid": pid, "pid_started": started_at(pid)}


def has_ended(process: Mapping[str, Any]) -> bool:
    """Whether a process, as ``this_process`` described it, is known to have ended. On other hosts that is not known."""
    here = process.get("host") == socket.gethostname() and process.get("boot") == boot()
    return here and started_at(process["pid"]) != process["pid_started"]


def boot() -> str:
    """The kernel's boot id, and the namespace of its process ids."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id} {Path('/proc/self/ns/pid').readlink()}"


def started_at(pid: int) -> int:
    """When a process started, in ticks since boot, which setting the clock does not change; 0 if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def seen_holder(path: Path) -> str:
    """Which other process holds the lock on a file, or has made a folder by ``own_folder``, as far as can be seen
    without a lock; empty where that one is known to have ended, or is silent."""
    return seen_process(read_json(path / _BUILDER if path.is_dir() else path), path)


def seen_process(process: Mapping[str, Any], path: Path) -> str:
    """The same of a process, as ``this_process`` described it, that touches ``path`` while it works."""
    if process in ({}, this_process()) or has_ended(process) or time.time() - path.stat().st_mtime > _ABANDONED_S:
        return ""
    return _named(process)


def _wait(descriptor: int, path: Path, patience_s: float) -> bool:
    """Wait for the lock. True: it is held now. False: the file system has no locks."""
    seen, told = 0, False
    began = since = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):  # held by another; some file systems answer EACCES
            pass
        except OSError as error:
            _warn_no_lock(path, error)
            return False
        now = time.monotonic()
        if (beat := os.fstat(descriptor).st_mtime_ns) != seen:
            seen, since = beat, now
        if now - since > patience_s:
            raise StillHeld(f"{_holder(path)} holds {path}, and gave no sign of life for {patience_s:g} s")
        if not told and now - began > _SILENT_S:
            log.info("waiting for %s, which holds %s", _holder(path), path)
            told = True
        time.sleep(_POLL_S)


def _holder(path: Path) -> str:
    return _named(read_json(path))


def _named(process: Mapping[str, Any]) -> str:
    return f"process {process['pid']} on host {process['host']}" if {"pid", "host"} <= process.keys() else "somebody"


def _warn_no_lock(path: Path, error: OSError) -> None:
    log.warning("%s cannot be locked (%s); going on without", path, error.strerror)


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
