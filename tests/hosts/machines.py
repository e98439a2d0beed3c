"""Machines on this machine: each has a network link, a hostname, process ids, mounts and cgroups of its own.

They share the kernel, its clock, and the files below the folders that a network was made with. What a machine hides
(``/tmp``, ``/run``, ``/var/log``, ``/dev/shm``, ``/sys``) is its own. Needs root and cgroup v1.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

PROGRAMS = ("ip", "nsenter", "unshare", "mount", "setpriv")
CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "blkio", "pids")
_HIDDEN = ("/tmp", "/run", "/var/log", "/dev/shm", "/etc/munge", "/var/lib/munge", "/var/lib/glusterd")
# Run as the first process of a machine. $1: its name, $2: its /etc/hosts; then the folders that it shares with others.
_INIT = f"""\
set -e
hostname "$1"
hosts=$2
shift 2
mount --make-rprivate /
mount --bind "$hosts" /etc/hosts
for hidden in {" ".join(_HIDDEN)}; do
    if ! [ -d "$hidden" ]; then continue; fi
    own=$(mktemp -d -p /mnt)
    mount -t tmpfs -o mode=1777 own "$own"
    for shared; do
        case $shared/ in
        "$hidden"/*) mkdir -p "$own/${{shared#"$hidden"}}" && mount --bind "$shared" "$own/${{shared#"$hidden"}}" ;;
        esac
    done
    mount --rbind "$own" "$hidden"
    umount --lazy "$own"
    rmdir "$own"
done
chmod 755 /run /var/log
mount -t sysfs sysfs /sys
mount -t tmpfs cgroups /sys/fs/cgroup
for controller in {" ".join(CONTROLLERS)}; do
    mkdir "/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
done
touch /run/ready
exec sleep infinity
"""


def missing() -> list[str]:
    """What this machine lacks to hold others."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    lacking += [] if os.geteuid() == 0 else ["root"]
    return lacking + [f"cgroup v1 {name}" for name in CONTROLLERS if not (CGROUPS / name / "tasks").exists()]


class Network:
    """A bridge, and the machines on it. Addresses are 10.213.x.y; nothing outside of this machine is reached.

    Args:
        names: of the machines; each resolves all of them.
        shared: folders that all machines see, though they lie where a machine has something of its own.
    """

    def __init__(self, folder: Path, names: Sequence[str], shared: Sequence[Path]) -> None:
        self.id = secrets.token_hex(3)
        self.bridge = f"sb{self.id}"
        self.shared = [folder, *shared]
        self.hosts_file = folder / "hosts"
        net = secrets.randbelow(254) + 1
        self.machines = {name: Machine(self, name, f"10.213.{net}.{number + 1}") for number, name in enumerate(names)}
        self.hosts_file.write_text(
            "127.0.0.1 localhost\n" + "".join(f"{m.address} {m.name}\n" for m in self.machines.values())
        )

    def start(self) -> None:
        """Plug in the cables and switch all machines on."""
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("link", "set", self.bridge, "up")
        for machine in self.machines.values():
            machine.power_on()

    def end(self) -> None:
        """Switch off and take down what was made, also when not all of it was."""
        for machine in self.machines.values():
            machine.power_off()
        with suppress(subprocess.CalledProcessError):  # never made
            _ip("link", "delete", self.bridge)


class Machine:
    """One machine of a network."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self.network, self.name, self.address = network, name, address
        self._id = f"{network.id}{name}"
        self._outer: subprocess.Popen[bytes] | None = None
        self._init = 0

    def power_on(self) -> None:
        """Up when it returns: mounts in place, link up."""
        namespace, link = f"sn{self._id}", f"v{self._id}"
        _ip("netns", "add", namespace)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", link, "master", self.network.bridge, "up")
        _ip("-n", namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", namespace, "link", "set", device, "up")
        for controller in CONTROLLERS:
            group = CGROUPS / controller / f"s{self._id}"
            group.mkdir()
            if controller == "cpuset":
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (group / file).write_text((CGROUPS / controller / file).read_text())
                (group / "cgroup.clone_children").write_text("1")
        join = " && ".join(f"echo $$ >{CGROUPS}/{controller}/s{self._id}/cgroup.procs" for controller in CONTROLLERS)
        self._outer = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig=KILL", "sh", "-c", f'{join} && exec "$@"', "sh"),
                *("nsenter", f"--net=/run/netns/{namespace}"),
                *("unshare", "--uts", "--pid", "--fork", "--mount", "--cgroup", "--mount-proc", "--kill-child"),
                *("sh", "-c", _INIT, "init", self.name, self.network.hosts_file, *self.network.shared),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 20
        while not self._ready():
            assert self._outer.poll() is None, f"{self.name} did not start"
            assert time.monotonic() < deadline, f"{self.name} was not up within 20 s"
            time.sleep(0.02)

    def command(self, *words: str, cwd: Path | str = "/") -> list[str]:
        """What runs these words on the machine, in a folder of it."""
        enter = ("nsenter", f"--target={self._init}", "--net", "--uts", "--pid", "--mount", "--cgroup", "--")
        join = f"for group in {' '.join(CONTROLLERS)}; do echo 0 >/sys/fs/cgroup/$group/cgroup.procs || exit; done"
        return [*enter, "sh", "-c", f'{join}; cd "$0" && exec "$@"', str(cwd), *words]

    def outside(self, path: Path | str) -> Path:
        """Where this machine sees that path, as seen from outside of it; also what is mounted only there."""
        return Path(f"/proc/{self._init}/root{path}")

    def processes(self, name: str) -> list[psutil.Process]:
        """Those of that name that run on it."""
        namespace = Path(f"/proc/{self._init}/ns/pid").readlink()
        found = []
        for process in psutil.process_iter(["name"]):
            with suppress(OSError):
                if process.info["name"] == name and Path(f"/proc/{process.pid}/ns/pid").readlink() == namespace:
                    found.append(process)
        return found

    def cut(self) -> None:
        """Pull the cable, without any notice."""
        _ip("link", "set", f"v{self._id}", "down")

    def mend(self) -> None:
        """Plug the cable in again."""
        _ip("link", "set", f"v{self._id}", "up")

    def power_off(self) -> None:
        """Cut the power: its processes send nothing more. Does nothing if it is off."""
        with suppress(subprocess.CalledProcessError):
            self.cut()
        if self._outer is not None:
            if self._init:
                with suppress(ProcessLookupError):
                    os.kill(self._init, signal.SIGKILL)  # the kernel ends all of its process ids
            self._outer.kill()
            self._outer.wait()
        self._outer, self._init = None, 0
        for words in (("link", "delete", f"v{self._id}"), ("netns", "delete", f"sn{self._id}")):
            with suppress(subprocess.CalledProcessError):
                _ip(*words)
        for controller in CONTROLLERS:
            _remove_cgroup(CGROUPS / controller / f"s{self._id}")

    def _ready(self) -> bool:
        """Whether its first process, the only child of unshare, has made its mounts."""
        assert self._outer is not None
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        with suppress(OSError, ValueError):
            self._init = int(children.read_text())
            return Path(f"/proc/{self._init}/root/run/ready").exists()
        return False


def _remove_cgroup(folder: Path) -> None:
    """Remove a cgroup and those below it, once the last process of each has ended."""
    deadline = time.monotonic() + 10
    while folder.exists():
        for each in sorted(folder.rglob("*/"), reverse=True):
            with suppress(OSError):
                each.rmdir()
        try:
            folder.rmdir()
        except OSError:
            assert time.monotonic() < deadline, f"{folder} has processes: {(folder / 'cgroup.procs').read_text()}"
            time.sleep(0.05)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
