"""Sums over shards whose bits do not depend on the number of ranks.

A sum of floats depends on its order. Here the order is one binary tree over the shards, whichever rank has them: with
four, (0 + 1) + (2 + 3). Both numbers of shards and of ranks are powers of two, and rank r has the r-th run of
consecutive shards, so each rank computes a subtree by itself, and the ranks the levels above.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from senet.compat import add_, copy_, time_limit
from senet.distributed.ranks import Ranks


class TreeSum:
    """The sum of the shards of one rank, given one after another.

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

    def take(self) -> list[Tensor]:
        """The sum, of a power of two of shards. Begins anew."""
        ((_, tensors),) = self._sums
        self._sums = []
        return tensors


class RankSum:
    """The sum over all ranks of tensors like the examples: the upper levels of the tree.

    By recursive halving and doubling (Thakur, Rabenseifner & Gropp, "Optimization of collective communication
    operations in MPICH", 2005), nearest ranks first: each rank sends as many bytes as in a ring, and every element is
    added up along the same tree.
    """

    def __init__(self, examples: Sequence[Tensor], ranks: Ranks) -> None:
        """Takes 1.5 times the memory of the examples, where there are several ranks."""
        self._ranks = ranks
        self._flat: dict[torch.dtype, Tensor] = {}
        self._received: dict[torch.dtype, Tensor] = {}
        self._views: list[Tensor] = []
        if ranks.world_size > 1:
            sizes: dict[torch.dtype, int] = defaultdict(int)
            starts = []
            for each in examples:
                starts.append(sizes[each.dtype])
                sizes[each.dtype] += each.numel()
            for dtype, size in sizes.items():  # zeros at the end, so that it can be halved
                padded = -(-size // ranks.world_size) * ranks.world_size
                self._flat[dtype] = torch.zeros(padded, dtype=dtype, device=ranks.device)
                self._received[dtype] = torch.empty_like(self._flat[dtype][: padded // 2])
            self._views = [
                # in the memory order of the example, as the optimizers want it
                self._flat[each.dtype][start : start + each.numel()].as_strided(
                    each.size(), torch.empty_like(each).stride()
                )
                for each, start in zip(examples, starts, strict=True)
            ]

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """A collective. What is returned is overwritten by the next call."""
        if self._ranks.world_size == 1:
            return tensors
        copy_(self._views, tensors)
        for dtype, flat in self._flat.items():
            self._add_up(flat, self._received[dtype])
        return self._views

    def _add_up(self, flat: Tensor, received: Tensor) -> None:
        rank, distance, low, high = self._ranks.rank, 1, 0, len(flat)
        steps = []
        while distance < self._ranks.world_size:
            middle = (low + high) // 2
            lower, upper = flat[low:middle], flat[middle:high]
            mine, other = (upper, lower) if rank & distance else (lower, upper)
            low, high = (middle, high) if rank & distance else (low, middle)
            peer, theirs = rank ^ distance, received[: len(mine)]
            _exchange(other, theirs, peer)
            mine.add_(theirs)  # a + b and b + a have the same bits: both ranks of a pair get one sum
            steps.append((mine, other, peer))
            distance *= 2
        for mine, other, peer in reversed(steps):
            _exchange(mine, other, peer)


def _exchange(sent: Tensor, received: Tensor, peer: int) -> None:
    """On a GPU only its stream waits, not the host."""
    both = [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
    for work in dist.batch_isend_irecv(both):
        if sent.is_cuda:
            work.wait()
        else:  # by itself gloo takes the limit at which the group was made, not the one that was set since
            work.wait(time_limit())
