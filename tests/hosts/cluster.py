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

from senet import REPOSITORY
from tests.cluster import NODES, PROGRAMS, Cluster
from tests.hosts import machines

CONTROLLER = "n0"
SLURM_CONF = """\
ClusterName=hosts
SlurmctldHost={controller}({address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
MailProg=/bin/true
ProctrackType=proctrack/cgroup
TaskPlugin=task/affinity,task/cgroup
MpiDefault=none
JobAcctGatherType=jobacct_gather/cgroup
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
InactiveLimit=0
MinJobAge=3600
SlurmdTimeout={slurmd_timeout_s}
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=1
{nodes}
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = (
    "NodeName={name} NodeAddr={address} CPUs=2 Boards=1 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=8000 "
    "State=UNKNOWN"
)
CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainCores=yes
ConstrainRAMSpace=yes
"""


def missing_packages() -> str:
    """What this host lacks for such a cluster, in one line with the remedy; '' if nothing."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None] + machines.missing()
    if not missing:
        return ""
    remedy = "apt-get install slurmctld slurmd slurm-client munge iproute2, and run the tests as root"
    return f"no two hosts here: {', '.join(missing)} missing; {remedy}"


@contextmanager
def cluster_of_hosts(folder: Path, *, shared: Path, slurmd_timeout_s: int = 12) -> Iterator[HostCluster]:
    """A cluster with both nodes idle, whose logs go into ``folder``; all its machines see that, ``shared``, the
    checkout and its Python."""
    cluster = HostCluster(folder, shared, slurmd_timeout_s)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


class HostCluster(Cluster):
    """``Cluster``, but its nodes are machines: cut their links, switch them off. ``env`` is for commands on them."""

    def __init__(self, folder: Path, shared: Path, slurmd_timeout_s: int) -> None:
        super().__init__(folder)
        self.etc = self.private / "etc"
        folders = [self.folder, shared, REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)]
        self.network = machines.Network(self.private, (CONTROLLER, *NODES), folders)
        self.machines = self.network.machines
        self._slurmd_timeout_s = slurmd_timeout_s
        for env in (self._daemon_env, self.env):
            env["SLURM_CONF"] = str(self.etc / "slurm.conf")
        self.conf = self.etc / "slurm.conf"

    def here(self, *command: str) -> list[str]:
        """On the controller, which is also the login node."""
        return self.machines[CONTROLLER].command(*command, cwd=self.folder)

    def start(self) -> None:
        self._configure()
        self.network.start()
        self._start_munged_on(CONTROLLER)
        self.daemon_on(CONTROLLER, "slurmctld", "slurmctld", "-D")
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
        self._forget(node)

    def power_on(self, node: str) -> None:
        """The machine boots again, without the processes that ran on it."""
        self.machines[node].power_on()
        self._start_node(node)

    @contextmanager
    def silent_controller(self) -> Iterator[None]:
        """While slurmctld is stopped, its port accepts connections, but nothing answers."""
        [controller] = self.machines[CONTROLLER].processes("slurmctld")
        controller.suspend()
        try:
            yield
        finally:
            controller.resume()

    def _configure(self) -> None:
        self.private.chmod(0o755)
        for path in (self.etc, self.private / "state", *(self.private / f"spool.{node}" for node in NODES)):
            path.mkdir()
        self._key = secrets.token_bytes(128)
        controller = self.machines[CONTROLLER]
        nodes = "\n".join(NODE.format(name=node, address=self.machines[node].address) for node in NODES)
        self.conf.write_text(
            SLURM_CONF.format(
                controller=CONTROLLER,
                address=controller.address,
                folder=self.private,
                slurmd_timeout_s=self._slurmd_timeout_s,
                nodes=nodes,
            )
        )
        (self.etc / "cgroup.conf").write_text(CGROUP_CONF)

    def _start_node(self, node: str) -> None:
        self._start_munged_on(node)
        self.daemon_on(node, node, "slurmd", "-D")

    def _start_munged_on(self, name: str) -> None:
        """One munged a machine, all with one key, at the place where SLURM looks for it."""
        script = (
            "chmod 755 /etc/munge /var/lib/munge && cat >/etc/munge/munge.key && chmod 400 /etc/munge/munge.key && "
            "chown -R munge: /etc/munge /var/lib/munge && install -d -o munge /run/munge /var/log/munge"
        )
        subprocess.run(self.machines[name].command("sh", "-c", script), input=self._key, check=True)
        as_munge = ("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups")
        self.daemon_on(name, f"munged.{name}", *as_munge, "munged", "--foreground")
        deadline = time.monotonic() + 10
        while subprocess.run(self.machines[name].command("test", "-S", "/run/munge/munge.socket.2")).returncode:
            assert time.monotonic() < deadline, f"munged did not start on {name}"
            time.sleep(0.02)

    def daemon_on(self, machine: str, name: str, *command: str) -> None:
        """Start a process that belongs to a machine, known by that name."""
        self._daemon(name, *self.machines[machine].command(*command))

    def _forget(self, node: str) -> None:
        for name in (node, f"munged.{node}"):
            daemon = self._daemons.pop(name)
            daemon.kill()
            daemon.wait()
