"""After a collective has failed: which rank was the cause, found out through the store. No collectives."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import traceback
from typing import NamedTuple

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from senet.distributed.ranks import PeerFailed, Ranks
from senet.distributed.watchdog import place as _place


class Finding(NamedTuple):
    """What a roll call found; the same on all ranks that read it."""

    text: str
    known: bool  # a rank reported its own error; else deduced from which ranks answer
    reporter: int  # the lowest rank that answered
    answered: list[int]


class RollCall:
    """Finds which ranks still answer when a collective has failed, and where in the code each one is.

    As soon as one rank has put a report into the store, every other does: its own error or, from a thread, where it
    is. A killed or stopped rank does not. The first rank that failed reads all reports and stores the finding, which
    the others read: requests grow with the number of ranks, not with its square.
    """

    def __init__(self, store: Store, ranks: Ranks) -> None:
        self._store, self._ranks = store, ranks
        self._pause_s = max(0.5, ranks.world_size / 512)  # at most some hundred requests a second from all ranks
        self._timeout_s = 4 * self._pause_s
        self._closing = threading.Event()
        self._finding: Finding | None = None
        if ranks.world_size > 1:
            threading.Thread(target=self._answer, name="roll call", daemon=True).start()

    def explain(self, error: Exception, advice: str) -> None:
        """Report ``error`` to the other ranks. If it is only that of a failed collective, raise PeerFailed, which names
        the rank that failed first. Takes four seconds at most, more above 256 ranks.

        Args:
            advice: the remedy in the message if all ranks answer.
        """
        if self._ranks.world_size == 1:
            return
        from_gloo = type(error) is RuntimeError and ("gloo" in str(error) or "pair closure" in str(error))
        of_collective = isinstance(error, dist.DistBackendError) or from_gloo
        cause = "" if of_collective else " ".join(f"{type(error).__name__}: {error}".split())[:300]
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not (of_collective and self._finding):
            self.close()  # this thread reports, not the other
            # in a thread, because the store's host may have stopped: under torchrun the launcher, else rank 0
            caller = threading.Thread(target=self._call, args=(cause, _place(frames)), name="roll call", daemon=True)
            caller.start()
            caller.join(2 * self._timeout_s)
        if of_collective:
            found = self._finding or _judge({}, self._ranks)
            reason = " ".join(str(error).split("]", 1)[-1].split())[:200]
            text = found.text if found.known else f"{found.text} ({reason})"
            lost = PeerFailed(
                f"{text}; {advice}" if not found.known and len(found.answered) == self._ranks.world_size else text
            )
            lost.reporter, lost.guess = found.reporter, not found.known
            raise lost from error

    def close(self) -> None:
        """Answer no more roll calls."""
        self._closing.set()

    def _answer(self) -> None:
        main = threading.main_thread().ident
        with contextlib.suppress(RuntimeError):  # the store's host is gone: no rank can call
            while not self._closing.wait(self._pause_s):
                if self._store.check(["reports"]):
                    frames = [frame for frame, _ in traceback.walk_stack(sys._current_frames().get(main or 0))]
                    self._report("", _place(frames[::-1]))
                    self._read_finding()
                    return

    def _call(self, cause: str, place: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store's host is gone: no rank can answer
            self._report(cause, place)
            if self._store.add("called", 1) == 1:
                self._collect()
            self._read_finding()

    def _report(self, cause: str, place: str) -> None:
        self._append("reports", json.dumps([self._ranks.rank, cause, place]) + "\n")

    def _collect(self) -> None:
        """Wait for all reports, or for one with a cause and that of rank 0, which writes the status."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            reports = self._reports()
            cause_known = any(cause for cause, _ in reports.values())
            if len(reports) == self._ranks.world_size or (cause_known and 0 in reports) or time.monotonic() > deadline:
                break
            time.sleep(self._pause_s / 5)
        self._store.set("finding", json.dumps(_judge(reports, self._ranks)))

    def _read_finding(self) -> None:
        """Rank 0, which may host the store, returns only when the other ranks that answer have read it too."""
        deadline = time.monotonic() + 1.5 * self._timeout_s
        while not self._store.check(["finding"]):
            if time.monotonic() > deadline:  # the collecting rank is gone as well
                self._finding = _judge(self._reports(), self._ranks)
                return
            time.sleep(self._pause_s / 5)
        self._finding = found = Finding(*json.loads(self._store.get("finding")))
        self._append("readers", f"{self._ranks.rank} ")
        awaited = set(range(self._ranks.world_size) if found.known else found.answered)
        deadline = time.monotonic() + self._timeout_s
        while self._ranks.is_main and awaited - set(map(int, self._store.get("readers").split())):
            if time.monotonic() > deadline:
                return
            time.sleep(self._pause_s / 5)

    def _append(self, key: str, text: str) -> None:
        self._store.append(key, text)  # type: ignore[attr-defined]

    def _reports(self) -> dict[int, tuple[str, str]]:
        """Rank -> (its error, "" if only a collective failed; where in the code it is)."""
        reports: dict[int, tuple[str, str]] = {}
        for line in self._store.get("reports").splitlines():
            rank, cause, place = json.loads(line)
            if cause or rank not in reports:
                reports[rank] = (cause, place)
        return reports


def _judge(reports: dict[int, tuple[str, str]], ranks: Ranks) -> Finding:
    name = ranks.roster.name
    answered = sorted(reports)
    reporter = answered[0] if answered else ranks.rank
    for rank in answered:
        if cause := reports[rank][0]:
            return Finding(f"{name([rank])} failed: {cause}", True, reporter, answered)
    silent = sorted(set(range(ranks.world_size)) - reports.keys()) if reports else [0]
    if silent:
        return Finding(f"{name(silent)} did not answer any more, killed or stopped", False, reporter, answered)
    places: dict[str, list[int]] = {}
    for rank in answered:
        places.setdefault(reports[rank][1], []).append(rank)
    where = "; ".join(f"{name(group)} at {place}" for place, group in sorted(places.items(), key=lambda p: len(p[1])))
    return Finding(f"the ranks waited too long for each other: {where}", False, reporter, answered)
