"""Environment variables through which a launcher tells each process its rank. Does not import torch."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from senet.errors import ConfigError

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""For GNU malloc: the process keeps freed activations, which saves page faults; and asks for pages of 2 MiB."""
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
CORES_VARIABLE = "SENET_CORES_PER_RANK"
"""How many a launcher has asked for; 0 or not set: unknown."""


class Place(NamedTuple):
    """The rank of this process, and the number of ranks; both of all hosts, and of this host."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def read_place() -> Place:
    """Read the four variables as torchrun sets them; one rank if none is set. Empty counts as not set.

    Raises:
        ConfigError: invalid or contradicting variables, e.g. left over in a shell, or set by Kubernetes for a service
            named "master".
    """
    given = {field: os.environ.get(field.upper(), "") for field in Place._fields}
    what = ", ".join(f"{field.upper()}={text}" for field, text in given.items() if text)
    remedy = "torchrun sets all four; for one rank without it, unset them"
    if bad := [text for text in given.values() if text and not (text.isascii() and text.isdigit())]:
        raise ConfigError(f"{what}: {bad[0]!r} is not a number; {remedy}")
    place = Place(**{field: int(text) for field, text in given.items() if text})
    missing = [field.upper() for field, text in given.items() if not text]
    if missing and place.world_size > 1:
        raise ConfigError(f"{what}, but {', '.join(missing)} not set; {remedy}")
    if not (place.rank < place.world_size and place.local_rank < place.local_world_size <= place.world_size):
        raise ConfigError(f"{what} contradict each other; {remedy}")
    if place.world_size > 1:
        _check_meeting_point()
    return place


def own_rank() -> int:
    """The rank of this process; 0 if the variables are invalid, so that the error is printed."""
    try:
        return read_place().rank
    except ConfigError:
        return 0


def host_answers(host: str, port: int) -> bool:
    """Whether a host is there, also if nothing listens on that port. Takes 3 s at most, once its name is found."""
    try:
        socket.create_connection((host, port), timeout=3).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def _check_meeting_point() -> None:
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address:
        raise ConfigError("MASTER_ADDR is not set (the host of rank 0); torchrun sets it")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise ConfigError(
            f"MASTER_PORT={port} is not a port; set a number from 1 to 65535, or let torchrun do it (Kubernetes sets "
            f"it to tcp://... for a service named master)"
        )
    names = [name for _, name in socket.if_nameindex()]
    for wanted in filter(None, os.environ.get(GLOO_INTERFACE, "").split(",")):
        if wanted not in names:
            raise ConfigError(
                f"{GLOO_INTERFACE}={wanted}, but host {socket.gethostname()} has no such interface, only "
                f"{', '.join(names)}; name one over which the hosts reach each other, or unset it"
            )
