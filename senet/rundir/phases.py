"""How a start of a run spends its time, measured while it runs; ``hours`` adds it up over all starts. No torch.

Inside a start only a clock counts that runs from the boot of the host, so that setting the time of day changes nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from senet.rundir.locks import started_at

BEGAN_VARIABLE = "SENET_BEGAN"  # of the launcher: when this launch began, as ``stamp`` writes it
SUBMITTED_VARIABLE = "SENET_SUBMITTED"  # of a SLURM job: when it was sent, by the time of day of that host
WORK = ("waiting", "training", "evaluating")
"""The phases that are done again, in part, after a kill."""
T = TypeVar("T")


def stamp(*, process_start: bool = False) -> str:
    """Now, or when this process was started: time of day, seconds since boot, and which boot."""
    now = since = _since_boot_s()
    if process_start:
        since = started_at(os.getpid()) / os.sysconf("SC_CLK_TCK")
    return f"{time.time() - (now - since):.3f} {since:.3f} {_boot_id()}"


class Phases:
    """Seconds of this process in each phase; at any time it is in exactly one, at first in "starting".

    Args:
        began: when this launch began, as ``stamp`` writes it, by default as the launcher says it; of another host
            only its time of day is used.
    """

    def __init__(self, began: str = "") -> None:
        began_at, since_boot, boot = (began or os.environ.get(BEGAN_VARIABLE) or stamp()).split()
        self.began = float(began_at)
        """Time of day of the launcher's host."""
        self._lock = threading.Lock()  # the heartbeat reads in a thread of its own
        self._phase, self._since = "starting", _since_boot_s()
        age_s = self._since - float(since_boot) if boot == _boot_id() else 0.0
        self._spent = {"starting": max(0.0, age_s)}

    def enter(self, phase: str) -> str:
        """From now on; returns the phase until now. A microsecond or two, twice in each step."""
        with self._lock:
            now, last = _since_boot_s(), self._phase
            self._spent[last] = self._spent.get(last, 0.0) + now - self._since
            self._phase, self._since = phase, now
        return last

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """In between; then on with the phase before."""
        last = self.enter(phase)
        try:
            yield
        finally:
            self.enter(last)

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches: "waiting" for each, then "training"."""
        iterator = iter(batches)
        while True:
            self.enter("waiting")
            batch = next(iterator, None)
            self.enter("training")
            if batch is None:
                return
            yield batch

    def spent(self) -> dict[str, float]:
        """Seconds in each phase so far. From any thread."""
        with self._lock:
            now = _since_boot_s() - self._since
            return self._spent | {self._phase: self._spent.get(self._phase, 0.0) + now}

    def work(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds in the phases of ``WORK``, with those ``before`` this start."""
        spent = self.spent()
        return {phase: before.get(phase, 0.0) + spent.get(phase, 0.0) for phase in WORK}


def _since_boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # counts while the host sleeps, too


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
