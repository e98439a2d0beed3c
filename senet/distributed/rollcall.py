"""After a collective has failed: which rank was the cause, found out through the store. No collectives."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable

from torch.distributed.distributed_c10d import Store

from senet.distributed import hangs
from senet.distributed.findings import Finding, Report, failed, is_of_others, judge, judge_without_store, peer_failed
from senet.distributed.ranks import Ranks
from senet.errors import Kind, RunError, cause_of, note, noted, place

_PATIENCE_S = 5.0  # longer than it may take, before the store counts as gone


class RollCall:
    """Finds which ranks still answer when a collective has failed, and where in the code each one is.

    As soon as one rank has put a report into the store, every other does: its own error or, from a thread, where it
    is. A killed or stopped rank does not. The first rank that failed reads all reports and stores the finding, which
    the others read: requests grow with the number of ranks, not with its square.
    """

    def __init__(self, store: Store, ranks: Ranks, keep: Callable[[], object] = dict) -> None:
        """``keep``: what each rank that answers does first, where no rank knows the cause."""
        self._store, self._ranks, self._keep = store, ranks, keep
        self._pause_s = max(0.5, ranks.world_size / 512)  # at most some hundred requests a second from all ranks
        self._timeout_s = 4 * self._pause_s
        self._closing, self._done = threading.Event(), threading.Event()
        self._finding: Finding | None = None
        if ranks.world_size > 1:
            threading.Thread(target=self._answer, name="roll call", daemon=True).start()

    def explain(self, error: Exception, advice: str) -> None:
        """Report ``error`` to the other ranks, and note in it what the status tells. If it is only that of a collective
        or of the store, also a wait there that was too long, raise PeerFailed, which names the rank that failed first.
        Takes four seconds at most, nine if the store does not answer, more above 256 ranks, and as long as py-spy takes
        for a rank that hangs.

        Args:
            advice: the remedy in the message if all ranks answer.
        """
        of_others = is_of_others(error)
        cause = "" if of_others else cause_of(error)
        if cause:
            self._note_own(error, cause)
        if self._ranks.world_size == 1:
            return
        if not (of_others and self._finding):
            self.close()  # this thread reports, not the other
            # in a thread, because the store's host may have stopped: under torchrun the launcher, else rank 0
            report = cause, place([*traceback.walk_tb(error.__traceback__)]), noted(error).get("kind", "")
            caller = threading.Thread(target=self._call, args=report, name="roll call", daemon=True)
            caller.start()
            caller.join(2 * self._timeout_s + _PATIENCE_S)
        if of_others and self._finding is None:
            self._finding = judge_without_store(self._ranks)
            self._show()
        if found := self._finding:
            self._done.wait(hangs.LIMIT_S)
        if of_others and found:
            raise peer_failed(found, error, self._ranks, advice) from error

    def close(self) -> None:
        """Answer no more roll calls."""
        self._closing.set()

    def _note_own(self, error: Exception, cause: str) -> None:
        if isinstance(error, RunError):  # names ranks itself, or is raised by all
            note(error, reason=cause, failure={"cause": cause})
        else:
            found = failed(cause, self._ranks.rank, self._ranks)
            note(error, reason=found.text, failure=found.failure)

    def _answer(self) -> None:
        main = threading.main_thread().ident
        with contextlib.suppress(RuntimeError):  # the store's host is gone: no rank can call
            while not self._closing.wait(self._pause_s):
                if self._store.check(["reports"]):
                    frames = list(traceback.walk_stack(sys._current_frames().get(main or 0)))
                    try:
                        self._report("", place(frames[::-1]), "")
                        self._read_finding()
                    finally:
                        self._show()
                    return

    def _call(self, cause: str, place: str, kind: Kind) -> None:
        with contextlib.suppress(RuntimeError):  # the store's host is gone: no rank can answer
            self._report(cause, place, kind)
            if self._store.add("called", 1) == 1:
                self._collect()
            self._read_finding()
            self._show()

    def _report(self, cause: str, place: str, kind: Kind) -> None:
        seen = list(hangs.states(self._ranks.roster, self._ranks.rank).items())
        self._append("reports", json.dumps([self._ranks.rank, cause, place, seen, kind]) + "\n")

    def _collect(self) -> None:
        """Wait for all reports, or for one with a cause and that of rank 0, which writes the status."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            reports = self._reports()
            cause_known = any(report.cause for report in reports.values())
            if len(reports) == self._ranks.world_size or (cause_known and 0 in reports) or time.monotonic() > deadline:
                break
            time.sleep(self._pause_s / 5)
        self._store.set("finding", json.dumps(judge(reports, self._ranks)))

    def _read_finding(self) -> None:
        """Rank 0, which may host the store, returns only when the other ranks that answer have read it too."""
        deadline = time.monotonic() + 1.5 * self._timeout_s
        while not self._store.check(["finding"]):
            if time.monotonic() > deadline:  # the collecting rank is gone as well
                self._finding = judge(self._reports(), self._ranks)
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

    def _show(self) -> None:
        """Of a hang: the stacks of this rank, and what it sees of one that does not answer, which is killed. One rank
        does that for all of its host."""
        found, roster, own = self._finding, self._ranks.roster, self._ranks.rank
        try:
            if found is not None and not found.known:
                self._keep()
            if found is not None and found.hang:
                hangs.write_stacks(roster.name([own]))
                beside = roster.beside(own)
                if own == min({own, *beside} & {own, *found.answered}):
                    hangs.end({roster.name([rank]): beside[rank] for rank in found.silent if rank in beside})
        finally:
            self._done.set()

    def _append(self, key: str, text: str) -> None:
        self._store.append(key, text)  # type: ignore[attr-defined]

    def _reports(self) -> dict[int, Report]:
        reports: dict[int, Report] = {}
        for line in self._store.get("reports").splitlines():
            rank, cause, place, seen, kind = json.loads(line)
            if cause or rank not in reports:
                reports[rank] = Report(cause, place, dict(seen), kind)
        return reports
