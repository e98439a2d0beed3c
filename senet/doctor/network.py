"""Names of the other hosts, the links between pairs of hosts, and an all-reduce between all ranks.

Links are measured over TCP, at the address that gloo uses; so they do not depend on a process group, and a dead one is
named. Collectives come last.
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from senet.distributed.ranks import Ranks
from senet.doctor.cores import waited_s

MOST_PAIRED = 8
"""Hosts up to which each pair is measured; of more, each host with its two neighbours."""
_TIMEOUT_S = 3.0
_FIRST_BYTES, _MOST_BYTES, _CHUNK = 1 << 16, 1 << 24, 1 << 20
_LONG_ENOUGH_S, _NOT_AGAIN_S, _REPEATS, _GIVE_UP_S = 0.05, 0.3, 3, 1.0
_ECHOES = 20
_REDUCED = {"cpu": 1 << 20, "cuda": 1 << 24}  # numbers of 4 bytes; fewer over slow links
_REDUCED_S = 0.2
_REDUCTIONS, _SHORT_REDUCTIONS = 3, 10


def resolve(names: Sequence[str]) -> dict[str, list[str]]:
    """Name -> its addresses; none where it has none here."""
    found: dict[str, list[str]] = {}
    for name in names:
        found[name] = []
        with suppress(OSError):
            found[name] = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    return found


def rounds(hosts: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Which pairs of hosts are measured, each pair once, in rounds whose pairs share no host."""
    if len(hosts) > MOST_PAIRED:
        ring = list(itertools.pairwise([*hosts, hosts[0]]))
        parts = [ring[0 : len(hosts) // 2 * 2 : 2], ring[1::2], ring[len(hosts) // 2 * 2 :: 2]]
        return [part for part in parts if part]
    circle = [*hosts, *([""] * (len(hosts) % 2))]  # "": no partner in this round
    found = []
    for _ in range(len(circle) - 1):
        pairs = zip(circle[: len(circle) // 2], reversed(circle[len(circle) // 2 :]), strict=True)
        found.append([pair for pair in pairs if all(pair)])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return [pairs for pairs in found if pairs]


def looked_up(host: str, hosts: Sequence[str]) -> list[str]:
    """Whose names a host resolves: of the others those that come next, so that there are not as many as pairs."""
    own = hosts.index(host)
    return [*hosts[own + 1 :], *hosts[:own]][:MOST_PAIRED]


@contextmanager
def answering(address: str, token: bytes) -> Iterator[int]:
    """Answer other hosts that measure their link to this one, and know the token; yields the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=128) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed below
                    return
                threading.Thread(target=_answer, args=(connection, token), name="link", daemon=True).start()

        threading.Thread(target=serve, name="links", daemon=True).start()
        yield server.getsockname()[1]


def _answer(connection: socket.socket, token: bytes) -> None:
    """A request is a number of bytes, which follow, or, below 0, which are wanted. Each answer ends with the
    nanoseconds for which this thread has waited for a core."""
    buffer = memoryview(bytearray(_CHUNK))
    with connection, suppress(OSError):  # the other side reports it
        connection.settimeout(2 * _TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _exactly(connection, len(token)) != token:
            return
        while True:
            before_s = waited_s() or 0.0
            (size,) = struct.unpack("!q", _exactly(connection, 8))
            _receive(connection, buffer, max(0, size))
            _send(connection, buffer, max(0, -size))
            connection.sendall(struct.pack("!q", round(1e9 * ((waited_s() or 0.0) - before_s))))


def _send(connection: socket.socket, buffer: memoryview, size: int) -> None:
    while size > 0:
        connection.sendall(buffer[:size])
        size -= len(buffer)


def _receive(connection: socket.socket, buffer: memoryview, size: int) -> None:
    while size > 0:
        if not (count := connection.recv_into(buffer, min(size, len(buffer)))):
            raise ConnectionError("closed by the other host")
        size -= count


def _exactly(connection: socket.socket, count: int) -> bytes:
    """MSG_WAITALL does not wait where a socket has a timeout."""
    found = b""
    while len(found) < count:
        if not (more := connection.recv(count - len(found))):
            raise ConnectionError("closed by the other host")
        found += more
    return found


def measure_link(address: str, port: int, token: bytes) -> dict[str, Any]:
    """Seconds of the fastest round trip, and bytes per second to the other host and from it; ``busy``: for which share
    of it, if a side waited for a core, the slower of these is not the link's, 1 where that cannot be told. Or
    ``error``."""
    try:
        with socket.create_connection((address, port), timeout=_TIMEOUT_S) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(token)
            buffer = memoryview(bytearray(_CHUNK))
            trip_s = min(_transfer(connection, buffer, 0)[0] for _ in range(_ECHOES))
            (to, to_at_most), (back, back_at_most) = (_rate(connection, buffer, sign) for sign in (1, -1))
    except OSError as error:
        return {"error": " ".join(str(error).split())}
    busy = 1 - min(to, back) / min(to_at_most, back_at_most)
    return {"trip_s": trip_s, "to": to, "from": back, "busy": max(0.0, busy)}


def _rate(connection: socket.socket, buffer: memoryview, sign: int) -> tuple[float, float]:
    """Bytes per second, and how many it may have been without waiting for cores, of a message that is long enough to be
    timed also without that. Of each size the fastest of some. On hosts that are too busy the second is infinite."""
    size, deadline = _FIRST_BYTES, time.monotonic() + _GIVE_UP_S
    while True:
        took_s, link_s, began = float("inf"), float("inf"), time.monotonic()
        for _ in range(_REPEATS):
            took_s, link_s = map(min, (took_s, link_s), _transfer(connection, buffer, sign * size))
            if time.monotonic() - began > _NOT_AGAIN_S:
                break
        if link_s > _LONG_ENOUGH_S or size == _MOST_BYTES:
            return size / took_s, size / link_s
        if time.monotonic() > deadline:
            return size / took_s, float("inf")
        size = min(_MOST_BYTES, size * (8 if link_s < _LONG_ENOUGH_S / 8 else 2))


def _transfer(connection: socket.socket, buffer: memoryview, size: int) -> tuple[float, float]:
    """Seconds that a message and its answer took; and these without what the side that waited longer waited for a core,
    but a tenth at least. What both waited is not added up: it may have been the same time."""
    began, before_s = time.monotonic(), waited_s() or 0.0
    connection.sendall(struct.pack("!q", size))
    _send(connection, buffer, max(0, size))
    _receive(connection, buffer, max(0, -size))
    (theirs_ns,) = struct.unpack("!q", _exactly(connection, 8))
    here_s, took_s = (waited_s() or 0.0) - before_s, time.monotonic() - began
    return took_s, max(0.1 * took_s, took_s - max(here_s, theirs_ns / 1e9))


def stated_speed(interface: str) -> float | None:
    """Bytes per second that the driver states for an interface; None where it states none."""
    try:
        megabits = int(Path(f"/sys/class/net/{interface}/speed").read_text())
    except (OSError, ValueError):
        return None
    return megabits * 125e3 if megabits > 0 else None


def numbers_to_reduce(slowest: float) -> int:
    """How many numbers are added up, for links of so many bytes per second."""
    return max(1 << 10, min(_REDUCED["cuda"], int(slowest * _REDUCED_S / 4)))


def all_reduce(ranks: Ranks, store: Store, most: int, timeout_s: float) -> dict[str, Any]:
    """Make the process group that a training would have, and add up single numbers, and up to ``most`` at once, over
    all ranks. A collective: call on every rank."""
    device, world_size = ranks.device, ranks.world_size
    began = time.monotonic()
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=ranks.rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    pattern = torch.arange(min(most, _REDUCED[device.type]), device=device, dtype=torch.float32) % 251
    short_s = [_seconds(torch.ones(1, device=device)) for _ in range(1 + _SHORT_REDUCTIONS)]
    ready_s = time.monotonic() - began
    long_s, wrong = [], 0
    for _ in range(_REDUCTIONS):
        message = pattern + ranks.rank
        long_s.append(_seconds(message))
        wrong += int((message != world_size * pattern + world_size * (world_size - 1) / 2).sum())
    dist.destroy_process_group()
    traffic = 2 * (world_size - 1) / world_size * 4 * len(pattern)  # of each rank, by a ring
    return {"ready_s": ready_s, "trip_s": median(short_s[1:]), "rate": traffic / min(long_s), "wrong": wrong}


def _seconds(message: torch.Tensor) -> float:
    if message.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.monotonic()
    dist.all_reduce(message)
    if message.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - began


def paired_with(host: str, pairs: Sequence[tuple[str, str]]) -> str:
    """The host that this one measures in a round; "" where it answers, or has none."""
    return next((other for first, other in pairs if first == host), "")


def measure_links(
    host: str, addresses: Mapping[str, tuple[str, int]], token: bytes, in_step: Callable[[int], None]
) -> dict[str, dict[str, Any]]:
    """Measure this host's pairs, round by round. ``in_step(number)`` waits for the other hosts before each."""
    found = {}
    for number, pairs in enumerate(rounds(list(addresses))):
        in_step(number)
        if other := paired_with(host, pairs):
            found[other] = measure_link(*addresses[other], token)
    return found
