"""What a host has: versions, limits."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import resource
import shutil
from pathlib import Path
from typing import Any

import torch

from senet.distributed.devices import control_groups, processor
from senet.rundir.commit import code_hash


def versions(device: torch.device) -> dict[str, str]:
    """What must be equal on all hosts."""
    found = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "code": code_hash(),
        "device": device.type,
    }
    if device.type == "cuda":
        found["CUDA driver"] = _driver()
        if torch.distributed.is_nccl_available():
            found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def limits(device: torch.device) -> dict[str, float | None]:
    """What is left of what a training uses; None: no limit."""
    found: dict[str, float | None] = {
        "memory, GB": _free_memory() / 1e9,
        "/dev/shm, GB": shutil.disk_usage("/dev/shm").free / 1e9 if Path("/dev/shm").is_dir() else 0.0,
        "open files": _soft_limit(resource.RLIMIT_NOFILE),
        "processes": _processes(),
    }
    if device.type == "cuda":
        found["GPU memory, GB"] = torch.cuda.mem_get_info(device)[0] / 1e9
    return found


def _driver() -> str:
    """Version of the driver's module, and the newest CUDA that it knows."""
    module = Path("/sys/module/nvidia/version")
    newest = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(newest))
    except OSError:  # an AMD GPU
        return ""
    name = f"{newest.value // 1000}.{newest.value % 1000 // 10}"
    return f"{module.read_text().strip()} (CUDA {name})" if module.exists() else f"CUDA {name}"


def _free_memory() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = [1024.0 * int(lines["MemAvailable"].split()[0])]
    for group in control_groups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if (most := _number(group / limit)) is not None and (now := _number(group / used)) is not None:
                free.append(most - now + _file_cache(group))
    return max(0.0, min(free))


def _file_cache(group: Path) -> float:
    """Bytes of files that the group may give back."""
    rows = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
    sizes = {row[0]: float(row[1]) for row in rows}
    return sizes.get("total_inactive_file", sizes.get("inactive_file", 0.0))


def _processes() -> float | None:
    """Processes and threads that may still be started: by the user's limit, and by the control groups."""
    left = [] if os.geteuid() == 0 else [_soft_limit(resource.RLIMIT_NPROC)]  # root has none
    for group in control_groups("pids"):
        if (most := _number(group / "pids.max")) is not None and (now := _number(group / "pids.current")) is not None:
            left.append(most - now)
    return min((each for each in left if each is not None), default=None)


def _soft_limit(which: int) -> float | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else float(soft)


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def describe(device: torch.device, local_rank: int) -> dict[str, Any]:
    """For messages, and to compare rates only between devices of a kind."""
    name = f"cuda:{device.index}" if device.type == "cuda" else "cpu"
    return {"device": name, "processor": processor(device), "local_rank": local_rank}
