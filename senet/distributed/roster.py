"""Which process each rank is, and on which host: how messages name ranks. Does not import torch."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from senet.distributed.environment import own_rank


class Process(NamedTuple):
    """Where a rank runs."""

    host: str
    pid: int
    pid_space: str
    """Processes with the same one see each other under these pids: of one host, and of one container."""

    @classmethod
    def own(cls) -> Process:
        """This process."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(host_name(), os.getpid(), f"{boot}/{Path('/proc/self/ns/pid').readlink()}")


class Roster(dict[int, Process]):
    """Rank -> its process. Until the ranks have met, of this rank only."""

    def name(self, ranks: Iterable[int]) -> str:
        """``rank 1 on n2``; ``ranks 0, 1 on n1, rank 3 on n2``. Without a host where it is not known."""
        by_host: dict[str, list[int]] = {}
        for rank in sorted(ranks):
            by_host.setdefault(self[rank].host if rank in self else "", []).append(rank)
        return ", ".join(
            f"rank{'s' * (len(group) > 1)} {', '.join(map(str, group))}{f' on {host}' if host else ''}"
            for host, group in by_host.items()
        )


def host_name() -> str:
    """As SLURM calls this host, so that its commands take it; else its own name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def own_name() -> str:
    """``rank 1 on n2``: this process."""
    rank = own_rank()
    return Roster({rank: Process.own()}).name([rank])
