"""Files that are replaced atomically, and again and again while their file system does not answer. No torch."""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from senet.errors import ConfigError

T = TypeVar("T")
PATIENCE_S = 240.0  # less than distributed.start_timeout_s: the rank that waits reports the reason first
PAUSE_S = 0.25  # before the second try; then doubled each time, up to 5 s
# The server or the device may come back. After other errors (no space, no permission) a person has to act.
_PASSING = {
    errno.ENOTCONN,
    errno.ESTALE,
    errno.EIO,
    errno.ETIMEDOUT,
    errno.EREMOTEIO,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ESHUTDOWN,
    errno.EBADFD,  # GlusterFS, of a file that was open while the server was away
}
log = logging.getLogger(__name__)


def may_pass(error: OSError) -> bool:
    """Whether the same call may succeed a little later."""
    return error.errno in _PASSING


def remedy(error: OSError) -> str:
    """What to do about a folder that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "free some space, or choose another folder" if full else "see that it can be written, or choose another one"


def patiently(action: Callable[[], T], *, limit_s: float | None = None) -> T:
    """Run ``action``. While its file system does not answer, run it again from the beginning, up to ``PATIENCE_S``.

    From the beginning: after an error the kernel may have dropped written data, and a second fsync would succeed.

    Raises:
        OSError: another error, or the time is over.
    """
    deadline = time.monotonic() + (PATIENCE_S if limit_s is None else limit_s)
    pause_s = PAUSE_S
    while True:
        try:
            return action()
        except OSError as error:
            left_s = deadline - time.monotonic()
            if not may_pass(error) or left_s <= 0:
                raise
            if pause_s == PAUSE_S:
                log.warning("%s; trying again for up to %.0f s", error, left_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 5.0)


def check_output(option: str, path: Path) -> None:
    """Before the work whose result is written: whether the file that an option names can be made, or replaced.

    Raises:
        ConfigError: it cannot.
    """
    folder, wrong = path.absolute().parent, ""
    try:
        if not folder.is_dir():
            wrong = "no such folder"
        elif path.exists() and not path.is_file():
            wrong = "no file, and cannot be replaced; name another"
        else:
            must_be_writable(folder)
    except (OSError, ConfigError) as error:  # OSError: it may not be looked into
        wrong = str(error)
    if wrong:
        raise ConfigError(f"{option} {path}: {wrong}")


def must_be_writable(folder: Path, advice: str = "") -> None:
    """Make a folder unless it is there, and for a moment a file in it.

    Raises:
        ConfigError: that cannot be done. ``advice`` takes the place of the remedy.
    """

    def make() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()

    try:
        patiently(make)
    except OSError as error:
        text = f"{folder.absolute()} cannot be written ({error.strerror})"
        raise ConfigError(f"{text}; {advice or remedy(error)}") from None


def write_temporary(final: Path, content: bytes | memoryview, *, durable: bool) -> Path:
    """Write a new file beside ``final``. Renaming the returned ``*.tmp`` file to ``final`` publishes the content.

    Its name is random, so that no two writers, on any hosts, share it. After an error no file is left.
    """
    temporary = final.with_name(f"{final.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):  # a half-written file takes the space that the next try needs
            temporary.unlink()
        raise
    return temporary


def replace_file(path: Path, content: bytes, *, durable: bool = False, limit_s: float | None = None) -> None:
    """Replace ``path``: a reader sees the old content or the new. ``durable``: it also survives a power cut.

    Tries again for ``limit_s`` (``PATIENCE_S`` unless given) while the file system does not answer.
    """

    def replace() -> None:
        temporary = write_temporary(path, content, durable=durable)
        try:
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        if durable:
            fsync_directory(path.parent)

    patiently(replace, limit_s=limit_s)


def fsync_directory(path: Path) -> None:
    """Make renames in a directory durable, where its file system can do that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # it cannot
            raise
    finally:
        os.close(descriptor)


def is_full(folder: Path) -> bool:
    """Whether the file system of a folder has no room for a file. A quota is seen only where the file system tells it
    as free space, as those of projects do."""
    free = os.statvfs(folder)
    return free.f_bavail * free.f_frsize < 64 * 1024 or (free.f_files > 0 and free.f_favail == 0)


def forget_cached(path: Path) -> None:
    """Drop a durable file from this host's cache, so that it is next read from the disk or the server."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_json(path: Path, content: Any, *, durable: bool = False, limit_s: float | None = None) -> None:
    """``replace_file`` with JSON."""
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode(), durable=durable, limit_s=limit_s)


def write_first(path: Path, content: Any) -> dict[str, Any]:
    """Write JSON unless the file is there. Returns what it holds then: of several processes, on any hosts, the first's.

    Raises:
        OSError: it cannot be written, or its file system has no hard links.
    """
    temporary = write_temporary(path, json.dumps(content).encode(), durable=False)
    try:
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; {} where the file is missing or is no JSON object."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one per line. Other lines, such as one that a kill cut short, are skipped."""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row
