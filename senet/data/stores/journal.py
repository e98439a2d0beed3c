"""A pack while it is written, and what of it is sure: after a kill, the next builder goes on from there.

Beside ``<name>.pack`` lies ``<name>.journal``: which process writes it, then a line for each image whose bytes are
on the disk. It is removed when an index that has these images was written.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.stores.encoded import ROW
from senet.rundir.files import fsync_directory, read_rows, replace_file
from senet.rundir.locks import has_ended, seen_process, this_process

_CHUNK = 64 * 2**20  # bytes that a kill may lose, and that are made durable at once
_LEFT = ".left"  # of a journal whose builder was refused, or ran out of room, and said so
_POLL_S = 0.5
log = logging.getLogger(__name__)


class PackWriter:
    """A new pack of this process. Its journal is there at once, the pack with the first image."""

    def __init__(self, store: Path) -> None:
        self.path = store / f"{time.time_ns():016x}-{secrets.token_hex(4)}.pack"
        self.journal = self.path.with_suffix(".journal")
        self.size = self._sure = 0
        self._pack, self._lines = -1, list[str]()
        replace_file(self.journal, json.dumps({"builder": this_process()}).encode() + b"\n")

    def add(self, key: str, mtime_ns: int, content: bytes, digest: bytes) -> int:
        """Returns the offset. OSError: it cannot be written."""
        if self._pack < 0:
            self._pack = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            fsync_directory(self.path.parent)
        offset = self.size
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._pack, rest) :]
        self.size += len(content)
        row = {"key": key, "size": len(content), "mtime_ns": mtime_ns, "offset": offset, "digest": digest.hex()}
        self._lines.append(json.dumps(row))
        if self.size - self._sure >= _CHUNK:
            self.sync()
        return offset

    def sync(self) -> None:
        """First the bytes, then the lines that say that they are there."""
        if self._lines:
            os.fsync(self._pack)
            with self.journal.open("a") as file:
                file.write("\n".join(self._lines) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._sure, self._lines = self.size, []

    def close(self) -> None:
        """Give back the room of what is not sure."""
        if self._pack >= 0:
            os.ftruncate(self._pack, self._sure)
            os.close(self._pack)
        if not self._sure:
            self.path.unlink(missing_ok=True)
            self.journal.unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # an index has it all
            self.journal.rename(self.journal.with_suffix(_LEFT))


def wait_for_earlier(store: Path, own: Path, patience_s: float) -> None:
    """Where locks exclude nobody: wait for those that have begun to build before ``own`` did, a journal.

    Only until they give no sign of life for ``patience_s``. Two that see each other too late both build.
    """
    seen: dict[Path, tuple[int, float]] = {}
    told = False
    while True:
        now, waits = time.monotonic(), False
        for path in store.glob("*.journal"):
            with suppress(FileNotFoundError, ValueError):
                if path.name < own.name and not has_ended(builder := _builder(path)):
                    if seen.get(path, (0, 0.0))[0] != (beat := path.stat().st_mtime_ns):
                        seen[path] = beat, now
                    if now - seen[path][1] < patience_s:
                        waits = True
        if not waits:
            return
        if not told:
            log.info("waiting for process %s on host %s, which packs images", builder.get("pid"), builder.get("host"))
            told = True
        time.sleep(_POLL_S)


def seen_builder(store: Path) -> str:
    """As ``seen_holder``: which other process packs images into a store, also where there are no locks."""
    for path in store.glob("*.journal"):
        with suppress(OSError, ValueError):  # removed meanwhile, or of another user
            if seen := seen_process(_builder(path), path):
                return seen
    return ""


def _journals(store: Path) -> list[Path]:
    return sorted([*store.glob("*.journal"), *store.glob(f"*{_LEFT}")])


def _builder(path: Path) -> dict[str, Any]:
    """Which process writes a journal. ValueError: it does not say."""
    with path.open() as file:
        row = json.loads(file.readline())
    return row["builder"] if isinstance(row, dict) and isinstance(row.get("builder"), dict) else {}


def read_journals(store: Path) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Of each journal: the name of the pack, keys and ``ROW`` elements of the images that are surely in it.

    What a builder that has ended wrote after them is cut off.
    """
    for path in _journals(store):
        pack, keys, rows = path.with_suffix(".pack"), list[str](), list[tuple[Any, ...]]()
        with suppress(FileNotFoundError, ValueError):  # a journal without a pack is of no use
            ended, size, end = path.suffix == _LEFT or has_ended(_builder(path)), pack.stat().st_size, 0
            for line in read_rows(path):
                if "key" not in line:
                    continue
                end = max(end, line["offset"] + line["size"])
                if end <= size:
                    keys.append(line["key"])
                    digest = tuple(bytes.fromhex(line["digest"]))
                    rows.append((0, 0, line["offset"], line["size"], line["mtime_ns"], 0, digest))
            if ended and end < size:
                os.truncate(pack, end)
        if rows:
            yield pack.name, keys, np.array(rows, dtype=ROW)


def forget_journals(store: Path, own: Path) -> None:
    """``own``, and those of processes that have ended: an index has all that is of use."""
    for path in _journals(store):
        with suppress(FileNotFoundError, ValueError):
            if path.suffix == _LEFT or path == own or has_ended(_builder(path)):
                path.unlink()
