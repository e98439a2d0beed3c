"""The rank of this process with its device, and the key-value store that all ranks share. No collectives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from senet.config.options import TrainConfig
from senet.distributed.devices import choose_device
from senet.distributed.environment import read_place
from senet.distributed.roster import Process, Roster
from senet.errors import ConfigError, Kind, RunError
from senet.rundir.mirror import mirror_status


class PeerFailed(RunError):
    """Another rank could not start, failed, or does not answer."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, the number of ranks, and its device."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    roster: Roster = field(default_factory=Roster, compare=False, repr=False)
    """Of all ranks, once they have met."""

    def __post_init__(self) -> None:
        self.roster.setdefault(self.rank, Process.own())

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, train: TrainConfig, *, option: str = "train.device") -> Ranks:
        """Read what torchrun set; one rank if it set nothing.

        Raises:
            ConfigError: invalid variables; or ``train.device=cuda`` or ``train.sync_bn`` without a GPU that works.
        """
        place = read_place()
        device = choose_device(train.device, place.local_rank, option=option)
        if train.sync_bn and device.type != "cuda":
            raise ConfigError("train.sync_bn=true needs CUDA, and no GPU is used here; set train.sync_bn=false")
        return cls(*place, device)


def open_store(ranks: Ranks, timeout_s: float) -> Store:
    """Connect to the store at MASTER_ADDR:MASTER_PORT. That of torchrun also holds the keys of earlier starts.

    Raises:
        RunError: MASTER_ADDR has no address, MASTER_PORT is in use, or a rank did not connect within ``timeout_s``.
            Printed by the rank that has the error.
    """
    if ranks.world_size == 1:
        return dist.HashStore()  # type: ignore[attr-defined]
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    try:
        socket.getaddrinfo(address, port)  # the store would silently retry a name without address for ever
    except OSError as error:
        text = f"MASTER_ADDR={address} has no address on host {socket.gethostname()} ({error})"
        raise _local_error(ranks, text, "start does not get on") from None
    try:
        timeout = timedelta(seconds=timeout_s)
        store, _, _ = next(rendezvous("env://", ranks.rank, ranks.world_size, timeout=timeout))
    except dist.DistError as error:
        if "EADDRINUSE" not in str(error):
            text = " ".join(str(error).split())[:300]
            text = f"{ranks.roster.name([ranks.rank])} cannot connect to the others at {address}:{port}: {text}"
            raise _local_error(ranks, text, "start does not get on") from None
        reason = f"MASTER_PORT={port} is in use on host {socket.gethostname()}"
        taken = _local_error(ranks, f"{reason}; start again with another one", "port is taken")
        # a launcher that chose the port can choose another
        mirror_status({"state": "port_taken", "reason": reason, "kind": taken.kind})
        raise taken from None
    # a prefix per start, so that a job that reached the wrong port cannot mix in
    launch = os.environ.get("SENET_START") or os.environ.get("TORCHELASTIC_RUN_ID", "start")
    return PrefixStore(launch, store)


def _local_error(ranks: Ranks, text: str, kind: Kind) -> RunError:
    """An error that this rank prints itself: rank 0 may not know of it."""
    error = RunError(text)
    error.reporter, error.kind = ranks.rank, kind
    return error
