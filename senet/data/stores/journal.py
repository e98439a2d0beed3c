"""A pack while it is written, and what of it is sure: after a kill, the next builder goes on from there.

Beside ``<name>.pack`` lies ``<name>.journal``: which process writes it, then a line for each image whose bytes are
on the disk. It is removed when an index that has these images was written.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.stores.encoded import ROW
from senet.rundir.files import fsync_directory, read_rows
from senet.rundir.locks import has_ended, this_process

_CHUNK = 64 * 2**20  # bytes that a kill may lose, and that are made durable at once


class PackWriter:
    """A new pack of this process. Its files are made with the first image, so that there is none without."""

    def __init__(self, store: Path) -> None:
        self.name = secrets.token_hex(8) + ".pack"
        self.size = 0
        self._store, self._pack = store, -1
        self._sure, self._lines = 0, list[str]()

    def add(self, key: str, mtime_ns: int, content: bytes, digest: bytes) -> int:
        """Returns the offset. OSError: it cannot be written."""
        if self._pack < 0:
            self._create()
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
            with (self._store / self.name).with_suffix(".journal").open("a") as file:
                file.write("\n".join(self._lines) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._sure, self._lines = self.size, []

    def close(self) -> None:
        """Give back the room of what is not sure."""
        if self._pack >= 0:
            os.ftruncate(self._pack, self._sure)
            os.close(self._pack)
            self._pack = -1
            if not self._sure:
                self._path(".pack").unlink()
                self._path(".journal").unlink()

    def _path(self, suffix: str) -> Path:
        return (self._store / self.name).with_suffix(suffix)

    def _create(self) -> None:
        self._pack = os.open(self._store / self.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._path(".journal").write_text(json.dumps({"builder": this_process()}) + "\n")
        fsync_directory(self._store)


def read_journals(store: Path) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Of each journal: the name of the pack, keys and ``ROW`` elements of the images that are surely in it.

    What a builder that has ended wrote after them is cut off.
    """
    for path in sorted(store.glob("*.journal")):
        pack, keys, rows = path.with_suffix(".pack"), list[str](), list[tuple[Any, ...]]()
        lines = list(read_rows(path))
        ended = bool(lines) and has_ended(lines[0].get("builder", {}))
        with suppress(FileNotFoundError):  # a pack without its journal is of no use, nor is one the other way round
            size, end = pack.stat().st_size, 0
            for line in lines[1:]:
                end = max(end, line["offset"] + line["size"])
                if end <= size:
                    keys.append(line["key"])
                    digest = tuple(bytes.fromhex(line["digest"]))
                    rows.append((0, 0, line["offset"], line["size"], line["mtime_ns"], 0, digest))
            if ended and end < size:
                os.truncate(pack, end)
        if rows:
            yield pack.name, keys, np.array(rows, dtype=ROW)


def forget_journals(store: Path, own: str) -> None:
    """Of this process, whose pack is ``own``, and of processes that have ended: an index has all that is of use."""
    for path in store.glob("*.journal"):
        with suppress(FileNotFoundError, StopIteration):
            if path.stem == Path(own).stem or has_ended(next(read_rows(path)).get("builder", {})):
                path.unlink()
