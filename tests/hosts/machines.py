"""Machines on this machine: each has network links, a hostname, process ids, mounts and cgroups of its own.

They share the kernel, its clock, and the files below the folders that a network was made with. What a machine hides
(``/tmp``, ``/run``, ``/root``, ``/var/log``, ``/dev/shm``, ``/sys``) is its own. Needs root and cgroup v1.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from tests.hosts import cgroups

PROGRAMS = ("ip", "tc", "nsenter", "unshare", "mount", "setpriv", "cc")
USERS = {"ada": 65101, "ben": 65102}
"""Without root, on these machines only."""
HOMES = Path("/run/shared/home")
_HERE = Path(__file__).parent


def missing() -> list[str]:
    """What this machine lacks to hold others."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    lacking += [] if os.geteuid() == 0 else ["root"]
    return lacking + cgroups.missing()


class Network:
    """Two bridges, and the machines on them. Addresses are 10.213.x.y and 10.214.x.y; nothing outside is reached.

    Args:
        names: of the machines; each resolves all of them, to their addresses on the first bridge.
        shared: folders that all machines see, though they lie where a machine has something of its own.
    """

    def __init__(self, folder: Path, names: Sequence[str], shared: Sequence[Path]) -> None:
        self.id = f"{os.getpid():06x}"  # one network for each process; see remove_leftovers
        self.bridges = {"eth0": f"sb{self.id}", "eth1": f"sd{self.id}"}
        self.folder = folder
        self.shared = [folder, *shared]
        net = secrets.randbelow(254) + 1
        self.machines = {
            name: Machine(self, name, {"eth0": f"10.213.{net}.{number}", "eth1": f"10.214.{net}.{number}"})
            for number, name in enumerate(names, start=1)
        }

    def hosts(self) -> str:
        """What /etc/hosts of each machine says."""
        return "127.0.0.1 localhost\n" + "".join(f"{each.address} {each.name}\n" for each in self.machines.values())

    def wrong_clock(self, seconds: int) -> dict[str, str]:
        """The variables of a process whose clock is wrong by so much."""
        return {"LD_PRELOAD": f"{self.folder}/clock.so", "CLOCK_OFF_S": str(seconds)}

    def start(self) -> None:
        """Plug in the cables and switch all machines on."""
        remove_leftovers()
        clock = self.folder / "clock.so"
        _run("cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(clock), str(_HERE / "clock.c"))
        for bridge in self.bridges.values():
            _run("ip", "link", "add", bridge, "type", "bridge")
            _run("ip", "link", "set", bridge, "up")
        for machine in self.machines.values():
            machine.power_on()

    def end(self) -> None:
        """Switch off and take down what was made, also when not all of it was, or when a part of it resists."""
        with ExitStack() as stack:
            for bridge in self.bridges.values():
                stack.callback(_try, "ip", "link", "delete", bridge)
            for machine in self.machines.values():
                stack.callback(machine.power_off)

    @contextmanager
    def second_network_dead(self) -> Iterator[None]:
        """The eth1 of each machine is up and has its address, but nothing arrives."""
        _run("ip", "link", "set", self.bridges["eth1"], "down")
        try:
            yield
        finally:
            _run("ip", "link", "set", self.bridges["eth1"], "up")


def remove_leftovers() -> None:
    """What tests have left that were killed before they could take it down: it is named after a process that has
    ended."""
    groups = (path.name for path in (cgroups.ROOT / cgroups.CONTROLLERS[0]).glob("s*"))
    names = sorted({*groups, *psutil.net_if_addrs(), *(path.name for path in Path("/run/netns").glob("*"))})
    for name in names:
        if (found := re.fullmatch(r"s([nbd]?)([0-9a-f]{6})(n\d)?", name)) and not psutil.pid_exists(int(found[2], 16)):
            if found[1] == "n":
                _try("ip", "netns", "delete", name)
            elif found[1]:
                _try("ip", "link", "delete", name)
            else:
                cgroups.remove(name)


class Machine:
    """One machine of a network. ``addresses``: of its two links."""

    def __init__(self, network: Network, name: str, addresses: dict[str, str]) -> None:
        self.network, self.name, self.addresses = network, name, addresses
        self.address = addresses["eth0"]
        self._id = f"{network.id}{name}"
        self._namespace = f"sn{self._id}"
        self._cables = {"eth0": f"v{self._id}", "eth1": f"w{self._id}"}
        self._etc = network.folder / f"etc.{name}"
        self._outer: subprocess.Popen[bytes] | None = None
        self._init = 0

    def power_on(self) -> None:
        """Up when it returns: mounts in place, links up."""
        self._write_etc()
        _run("ip", "netns", "add", self._namespace)
        inside = ("ip", "-n", self._namespace)
        for device, cable in self._cables.items():
            _run("ip", "link", "add", cable, "type", "veth", "peer", "name", device, "netns", self._namespace)
            _run("ip", "link", "set", cable, "master", self.network.bridges[device], "up")
            _run(*inside, "address", "add", f"{self.addresses[device]}/24", "dev", device)
            _run(*inside, "link", "set", device, "up")
        _run(*inside, "link", "set", "lo", "up")
        cgroups.make(f"s{self._id}")
        self._outer = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig=KILL", "sh", "-c", f'{cgroups.join(f"s{self._id}")}; exec "$@"', "sh"),
                *("nsenter", f"--net=/run/netns/{self._namespace}"),
                *("unshare", "--uts", "--pid", "--fork", "--mount", "--cgroup", "--mount-proc", "--kill-child"),
                *("sh", _HERE / "boot.sh", self.name, self._etc, " ".join(cgroups.CONTROLLERS), *self.network.shared),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not self._ready():
            assert self._outer.poll() is None, f"{self.name} did not start"
            assert time.monotonic() < deadline, f"{self.name} was not up within 120 s"
            time.sleep(0.02)

    def command(self, *words: str, cwd: Path | str = "/", user: str = "root") -> list[str]:
        """What runs these words on the machine as that user, in a folder of it."""
        enter = ("nsenter", f"--target={self._init}", "--net", "--uts", "--pid", "--mount", "--cgroup", "--")
        become: list[str] = []
        if user != "root":
            become += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
            become += ["env", f"HOME={HOMES / user}", f"USER={user}", f"LOGNAME={user}"]
        return [*enter, "sh", "-c", f'{cgroups.join()}; cd "$0" && exec "$@"', str(cwd), *become, *words]

    def outside(self, path: Path | str) -> Path:
        """Where this machine sees that path, as seen from outside of it; also what is mounted only there."""
        return Path(f"/proc/{self._init}/root{path}")

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those of that name that run on it; without a name all but its first one."""
        namespace = Path(f"/proc/{self._init}/ns/pid").readlink()
        found = []
        for process in psutil.process_iter(["name"]):
            with suppress(OSError):
                is_here = Path(f"/proc/{process.pid}/ns/pid").readlink() == namespace and process.pid != self._init
                if is_here and name in ("", process.info["name"]):
                    found.append(process)
        return found

    def cut(self) -> None:
        """Pull the cable of eth0, without any notice."""
        _run("ip", "link", "set", self._cables["eth0"], "down")

    def mend(self) -> None:
        """Plug the cable in again."""
        _run("ip", "link", "set", self._cables["eth0"], "up")

    @contextmanager
    def slow(self, rate: str) -> Iterator[None]:
        """Its eth0 sends and receives so much a second: ``10mbit``."""
        ends = {(): self._cables["eth0"], ("-n", self._namespace): "eth0"}
        with ExitStack() as stack:
            for where, device in ends.items():
                limit = ("tbf", "rate", rate, "burst", "32k", "latency", "1s")
                _run("tc", *where, "qdisc", "add", "dev", device, "root", *limit)
                stack.callback(_run, "tc", *where, "qdisc", "delete", "dev", device, "root")
            yield

    @contextmanager
    def resolving(self, hosts: str) -> Iterator[None]:
        """Its /etc/hosts says this."""
        (self._etc / "hosts").write_text(hosts)
        try:
            yield
        finally:
            (self._etc / "hosts").write_text(self.network.hosts())

    @contextmanager
    def before_tasks(self, script: str) -> Iterator[None]:
        """SLURM runs this on it before each batch script and rank; what it prints as ``export NAME=value`` they get."""
        file = self.outside("/run/before_tasks")
        file.write_text(f"{script}\n")
        try:
            yield
        finally:
            file.unlink()

    def clock_off(self, seconds: int) -> AbstractContextManager[None]:
        """What SLURM starts on it meanwhile has a clock that is wrong by so much."""
        variables = self.network.wrong_clock(seconds).items()
        return self.before_tasks("\n".join(f"echo export {name}={value}" for name, value in variables))

    def power_off(self) -> None:
        """Cut the power: its processes send nothing more. Does nothing if it is off."""
        for cable in self._cables.values():
            _try("ip", "link", "set", cable, "down")
        if self._outer is not None:
            if self._init:
                with suppress(ProcessLookupError):
                    os.kill(self._init, signal.SIGKILL)  # the kernel ends all of its process ids
            self._outer.kill()
            self._outer.wait()
        self._outer, self._init = None, 0
        for cable in self._cables.values():
            _try("ip", "link", "delete", cable)
        _try("ip", "netns", "delete", self._namespace)
        cgroups.remove(f"s{self._id}")

    def _write_etc(self) -> None:
        """Its own files of /etc: the machines and the users by name, and no other server is asked for them."""
        self._etc.mkdir(exist_ok=True)
        (self._etc / "hosts").write_text(self.network.hosts())
        (self._etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        passwd = [f"{user}:x:{number}:{number}::{HOMES / user}:/bin/sh\n" for user, number in USERS.items()]
        group = [f"{user}:x:{number}:\n" for user, number in USERS.items()]
        for name, lines in (("passwd", passwd), ("group", group)):
            (self._etc / name).write_text("".join([Path("/etc", name).read_text(), *lines]))

    def _ready(self) -> bool:
        """Whether its first process, the only child of unshare, has made its mounts."""
        assert self._outer is not None
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        with suppress(OSError, ValueError):
            self._init = int(children.read_text())
            return Path(f"/proc/{self._init}/root/run/ready").exists()
        return False


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _try(*words: str) -> None:
    """Take down what may never have been made."""
    with suppress(subprocess.CalledProcessError):
        _run(*words)
