"""Start and end of the process groups, and all collectives but those of ``tree`` and ``agreement``."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store

from senet import compat
from senet.config.options import DistributedConfig
from senet.distributed.interfaces import choose_interface, describe_interface
from senet.distributed.ranks import Ranks
from senet.distributed.recorder import Recorder
from senet.distributed.rollcall import RollCall
from senet.distributed.watchdog import Watchdog
from senet.errors import RunError

_NCCL_LATER_S = 60.0
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RanksDiffer(RunError):
    """The weights of the ranks are no longer the same."""

    kind = "ranks differ"


@contextmanager
def process_groups(
    ranks: Ranks, store: Store, config: DistributedConfig, watchdog: Watchdog, recorder: Recorder | None = None
) -> Iterator[dist.ProcessGroup]:
    """The default group (nccl on CUDA, else gloo) for gradients, and a gloo group on the CPU, which is yielded.

    After an error they are not destroyed: that can hang while another rank hangs. An error on any rank makes a
    collective fail on the others; a roll call then finds the rank that failed first, and where none has an error of its
    own, ``recorder`` keeps what each rank remembers of its last collectives.

    Raises:
        PeerFailed: another rank failed, or does not answer any more; names it.
    """
    on_gpu = ranks.device.type == "cuda"
    watchdog.phase("making the process groups")
    timeout = timedelta(seconds=config.start_timeout_s)
    # its own connection: the main thread may block on the other one
    own = PrefixStore("end", store.clone() if ranks.world_size > 1 else store)
    roll_call = RollCall(own, ranks, recorder.keep if recorder else dict)
    advice = ""
    try:
        choose_interface(ranks, store, config.start_timeout_s)
        advice = describe_interface()
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=PrefixStore("group", store),
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timeout,
            device_id=ranks.device if on_gpu else None,
        )
        group = dist.new_group(backend="gloo", timeout=timeout, group_desc="votes")
        assert isinstance(group, dist.ProcessGroup)
        set_time_limit(group, config.start_timeout_s)
        advice = "see distributed.step_timeout_s"
        yield group
    except Exception as error:
        roll_call.explain(error, advice)
        raise
    roll_call.close()
    dist.destroy_process_group()


def set_time_limit(group: dist.ProcessGroup, timeout_s: float) -> None:
    """Set the timeout of each later collective, on both groups. Call on every rank."""
    # NCCL's timeout ends the process: it comes after that of the CPU group, whose error names the missing rank
    later_s = _NCCL_LATER_S if dist.get_backend() == "nccl" else 0.0
    assert dist.group.WORLD is not None
    compat.set_time_limit(dist.group.WORLD, timedelta(seconds=timeout_s + later_s))
    compat.set_time_limit(group, timedelta(seconds=timeout_s))


def check_in_sync(model: nn.Module, ranks: Ranks, group: dist.ProcessGroup) -> None:
    """Compare the bits of all parameters over the ranks. Sync point: the host waits for the device.

    Compares one sum per parameter, of its bits as integers modulo 2**64: any single change is found. Buffers are left
    out, since BatchNorm's running statistics differ between ranks.

    Raises:
        RanksDiffer: names the first parameter that differs, and the ranks outside the majority, if there is one.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    sums = torch.stack([p.detach().view(_INTEGERS[p.element_size()]).sum(dtype=torch.int64) for p in parameters]).cpu()
    by_rank = [torch.empty_like(sums) for _ in range(dist.get_world_size())]
    dist.all_gather(by_rank, sums, group=group)
    table = torch.stack(by_rank)  # [ranks, parameters]
    if (table == table[0]).all():
        return
    first = int((table != table[0]).any(dim=0).nonzero()[0])
    column = table[:, first].tolist()
    usual = max(column, key=column.count)
    odd = ranks.roster.name(rank for rank, value in enumerate(column) if value != usual)
    what, suspects = f"of {odd} is not that of the other ranks", odd
    if 2 * column.count(usual) <= len(column):
        one = ranks.roster.name([column.index(usual)])
        what = f"is not the same on all ranks ({odd} unlike {one}; there is no majority)"
        suspects = "all ranks"
    raise RanksDiffer(
        f"{names[first]} {what}; nothing was saved since they were last found equal. Check the hardware of {suspects}, "
        f"then start again"
    )


def gather(value: float, group: dist.ProcessGroup) -> list[float]:
    """One number per rank, in rank order, over the CPU group."""
    if dist.get_world_size() == 1:
        return [value]
    found = [torch.zeros(1, dtype=torch.float64) for _ in range(dist.get_world_size())]
    dist.all_gather(found, torch.tensor([value], dtype=torch.float64), group=group)
    return [float(each) for each in found]


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Copy rank 0's to every rank, as one message: after a step BatchNorm's running statistics may differ."""
    tensors = list(tensors)
    if dist.get_world_size() == 1 or not tensors:
        return
    parts = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in tensors]
    message = torch.cat(parts)
    dist.broadcast(message, src=0)
    if dist.get_rank() > 0:
        with torch.no_grad():
            for tensor, part in zip(tensors, message.split([len(part) for part in parts]), strict=True):
                tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))  # a copy: aligned for its dtype


def broadcast_bytes(content: bytes | None, group: dist.ProcessGroup) -> io.BytesIO | None:
    """Send rank 0's bytes to every rank over the CPU group, without a second copy in memory; None if it has none."""
    size = torch.tensor([-1 if content is None else len(content)])
    dist.broadcast(size, src=0, group=group)
    if size.item() < 0:
        return None
    stream = io.BytesIO(content or b"")
    if content is None:
        stream.seek(int(size.item()) - 1)
        stream.write(b"\0")
        stream.seek(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # rank 0 only reads it
        buffer = torch.frombuffer(content or stream.getbuffer(), dtype=torch.uint8)
    dist.broadcast(buffer, src=0, group=group)
    return stream


def sum_over_ranks(values: Tensor) -> list[int]:
    """Sum integers on the device over all ranks. A sync point: the host waits for the device."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values.tolist()


def wait_for_all(group: dist.ProcessGroup) -> None:
    """Wait until every rank is here, at most the group's time limit."""
    dist.barrier(group)


def leave_together(group: dist.ProcessGroup, timeout_s: float = 30.0) -> None:
    """Wait until every rank is here: the first to exit makes torchrun signal the others.

    Rank 0 waits at most ``timeout_s``, the others at most the time limit with which the group was made.
    """
    dist.monitored_barrier(group, timeout=timedelta(seconds=timeout_s))
