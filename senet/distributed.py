"""Who this rank is, the start and end of the process groups, and every collective of the trainer."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from senet.config import ConfigError, DistributedConfig, RunError, TrainConfig
from senet.lease import mirror_status

T = TypeVar("T")
_ROLL_CALL_S = 2.0
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class StopRequested(Exception):
    """All ranks agreed to stop at this step boundary."""


class NonFiniteLoss(RunError):
    """The loss of a step was NaN or infinite on at least one rank."""


class PeerFailed(RunError):
    """Another rank could not start, failed, or does not answer."""


class RanksDiffer(RunError):
    """The weights of the ranks are no longer the same."""


@dataclass(frozen=True)
class Ranks:
    """This process among the others, and its device."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes and speaks."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, train: TrainConfig) -> Ranks:
        """Read what torchrun set; one rank where it set nothing.

        Raises:
            ConfigError: CUDA or ``train.sync_bn`` wanted where there is none, or two ranks on one GPU.
        """
        rank, world_size, local_rank, local_world_size = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
        )
        device = _choose_device(train.device, local_rank, local_world_size)
        if train.sync_bn and device.type != "cuda":
            raise ConfigError("train.sync_bn=true needs CUDA, and no GPU is used here; set train.sync_bn=false")
        return cls(rank, world_size, local_rank, local_world_size, device)


def _choose_device(wanted: str, local_rank: int, local_world_size: int) -> torch.device:
    gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and gpus == 0:
        raise ConfigError("train.device=cuda, but no GPU is visible; set train.device=cpu or auto")
    if gpus == 0:
        return torch.device("cpu")
    # one visible device: the launcher gave each rank its own (SLURM); several: all ranks see all (torchrun)
    if 1 < gpus < local_world_size:
        raise ConfigError(f"{local_world_size} ranks on this node share {gpus} GPUs; start at most {gpus}")
    if gpus == 1 and local_world_size > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(f"{local_world_size} ranks on this node share 1 GPU; start 1, or set train.device=cpu")
    return torch.device("cuda", local_rank if gpus > 1 else 0)


def start_together(ranks: Ranks, timeout_s: float, prepare: Callable[[], T]) -> tuple[Store, T]:
    """Run ``prepare`` on every rank, before any process group, and go on only if it succeeded on all.

    Raises:
        ConfigError: its own, or (``spoken`` set: rank 0 prints it) that of the first rank with one.
        PeerFailed: ``prepare`` failed elsewhere for another reason, or a rank did not arrive in time.
    """
    store = _rendezvous(ranks, timeout_s)
    failure: Exception | None = None
    try:
        result = prepare()
    except Exception as error:
        failure = error
    kind = "" if failure is None else "refused" if isinstance(failure, ConfigError) else "failed"
    store.set(f"start/{ranks.rank}", json.dumps([kind, str(failure or "")]))
    if ranks.is_main:
        outcomes = [_wait_for(store, f"start/{rank}", timeout_s) for rank in range(ranks.world_size)]
        bad = [(rank, *outcome) for rank, outcome in enumerate(outcomes) if outcome[0]]
        store.set("start/all", json.dumps(bad[0] if bad else [0, "", ""]))
    else:
        bad = [outcome] if (outcome := _wait_for(store, "start/all", timeout_s))[1] else []
    if failure is not None and not isinstance(failure, ConfigError):
        raise failure
    if bad:
        rank, kind, message = bad[0]
        if kind == "refused":
            raise ConfigError(message if rank == 0 else f"rank {rank}: {message}")
        raise PeerFailed(f"rank {rank} could not start: {message}")
    return store, result


def _rendezvous(ranks: Ranks, timeout_s: float) -> Store:
    """Where the ranks leave words for each other; RunError where MASTER_ADDR or MASTER_PORT is of no use."""
    if ranks.world_size == 1:
        return dist.HashStore()  # type: ignore[attr-defined]
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    try:
        socket.getaddrinfo(address, port)  # unresolved, the store would try for ever without a word
    except OSError as error:
        raise RunError(f"MASTER_ADDR={address} has no address on host {socket.gethostname()} ({error})") from None
    try:
        timeout = timedelta(seconds=timeout_s)
        store, _, _ = next(rendezvous("env://", ranks.rank, ranks.world_size, timeout=timeout))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise RunError(f"rank {ranks.rank} does not reach rank 0 at {address}:{port}: {error}") from None
        reason = f"MASTER_PORT={port} is in use on host {socket.gethostname()}"
        mirror_status({"state": "port_taken", "reason": reason})  # a launcher that chose it can choose another
        raise RunError(f"{reason}; start again with another one") from None
    # whoever mistook this store for his own must not speak to these ranks
    return PrefixStore(os.environ.get("SENET_START", "start"), store)


