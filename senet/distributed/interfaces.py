"""The network interface over which gloo connects the ranks of several hosts."""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from torch.distributed.distributed_c10d import Store

from senet.distributed.environment import GLOO_INTERFACE
from senet.distributed.ranks import Ranks
from senet.errors import RunError

_SIOCGIFCONF = 0x8912


def choose_interface(ranks: Ranks, store: Store, timeout_s: float) -> None:
    """With ranks on several hosts, set GLOO_SOCKET_IFNAME to the interface towards MASTER_ADDR, unless it is set.

    Gloo would use the address of the host's own name, which is 127.0.1.1 in Debian's /etc/hosts. On the host of rank 0
    MASTER_ADDR may be such a loopback address as well; the interface is then the one whose address other hosts have.
    """
    if ranks.world_size == ranks.local_world_size or os.environ.get(GLOO_INTERFACE):
        return
    address, own = _route(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    on_master = ipaddress.ip_address(own).is_loopback
    store.set(f"master/{ranks.rank}", "" if on_master else address)
    if on_master:
        for rank in reversed(range(ranks.world_size)):  # the last rank is the most likely to be on another host
            store.wait([f"master/{rank}"], timedelta(seconds=timeout_s))
            if own := store.get(f"master/{rank}").decode():
                break
    if name := _interfaces().get(own):
        os.environ[GLOO_INTERFACE] = name


def describe_interface() -> str:
    """For the error of a failed connection: the interface in use, and the remedy."""
    name, host = os.environ.get(GLOO_INTERFACE), socket.gethostname()
    used = f"{GLOO_INTERFACE}={name}" if name else f"{GLOO_INTERFACE} is not set, so gloo uses the address of its name"
    return f"on host {host} {used}: set it to an interface over which the hosts reach each other"


def own_address() -> str:
    """The address at which other hosts reach this one: that of the chosen interface, else that of its name."""
    chosen = os.environ.get(GLOO_INTERFACE, "").partition(",")[0]
    known = [address for address, name in _interfaces().items() if name == chosen]
    return known[0] if known else socket.gethostbyname(socket.gethostname())


def _route(host: str, port: int) -> tuple[str, str]:
    """The address of ``host``, and this host's own address on the route to it. Sends nothing."""
    for family, _, _, _, target in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
        with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):  # IPv6 without a route
            probe.connect(target)
            return str(target[0]), str(probe.getsockname()[0])
    raise RunError(f"MASTER_ADDR={host} cannot be reached from host {socket.gethostname()}: there is no route to it")


def _interfaces() -> Mapping[str, str]:
    """Address -> interface name, for all interfaces of this host but loopback."""
    entries = array.array("B", bytes(40 * 1024))  # struct ifreq: 16 bytes of name, 8 in front of an IPv4 address
    request = array.array("Q", [entries.buffer_info()[1], entries.buffer_info()[0]])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCGIFCONF, request)
    table = entries.tobytes()
    found = {}
    for start in range(0, request[0] & 0xFFFFFFFF, 40):
        name = table[start : start + 16].split(b"\0")[0].decode().partition(":")[0]  # eth0:1 is a second address
        found[socket.inet_ntoa(table[start + 20 : start + 24])] = name
    table_v6 = Path("/proc/net/if_inet6")
    for line in table_v6.read_text().splitlines() if table_v6.exists() else []:
        digits, _, _, _, _, name = line.split()
        found[str(ipaddress.IPv6Address(int(digits, 16)))] = name
    return {address: name for address, name in found.items() if name != "lo"}
