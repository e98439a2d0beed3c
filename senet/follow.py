"""Files that grow, read from their end: logs, and the rows of a run that has none. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from senet.rundir.files import may_pass, read_rows

_BEGIN = 2**16  # bytes before the end in which the first lines are looked for
_MOST = 2**22  # bytes in one look


class Tail:
    """The lines that were added to a file since the last look, which may be missing, replaced, or away for a while.

    It is opened anew at each look: on a network file system that is how another host's writes are seen.
    """

    def __init__(self, path: Path, first: int | None = None) -> None:
        """``first``: lines to begin with, of those that are there; all by default."""
        self.path = path
        self.was_replaced = False
        """Whether the last look found another file than the one before."""
        self._first, self._file, self._position, self._half = first, 0, 0, b""

    def lines(self, *, last: bool = False) -> list[str]:
        """The new lines that are whole, of ``_MOST`` bytes; ``last``: all, also one without its end."""
        try:
            found = self._read(-1 if last else _MOST).split(b"\n")
        except FileNotFoundError:
            self._file = self._file and -1  # a new one may get the number of the old one
            return []
        except OSError as error:
            if not may_pass(error):
                raise
            return []
        self._half = found.pop()
        if last and self._half:
            found, self._half = [*found, self._half], b""
        if self._first is not None:
            found, self._first = found[max(0, len(found) - self._first) :], None
        return [line.rpartition(b"\r")[2].decode(errors="replace") for line in found]

    def _read(self, most: int) -> bytes:
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            changed = status.st_ino != self._file or status.st_size < self._position  # replaced, or cut
            self.was_replaced = changed and self._file != 0
            if changed:
                self._half = b""
                self._position = max(0, status.st_size - _BEGIN) if self._first is not None else 0
            self._file = status.st_ino
            file.seek(self._position)
            text = file.read(most)
            self._position += len(text)
        return self._half + text


class Rows:
    """The rows of metrics.jsonl and starts.jsonl as lines, of a run whose output nobody has kept."""

    def __init__(self, run_dir: Path, first: int) -> None:
        self._metrics, self._starts = Tail(run_dir / "metrics.jsonl", first), Tail(run_dir / "starts.jsonl", 1)
        self._run_dir, self._shown = run_dir, 0

    def lines(self, *, last: bool = False) -> list[str]:
        """What was added. A start that resumes writes both files anew; only what is done twice is shown twice."""
        return [*self._new_starts(), *self._new_rows(last=last)]

    def _new_starts(self) -> Iterator[str]:
        for row in _rows(self._starts.lines()):
            if row.get("generation", 0) > self._shown:
                self._shown = row["generation"]
                ended = " ".join(str(row.get("after", {}).get(key, "")) for key in ("state", "reason")).strip()
                after = f", after: {ended}" if ended else ""
                yield f"start {self._shown} from step {row.get('resumed_from')}{after}"

    def _new_rows(self, *, last: bool) -> Iterator[str]:
        lines = self._metrics.lines(last=last)
        first = 0
        if self._metrics.was_replaced:
            starts = list(read_rows(self._run_dir / "starts.jsonl"))
            first = starts[-1].get("resumed_from", 0) + 1 if starts else 0
        for row in _rows(lines):
            if row.get("step", 0) >= first:
                yield "  ".join(f"{key} {_short(value)}" for key, value in row.items() if key != "kind")


def last_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """The last JSON objects of a file, one per line, of so many lines."""
    return list(_rows(Tail(path, count).lines()))


def _rows(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError):  # a kill has cut it
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
