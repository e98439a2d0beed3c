"""What the ranks agree on while they train: when to stop, what to profile, and that no loss was NaN or infinite."""

from __future__ import annotations

import math
from queue import SimpleQueue

import torch
import torch.distributed as dist
from torch import Tensor

from senet.distributed.preemption import steps_between_votes
from senet.errors import RunError


class StopRequested(Exception):
    """All ranks agreed to stop at this step boundary."""


class NonFiniteLoss(RunError):
    """The loss of a step was NaN or infinite on at least one rank."""

    kind = "loss is not finite"


class Agreement:
    """Votes of all ranks: a sum of [stop wanted, a loss was not finite, updates that rank 0 wants profiled], issued in
    one step, read at the next vote.

    Over the CPU group, so that neither the device nor the gradients' collectives wait for it. A vote is waited for
    before the device is: a lost rank makes the vote fail with its name, but a wait for the device never ends.
    """

    def __init__(self, group: dist.ProcessGroup, every: int | None = None) -> None:
        self._group = group
        self._world_size = dist.get_world_size(group)
        self._every = every or steps_between_votes(self._world_size)
        self._unvoted = 0  # steps since the last vote
        self._unread: list[tuple[int, Tensor, torch.cuda.Event | None]] = []
        self._first_bad = 0  # this rank's first step with a loss that was not finite; 0: none
        self._votes: Tensor | None = None
        self._work: dist.Work | None = None
        self._stop_here = self._stop_anywhere = False
        self._wanted: SimpleQueue[int] = SimpleQueue()
        self._heard: list[int] = []
        self.stop_agreed = False
        """Whether all ranks stop after this step. The same on all of them."""
        self.to_profile: list[int] = []
        """How many updates all ranks are to profile next, for each wish; who plans it removes it. The same on all."""

    def want_profile(self, updates: int) -> None:
        """On rank 0, from any thread."""
        self._wanted.put(updates)

    def observe(self, step: int, total: Tensor) -> None:
        """Note the sum of a step's losses, after its last forward, or with shards backward. From a GPU it is copied
        asynchronously."""
        copied = None
        if total.is_cuda:
            total, copied = total.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
        self._unread.append((step, total, copied))

    def exchange(self, *, stop: bool) -> None:
        """Call at each step, after issuing its work: reads the last vote and issues the next, if one is due.

        Raises:
            NonFiniteLoss: on some rank, in a step before the last vote.
        """
        self._stop_here |= stop
        self._unvoted += 1
        if self._unvoted == self._every:
            self.settle()
            self.stop_agreed = self._stop_anywhere
            self.to_profile += self._heard
            self._heard = []
            self._vote()

    def settle(self) -> None:
        """Wait for the vote in flight, if there is one. Raises as ``exchange``."""
        if self._votes is None:
            return
        if self._work is not None:
            self._work.wait()
        stops, bad, updates = self._votes.tolist()
        self._votes = self._work = None
        self._stop_anywhere |= stops > 0
        self._heard += [updates] if updates else []
        if bad:
            raise self._non_finite()

    def conclude(self) -> None:
        """Make sure that all ranks are here, and all losses so far finite. Call before the host waits for the device,
        and before anything is published. A sync point: the host waits until the losses are there.

        Raises:
            NonFiniteLoss: on some rank.
        """
        self.settle()
        if self._unvoted:
            self._vote()
            self.settle()
        self._vote(newest=True)
        self.settle()

    def _vote(self, *, newest: bool = False) -> None:
        """Issue a vote on the losses that have arrived. The host waits for the others only with ``newest``, after a
        vote has shown that all ranks are here: a forward may itself wait for the buffers of a rank that is gone."""
        while self._unread:
            step, total, copied = self._unread[0]
            if copied is not None and newest:
                copied.synchronize()
            elif copied is not None and not copied.query():
                break
            del self._unread[0]
            if not self._first_bad and not math.isfinite(total.item()):
                self._first_bad = step
        self._unvoted = 0
        wanted = 0 if self._wanted.empty() else self._wanted.get()
        self._votes = torch.tensor([self._stop_here, self._first_bad > 0, wanted], dtype=torch.int32)
        if self._world_size > 1:
            self._work = dist.all_reduce(self._votes, group=self._group, async_op=True)
        else:
            self.settle()

    def _non_finite(self) -> NonFiniteLoss:
        """The error, with the first such step and number of ranks. All ranks call this: they read the same vote."""
        first = torch.tensor(self._first_bad or torch.iinfo(torch.int64).max)
        dist.all_reduce(first, dist.ReduceOp.MIN, group=self._group)
        count = torch.tensor(int(self._first_bad == first))
        dist.all_reduce(count, group=self._group)
        return NonFiniteLoss(
            f"the loss of step {first} is not finite on {count} of {self._world_size} ranks; nothing was saved from it "
            f"on. Resume with a lower optim.lr (resume.allow_changes=true)"
        )
