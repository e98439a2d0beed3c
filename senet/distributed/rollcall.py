"""After a collective has failed: which rank was the cause, found out through the store. No collectives."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from senet.distributed import hangs
from senet.distributed.ranks import PeerFailed, Ranks
from senet.errors import Kind, RunError, cause_of, note, noted, place
from senet.rundir.restarts import SILENT

_DYING_S = 2.0  # a process that has been killed runs until then: this host may be busy
_PATIENCE_S = 5.0  # longer than it may take, before the store counts as gone


class Report(NamedTuple):
    """What a rank tells at a roll call."""

    cause: str  # its error; empty if only a collective failed
    place: str  # where in the code it is
    seen: dict[int, str]  # state of the processes of other ranks that it sees
    kind: Kind  # of its error


class Finding(NamedTuple):
    """What a roll call found; the same on all ranks that read it."""

    text: str
    known: bool  # a rank reported its own error; else deduced from which ranks answer
    reporter: int  # the lowest rank that answered
    answered: list[int]
    failure: dict[str, Any]  # for the status: the cause, and which rank on which host, if it was one
    silent: list[int]  # did not answer
    hang: bool  # stacks may tell more: a rank may be there and not get on
    kind: Kind


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
        """Report ``error`` to the other ranks, and note in it what the status tells. If it is only that of a failed
        collective, raise PeerFailed, which names the rank that failed first. Takes four seconds at most, nine if the
        store does not answer, more above 256 ranks, and as long as py-spy takes for a rank that hangs.

        Args:
            advice: the remedy in the message if all ranks answer.
        """
        of_collective = _is_of_collective(error)
        cause = "" if of_collective else cause_of(error)
        if cause:
            self._note_own(error, cause)
        if self._ranks.world_size == 1:
            return
        if not (of_collective and self._finding):
            self.close()  # this thread reports, not the other
            # in a thread, because the store's host may have stopped: under torchrun the launcher, else rank 0
            report = cause, place([*traceback.walk_tb(error.__traceback__)]), noted(error).get("kind", "")
            caller = threading.Thread(target=self._call, args=report, name="roll call", daemon=True)
            caller.start()
            caller.join(2 * self._timeout_s + _PATIENCE_S)
        cut_off = self._finding is None and len({process.boot for process in self._ranks.roster.values()}) > 1
        if of_collective and self._finding is None:
            self._finding = _judge_without_store(self._ranks)
            self._show()
        if found := self._finding:
            self._done.wait(hangs.LIMIT_S)
        if of_collective and found:
            reason = " ".join(str(error).split("]", 1)[-1].split())[:200]
            text = found.text if found.known else f"{found.text} ({reason})"
            lost = PeerFailed(
                f"{text}; {advice}" if not found.known and len(found.answered) == self._ranks.world_size else text
            )
            lost.reporter, lost.guess, lost.cut_off, lost.kind = found.reporter, not found.known, cut_off, found.kind
            note(lost, **noted(error) | {"reason": str(lost), "failure": found.failure})
            raise lost from error

    def close(self) -> None:
        """Answer no more roll calls."""
        self._closing.set()

    def _note_own(self, error: Exception, cause: str) -> None:
        if isinstance(error, RunError):  # names ranks itself, or is raised by all
            note(error, reason=cause, failure={"cause": cause})
        else:
            failed = _failed(cause, self._ranks.rank, self._ranks)
            note(error, reason=failed.text, failure=failed.failure)

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


def _is_of_collective(error: Exception) -> bool:
    from_gloo = type(error) is RuntimeError and ("gloo" in str(error) or "pair closure" in str(error))
    return isinstance(error, dist.DistBackendError) or from_gloo


def _judge(reports: dict[int, Report], ranks: Ranks) -> Finding:
    answered = sorted(reports)
    for rank in answered:
        if cause := reports[rank].cause:
            found = _failed(cause, rank, ranks, reports[rank].kind)
            return found._replace(reporter=answered[0], answered=answered)
    if silent := sorted(set(range(ranks.world_size)) - reports.keys()):
        seen = {rank: letter for report in reports.values() for rank, letter in report.seen.items()}
        return _silent({rank: seen.get(rank, "?") for rank in silent}, answered, ranks)
    places: dict[str, list[int]] = {}
    for rank in answered:
        places.setdefault(reports[rank].place, []).append(rank)
    by_place = sorted(places.items(), key=lambda place: len(place[1]))
    what = "the ranks waited too long for each other"
    where = "; ".join(f"{ranks.roster.name(group)} at {place}" for place, group in by_place)
    cause = f"{what}: {'; '.join(place for place, _ in by_place)}"
    return Finding(f"{what}: {where}", False, answered[0], answered, {"cause": cause}, [], hang=True, kind="rank hangs")


def _judge_without_store(ranks: Ranks) -> Finding:
    """Its host is gone: under torchrun a launcher, else rank 0."""
    deadline = time.monotonic() + _DYING_S
    while (letter := hangs.states(ranks.roster, ranks.rank).get(0, "?")) in ("R", "S") and time.monotonic() < deadline:
        time.sleep(_DYING_S / 20)
    if ranks.rank > 0 and letter not in ("R", "S"):
        return _silent({0: letter}, [], ranks)
    what = f"the store at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    cause = f"{SILENT}: {what}"
    return Finding(f"{what} {SILENT}", False, ranks.rank, [], {"cause": cause}, [], hang=True, kind="rank hangs")


def _failed(cause: str, rank: int, ranks: Ranks, kind: Kind = "") -> Finding:
    """What a rank says of itself."""
    failure, text = {"cause": cause, "rank": rank, "host": ranks.roster.host(rank)}, f"failed: {cause}"
    return Finding(f"{ranks.roster.name([rank])} {text}", True, rank, [rank], failure, [], hang=False, kind=kind)


def _silent(letters: dict[int, str], answered: list[int], ranks: Ranks) -> Finding:
    """Of ranks that do not answer, by the states of their processes."""
    by_letter: dict[str, list[int]] = {}
    for rank, letter in letters.items():
        by_letter.setdefault(letter, []).append(rank)
    text = "; ".join(
        f"{ranks.roster.name(group)} {SILENT}: {hangs.in_words(letter)}" for letter, group in by_letter.items()
    )
    first = min(letters)
    cause = f"{SILENT}: {hangs.in_words(letters[first])}"
    failure = {"cause": cause, "rank": first, "host": ranks.roster.host(first)}
    reporter = answered[0] if answered else ranks.rank
    kind: Kind = "rank was killed" if {"", "?"} & by_letter.keys() else "rank hangs"
    return Finding(text, False, reporter, answered, failure, list(letters), hang=set(by_letter) != {""}, kind=kind)
