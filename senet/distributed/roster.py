"""Which process each rank is, and on which host: how messages name ranks. Does not import torch."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import NamedTuple

from senet.distributed.environment import own_rank
from senet.rundir.locks import boot, started_at


class Process(NamedTuple):
    """Where a rank runs."""

    host: str
    boot: str
    """Processes with the same one see each other under their pids: of one host, and of one container."""
    pid: int
    started: int
    """See ``locks.started_at``: another process may have the pid later."""

    @classmethod
    def own(cls) -> Process:
        """This process."""
        return cls(host_name(), boot(), os.getpid(), started_at(os.getpid()))


class Roster(dict[int, Process]):
    """Rank -> its process. Until the ranks have met, of this rank only."""

    def name(self, ranks: Iterable[int]) -> str:
        """``rank 1 on n2``; ``ranks 0, 1 on n1, rank 3 on n2``. Without a host where it is not known."""
        by_host: dict[str, list[int]] = {}
        for rank in sorted(ranks):
            by_host.setdefault(self.host(rank), []).append(rank)
        return ", ".join(
            f"rank{'s' * (len(group) > 1)} {', '.join(map(str, group))}{f' on {host}' if host else ''}"
            for host, group in by_host.items()
        )

    def host(self, rank: int) -> str:
        """Empty where it is not known."""
        return self[rank].host if rank in self else ""

    def beside(self, own: int) -> dict[int, Process]:
        """The other ranks whose processes this one sees."""
        return {rank: process for rank, process in self.items() if rank != own and process.boot == self[own].boot}


def host_name() -> str:
    """As SLURM calls this host, so that its commands take it; else its own name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def own_name() -> str:
    """``rank 1 on n2``: this process."""
    rank = own_rank()
    return Roster({rank: Process.own()}).name([rank])
