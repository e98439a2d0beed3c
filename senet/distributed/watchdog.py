"""Ends a start that makes no progress, and reports where each rank is. Does not import torch."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from senet.distributed import hangs
from senet.distributed.environment import Place
from senet.distributed.roster import Process, Roster
from senet.errors import place

_TICK_S = 1.0
_SLACK_S = 10.0  # later than the timeouts of the store and the groups, whose errors say more
_ANSWERS_S = 2.0  # until the other ranks have reported where they are
_TELL_S = 30.0  # without progress, until a rank says so; then after twice as long each time
_WORK = (0.05, 2**16)  # CPU seconds, bytes read and written, per second: far more than waiting uses


class Watchdog:
    """Ends the process when no rank has made progress for too long, whatever the main thread is waiting for.

    The start of a phase is progress. In a phase that waits for no other rank (a long first decoding), computing and
    reading are progress too. In other phases they prove nothing: NCCL computes while it waits.
    """

    def __init__(self, own: Place, limit_s: float, end: Callable[[str], object]) -> None:
        """``end`` is called with the reason, from a thread, and must not return."""
        self._rank, self._world_size, self._end = own.rank, own.world_size, end
        self._roster = Roster({own.rank: Process.own()})
        self.limit_s, self._tick_s = limit_s, min(_TICK_S, limit_s / 4)
        self._phase, self._alone = "choosing a device", False
        self._progress, self._progress_anywhere = 0, 0
        self._closing, self._expired = threading.Event(), threading.Event()
        self._where: dict[int, str] = {}  # rank -> its phase and place in the code, reported when the time is over

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def phase(self, name: str, *, alone: bool = False) -> None:
        """Begin a phase. ``alone``: it waits for no other rank."""
        self._phase, self._alone = name, alone
        self._progress += 1

    def share(self, store: Any, roster: Roster) -> None:
        """From now on the other ranks' progress counts too, and they are named with their hosts.

        In its own thread, over its own connection: the main thread may block on the other connection, and the store's
        host may have stopped.
        """
        self._roster = roster
        threading.Thread(target=self._exchange, args=(store.clone(),), name="progress", daemon=True).start()

    def close(self) -> None:
        """Stop watching: the start is over."""
        self._closing.set()

    def _watch(self) -> None:
        seen, used, since, tell_s = (0, 0), _used(), time.monotonic(), _TELL_S
        looked = since
        while not self._closing.wait(self._tick_s):
            # if C++ code holds the GIL, this thread does not run either: then faulthandler's C thread ends the process
            faulthandler.dump_traceback_later(self.limit_s + 2 * _SLACK_S, exit=True, file=2)
            before, used, seconds = used, _used(), time.monotonic() - looked
            looked += seconds
            if self._alone and any(n - b > work * seconds for n, b, work in zip(used, before, _WORK, strict=True)):
                self._progress += 1
            if seen != (now := (self._progress, self._progress_anywhere)):
                seen, since, tell_s = now, looked, _TELL_S
            elif looked - since > tell_s and not self._expired.is_set():
                tell_s *= 2
                self._tell(looked - since)
            elif looked - since > self.limit_s + min(self.limit_s, _SLACK_S):
                self._expired.set()
                hangs.write_stacks(self._roster.name([self._rank]))
                # rank 0 ends the start for all that answer; the others wait longer, and do so if it does not
                if not self._closing.wait(_ANSWERS_S * (1 if self._rank == 0 else 2)):
                    self._end(self._reason())
        faulthandler.cancel_dump_traceback_later()

    def _tell(self, seconds: float) -> None:
        """To stderr, whoever has closed it in Python: rank 0, which knows for whom it waits, and who waits for none."""
        if self._rank == 0 or self._alone:
            text = f"{self._roster.name([self._rank])}: still {self._phase} after {seconds:.0f} s\n"
            os.write(2, text.encode())

    def _exchange(self, store: Any) -> None:
        sent = 0
        with contextlib.suppress(RuntimeError):  # the store's host is gone: each rank reports what it knows
            while not self._closing.is_set() and not self._expired.wait(self._tick_s):
                own = self._progress
                self._progress_anywhere = store.add("progress", int(own != sent))
                sent = own
            store.set(f"where/{self._rank}", self._where_here())
            while not self._closing.wait(_ANSWERS_S / 10):
                for rank in range(self._world_size) if self._rank == 0 else (0,):
                    if rank not in self._where and store.check([f"where/{rank}"]):
                        self._where[rank] = store.get(f"where/{rank}").decode()

    def _where_here(self) -> str:
        frames = traceback.walk_stack(sys._current_frames().get(threading.main_thread().ident or 0))
        return f"{self._phase}, at {place([*frames][::-1])}"

    def _reason(self) -> str:
        where = {self._rank: self._where_here()} | dict(self._where)
        seen = hangs.states(self._roster, self._rank)
        by_text: dict[str, list[int]] = {}
        for rank in range(self._world_size) if self._rank == 0 else sorted({0, self._rank}):
            text = where.get(rank) or f"does not answer: {hangs.in_words(seen.get(rank, '?'))}"
            by_text.setdefault(text, []).append(rank)
        few_first = sorted(by_text.items(), key=lambda t: len(t[1]))
        parts = (f"{self._roster.name(ranks)}: {text}" for text, ranks in few_first)
        return f"the start made no progress for distributed.start_timeout_s={self.limit_s:g}: {'; '.join(parts)}"


def _used() -> tuple[float, float]:
    """CPU seconds, and bytes read and written, of all threads of this process so far."""
    moved = 0
    with contextlib.suppress(OSError):  # not every kernel counts them
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        moved = int(fields["rchar"]) + int(fields["wchar"])
    return time.process_time(), moved
