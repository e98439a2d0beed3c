"""``metrics.jsonl`` and TensorBoard, written in a thread of their own; what goes to the other views."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from senet.rundir.files import PATIENCE_S, patiently, read_rows, replace_file
from senet.rundir.lease import LeaseLost
from senet.training.boards import Boards

if TYPE_CHECKING:
    from senet.views.sender import Sender

log = logging.getLogger(__name__)


class Writer:
    """Rows to ``metrics.jsonl`` and the views, on rank 0. On other ranks (``run_dir=None``) it writes nothing.

    Rows after the point that the run resumes from are removed, so that each step has one row after any number of kills.
    Training does not wait for the file system. What could not be written is written again with the next checkpoint.
    """

    def __init__(
        self,
        run_dir: Path | None,
        *,
        resumed_step: int,
        epochs_done: int,
        to: Collection[str],
        is_held: Callable[[], bool] = lambda: True,
    ) -> None:
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._boards: Boards | None = None
        self._senders: list[Sender] = []
        self._error: Exception | None = None
        if run_dir is None:
            return
        path = run_dir / "metrics.jsonl"
        kept = [
            _line(row)
            for row in read_rows(path)
            if isinstance(row.get("step"), int)  # a person may have added a line
            and row["step"] <= resumed_step
            and (row.get("kind") != "epoch" or row.get("epoch", 0) <= epochs_done)
        ]
        self._rows = _Rows(path, kept, is_held)
        if "tensorboard" in to:
            self._boards = Boards(run_dir / "tensorboard", resumed_step)
        if others := sorted({*to} - {"tensorboard"}):
            from senet.views.identity import identify  # eight modules that few runs need
            from senet.views.sender import Sender
            from senet.views.services import make_view

            make = partial(make_view, run_dir=run_dir, identity=identify(run_dir, trains=True), trains=True)
            self._senders = [Sender(name, run_dir, partial(make, name)) for name in others]
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def write(self, kind: str, step: int, **values: float | str) -> None:
        """One row, and each number as a scalar of that step."""
        if self._error is not None:
            raise self._error
        if self._thread is None:
            return
        row = {"kind": kind, "step": step, **values}
        line = _line(row)
        self._jobs.put(lambda: self._rows.add(line))
        for sender in self._senders:
            sender.add(row)
        if (boards := self._boards) is not None:
            self._jobs.put(lambda: boards.row(kind, step, values))

    def graph(self, model: nn.Module, images_NCHW: Tensor) -> None:
        """See ``Boards.graph``; now, not in the thread, since training would change the network meanwhile."""
        if self._boards is not None:
            self._boards.graph(model, images_NCHW)

    def final(self, options: Mapping[str, Any], result: Mapping[str, float], *, first: Collection[str]) -> None:
        """See ``Boards.final``."""
        if (boards := self._boards) is not None:
            self._jobs.put(lambda: boards.final(options, result, first))

    def sync(self) -> None:
        """Return when the rows so far are durable. Called before a checkpoint that needs them is published."""
        if self._thread is None:
            return
        done = threading.Event()
        self._jobs.put(self._rows.sync)
        if self._boards is not None:
            self._jobs.put(self._boards.flush)  # or after a kill there would be a gap before the resumed step
        self._jobs.put(done.set)
        while not done.wait(0.5) and self._thread.is_alive():
            pass

    def covered(self, through: int) -> None:
        """No step up to this one is done again: the views that take none back may have it."""
        for sender in self._senders:
            sender.covered(through)

    def end_views(self, *, finished: bool, within_s: float) -> None:
        """Wait until the views have what is covered. Without it they have that later."""
        deadline = time.monotonic() + within_s
        for sender in self._senders:
            sender.close(finished=finished)
        for sender in self._senders:
            sender.join(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Make everything durable, or warn of what is not, and end."""
        if self._thread is None:
            return
        self._jobs.put(self._rows.close)
        if self._boards is not None:
            self._jobs.put(self._boards.close)
        self._jobs.put(None)
        self._thread.join(PATIENCE_S)

    def _work(self) -> None:
        for job in iter(self._jobs.get, None):
            try:
                job()
            except Exception as error:  # write raises it in the training thread
                self._error = error
                return


class _Rows:
    """The rows of ``metrics.jsonl``, appended. After an error it is not known what of the file is on the disk, so
    the whole file is written again.
    """

    def __init__(self, path: Path, lines: list[bytes], is_held: Callable[[], bool]) -> None:
        self._path, self._lines, self._is_held = path, lines, is_held
        self._file: FileIO | None = None
        self._replace()  # a writer of an older start that is still alive goes on in the old file, which has no name now

    def add(self, line: bytes) -> None:
        self._lines.append(line)
        try:
            if self._file is not None and self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:  # the run goes on: only checkpoints that cannot be written end it
            self._abandon(error)

    def sync(self) -> None:
        try:
            if self._file is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._abandon(error)
        if self._file is None:
            try:
                self._replace()
            except LeaseLost:
                return  # the next checkpoint raises it in the training thread
            except OSError as error:
                log.warning("rows of metrics.jsonl are not on the disk: %s", error)

    def close(self) -> None:
        self.sync()
        if self._file is not None:
            self._file.close()

    def _abandon(self, error: OSError) -> None:
        log.warning("%s: %s; it is written anew with the next checkpoint", self._path, error)
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None

    def _replace(self) -> None:
        if not patiently(self._is_held):
            raise LeaseLost(f"run_dir={self._path.parent} was taken over by another start")
        replace_file(self._path, b"".join(self._lines), durable=True)
        self._file = patiently(lambda: FileIO(self._path, "a"))


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row) + "\n").encode()
