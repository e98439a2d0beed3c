"""A network file system: one GlusterFS volume, its disk on the controller, mounted on each machine by itself."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hosts.cluster import CONTROLLER, HostCluster

PROGRAMS = ("glusterd", "gluster", "mount.glusterfs", "mkfs.ext4")
MOUNT = Path("/run/shared")
_DISK = "/run/disk"


def missing() -> list[str]:
    """What this host lacks for it."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    return lacking if Path("/dev/fuse").exists() else [*lacking, "/dev/fuse"]


class Volume:
    """``MOUNT`` on all machines of a cluster. It ends with the machines."""

    def __init__(self, cluster: HostCluster, size: str = "300M") -> None:
        self._cluster = cluster
        self._server = cluster.machines[CONTROLLER]
        image = cluster.private / "disk.img"
        self._on_server(f"truncate -s {size} {image} && mkfs.ext4 -q -m 0 {image}")  # -m 0: its server is root
        self._on_server(f"mkdir {_DISK} && mount -o loop {image} {_DISK} && mkdir {_DISK}/brick")
        cluster.daemon_on(CONTROLLER, "glusterd", "glusterd", "-N")
        gluster = "gluster --mode=script volume"
        self._on_server(f"until {gluster} info; do sleep 0.1; done")
        self._on_server(f"{gluster} create shared {CONTROLLER}:{_DISK}/brick force && {gluster} start shared")
        for name in cluster.machines:
            self.mount(name)

    def mount(self, name: str) -> None:
        """On a machine that has just been switched on."""
        words = self._cluster.machines[name].command(
            "sh", "-c", f"mkdir -p {MOUNT} && mount -t glusterfs {CONTROLLER}:/shared {MOUNT}"
        )
        subprocess.run(words, check=True, capture_output=True, timeout=60)

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
        self._on_server(
            f"dd if=/dev/zero of={_DISK}/filler bs=64k || sync; dd if=/dev/zero of={_DISK}/rest bs=1 || true"
        )
        try:
            yield
        finally:
            self._on_server(f"rm {_DISK}/filler {_DISK}/rest")

    def _on_server(self, script: str) -> None:
        words = self._server.command("sh", "-c", script)
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
