"""Sums over shards whose bits do not depend on the number of ranks.

A sum of floats depends on its order. Here the order is one binary tree over the shards, whichever rank has them: with
four, (0 + 1) + (2 + 3). Both numbers of shards and of ranks are powers of two, and rank r has the r-th run of
consecutive shards, so each rank computes a subtree by itself, and the ranks the levels above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from senet.compat import add_, copy_, time_limit
from senet.distributed.ranks import Ranks
from senet.errors import ConfigError

_BUCKET_BYTES = 8 << 20
_ALIGNED = 64  # elements


class TreeSum:
    """The sum of shards, given one after another: lists of tensors.

    Sums of equally many shards are added, as in a binary counter: at most log2(shards) + 1 are kept.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[int, list[Tensor]]] = []

    def add(self, tensors: list[Tensor]) -> None:
        """Those of the next shard; they may be changed."""
        count = 1
        while self._sums and self._sums[-1][0] == count:
            lower = self._sums.pop()[1]
            add_(lower, tensors)
            tensors, count = lower, 2 * count
        self._sums.append((count, tensors))

    def take(self) -> list[list[Tensor]]:
        """The sums so far, the newest first: the last of a power of two of shards is added to each, in this order.
        Begins anew."""
        sums, self._sums = [tensors for _, tensors in reversed(self._sums)], []
        return sums


class GradientSum:
    """The sum of the gradients of all shards, of all ranks, left in the parameters.

    With several ranks the exchange begins while the backward pass of a rank's last shard goes on, bucket by bucket, in
    an order that is the same on all ranks. The buckets take the memory of the gradients once more.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
        """``parameters``: all that are trained, by name."""
        self._names, self._parameters = list(parameters), list(parameters.values())
        self._tree, self._over_ranks = TreeSum(), RankSum(ranks)
        self._before: list[list[Tensor]] = []  # sums of the shards before this rank's last, the newest first
        groups = _groups(self._parameters)
        self._buckets = [_bucket(g, self._parameters, ranks) for g in groups] if ranks.world_size > 1 else []
        self._missing: list[set[int]] = []  # of each group: the parameters whose last gradient has not come
        self._groups, self._started = groups, 0
        for number, group in enumerate(groups):
            for index in group:
                self._parameters[index].register_post_accumulate_grad_hook(partial(self._arrived, number, index))

    def separate(self) -> None:
        """After each backward pass but a rank's last: give each parameter a gradient of its own. Where two parameters
        are added, autograd gives both the same tensor, and what is added to one would be added to the other too."""
        known = set()
        for parameter in self._parameters:
            if parameter.grad is not None:
                place = parameter.grad.untyped_storage().data_ptr()
                if place in known:
                    parameter.grad = parameter.grad.clone()
                known.add(place)

    def add(self) -> None:
        """A shard of this rank but its last: the parameters have its gradients now, and none after this.

        Autograd could add each second shard's to those of the one before. That saves at most 0.3 % of a step, and hides
        a parameter that has no gradient in the second."""
        self._tree.add([_gradient(parameter) for parameter in self._parameters])
        for parameter in self._parameters:
            parameter.grad = None

    def begin_last(self) -> None:
        """Before the last backward pass of this rank's last shard."""
        self._before, self._started = self._tree.take(), 0
        self._missing = [set(group) for group in self._groups]

    def finish(self) -> None:
        """After it, when all parameters have their gradients. A collective."""
        while self._started < len(self._buckets):  # some gradients came in earlier micro-batches only
            self._start()
        self._missing = []
        if not self._buckets:
            for parameter, total in zip(self._parameters, self._sum_here(range(len(self._parameters))), strict=True):
                parameter.grad = total
        self._over_ranks.wait()
        for bucket in self._buckets:
            for index, view in zip(bucket.indices, bucket.views, strict=True):
                self._parameters[index].grad = view
        self._before = []  # their memory is free

    def _arrived(self, number: int, index: int, _: Tensor) -> None:
        """Called when a parameter has got a gradient."""
        if not self._missing:  # not the last one
            return
        if index not in self._missing[number]:
            raise ConfigError(
                f"{self._names[index]} gets its gradient in parts in one backward pass, as under "
                f"torch.utils.checkpoint with use_reentrant=True; use use_reentrant=False, or train.shards=0"
            )
        self._missing[number].remove(index)
        while self._started < len(self._buckets) and not self._missing[self._started]:
            self._start()

    def _start(self) -> None:
        """Send the next bucket."""
        bucket = self._buckets[self._started]
        copy_(bucket.views, self._sum_here(bucket.indices))
        self._over_ranks.start(bucket.flat)
        self._started += 1

    def _sum_here(self, indices: Sequence[int]) -> list[Tensor]:
        """Over the shards of this rank, of some parameters."""
        total = [_gradient(self._parameters[index]) for index in indices]
        for earlier in self._before:
            lower = [earlier[index] for index in indices]
            add_(lower, total)
            total = lower
        return total


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


