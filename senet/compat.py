"""What differs between the versions of torch that pyproject.toml allows, and the private names of torch that are used:
before another version is allowed, look at each.

Not in torch 2.10: ``torch.cpu.get_capabilities``, ``torch.distributed.set_timeout``. Its gloo prints a line on
stdout for each group; warnings of its own code are listed in tests/conftest.py.
"""

from __future__ import annotations

import json
import platform
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.optim import _muon

__all__ = [
    "BatchNorm",
    "add_",
    "capabilities_in",
    "copy_",
    "cpu_capabilities",
    "flight_records",
    "lerp_",
    "memory_snapshot",
    "module_versions",
    "muon_",
    "record_memory",
    "set_time_limit",
    "set_torchrun_signal_handler",
    "time_limit",
    "with_module_versions",
]


def muon_(
    matrices: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    ns_steps: int,
) -> None:
    """One update by the arithmetic of ``torch.optim.Muon``, which itself refuses parameters that are no matrices."""
    _muon.muon(
        matrices, gradients, buffers, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay,
        ns_coefficients=(_muon.DEFAULT_A, _muon.DEFAULT_B, _muon.DEFAULT_C), ns_steps=ns_steps, eps=_muon.EPS,
        adjust_lr_fn=None, has_complex=False,
    )  # fmt: skip


def lerp_(targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float) -> None:
    """``target.lerp_(source, weight)`` for each pair, in a few kernels instead of one per tensor."""
    torch._foreach_lerp_(list(targets), list(sources), weight)


def add_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """``target.add_(source)`` for each pair, likewise."""
    torch._foreach_add_(list(targets), list(sources))


def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """``target.copy_(source)`` for each pair, likewise; there may be none."""
    if targets:
        torch._foreach_copy_(list(targets), list(sources))


def module_versions(state_dict: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ``Module.state_dict`` notes of the version of each module, by which ``load_state_dict`` converts old ones;
    None where the mapping holds no such notes."""
    return getattr(state_dict, "_metadata", None)


def with_module_versions(tensors: Mapping[str, Any], versions: Mapping[str, Any] | None) -> OrderedDict[str, Any]:
    """A state dict of these tensors with these notes."""
    state_dict = OrderedDict(tensors)
    if versions is not None:
        state_dict._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return state_dict


def set_time_limit(group: dist.ProcessGroup, limit: timedelta) -> None:
    """Of each later collective of this group."""
    if hasattr(dist, "set_timeout"):
        dist.set_timeout(limit, group)
    else:
        dist.distributed_c10d._set_pg_timeout(limit, group)


def time_limit() -> timedelta:
    """Of the default group's collectives on the CPU, as it was last set."""
    group = dist.group.WORLD
    assert group is not None
    limit: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    return limit


def flight_records(*, nccl: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """What torch remembers of the last collectives of this process: of gloo, then with ``nccl`` of NCCL, which has a
    recorder of its own, and may hang."""
    c10d: Any = torch._C._distributed_c10d
    yield "gloo", json.loads(c10d._dump_fr_trace_json())
    if nccl:
        yield "nccl", json.loads(c10d._dump_nccl_trace_json())


def record_memory(*, on: bool) -> None:
    """Whether the allocator of the GPU notes each allocation, with where in Python it was made."""
    torch.cuda.memory._record_memory_history("all" if on else None, stacks="python", max_entries=100_000)


def memory_snapshot() -> Any:
    """What it has noted, and what lies in the GPU's memory now; pickled, pytorch.org/memory_viz shows it."""
    return torch.cuda.memory._snapshot()


def set_torchrun_signal_handler(handler: Callable[..., None]) -> None:
    """Let torchrun call this one at a signal instead of its own, which leaves the ranks at a second signal."""
    from torch.distributed.elastic.multiprocessing import api

    api._terminate_process_handler = handler


def cpu_capabilities() -> dict[str, Any]:
    """What ``torch.cpu.get_capabilities`` tells of this processor; where torch has none, as much of it as the project
    asks for."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    cpuinfo = Path("/proc/cpuinfo")
    return capabilities_in(cpuinfo.read_text() if cpuinfo.exists() else "")


def capabilities_in(cpuinfo: str) -> dict[str, Any]:
    """The name and the kinds of bf16 arithmetic, from the text of Linux's /proc/cpuinfo."""
    lines = dict(re.findall(r"^(model name|flags|Features)\s*: (.*)$", cpuinfo, re.MULTILINE))
    flags = {*lines.get("flags", "").split(), *lines.get("Features", "").split()}  # x86, Arm
    name = re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b|\b\d+-Core\b|@.*", "", lines.get("model name", platform.machine()))
    return {"cpu_name": " ".join(name.split())} | {each: each in flags for each in ("amx_bf16", "avx512_bf16", "bf16")}
