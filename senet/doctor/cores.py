"""Time that a thread had a core, waited for one, or was kept from it: a busy host is not a slow one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from senet.distributed.devices import control_groups

_SCHEDULER = Path("/proc/thread-self/schedstat")  # ns on a core, ns waiting for one


def waited_s() -> float | None:
    """Seconds for which this thread could have run and had no core: others used it, or a quota was used up. None: not
    told, as by a kernel without CONFIG_SCHED_INFO."""
    try:
        return int(_SCHEDULER.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


@dataclass(frozen=True)
class Clocks:
    """Of this thread, in seconds."""

    wall_s: float
    cpu_s: float
    waited_s: float | None
    """As of ``waited_s()``."""
    throttled_s: float
    """By the quota of a control group."""

    @classmethod
    def now(cls) -> Clocks:
        """Read them."""
        throttled_s = sum(map(_throttled_s, control_groups("cpu")))
        return cls(time.monotonic(), time.thread_time(), waited_s(), throttled_s)

    def lost_s(self, before: Clocks) -> float:
        """Seconds since ``before`` in which it did not run although no other had its core: it was stopped, slept, or
        had used up a quota. 0 where ``waited_s`` is not told."""
        if self.waited_s is None or before.waited_s is None:
            return 0.0
        waited_s = self.waited_s - before.waited_s
        idle_s = self.wall_s - before.wall_s - (self.cpu_s - before.cpu_s) - waited_s
        return max(0.0, idle_s + min(waited_s, self.throttled_s - before.throttled_s))

    def could_run_s(self, before: Clocks) -> float:
        """Seconds since ``before`` that were there to run in; those on a core where ``waited_s`` is not told."""
        return self.cpu_s - before.cpu_s + self.lost_s(before)

    def kept_from_running(self, before: Clocks) -> float:
        """The share of them that was lost."""
        return min(0.99, self.lost_s(before) / max(self.could_run_s(before), 1e-9))


def _throttled_s(group: Path) -> float:
    """Seconds for which the quota of a control group has kept its processes from running."""
    try:
        rows = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    except OSError:  # not of this version, or not shown in this container
        return 0.0
    return int(rows.get("throttled_time", 0)) / 1e9 + int(rows.get("throttled_usec", 0)) / 1e6
