"""A private SLURM cluster of two nodes on this host: started for a test, and removed after it.

All of it belongs to one ``Cluster``: its munged, its ports, its folders. Several can run at once.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

MARK = "SENET_TEST_MARK"
NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv", "unshare")
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
FirstJobId={first_id}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={logs}/slurmctld.log
SlurmdLogFile={logs}/%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
InactiveLimit=0
MinJobAge=3600
SlurmdTimeout=12
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=1
{nodes}
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
# more than the host has, so that many small jobs run at once
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs=32 Boards=1 Sockets=1 CoresPerSocket=32 RealMemory=100000"
)


def missing_packages() -> str:
    """What this host lacks for a cluster, in one line with the remedy; '' if nothing."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    missing += ["root"] if os.geteuid() != 0 else []
    if not missing:
        return ""
    remedy = "apt-get install slurmctld slurmd slurm-client munge, and run the tests as root"
    return f"no SLURM cluster here: {', '.join(missing)} missing; {remedy}"


@contextmanager
def private_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with both nodes idle, whose logs and default job output go into ``folder``."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


class Cluster:
    """Nodes ``n1`` and ``n2``; partition ``low`` (the default) is preempted by ``high`` after 10 s of grace.

    ``env`` is the environment to submit with: it names ``conf``, and carries ``mark`` into all that jobs start.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        # not below pytest's folder: that one is closed to the user munge, and too long for the address of a socket
        self.private = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.conf = self.private / "slurm.conf"
        self._hosts = self.private / "hosts"
        self.mark = secrets.token_hex(8)
        foreign = ("SLURM_", "SBATCH_", "SRUN_", MARK)  # the tests may themselves run in a job
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self._daemon_env = inherited | {"SLURM_CONF": str(self.conf)}
        self.env = self._daemon_env | {MARK: self.mark}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def here(self, *command: str) -> list[str]:
        """The prefix of a command that is run where a user submits."""
        return list(command)

    def start(self) -> None:
        self._configure()
        self._start_munged()
        self._daemon("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start_slurmd(node)
        self.wait_idle()

    def end(self) -> None:
        """End every process of the cluster and its jobs, remove its folder, and make sure that nothing is left."""
        for daemon in reversed(self._daemons.values()):  # munged last
            daemon.kill()
            daemon.wait()
        deadline = time.monotonic() + 60
        while left := self._owned() or self._owned():  # one check may miss the child of a parent that just ended
            assert time.monotonic() < deadline, f"left by the cluster: {left}"
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.05)
        shutil.rmtree(self.private)

    def run(self, *command: str, timeout_s: float = 60) -> str:
        """The command's stdout; its stderr is in the error if it fails."""
        words = self.here(*command)
        done = subprocess.run(
            words, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of ``scontrol show job``; jobs stay known for an hour after their end."""
        line = self.run("scontrol", "show", "job", "-o", job_id)
        fields: dict[str, str] = {}
        for name, value in re.findall(r"(?:^|\s)([A-Z][\w:/]*)=(.*?)(?=\s+[A-Z][\w:/]*=|\s*$)", line):
            fields.setdefault(name, value)  # arguments of Command may look like fields, and come after most
        return fields

    def wait_for(self, job_id: str, states: set[str], timeout_s: float = 60) -> dict[str, str]:
        """The job's fields once it is in one of the states."""
        deadline = time.monotonic() + timeout_s
        while (fields := self.job(job_id))["JobState"] not in states:
            late = f"job {job_id} not {states} within {timeout_s} s"
            waits = time.monotonic() < deadline and fields["JobState"] not in ("COMPLETED", "FAILED")  # for good
            assert waits, f"{late}\n{fields}\n{self.log()}"
            time.sleep(0.5)  # a question costs the processors that the job needs
        return fields

    def wait_idle(self, timeout_s: float = 120) -> None:
        """Until both nodes are up and without jobs (one that is COMPLETING keeps its nodes from all others)."""
        deadline = time.monotonic() + timeout_s
        while (nodes := self._node_states()) != dict.fromkeys(NODES, "idle"):
            assert time.monotonic() < deadline, f"nodes not idle within {timeout_s} s: {nodes}\n{self.log()}"
            time.sleep(0.2)

    def preempt(self, seconds: float) -> str:
        """Submit a job that takes both nodes for itself that long, from whatever runs in ``low``; its id."""
        options = ("--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null")
        return self.run("sbatch", *options, "--job-name=preempt", f"--wrap=sleep {seconds}").strip()

    def cancel(self, job_id: str) -> None:
        self.run("scancel", job_id)

    @contextmanager
    def drained(self) -> Iterator[None]:
        """No job starts meanwhile, so that there is time to look; those that run go on. What waits has this as its
        reason, in place of BeginTime after a requeue."""
        self.run("scontrol", "update", f"NodeName={','.join(NODES)}", "State=DRAIN", "Reason=test")
        try:
            yield
        finally:
            self.run("scontrol", "update", f"NodeName={','.join(NODES)}", "State=RESUME")

    def kill_slurmd(self, node: str) -> None:
        """The node does not answer any more: SIGKILL to its slurmd. Its jobs go on."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()

    def start_slurmd(self, node: str) -> None:
        """The node comes back. A job that is requeued onto it within its first second may fail to launch a step."""
        self._daemon(node, *self._with_names(), "slurmd", "-D", "-N", node)

    def processes(self) -> list[psutil.Process]:
        """The live processes of jobs (and of commands run with ``env``); not the cluster's daemons."""
        return [process for process in psutil.process_iter() if _environ(process).get(MARK) == self.mark]

    def log(self, lines: int = 40) -> str:
        """The last lines of the daemons' logs."""
        paths = [path for path in map(self.folder.joinpath, ("n1.out", "n2.out", "slurmctld.log")) if path.exists()]
        return "\n".join("\n".join(path.read_text(errors="replace").splitlines()[-lines:]) for path in paths)

    def _configure(self) -> None:
        self.private.chmod(0o755)
        host = socket.gethostname().split(".")[0]
        port, *node_ports = _free_ports(1 + len(NODES))
        nodes = [NODE.format(name=n, host=host, port=p) for n, p in zip(NODES, node_ports, strict=True)]
        first_id = random.SystemRandom().randrange(1000, 1_000_000)  # ports are drawn from it: no two clusters share
        values = {"host": host, "port": port, "first_id": first_id, "folder": self.private, "logs": self.folder}
        self.conf.write_text(SLURM_CONF.format(nodes="\n".join(nodes), **values))
        self._hosts.write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {' '.join(NODES)}\n")
        for name in ("state", *NODES):
            (self.private / name).mkdir()

    def _start_munged(self) -> None:
        folder = self.private / "munge"
        folder.mkdir(0o755)
        (folder / "key").write_bytes(secrets.token_bytes(128))
        (folder / "key").chmod(0o400)
        for path in (folder, folder / "key"):
            shutil.chown(path, "munge", "munge")
        files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        drop = ("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "--pdeathsig=KILL")
        self._daemon("munged", *drop, "munged", "--foreground", *options)
        deadline = time.monotonic() + 60
        while not (folder / "socket").exists():
            assert time.monotonic() < deadline, f"munged did not start:\n{(self.folder / 'munged.out').read_text()}"
            time.sleep(0.02)

    def _daemon(self, name: str, *command: str) -> None:
        """In its private folder, by which its children are known; it ends when this process (thread) does."""
        assert name not in self._daemons, f"{name} runs already"
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                ("setpriv", "--pdeathsig=KILL", *command),
                env=self._daemon_env,
                cwd=self.private,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _with_names(self) -> list[str]:
        """A prefix under which ``n1`` and ``n2`` resolve, as MASTER_ADDR must, but for jobs only."""
        with suppress(OSError):
            if all(socket.gethostbyname(name) for name in NODES):
                return []
        script = f'mount --bind {self._hosts} /etc/hosts && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh"]

    def _node_states(self) -> dict[str, str]:
        command = self.here("sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T")
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)  # fails at first
        return dict(line.split() for line in done.stdout.splitlines())

    def _owned(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        """Of a job, or a slurmstepd: that is nobody's child, wipes its environment, and stays in slurmd's folder."""
        env = _environ(process)
        if env.get(MARK) == self.mark or env.get("SLURM_CONF") == str(self.conf):
            return True
        with suppress(psutil.Error):
            return process.cwd() == str(self.private)
        return False


def _environ(process: psutil.Process) -> dict[str, str]:
    """Empty for a process that is gone or a zombie."""
    with suppress(psutil.Error):
        return process.environ()
    return {}


def _free_ports(count: int) -> list[int]:
    """Below the range from which the system hands out ports: nobody gets one by chance before its daemon starts."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found
