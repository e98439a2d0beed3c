"""What the ranks report, and what is found in it: plain values, as in JSON. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_high
from typing import Any, Literal

HOSTS_VARIABLE = "SENET_HOSTS"
"""Names of the hosts in the order of their ranks, with commas; set by a launcher that knows them. Only with it the host
of a rank that never came has a name."""
Kind = Literal["wrong", "late", "slow"]
"""wrong: a training there fails, or computes wrong numbers; only what was measured. late: it did not come, or not to
its end, in time, which a cold file system explains as well as a fault. slow: it works, slower or with less safety."""
WAITING = "waiting for the others"
"""What a rank does that is not late itself."""


@dataclass(frozen=True)
class Finding:
    """One fault of one host; ``host`` is "" where it is not known which is the cause."""

    host: str
    rank: int | None
    kind: Kind
    check: str
    text: str
    """Value, rule and remedy, in one line without the name of the host."""
    rows: tuple[str, ...] = ()
    """The rows of the table in which it shows."""


@dataclass
class Reports:
    """What had come to rank 0 when the time was over."""

    world_size: int
    local_world_size: int
    limit_s: float
    parts: dict[int, dict[str, Any]]
    """Rank -> part of the check -> what it reported. {} for a rank that never came."""
    doing: dict[int, str] = field(default_factory=dict)
    """Rank -> what it was doing, of those that had not ended."""
    launched_on: Sequence[str] = ()
    """Hosts in rank order, as the launcher names them; none where it does not say."""
    master: str = ""
    """MASTER_ADDR."""
    seconds: float = 0.0
    complete: bool = False

    def host(self, rank: int) -> str:
        """As the rank said; of one that never came, what the launcher says, if it agrees with those that came."""
        if "here" in self.parts[rank]:
            return str(self.parts[rank]["here"]["host"])
        known = {other: str(report["host"]) for other, report in self.of("here").items()}
        block = rank // self.local_world_size
        beside = {name for other, name in known.items() if other // self.local_world_size == block}
        if self.launched_on:
            blocks = dict(enumerate(self.launched_on))
            agrees = all(blocks.get(other // self.local_world_size) == name for other, name in known.items())
            return blocks.get(block, "") if agrees else ""
        return beside.pop() if len(beside) == 1 else ""

    def of(self, part: str, key: str = "") -> dict[int, Any]:
        """Rank -> its report of a part, or the value of one key in it; of ranks that have it, in rank order."""
        found = {rank: parts[part] for rank, parts in sorted(self.parts.items()) if part in parts}
        if not key:
            return found
        return {rank: report[key] for rank, report in found.items() if key in report}

    def hosts(self) -> dict[str, list[int]]:
        """Host -> its ranks that came, in rank order."""
        found: dict[str, list[int]] = {}
        for rank in self.of("here"):
            found.setdefault(self.host(rank), []).append(rank)
        return found

    def leaders(self) -> list[int]:
        """The first rank of each host, which looks at what the ranks of a host share."""
        return [ranks[0] for ranks in self.hosts().values()]


EXACT_ROW, CLOCK_ROW, NAMES_ROW = "exact products", "clock ahead of rank 0's, s", "finds by name"
LINK_ROW, TRIP_ROW = "slowest link, MB/s", "longest round trip, ms"


def rate_row(name: str) -> str:
    """The row of a rate: of a precision, or "copy"."""
    return "copy, GB/s" if name == "copy" else f"{name} product, GFLOP/s"


def limit_row(name: str) -> str:
    """The row of a limit, whose unit stands behind a comma."""
    what, comma, unit = name.partition(", ")
    return f"{what} left{comma}{unit}"


def launched_on() -> list[str]:
    """What the launcher says of the hosts."""
    return [name for name in os.environ.get(HOSTS_VARIABLE, "").split(",") if name]


def usual(values: Mapping[Any, float]) -> float:
    """The median; of an even number the higher one of the middle, so that of two the slower is compared with the
    faster."""
    return median_high(values.values())


def majority(values: Mapping[int, Any], host: Callable[[int], str]) -> Any:
    """The value that more than half of the hosts have; None where no value is that frequent."""
    hosts_of: dict[str, set[str]] = {}
    for rank, value in values.items():
        hosts_of.setdefault(repr(value), set()).add(host(rank))
    most = max(hosts_of, key=lambda each: len(hosts_of[each]))
    is_clear = 2 * len(hosts_of[most]) > len({host(rank) for rank in values})
    return next(value for value in values.values() if repr(value) == most) if is_clear else None
