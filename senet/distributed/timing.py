"""How long things take, and which rank takes longest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from senet.distributed.ranks import Ranks

T = TypeVar("T")


class Stopwatch:
    """Seconds, counted inside ``with`` blocks only; ``lap`` may be asked anywhere."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None  # None: not running

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._count()
        self._since = None

    def lap(self) -> float:
        """Seconds counted since the last lap."""
        self._count()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _count(self) -> None:
        if self._since is not None:
            now = time.perf_counter()
            self._seconds += now - self._since
            self._since = now


class OwnTime:
    """Seconds that this rank spends fetching images and in forward passes, where it waits for no other rank.

    A whole step takes equally long on all ranks, since they wait for the slowest; this part shows which one it is.
    """

    def __init__(self, module: nn.Module, ranks: Ranks) -> None:
        self._roster, self._on_gpu = ranks.roster, ranks.device.type == "cuda"
        self._host_s = 0.0
        self._began: Any = None
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._suspects: list[int] = []
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def fetch(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and count the wait for each."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            batch = next(iterator, None)
            self._host_s += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def lap_s(self) -> float:
        """Seconds since the last call. On a GPU the device must have been waited for."""
        seconds: float = self._host_s + sum(begin.elapsed_time(end) / 1000 for begin, end in self._spans)
        self._host_s, self._spans = 0.0, []
        return seconds

    def compare(self, by_rank_s: Sequence[float], elapsed_s: float) -> str:
        """A message once a rank has been slow in two calls in a row; empty otherwise, and while it stays slow.

        Slow means over 1.5 times the median of the other ranks, by more than a twentieth of ``elapsed_s``.
        """
        slowest = max(range(len(by_rank_s)), key=by_rank_s.__getitem__)
        others = [seconds for rank, seconds in enumerate(by_rank_s) if rank != slowest]
        own_s, usual_s = by_rank_s[slowest], statistics.median(others) if others else by_rank_s[slowest]
        if own_s < 1.5 * usual_s or own_s - usual_s < elapsed_s / 20:
            slowest = -1
        self._suspects = [*self._suspects[-2:], slowest]
        if slowest < 0 or self._suspects[-2:] != [slowest] * 2 or self._suspects == [slowest] * 3:
            return ""
        return (
            f"{self._roster.name([slowest])} is slow: its own images and forward passes take {own_s / elapsed_s:.0%} "
            f"of the step, those of the other ranks {usual_s / elapsed_s:.0%}"
        )

    def _begin(self, *_: Any) -> None:
        self._began = self._now()

    def _end(self, *_: Any) -> None:
        if self._on_gpu:
            self._spans.append((self._began, self._now()))
        else:
            self._host_s += self._now() - self._began

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