class _Bucket(NamedTuple):
    """Some parameters of one dtype, whose gradients are exchanged at once."""

    indices: list[int]
    flat: Tensor
    """Its length is a multiple of the number of ranks."""
    views: list[Tensor]
    """Of ``flat``, in the memory order of each parameter, as the optimizers want it."""


def _groups(parameters: Sequence[nn.Parameter]) -> list[list[int]]:
    """Those that are exchanged at once, from the last layer to the first, about as a backward pass goes. A layer that
    is defined last and used first holds up all."""
    groups: list[list[int]] = [[]]
    size, dtype = 0, parameters[-1].dtype
    for index in reversed(range(len(parameters))):
        if size >= _BUCKET_BYTES or parameters[index].dtype != dtype:
            groups.append([])
            size, dtype = 0, parameters[index].dtype
        groups[-1].append(index)
        size += parameters[index].nbytes
    return groups


def _bucket(indices: list[int], parameters: Sequence[nn.Parameter], ranks: Ranks) -> _Bucket:
    chosen = [parameters[index] for index in indices]
    # aligned as if they were alone: some kernels on a GPU add up in another order where they are not
    starts = [0, *accumulate(-(-parameter.numel() // _ALIGNED) * _ALIGNED for parameter in chosen)]
    padded = -(-starts[-1] // ranks.world_size) * ranks.world_size
    flat = torch.zeros(padded, dtype=chosen[0].dtype, device=ranks.device)
    views = [
        flat[start : start + parameter.numel()].as_strided(parameter.size(), torch.empty_like(parameter).stride())
        for start, parameter in zip(starts, chosen, strict=False)
    ]
    return _Bucket(indices, flat, views)


class RankSum:
    """Adds up flat tensors over the ranks, one after another, beside the backward pass: in a thread, on a GPU on a
    stream of its own.

    By recursive halving and doubling (Thakur, Rabenseifner & Gropp, "Optimization of collective communication
    operations in MPICH", 2005), nearest ranks first: each rank sends as many bytes as in a ring, and every element is
    added up along the same tree.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._stream = torch.cuda.Stream(ranks.device) if ranks.device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="exchange")
        self._running: list[Future[None]] = []

    def start(self, flat: Tensor) -> None:
        """What this rank has so far becomes the sum over all ranks, by the time that ``wait`` returns."""
        if self._stream is None:
            self._running.append(self._thread.submit(self._add_up, flat))
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._add_up(flat)

    def wait(self) -> None:
        """On a GPU only its stream waits, not the host."""
        for future in self._running:
            future.result()
        self._running.clear()
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def _add_up(self, flat: Tensor) -> None:
        rank, distance, low, high = self._ranks.rank, 1, 0, len(flat)
        steps = []
        while distance < self._ranks.world_size:
            middle = (low + high) // 2
            lower, upper = flat[low:middle], flat[middle:high]
            mine, other = (upper, lower) if rank & distance else (lower, upper)
            low, high = (middle, high) if rank & distance else (low, middle)
            peer, theirs = rank ^ distance, torch.empty_like(mine)
            _exchange(other, theirs, peer)
            mine.add_(theirs)  # a + b and b + a have the same bits: both ranks of a pair get one sum
            steps.append((mine, other, peer))
            distance *= 2
        for mine, other, peer in reversed(steps):
            _exchange(mine, other, peer)


def _exchange(sent: Tensor, received: Tensor, peer: int) -> None:
    both = [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
    for work in dist.batch_isend_irecv(both):
        if sent.is_cuda:
            work.wait()
        else:  # by itself gloo takes the limit at which the group was made, not the one that was set since
            work.wait(time_limit())
