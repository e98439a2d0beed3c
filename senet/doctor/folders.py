"""The run directory and the data root: written, renamed, locked, and looked at by other hosts. Leaves nothing behind,
and touches no file of a run."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from senet.rundir.files import fsync_directory
from senet.rundir.locks import own_folder

_BYTES = 1 << 20
_POLL_S = 0.02
LOCAL_KINDS = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
"""File systems that are never shared by hosts."""
_NO_QUOTA_LEFT = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def written(path: Path) -> Iterator[dict[str, Any]]:
    """Write a file in the folder, or where it is not there yet in the nearest that is, and hold a lock on it. Yields
    how that went, as plain values; the file is gone at the end.

    An OSError is reported as ``error``. A file system that does not answer hangs, in whichever call.
    """
    folder = next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())
    report: dict[str, Any] = {"path": str(path), "folder": str(folder), "kind": _kind(folder)}
    report["exists"] = folder == path.absolute()
    with ExitStack() as stack:
        try:
            report |= _room(path, folder)
            began = time.monotonic()
            file = stack.enter_context(own_folder(folder, "doctor")) / "probe"
            report |= {"token": secrets.token_hex(8)}
            _write(file, report["token"])
            report |= {"file": str(file), "seconds": time.monotonic() - began}
            report["behind_s"] = file.stat().st_mtime - time.time()  # this host's clock, behind that of the files
            report["lock"] = stack.enter_context(_locked(file))
        except OSError as error:
            full = error.errno in _NO_QUOTA_LEFT
            report |= {"error": error.strerror or str(error), "full": full}
        yield report


def _write(file: Path, token: str) -> None:
    """As a checkpoint is published: written, fsync, renamed, fsync of the folder."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("xb") as stream:
        stream.write(token.encode() + bytes(_BYTES))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)
    fsync_directory(file.parent)


@contextmanager
def _locked(file: Path) -> Iterator[str]:
    """Lock the file; yields "" if that excludes a second opening of it on this host, else what is wrong."""
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            yield error.strerror or str(error)
        else:
            yield "" if is_locked(file) else "a second lock on the same file was given"
    finally:
        os.close(descriptor)


def is_locked(file: Path) -> bool:
    """Whether another holds the lock on a file, as this host sees it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # some file systems answer EACCES
        return True
    except OSError:  # no locks at all: the host's own lock says so
        return False
    finally:
        os.close(descriptor)
    return False


def look(theirs: Mapping[str, Mapping[str, Any]], patience_s: float) -> dict[str, dict[str, Any]]:
    """What this host sees of the files of others (host -> its report of ``written``): after how many seconds (None: not
    within ``patience_s``), and whether their lock excludes this host."""
    deadline, began = time.monotonic() + patience_s, time.monotonic()
    missing = {host: report for host, report in theirs.items() if "file" in report}
    found: dict[str, dict[str, Any]] = {host: {"seen_s": None} for host in missing}
    while missing:
        for host, report in list(missing.items()):
            with suppress(FileNotFoundError, PermissionError):
                file = Path(report["file"])
                with file.open("rb") as stream:
                    if stream.read(len(report["token"])).decode(errors="replace") != report["token"]:
                        continue  # renamed before its content is seen
                found[host] = {"seen_s": time.monotonic() - began, "excluded": is_locked(file)}
                del missing[host]
        # a local file system shows it at once, or is not shared
        missing = {host: report for host, report in missing.items() if report["kind"] not in LOCAL_KINDS}
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return found


def _room(path: Path, folder: Path) -> dict[str, Any]:
    """Free bytes and files, None where the file system does not say; bytes of the newest checkpoint of a run."""
    about = os.statvfs(folder)
    sizes = [file.stat().st_size for file in sorted(path.glob("checkpoints/step_*.pt"))[-1:]]
    return {
        "free": about.f_bavail * about.f_frsize if about.f_blocks else None,
        "checkpoint": sum(sizes),
        "free_files": about.f_favail if about.f_files else None,
    }


def _kind(folder: Path) -> str:
    """Type of the file system, from the kernel's list of mounts: ext4, nfs4, fuse.glusterfs ..."""
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        if folder.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind
