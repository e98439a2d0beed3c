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

    def kept_from_running(self, before: Clocks) -> float:
        """Share of the time that was there to run in, since ``before``: stopped, asleep, or throttled by a quota."""
        wall_s, cpu_s = self.wall_s - before.wall_s, self.cpu_s - before.cpu_s
        if self.waited_s is None or before.waited_s is None:
            return 0.0
        waited_s = self.waited_s - before.waited_s
        lost_s = wall_s - cpu_s - waited_s + min(waited_s, self.throttled_s - before.throttled_s)
        return min(0.99, max(0.0, lost_s / max(cpu_s + lost_s, 1e-9)))


def _throttled_s(group: Path) -> float:
    """Seconds for which the quota of a control group has kept its processes from running."""
    try:
        rows = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    except OSError:  # not of this version, or not shown in this container
        return 0.0
    return int(rows.get("throttled_time", 0)) / 1e9 + int(rows.get("throttled_usec", 0)) / 1e6
