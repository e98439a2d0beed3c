"""Seeds, deterministic mode, CPU threads, and where a run came from."""

from __future__ import annotations

import math
import os
import platform
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from senet.commit import commit

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def mix(*keys: int) -> int:
    """A 64-bit hash of integers, the finaliser of SplitMix64 applied along them.

    Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 15.
    """
    z = 0
    for key in keys:
        z = (z + key + GAMMA) & _MASK
        z = ((z ^ (z >> 30)) * MIX_1) & _MASK
        z = ((z ^ (z >> 27)) * MIX_2) & _MASK
        z ^= z >> 31
    return z


def seed_everything(*keys: int) -> None:
    """Seed torch (CPU and CUDA), numpy and random from the keys; called for each (seed, step, rank)."""
    seed = mix(*keys)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():  # torch.manual_seed formats a stack for each absent kind of device
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # other people's networks draw from it
    random.seed(seed)


def set_deterministic(deterministic: bool) -> None:
    """Choose deterministic kernels, or the fastest ones; TF32 in either. Call before the first CUDA call."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # what NVSwitch adds up has no fixed order; torch itself excludes NVLS alone, but several nodes have NVLSTree
        os.environ.setdefault("NCCL_ALGO", "^NVLS,NVLSTree")
        # NaN-filling every new tensor costs time and guards against bugs we do not have
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # a network with an operation that has no deterministic form still trains; torch warns and names it
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def cores() -> int:
    """How many CPU cores this process may keep busy: by its affinity, and by the quota of its control groups, which
    ``docker --cpus`` and batch systems set.
    """
    found = [len(os.sched_getaffinity(0))]
    for line in _OWN_CGROUPS.read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = _CGROUPS / ("cpu" if controllers else "")  # version 1 or 2
        group = top / own.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                found += _quota(folder)
    return max(1, min(found))


def _quota(group: Path) -> list[int]:
    """Cores, rounded up; nothing where the group sets no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [math.ceil(int(quota) / int(period))] if int(quota) > 0 else []
    except (OSError, ValueError):  # no such file; "max"
        return []


def set_threads(wanted: int, local_world_size: int) -> int:
    """Set torch's CPU threads; 0: this process's cores shared by the ranks on the node. Returns the number set."""
    threads = wanted or max(1, cores() // local_world_size)
    torch.set_num_threads(threads)
    return threads


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """Command line, host, versions, git commit (with ``+`` where the checkout was changed)."""
    return {
        "argv": [sys.argv[0], *argv],
        "host": platform.node(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "numpy": np.__version__,
        "commit": commit(),
    }
