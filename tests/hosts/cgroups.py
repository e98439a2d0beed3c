"""Control groups (version 1) of a machine: one for each controller."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "blkio", "pids")


def missing() -> list[str]:
    """The controllers that this machine lacks."""
    return [f"cgroup v1 {name}" for name in CONTROLLERS if not (ROOT / name / "tasks").exists()]


def make(name: str) -> None:
    """Groups of that name, with all processors."""
    for controller in CONTROLLERS:
        group = ROOT / controller / name
        group.mkdir()
        if controller == "cpuset":
            for file in ("cpuset.cpus", "cpuset.mems"):
                (group / file).write_text((ROOT / controller / file).read_text())
            (group / "cgroup.clone_children").write_text("1")


def join(name: str = "") -> str:
    """Words of a shell that move it into the groups of that name; without one, into the outermost that it sees."""
    return f"for each in {' '.join(CONTROLLERS)}; do echo 0 >{ROOT}/$each/{name}/cgroup.procs || exit; done"


def remove(name: str) -> None:
    """Remove the groups and those below, once the last process of each has ended."""
    for controller in CONTROLLERS:
        folder = ROOT / controller / name
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