def _wait_for(store: Store, key: str, timeout_s: float) -> Any:
    """The JSON under a key, as soon as somebody has set it."""
    try:
        store.wait([key], timedelta(seconds=timeout_s))
    except RuntimeError:
        raise PeerFailed(f"{key} did not arrive within distributed.start_timeout_s={timeout_s:g}") from None
    return json.loads(store.get(key))


@contextmanager
def process_groups(ranks: Ranks, store: Store, config: DistributedConfig) -> Iterator[dist.ProcessGroup]:
    """The default group (nccl on CUDA, else gloo) for gradients, and a gloo group on the CPU, which is yielded.

    On an error the groups are left to the end of the process: tearing them down while a peer hangs can hang too. An
    error on any rank makes the others fail as well, in a collective; they find out who was the first.

    Raises:
        PeerFailed: another rank failed, or does not answer any more: names it.
    """
    on_gpu = ranks.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(ranks.device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=PrefixStore("group", store),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=config.start_timeout_s),
        device_id=ranks.device if on_gpu else None,
    )
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.start_timeout_s))
    assert isinstance(group, dist.ProcessGroup)
    roll_call = RollCall(PrefixStore("end", store), ranks)
    try:
        yield group
    except Exception as error:
        roll_call.explain(error)
        raise
    dist.destroy_process_group()
    roll_call.close()


def set_time_limit(group: dist.ProcessGroup, timeout_s: float) -> None:
    """How long a rank waits in each collective from now on, on both groups. Call on every rank."""
    for each in (dist.group.WORLD, group):
        dist.set_timeout(timedelta(seconds=timeout_s), each)


class RollCall:
    """Who is still there when a collective has failed. Through the store, since the groups are of no use by then.

    A thread answers for a rank that still waits for somebody; a rank that is killed or stopped does not answer.
    """

    def __init__(self, store: Store, ranks: Ranks) -> None:
        self._store, self._ranks = store, ranks
        self._closing = threading.Event()
        self._answers: dict[int, str] = {}
        if ranks.world_size > 1:
            threading.Thread(target=self._stand_by, name="roll call", daemon=True).start()

    def explain(self, error: Exception) -> None:
        """Put down one's own error; where it only says that a collective failed, raise PeerFailed with the rank that
        it began with. Takes three seconds at the most.
        """
        if self._ranks.world_size == 1:
            return
        followed = isinstance(error, dist.DistBackendError) or "gloo" in str(error) or "pair closure" in str(error)
        mine = "" if followed else " ".join(f"{type(error).__name__}: {error}".split())[:300]
        # in a thread, because the store's host may be what has stopped: under torchrun the launcher, else rank 0
        caller = threading.Thread(target=self._call, args=(mine,), name="roll call", daemon=True)
        caller.start()
        caller.join(_ROLL_CALL_S + 1)
        if not followed:
            return
        answers = dict(self._answers)
        reason = " ".join(str(error).split("]", 1)[-1].split())[:200]
        silent = sorted(set(range(self._ranks.world_size)) - answers.keys()) if answers else [0]
        text = next((f"rank {rank} failed: {text}" for rank, text in sorted(answers.items()) if text), "")
        if not text and silent:
            names = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))}"
            text = f"{names} did not answer any more, killed or stuck ({reason})"
        lost = PeerFailed(
            text or f"the ranks waited too long for each other ({reason}); see distributed.step_timeout_s"
        )
        lost.reporter = min(answers, default=self._ranks.rank)
        raise lost from error

    def close(self) -> None:
        """No more questions."""
        self._closing.set()

    def _call(self, mine: str) -> None:
        """Ask, and collect what is said until all have answered or one names a cause."""
        store, deadline = self._store, time.monotonic() + _ROLL_CALL_S
        store.set(str(self._ranks.rank), json.dumps(mine))
        store.set("asked", "")
        self._answers[self._ranks.rank] = mine
        waited_for = set(range(self._ranks.world_size)) - {self._ranks.rank}
        while waited_for and not any(self._answers.values()) and time.monotonic() < deadline:
            for rank in [rank for rank in waited_for if store.check([str(rank)])]:
                self._answers[rank] = json.loads(store.get(str(rank)))
                waited_for.remove(rank)
            time.sleep(0.05)

    def _stand_by(self) -> None:
        while not self._closing.wait(_ROLL_CALL_S / 4):
            try:
                if self._store.check(["asked"]):
                    if not self._store.check([str(self._ranks.rank)]):
                        self._store.set(str(self._ranks.rank), json.dumps(""))
                    return
            except RuntimeError:  # the store's host is gone, and with it whoever might ask
                return


