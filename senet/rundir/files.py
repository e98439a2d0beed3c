"""Files that are replaced in one step, and what is done while a file system does not answer. No torch."""

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
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE_S = 240.0  # below distributed.start_timeout_s, so that the rank that waits says why, not the others
PAUSE_S = 0.25  # before the first new try; doubled up to 5 s
# A server or a device that may come back. Anything else (no room, no right) is for a person to mend.
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
    """Whether the same may succeed a little later."""
    return error.errno in _PASSING


def patiently(action: Callable[[], T], *, limit_s: float | None = None) -> T:
    """Do something with files, and all of it again while their file system does not answer, up to ``PATIENCE_S``.

    Always all of it: after an error the kernel may have dropped what was written, and a repeated fsync succeeds.

    Raises:
        OSError: there is another reason, or the time is over.
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


def write_temporary(final: Path, content: bytes | memoryview, *, durable: bool) -> Path:
    """Write beside ``final``; renaming the returned ``*.tmp`` file to it publishes the content.

    The name is a new one each time, whoever writes from wherever; after an error nothing is left.
    """
    temporary = final.with_name(f"{final.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):  # what is half written takes the room that the next try needs
            temporary.unlink()
        raise
    return temporary


def replace_file(path: Path, content: bytes, *, durable: bool = False, limit_s: float | None = None) -> None:
    """Replace ``path``: a reader sees the old content or the new. ``durable`` also survives a power cut.

    Waits while the file system does not answer, for so long.
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
    """Make the renames in a directory durable, as far as its file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some have no such call for a directory
            raise
    finally:
        os.close(descriptor)


def forget_cached(path: Path) -> None:
    """Have the next reader of a file that was made durable ask the disk or the server, not this host's memory."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_json(path: Path, content: Any, *, durable: bool = False, limit_s: float | None = None) -> None:
    """``replace_file`` with JSON."""
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode(), durable=durable, limit_s=limit_s)


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; {} where the file is missing or is no JSON object."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file that holds one a line; a line that a kill cut short is none."""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row
