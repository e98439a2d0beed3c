"""A network file system: one GlusterFS volume, its disk on the controller, mounted on each machine by itself.

The homes of the users lie on it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hosts.machines import HOMES, USERS, Machine

PROGRAMS = ("glusterd", "gluster", "mount.glusterfs", "mkfs.ext4")
MOUNT = Path("/run/shared")
_DISK = "/run/disk"
_GLUSTER = "gluster --mode=script volume"


def missing() -> list[str]:
    """What this host lacks for it."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    return lacking if Path("/dev/fuse").exists() else [*lacking, "/dev/fuse"]


class Volume:
    """``MOUNT`` on all machines, once glusterd runs on the server. It ends with the machines."""

    def __init__(self, server: Machine) -> None:
        self._server = server

    def make(self, image: Path) -> None:
        """Make its disk and start serving it."""
        self._on_server(f"truncate -s 2G {image} && mkfs.ext4 -q -m 0 {image}")  # -m 0: its server is root
        self._on_server(f"mkdir {_DISK} && mount -o loop {image} {_DISK} && mkdir {_DISK}/brick")
        self._on_server(f"until {_GLUSTER} info; do sleep 0.1; done")
        brick = f"{self._server.name}:{_DISK}/brick"
        self._on_server(f"{_GLUSTER} create shared {brick} force && {_GLUSTER} start shared")

    def mount(self, machine: Machine) -> None:
        """On a machine that has just been switched on."""
        source = f"{self._server.name}:/shared"
        _on(machine, f"mkdir -p {MOUNT} && mount -t glusterfs {source} {MOUNT}")

    def make_homes(self) -> None:
        """Once the server has mounted it."""
        homes = [f"install -d -m 700 -o {user} -g {user} {HOMES / user}" for user in USERS]
        self._on_server(" && ".join([f"mkdir {HOMES}", *homes]))

    def on_disk(self, path: Path) -> Path:
        """Where the server keeps what is at a path below ``MOUNT``, as seen from outside: also while it hangs."""
        return self._server.outside(f"{_DISK}/brick/{path.relative_to(MOUNT)}")

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Its server is stopped: every access waits, and after 42 s (network.ping-timeout) fails with ENOTCONN."""
        [server] = self._server.processes("glusterfsd")
        server.suspend()
        try:
            yield
        finally:
            server.resume()

    @contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte is left on the disk."""
        free = f"$(df --output=avail --block-size=1 {_DISK} | tail -n 1)"
        self._on_server(f"fallocate --length {free} {_DISK}/filler || true")  # all but what a block of its own takes
        self._on_server(f"sync; dd if=/dev/zero of={_DISK}/rest bs=1k || true")
        try:
            yield
        finally:
            self._on_server(f"rm {_DISK}/filler {_DISK}/rest")
            # GlusterFS looks only every few seconds whether there is room
            self._on_server(f"until touch {MOUNT}/room; do sleep 0.2; done; rm {MOUNT}/room")

    def _on_server(self, script: str) -> None:
        _on(self._server, script)


def _on(machine: Machine, script: str) -> None:
    done = subprocess.run(machine.command("sh", "-c", script), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{machine.name}: {script}: {done.stdout}{done.stderr}"
