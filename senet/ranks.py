"""Who this rank is, and how the ranks meet: through the store, before there are process groups. No collectives."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from senet.config import ConfigError, RunError, TrainConfig
from senet.devices import choose_device, refuse_shared_gpu
from senet.environment import read_place
from senet.lease import mirror_status

T = TypeVar("T")


class PeerFailed(RunError):
    """Another rank could not start, failed, or does not answer."""


@dataclass(frozen=True)
class Ranks:
    """This process among the others, and its device."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes and speaks."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, train: TrainConfig) -> Ranks:
        """Read what torchrun set; one rank where it set nothing.

        Raises:
            ConfigError: variables that cannot be, or CUDA or ``train.sync_bn`` wanted where there is none.
        """
        place = read_place()
        device = choose_device(train.device, place.local_rank)
        if train.sync_bn and device.type != "cuda":
            raise ConfigError("train.sync_bn=true needs CUDA, and no GPU is used here; set train.sync_bn=false")
        return cls(*place, device)


def start_together(ranks: Ranks, timeout_s: float, prepare: Callable[[], T]) -> tuple[Store, T]:
    """Run ``prepare`` on every rank, before any process group, and go on only if it succeeded on all.

    Raises:
        ConfigError: its own, or that of the first rank with one.
        PeerFailed: ``prepare`` failed elsewhere for another reason, or a rank did not arrive in time.
    """
    store = _rendezvous(ranks, timeout_s)
    failure: Exception | None = None
    try:
        refuse_shared_gpu(ranks.device, ranks.rank, store)
        result = prepare()
    except Exception as error:
        failure = error
    kind = "" if failure is None else "refused" if isinstance(failure, ConfigError) else "failed"
    store.set(f"start/{ranks.rank}", json.dumps([kind, str(failure or "")]))
    if ranks.is_main:
        outcomes = [_wait_for(store, f"start/{rank}", ranks, timeout_s) for rank in range(ranks.world_size)]
        bad = [(rank, *outcome) for rank, outcome in enumerate(outcomes) if outcome[0]]
        store.set("start/all", json.dumps(bad[0] if bad else [0, "", ""]))
    else:
        bad = [outcome] if (outcome := _wait_for(store, "start/all", ranks, timeout_s))[1] else []
    if failure is not None and not isinstance(failure, ConfigError):
        raise failure
    if bad:
        rank, kind, message = bad[0]
        if kind == "refused":
            raise ConfigError(message if rank == 0 else f"rank {rank}: {message}")
        raise PeerFailed(f"rank {rank} could not start: {message}")
    return store, result


def _rendezvous(ranks: Ranks, timeout_s: float) -> Store:
    """Where the ranks leave words for each other.

    Raises:
        RunError: MASTER_ADDR or MASTER_PORT is of no use, or a rank did not come in time. Each rank says its own.
    """
    if ranks.world_size == 1:
        return dist.HashStore()  # type: ignore[attr-defined]
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    try:
        socket.getaddrinfo(address, port)  # unresolved, the store would try for ever without a word
    except OSError as error:
        raise _of(ranks, f"MASTER_ADDR={address} has no address on host {socket.gethostname()} ({error})") from None
    try:
        timeout = timedelta(seconds=timeout_s)
        store, _, _ = next(rendezvous("env://", ranks.rank, ranks.world_size, timeout=timeout))
    except dist.DistError as error:
        if "EADDRINUSE" not in str(error):
            text = " ".join(str(error).split())[:300]
            raise _of(ranks, f"rank {ranks.rank} does not meet the others at {address}:{port}: {text}") from None
        reason = f"MASTER_PORT={port} is in use on host {socket.gethostname()}"
        mirror_status({"state": "port_taken", "reason": reason})  # a launcher that chose it can choose another
        raise _of(ranks, f"{reason}; start again with another one") from None
    # whoever mistook this store for his own must not speak to these ranks
    return PrefixStore(os.environ.get("SENET_START", "start"), store)


def _of(ranks: Ranks, text: str) -> RunError:
    """An error that this rank prints, since rank 0 may know nothing of it."""
    error = RunError(text)
    error.reporter = ranks.rank
    return error


def _wait_for(store: Store, key: str, ranks: Ranks, timeout_s: float) -> Any:
    """The JSON under a key, as soon as somebody has set it."""
    try:
        store.wait([key], timedelta(seconds=timeout_s))
    except RuntimeError:
        late = "the word of rank 0" if key == "start/all" else f"rank {key.rpartition('/')[2]}"
        raise _of(ranks, f"{late} did not arrive within distributed.start_timeout_s={timeout_s:g}") from None
    return json.loads(store.get(key))
