"""Which updates torch.profiler records: those of ``log.profile_at``, and those that a person asks for.

Without collectives of its own: all ranks record the same updates, since they count them alike, and a wish travels with
the vote of each step. A profile that fails is warned of, on its rank alone, and the training goes on. While nothing is
recorded, an update costs a comparison or two.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

from senet.config.options import Config
from senet.rundir import profiles
from senet.training.peers import Peers
from senet.training.record import Record
from senet.training.traces import Recording

T = TypeVar("T")
_WRITTEN_S = 10.0  # less than ``leave_together`` has the other ranks wait
log = logging.getLogger(__name__)


@dataclass
class Window:
    """Updates that are recorded."""

    first: int
    last: int
    asked_by: str = ""
    """Which request; empty: log.profile_at."""
    has_begun: bool = False
    """Whether the update before the first, which warms up, was there."""

    def before(self, step: int, epoch_ends: int) -> Literal["", "prepare", "record", "end", "miss"]:
        """What is to be done before update ``step``; beyond ``epoch_ends`` an evaluation comes instead."""
        if self.has_begun and (step > self.last or self.first < step == epoch_ends + 1):
            return "end"
        if step > epoch_ends or step < self.first - 1:
            return ""
        if step == self.first - 1:
            return "prepare"
        return "record" if self.has_begun else "miss"


def next_window(step: int, updates: int, *, epoch_ends: int, updates_per_epoch: int, total: int) -> Window:
    """The next updates that can be recorded, where ``step`` is the next update: of one epoch, if they fit into one.

    Args:
        epoch_ends: the last update of this epoch.
        total: the last of the training.
    """
    first = step + 1
    if epoch_ends - step < updates < updates_per_epoch and epoch_ends < total:
        first = epoch_ends + 2  # the first of the next epoch warms up
    return Window(first, first + updates - 1)


class Profiling:
    """Of one rank."""

    def __init__(self, config: Config, peers: Peers, record: Record, updates_per_epoch: int) -> None:
        self._run_dir, self._peers, self._tell = Path(config.run_dir), peers, record.tell
        self._updates_per_epoch, self._total = updates_per_epoch, updates_per_epoch * config.train.epochs
        at, updates = config.log.profile_at, config.log.profile_steps
        self._windows = [Window(at, at + updates - 1)] if at else []  # the next one first
        self._recording: Recording | None = None
        self._writing: list[threading.Thread] = []
        self._requests: SimpleQueue[str] = SimpleQueue()  # on rank 0, in the order of ``agreement.to_profile``
        if record.lease is not None:
            record.lease.look = partial(self._look, record.lease.run_dir)

    def over(self, batches: Iterable[T], done: int, epoch_ends: int) -> Iterator[T]:
        """Yield the batches of updates ``done`` + 1 to ``epoch_ends``. What is recorded of an update begins with the
        wait for its batch, and ends when the next is asked for."""
        iterator = iter(batches)
        for step in itertools.count(done + 1):
            if self._windows or self._peers.agreement.to_profile:
                self._before(step, epoch_ends)
            batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def finish(self) -> None:
        """Wait until everything is written, for some seconds. Not after a stop, which has to be quick."""
        deadline = time.monotonic() + _WRITTEN_S
        for thread in self._writing:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _look(self, run_dir: Path) -> None:
        """In the thread of rank 0's heartbeat: whether somebody asks for a profile."""
        if request := profiles.take(run_dir):
            self._requests.put(request.id)
            self._peers.agreement.want_profile(request.updates)

    def _before(self, step: int, epoch_ends: int) -> None:
        if self._peers.agreement.to_profile and not (self._windows and self._windows[0].has_begun):
            self._windows.insert(0, self._plan(step, epoch_ends))
        planned = self._windows[0]
        what = planned.before(step, epoch_ends)
        if what == "prepare":
            planned.has_begun = True
            self._attempt(planned, self._prepare)
        elif what == "record" and self._recording is not None:
            record = partial(self._record, self._recording, step, is_first=step == planned.first)
            if not self._attempt(planned, record):
                self._recording = None
        elif what == "end":
            if self._recording is not None:
                self._attempt(planned, partial(self._end, self._recording, planned, step - 1))
            self._recording = None
        elif what == "miss":
            log.info("updates %d to %d are not profiled: they had begun before", planned.first, planned.last)
        if what in ("end", "miss"):
            del self._windows[0]

    def _plan(self, step: int, epoch_ends: int) -> Window:
        agreement, per_epoch = self._peers.agreement, self._updates_per_epoch
        updates = agreement.to_profile.pop(0)
        planned = next_window(step, updates, epoch_ends=epoch_ends, updates_per_epoch=per_epoch, total=self._total)
        planned.asked_by = self._requests.get() if self._peers.ranks.is_main else ""
        self._report(planned)
        return planned

    def _report(self, planned: Window, **facts: Any) -> None:
        """To status.json, where the one who has asked looks."""
        told = {"id": planned.asked_by, "first": planned.first, "last": planned.last}
        self._tell(profile=told | {"ranks": self._peers.ranks.world_size} | facts)

    def _attempt(self, planned: Window, action: Callable[[], None]) -> bool:
        """Whether it went well; if not, the training goes on."""
        try:
            action()
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            log.warning("updates %d to %d are not profiled on this rank: %s", planned.first, planned.last, cause)
            self._report(planned, failed=cause)
            return False
        return True

    def _prepare(self) -> None:
        self._recording = Recording(self._peers.ranks.device)

    def _record(self, recording: Recording, step: int, *, is_first: bool) -> None:
        if is_first:
            recording.begin()
        recording.update(step)

    def _end(self, recording: Recording, planned: Window, last: int) -> None:
        """Write in a thread: the others wait for this rank in the next update."""
        recording.end()
        write = partial(self._write, recording, planned, last)
        thread = threading.Thread(target=self._attempt, args=(planned, write), name="profile", daemon=True)
        thread.start()
        self._writing = [*(each for each in self._writing if each.is_alive()), thread]

    def _write(self, recording: Recording, planned: Window, last: int) -> None:
        stem = profiles.stem(self._run_dir, planned.first)
        table = recording.write(stem, self._peers.ranks.rank)
        if self._peers.ranks.is_main:
            log.info("updates %d to %d are profiled, see %s.*\n%s", planned.first, last, stem, table.rstrip())
            self._report(planned, last=last, written=True)
