"""A SLURM cluster whose controller ``n0`` and nodes ``n1`` and ``n2`` are machines of their own (see ``machines``)."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from senet import REPOSITORY
from tests.cluster import NODES, PROGRAMS, Cluster
from tests.harness import survivors
from tests.hosts import accounting, configuration, glusterfs, machines

CONTROLLER = "n0"
SLURMD_TIMEOUT_S = 12
ANSWERS = {"slurmctld": "scontrol ping | grep -q UP", "slurmdbd": "sacctmgr --noheader list cluster"}
_DAEMONS = {"munged", "slurmd", "glusterfs"}  # of a node


def missing() -> str:
    """What this host lacks for such a cluster, in one line with the remedy; '' if nothing."""
    programs = [program for program in (*PROGRAMS, *accounting.PROGRAMS) if shutil.which(program) is None]
    if not (lacking := programs + machines.missing() + glusterfs.missing()):
        return ""
    packages = "slurmctld slurmd slurmdbd slurm-client munge mariadb-server glusterfs-server iproute2 gcc libc6-dev"
    return f"no two hosts here: {', '.join(lacking)} missing; apt-get install {packages}, and run the tests as root"


@contextmanager
def cluster_of_hosts(folder: Path, *, shared: Path) -> Iterator[HostCluster]:
    """A cluster with both nodes idle, whose logs go into ``folder``; all its machines see that, ``shared``, the
    checkout and its Python."""
    cluster = HostCluster(folder, shared)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


class HostCluster(Cluster):
    """``Cluster``, but its nodes are machines: cut their links, switch them off. ``env`` is for commands on them."""

    def __init__(self, folder: Path, shared: Path) -> None:
        super().__init__(folder)
        self.etc = self.private / "etc"
        folders = [self.folder, shared, REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)]
        self.network = machines.Network(self.private, (CONTROLLER, *NODES), folders)
        self.machines = self.network.machines
        self.volume = glusterfs.Volume(self.machines[CONTROLLER])
        for env in (self._daemon_env, self.env):
            env["SLURM_CONF"] = str(self.etc / "slurm.conf")
        self.conf = self.etc / "slurm.conf"

    def here(self, *command: str, user: str = "root") -> list[str]:
        """On the controller, which is also the login node."""
        cwd = self.folder if user == "root" else machines.HOMES / user
        return self.machines[CONTROLLER].command(*command, cwd=cwd, user=user)

    def on(
        self, machine: str, *command: str, user: str = "root", timeout_s: float = 180, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine, in the user's home, to its end."""
        cwd = self.folder if user == "root" else machines.HOMES / user
        words = self.machines[machine].command(*command, cwd=cwd, user=user)
        return subprocess.run(words, env=self.env | env, capture_output=True, text=True, timeout=timeout_s)

    def start(self) -> None:
        self._configure()
        self.network.start()
        controller = self.machines[CONTROLLER]
        install = subprocess.Popen(controller.command("sh", "-c", accounting.INSTALL), stdout=subprocess.DEVNULL)
        self._start_munged_on(CONTROLLER)
        self.start_on_controller("glusterd", "-N")
        self.volume.make(self.private / "disk.img")
        assert install.wait(180) == 0, "no database"
        self.start_on_controller(*accounting.DATABASE)
        self.volume.mount(controller)
        self.volume.make_homes()
        self._until(accounting.DATABASE_ANSWERS)
        self.start_on_controller("slurmdbd", "-D")
        self._until(ANSWERS["slurmdbd"])
        self.run("sh", "-c", accounting.ACCOUNTS)
        self.start_on_controller("slurmctld", "-D")
        for node in NODES:
            self._start_node(node)
        self.wait_idle()

    def end(self) -> None:
        """Switch all machines off; then no process may be left."""
        try:
            self.network.end()
        finally:
            super().end()

    def power_off(self, node: str) -> None:
        self.machines[node].power_off()
        for name in (node, f"munged.{node}"):
            self._end_daemon(name)

    def power_on(self, node: str) -> None:
        """The machine boots again, without the processes that ran on it."""
        self.machines[node].power_on()
        self._start_node(node)

    def strays(self) -> list[psutil.Process]:
        """What runs on the nodes besides their daemons."""
        found = [process for node in NODES for process in self.machines[node].processes()]
        return [process for process in survivors(found) if process.info["name"] not in _DAEMONS]

    @contextmanager
    def silent_controller(self) -> Iterator[None]:
        """While slurmctld is stopped, its port accepts connections, but nothing answers."""
        [controller] = self.machines[CONTROLLER].processes("slurmctld")
        controller.suspend()
        try:
            yield
        finally:
            controller.resume()

    @contextmanager
    def without(self, *daemons: str) -> Iterator[None]:
        """While these daemons of SLURM on the controller are gone, after SIGKILL. The last one is back first."""
        for name in daemons:
            for process in self.machines[CONTROLLER].processes(name):
                process.kill()
            self._end_daemon(name)
        try:
            yield
        finally:
            for name in reversed(daemons):
                self.start_on_controller(name, "-D")
                self._until(ANSWERS[name])

    @contextmanager
    def slurmd_timeout(self, seconds: int) -> Iterator[None]:
        """Meanwhile SLURM gives a node up after so long."""
        self._set_slurmd_timeout(seconds)
        try:
            yield
        finally:
            self._set_slurmd_timeout(SLURMD_TIMEOUT_S)

    def _set_slurmd_timeout(self, seconds: int) -> None:
        self._write_conf(seconds)
        self.run("scontrol", "reconfigure")

    def _configure(self) -> None:
        self.private.chmod(0o755)
        for path in (self.etc, self.private / "state", *(self.private / f"spool.{node}" for node in NODES)):
            path.mkdir()
        self._key = secrets.token_bytes(128)
        self._write_conf(SLURMD_TIMEOUT_S)
        (self.etc / "cgroup.conf").write_text(configuration.CGROUP)
        (self.etc / "task_prolog").write_text(configuration.TASK_PROLOG)
        (self.etc / "task_prolog").chmod(0o755)
        (self.etc / "slurmdbd.conf").touch(0o600)  # else slurmdbd refuses it
        (self.etc / "slurmdbd.conf").write_text(
            configuration.SLURMDBD.format(controller=CONTROLLER, folder=self.private)
        )

    def _write_conf(self, slurmd_timeout_s: int) -> None:
        values = {"controller": CONTROLLER, "address": self.machines[CONTROLLER].address, "folder": self.private}
        nodes = [configuration.NODE.format(name=node, address=self.machines[node].address) for node in NODES]
        values |= {"slurmd_timeout_s": slurmd_timeout_s, "nodes": "\n".join(nodes)}
        self.conf.write_text(configuration.SLURM.format(etc=self.etc, **values))

    def _start_node(self, node: str) -> None:
        self._start_munged_on(node)
        self.volume.mount(self.machines[node])
        self._daemon(node, *self.machines[node].command("slurmd", "-D"))

    def _start_munged_on(self, name: str) -> None:
        """One munged a machine, all with one key, at the place where SLURM looks for it."""
        machine = self.machines[name]
        script = (
            "chmod 755 /etc/munge /var/lib/munge && cat >/etc/munge/munge.key && chmod 400 /etc/munge/munge.key && "
            "chown -R munge: /etc/munge /var/lib/munge && install -d -o munge /run/munge /var/log/munge"
        )
        subprocess.run(machine.command("sh", "-c", script), input=self._key, check=True)
        self._daemon(f"munged.{name}", *machine.command("munged", "--foreground", user="munge"))
        self._until("test -S /run/munge/munge.socket.2", name)

    def start_on_controller(self, *command: str) -> None:
        """A daemon, known by the name of its program."""
        self._daemon(command[0], *self.machines[CONTROLLER].command(*command))

    def _end_daemon(self, name: str) -> None:
        """End what waits for a daemon outside of its machine."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def _until(self, script: str, machine: str = CONTROLLER, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while (done := self.on(machine, "sh", "-c", script)).returncode:
            assert time.monotonic() < deadline, f"{machine}: {script}: {done.stderr}\n{self.log()}"
            time.sleep(0.05)
