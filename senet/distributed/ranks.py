"""Who this rank is, and the store in which ranks leave words for each other. No collectives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from senet.config.options import TrainConfig
from senet.distributed.devices import choose_device
from senet.distributed.environment import read_place
from senet.errors import ConfigError, RunError
from senet.rundir.lease import mirror_status


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
    def from_environment(cls, train: TrainConfig, *, option: str = "train.device") -> Ranks:
        """Read what torchrun set; one rank where it set nothing.

        Raises:
            ConfigError: variables that cannot be, or CUDA or ``train.sync_bn`` wanted where there is none.
        """
        place = read_place()
        device = choose_device(train.device, place.local_rank, option=option)
        if train.sync_bn and device.type != "cuda":
            raise ConfigError("train.sync_bn=true needs CUDA, and no GPU is used here; set train.sync_bn=false")
        return cls(*place, device)


def open_store(ranks: Ranks, timeout_s: float) -> Store:
    """Where the ranks leave words for each other; under torchrun it holds those of earlier starts too.

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
    launch = os.environ.get("SENET_START") or os.environ.get("TORCHELASTIC_RUN_ID", "start")
    return PrefixStore(launch, store)


def _of(ranks: Ranks, text: str) -> RunError:
    """An error that this rank prints, since rank 0 may know nothing of it."""
    error = RunError(text)
    error.reporter = ranks.rank
    return error
