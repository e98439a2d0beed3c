"""A start that does not get on is ended, and where each rank stands is said. No torch."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from senet.distributed.environment import Place

_TICK_S = 1.0
_SLACK_S = 10.0  # the limits of the store and the groups come first, since their errors say more
_ANSWERS_S = 2.0
_WORK = (0.05, 2**16)  # seconds of the processor, bytes, per second: far more than waiting takes


class Watchdog:
    """Ends the process when no rank has got on for too long, whatever the main thread is waiting in.

    A rank gets on when a phase begins and, where it does not wait for others (a long first decoding), as long as it
    computes or reads. Elsewhere that says nothing: NCCL computes while it waits.
    """

    def __init__(self, own: Place, limit_s: float, end: Callable[[str], object]) -> None:
        """``end`` gets the reason, in a thread, and does not return."""
        self._rank, self._world_size, self._end = own.rank, own.world_size, end
        self.limit_s, self._tick_s = limit_s, min(_TICK_S, limit_s / 4)
        self._phase, self._alone = "choosing a device", False
        self._progress, self._progress_anywhere = 0, 0
        self._closing, self._expired = threading.Event(), threading.Event()
        self._heard: dict[int, str] = {}  # by rank: phase and place, once the time is over

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def phase(self, name: str, *, alone: bool = False) -> None:
        """What this rank does from now on; ``alone``: without waiting for others."""
        self._phase, self._alone = name, alone
        self._progress += 1

    def share(self, store: Any) -> None:
        """From now on the other ranks' progress counts too.

        Over a connection of its own, in a thread of its own: the main thread may be waiting in the other one, and the
        host of the store may have stopped.
        """
        threading.Thread(target=self._exchange, args=(store.clone(),), name="progress", daemon=True).start()

    def close(self) -> None:
        """The start is over."""
        self._closing.set()

    def _watch(self) -> None:
        seen, used, since = (0, 0), _used(), time.monotonic()
        looked = since
        while not self._closing.wait(self._tick_s):
            # where C++ code keeps the interpreter's lock this thread does not run either, and C code ends the process
            faulthandler.dump_traceback_later(self.limit_s + 2 * _SLACK_S, exit=True, file=2)
            before, used, seconds = used, _used(), time.monotonic() - looked
            looked += seconds
            if self._alone and any(n - b > work * seconds for n, b, work in zip(used, before, _WORK, strict=True)):
                self._progress += 1
            if seen != (now := (self._progress, self._progress_anywhere)):
                seen, since = now, looked
            elif looked - since > self.limit_s + min(self.limit_s, _SLACK_S):
                self._expired.set()
                # rank 0 speaks for all who answer; the others follow if it cannot
                if not self._closing.wait(_ANSWERS_S * (1 if self._rank == 0 else 2)):
                    self._end(self._finding())
        faulthandler.cancel_dump_traceback_later()

    def _exchange(self, store: Any) -> None:
        told = 0
        with contextlib.suppress(RuntimeError):  # the host of the store is gone: each for himself
            while not self._closing.is_set() and not self._expired.wait(self._tick_s):
                mine = self._progress
                self._progress_anywhere = store.add("progress", int(mine != told))
                told = mine
            store.set(f"stands/{self._rank}", self._standing())
            while not self._closing.wait(_ANSWERS_S / 10):
                for rank in range(self._world_size) if self._rank == 0 else (0,):
                    if rank not in self._heard and store.check([f"stands/{rank}"]):
                        self._heard[rank] = store.get(f"stands/{rank}").decode()

    def _standing(self) -> str:
        frames = traceback.walk_stack(sys._current_frames().get(threading.main_thread().ident or 0))
        return f"{self._phase}, at {place([frame for frame, _ in frames][::-1])}"

    def _finding(self) -> str:
        heard = {self._rank: self._standing()} | dict(self._heard)
        by_text: dict[str, list[int]] = {}
        for rank in range(self._world_size) if self._rank == 0 else sorted({0, self._rank}):
            by_text.setdefault(heard.get(rank, "does not answer, killed or stopped"), []).append(rank)
        where = "; ".join(f"{name(ranks)}: {text}" for text, ranks in sorted(by_text.items(), key=lambda t: len(t[1])))
        return f"the start did not get on for distributed.start_timeout_s={self.limit_s:g}: {where}"


def place(frames: Sequence[FrameType]) -> str:
    """Where a program is, outside of torch: file, line and function of the innermost of these frames."""
    own = [frame for frame in frames if "torch" not in Path(frame.f_code.co_filename).parts]
    if not own:
        return "an unknown place"
    code = own[-1].f_code
    return f"{'/'.join(Path(code.co_filename).parts[-2:])}:{own[-1].f_lineno} {code.co_name}"


def name(ranks: Iterable[int]) -> str:
    """Ranks in words."""
    numbers = sorted(ranks)
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _used() -> tuple[float, float]:
    """Seconds of the processor and bytes of files that this process has used, all its threads together."""
    moved = 0
    with contextlib.suppress(OSError):  # not every kernel counts them
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        moved = int(fields["rchar"]) + int(fields["wchar"])
    return time.process_time(), moved