def replicate(
    model: nn.Module, ranks: Ranks, *, dummy_NCHW: Tensor, comm_hook: Literal["none", "bf16", "fp16"]
) -> DistributedDataParallel:
    """Wrap in DDP and let it lay its gradient buckets now.

    A fresh DDP reduces in one bucket, then lays its buckets by the order in which the gradients arrived, which
    changes the order of the sums from three ranks on. One dummy step in evaluation mode, before anything is restored,
    gives an unbroken and a resumed run the same buckets from their first step. It leaves no trace in the model.
    """
    ddp = DistributedDataParallel(
        model, device_ids=[ranks.device] if ranks.device.type == "cuda" else None, gradient_as_bucket_view=True
    )
    if comm_hook == "bf16":
        ddp.register_comm_hook(None, default_hooks.bf16_compress_hook)
    elif comm_hook == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    ddp.eval()
    ddp(dummy_NCHW).sum().backward()  # the next forward lays the buckets
    ddp.zero_grad()
    return ddp


def check_in_sync(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Compare the bits of all parameters over the ranks. Sync point: the host waits for the device.

    By a sum per parameter, of its bits as integers, modulo 2**64: any single change is found. Buffers are left out,
    since BatchNorm's running statistics are each rank's own.

    Raises:
        RanksDiffer: names the first parameter that differs and the ranks that are not with the majority.
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
    usual = max(column, key=column.count)  # of two ranks: the first
    odd = [rank for rank, value in enumerate(column) if value != usual]
    raise RanksDiffer(
        f"{names[first]} of rank {', '.join(map(str, odd))} is not that of the other ranks; nothing was saved since "
        f"they were last found equal. Look after that machine, then start again"
    )


def gather(value: float, group: dist.ProcessGroup) -> list[float]:
    """A number of each rank, in rank order, over the CPU group."""
    found = [torch.zeros(1, dtype=torch.float64) for _ in range(dist.get_world_size())]
    dist.all_gather(found, torch.tensor([value], dtype=torch.float64), group=group)
    return [float(each) for each in found]


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's buffers: BatchNorm's running statistics are local to a rank after a step."""
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def broadcast_bytes(content: bytes | None, group: dist.ProcessGroup) -> bytes | None:
    """Rank 0's bytes on every rank (over the CPU group)."""
    size = torch.tensor([-1 if content is None else len(content)])
    dist.broadcast(size, src=0, group=group)
    if size.item() < 0:
        return None
    buffer = torch.frombuffer(bytearray(content or bytes(int(size.item()))), dtype=torch.uint8)
    dist.broadcast(buffer, src=0, group=group)
    return buffer.numpy().tobytes()


def sum_over_ranks(values: Tensor) -> list[int]:
    """Sum integers on the device over all ranks. A sync point: the host waits for the device."""
    dist.all_reduce(values)
    return values.tolist()


def leave_together(group: dist.ProcessGroup, timeout_s: float = 30.0) -> None:
    """Wait until every rank is here: the first to exit makes torchrun signal the others.

    Rank 0 waits at most ``timeout_s`` for the others, they for it at most the group's time limit.
    """
    dist.monitored_barrier(group, timeout=timedelta(seconds=timeout_s))


class Agreement:
    """What ranks must agree on, without waiting: a sum of [stop wanted, non-finite loss], issued after step k and
    read after step k + 1. Over the CPU group, so neither the device nor the gradients' collectives are held up.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._votes = torch.zeros(2, dtype=torch.int32)
        self._work: dist.Work | None = None
        self._step = 0
        self._stop = False

    def exchange(self, step: int, *, stop: bool, nonfinite: bool) -> None:
        """Read what the ranks said one step ago, and issue what this one says now.

        Raises:
            NonFiniteLoss: at the previous step, on some rank.
            StopRequested: on some rank; by then this step's losses are known to be finite everywhere.
        """
        self.settle()
        self._votes = torch.tensor([stop, nonfinite], dtype=torch.int32)
        self._work = dist.all_reduce(self._votes, group=self._group, async_op=True)
        stop_now, self._step = self._stop, step
        if stop_now:
            self.settle()
            raise StopRequested

    def settle(self) -> None:
        """Wait for what was issued last; raise NonFiniteLoss. Before anything is published: a sync point."""
        if self._work is None:
            return
        self._work.wait()
        self._work = None
        stops, nonfinite = self._votes.tolist()
        self._stop = self._stop or stops > 0
        if nonfinite:
            raise NonFiniteLoss(
                f"the loss of step {self._step} is not finite on {nonfinite} of {dist.get_world_size()} ranks; "
                f"nothing was saved from it on. Resume with a lower optim.lr (resume.allow_changes=true)"
            )
