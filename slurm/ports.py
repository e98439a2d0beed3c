"""A port on which the ranks of a job can meet."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_BELOW_EPHEMERAL = 12_000


def free_port() -> int:
    """A port on which no process listens, below those that the kernel gives to outgoing connections.

    Another process may take it before rank 0 does; then rank 0 reports ``port_taken``.
    """
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    high = first_ephemeral if first_ephemeral > 2 * 1024 else 32_768
    for _ in range(1000):
        port = random.randrange(max(1024, high - _BELOW_EPHEMERAL), high)
        try:
            with _listen(port):
                return port
        except OSError:
            continue
    raise RuntimeError(f"no free port below {high}")


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
