"""Device and CPU threads of a rank: GPUs and cores are counted, the device chosen and tried, shared GPUs refused."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from senet.distributed.environment import CORES_VARIABLE
from senet.distributed.roster import Roster
from senet.errors import ConfigError

if TYPE_CHECKING:  # importing torch takes seconds; a launcher only counts GPUs
    import torch
    from torch.distributed.distributed_c10d import Store

_NO_DEVICE, _STUB_LIBRARY = 100, 34  # of CUresult
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def count_gpus() -> int:
    """GPUs that a process may use, as CUDA itself counts them: whatever CUDA_VISIBLE_DEVICES holds (indices, UUIDs,
    MIG instances, -1), and whatever SLURM, a cgroup or a container leaves visible. Needs no torch.

    Raises:
        ConfigError: the driver does not start, or CUDA_VISIBLE_DEVICES names no GPU that it finds.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count, code = ctypes.c_int(0), cuda.cuInit(0)
    if code == 0:
        code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code not in (0, _NO_DEVICE, _STUB_LIBRARY):
        raise ConfigError(
            f"CUDA does not start (error {code} of the driver; nvidia-smi may say more); repair the driver, or set "
            f"train.device=cpu"
        )
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if count.value == 0 and (wanted[:1].isdigit() or wanted.startswith(("GPU-", "MIG-"))):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={wanted}, but CUDA finds no such GPU; correct or unset it, or set train.device=cpu"
        )
    return count.value


def choose_device(wanted: str, local_rank: int | None = None, *, option: str = "train.device") -> torch.device:
    """The GPU of this rank, set as torch's current device and tried with a kernel; or the CPU.

    Where all ranks of a host see all its GPUs (torchrun, SLURM's --gpus-per-node), each takes the one with the number
    of its local rank; where a rank sees only its own GPU (--gpus-per-task, --gpu-bind), it takes that.

    Args:
        local_rank: None keeps torch's current GPU.
        option: what a refusal calls ``wanted``.

    Raises:
        ConfigError: CUDA is wanted where no GPU is visible, or does not work.
    """
    import torch

    if wanted == "cpu":
        return torch.device("cpu")
    gpus = count_gpus() if torch.version.cuda else torch.cuda.device_count()  # torch may be built for AMD, or CPUs
    if gpus == 0:
        if wanted == "cuda":
            raise ConfigError(f"{option}=cuda, but no GPU is visible; set {option}=cpu or {option}=auto")
        return torch.device("cpu")
    try:
        device = torch.device("cuda", torch.cuda.current_device() if local_rank is None else local_rank % gpus)
        torch.cuda.set_device(device)
        torch.ones(1, device=device).item()
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"cuda:{(local_rank or 0) % gpus} of the {gpus} visible here cannot be used ({reason}); free or repair it, "
            f"choose others with CUDA_VISIBLE_DEVICES, or set {option}=cpu"
        ) from None
    return device


def refuse_shared_gpu(device: torch.device, rank: int, roster: Roster, store: Store) -> None:
    """Compare with all other ranks, through the store: NCCL needs one GPU per rank, and its own error names none.

    Raises:
        ConfigError: another rank has this GPU.
    """
    if device.type != "cuda":
        return
    import torch

    gpu: Any = torch.cuda.get_device_properties(device)
    # the PCI address, which NCCL compares as well
    where = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    first = store.compare_set(f"gpu/{boot}/{where}", "", str(rank)).decode()
    if first != str(rank):
        raise ConfigError(
            f"{roster.name([int(first), rank])} have the same GPU ({gpu.name}, PCI {where}), and NCCL needs one for "
            f"each (MIG instances of one GPU count as one); start no more ranks on a host than it has GPUs, or set "
            f"train.device=cpu"
        )


def cores() -> int:
    """How many CPU cores this process may keep busy: by its affinity, and by the quota of its control groups, which
    ``docker --cpus`` and batch systems set.
    """
    found = [len(os.sched_getaffinity(0))]
    for group in control_groups("cpu"):
        found += _quota(group)
    return max(1, min(found))


def control_groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups in which this process is, from its own up, of version 1 or 2. They need not
    exist: a container may show only its own."""
    for line in _OWN_CGROUPS.read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = _CGROUPS / (controller if controllers else "")  # version 1 or 2
        group = top / own.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _quota(group: Path) -> list[int]:
    """Cores, rounded up; nothing where the group sets no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [math.ceil(int(quota) / int(period))] if int(quota) > 0 else []
    except (OSError, ValueError):  # no such file, or "max": no limit
        return []


def processor(device: torch.device) -> str:
    """What computes, by name: another may round differently."""
    import torch

    from senet.compat import cpu_capabilities

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        known = re.findall(r"^(?:cpu )?(?:family|model)\s*: (\d+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        known = []
    name = cpu_capabilities().get("cpu_name", platform.machine())
    return " ".join([name, "/".join(known[:2]), torch.backends.cpu.get_cpu_capability()])


def set_threads(wanted: int, local_world_size: int) -> int:
    """Set torch's CPU threads; 0: ``own_cores``. Returns the number set."""
    import torch

    threads = wanted or own_cores(local_world_size)
    torch.set_num_threads(threads)
    return threads


def own_cores(local_world_size: int) -> int:
    """The cores that the launcher has asked for, or else those of this process, shared by the ranks on the node."""
    # where a batch system does not confine its tasks, each sees all cores of the node
    return int(os.environ.get(CORES_VARIABLE, "0")) or max(1, cores() // local_world_size)


def memory_gb(device: torch.device) -> dict[str, float]:
    """What this process has in memory now, without the pages of mapped files, and on a GPU what its tensors had at
    most; 10**9 bytes. Does not wait for the device."""
    import torch

    found = {}
    if resident := re.search(r"^RssAnon:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE):
        found["memory_gb"] = round(int(resident[1]) * 1024 / 1e9, 3)
    if device.type == "cuda":
        found["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    return found
