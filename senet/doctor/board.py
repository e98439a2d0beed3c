"""What the ranks tell each other, through the store at MASTER_ADDR. No collectives: it also works while some ranks or
links do not."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from senet.distributed.environment import Place
from senet.distributed.roster import host_name
from senet.doctor.reports import WAITING
from senet.errors import RunError

_POLL_S = 0.02
_RETRY_S = 0.5


class Board:
    """Each rank writes its reports here; rank 0 reads them, and says when to go on. Not for two threads at once."""

    def __init__(self, store: Store, rank: int) -> None:
        self.store = store
        self._rank = rank

    def second(self) -> Board:
        """The same by a connection of its own, for another thread."""
        return Board(self.store if isinstance(self.store, dist.HashStore) else self.store.clone(), self._rank)  # type: ignore[attr-defined]

    def begin(self, part: str) -> None:
        """Say what this rank does next, in case it never ends."""
        self.store.set(f"doing/{self._rank}", part)

    def tell(self, part: str, content: Any) -> None:
        """Report."""
        self.store.set(f"{part}/{self._rank}", json.dumps(content))
        self.begin(WAITING)

    def say(self, key: str, content: Any) -> None:
        """Of rank 0: something for all."""
        self.store.set(key, json.dumps(content))

    def wait(self, key: str, timeout_s: float) -> Any:
        """What rank 0 says. RuntimeError (torch's DistStoreError) if it does not come in time."""
        self.store.wait([key], timedelta(seconds=timeout_s))
        return json.loads(self.store.get(key))

    def gather(
        self, part: str, ranks: Collection[int], until: float, came: Callable[[int], None] = lambda _: None
    ) -> dict[int, Any]:
        """The reports of these ranks that come before ``until`` (``time.monotonic()``). ``came`` is called for each."""
        found: dict[int, Any] = {}
        while True:
            for rank in [each for each in ranks if each not in found]:
                if self.store.check([f"{part}/{rank}"]):
                    found[rank] = json.loads(self.store.get(f"{part}/{rank}"))
                    came(rank)
            if len(found) == len(ranks) or time.monotonic() > until:
                return found
            time.sleep(_POLL_S)

    def doing(self, rank: int) -> str:
        """What a rank said last that it does."""
        key = f"doing/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def meet(self, what: str, count: int, timeout_s: float) -> None:
        """Wait until ``count`` ranks are here, or the time is over: then it goes on without the others."""
        deadline = time.monotonic() + timeout_s
        self.store.add(what, 1)
        while self.store.add(what, 0) < count and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def open_board(place: Place, limit_s: float) -> Board:
    """Connect to the store, without waiting for other ranks. Rank 0 hosts it, or torchrun does.

    Raises:
        RunError: it cannot be reached within ``limit_s``, or its port is in use.
    """
    if place.world_size == 1:
        return Board(dist.HashStore(), 0)  # type: ignore[attr-defined]
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_host = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    deadline = time.monotonic() + limit_s
    while True:
        left_s = max(1.0, deadline - time.monotonic())
        try:
            socket.getaddrinfo(address, port)  # the store would retry a name without address for ever
            store = dist.TCPStore(  # type: ignore[attr-defined]
                address, port, is_master=is_host, timeout=timedelta(seconds=left_s), wait_for_workers=False
            )
            break
        except (OSError, dist.DistError) as error:
            in_use = "EADDRINUSE" in str(error)
            if in_use or time.monotonic() > deadline - _RETRY_S:
                raise _unreachable(place.rank, f"{address}:{port}", error, in_use=in_use) from None
        time.sleep(_RETRY_S)
    launch = os.environ.get("SENET_START") or os.environ.get("TORCHELASTIC_RUN_ID", "start")
    return Board(PrefixStore(f"doctor/{launch}", store), place.rank)


def _unreachable(rank: int, where: str, error: Exception, *, in_use: bool) -> RunError:
    host = host_name()
    if in_use:
        return RunError(f"MASTER_PORT: {where} is in use on host {host}; start again with another one")
    reason = " ".join(str(error).split())[:200]
    found = RunError(
        f"rank {rank} on {host} cannot reach rank 0 at {where} ({reason}); on this host, check the name (getent hosts) "
        f"and the network"
    )
    found.reporter = rank
    return found
