"""Sends rows to a view while a network is trained, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from senet.verbs import typed
from senet.views.points import points
from senet.views.services import SERVICES, View, catch_up, in_words

log = logging.getLogger(__name__)
_QUIET_S = 3.0  # before a person is told what the end of a run waits for


class Sender:
    """A row is sent once a checkpoint covers it: no later start does its step again.

    Nobody waits for a view but the end of a run, for a limited time. Its library is imported with the first checkpoint.
    An error is warned of once; with the next checkpoint, or at the end, the view is asked what it has, and gets the
    rest.
    """

    def __init__(self, name: str, run_dir: Path, make: Callable[[], View]) -> None:
        self._name, self._run_dir, self._make = name, run_dir, make
        self._view: View | None = None
        self._is_open = self._warned = False
        self._last = -1
        self._rows: list[Mapping[str, Any]] = []
        """Of this start, those that are not sent yet."""
        self._through = -1
        """The last step that may be sent."""
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"view {name}", daemon=True)
        self._thread.start()

    def add(self, row: Mapping[str, Any]) -> None:
        """A row that is on its way into metrics.jsonl."""
        self._jobs.put(lambda: self._rows.append(row))

    def covered(self, through: int) -> None:
        """A checkpoint is published: no step up to this one is done again."""
        self._jobs.put(lambda: self._send(through))

    def close(self, *, finished: bool) -> None:
        """Nothing comes any more."""
        self._jobs.put(lambda: self._close(finished))
        self._jobs.put(None)

    def join(self, timeout_s: float) -> None:
        """After ``close``: wait until all that is covered is there, or warn."""
        self._thread.join(min(_QUIET_S, timeout_s))
        if self._thread.is_alive():
            log.info("%s: the end of the run waits for it, %.0f s at the most", self._name, timeout_s)
            self._thread.join(max(0.0, timeout_s - _QUIET_S))
        if self._thread.is_alive():
            self._warn(f"not all was sent when the time for it was over, {timeout_s:.0f} s")

    def _work(self) -> None:
        for job in iter(self._jobs.get, None):
            try:
                job()
            except Exception as error:  # whatever a library raises: the training goes on
                self._is_open = False
                self._warn(in_words(error))

    def _send(self, through: int) -> None:
        self._through = through
        self._view = self._view or self._make()
        if self._is_open:
            due = points(self._rows, after=self._last, through=through)
            self._view.send(due)
            self._last = due[-1].step if due else self._last
        else:
            _, self._last = catch_up(self._view, self._run_dir, through, self._rows)
        self._is_open = True
        self._rows = [row for row in self._rows if row["step"] > through]

    def _close(self, finished: bool) -> None:
        if not self._is_open and self._through >= 0:
            self._send(self._through)
        if self._view is not None:
            self._view.close(finished=finished)

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            by_hand = f"; so does {typed('sync')} {self._run_dir}" if self._name in SERVICES else ""
            log.warning("%s: %s; the next checkpoint or start sends what is missing%s", self._name, text, by_hand)
