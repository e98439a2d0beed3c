"""What ranks tell each other through the store when the process groups have failed. No collectives."""

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
from senet.distributed.watchdog import name as _name
from senet.distributed.watchdog import place as _place


class Finding(NamedTuple):
    """What a roll call found; the same for all ranks that hear it."""

    text: str
    known: bool  # by a rank of itself; else it is what the others think of it
    reporter: int  # the lowest rank that answered
    answered: list[int]


class RollCall:
    """Who is still there when a collective has failed, and where in the program each rank is. Through the store, since
    the groups are of no use by then.

    Each rank leaves a word, once anybody has: of what it failed itself or, by a thread, where it is; a rank that is
    killed or stopped leaves none. The first that failed reads them and puts down what it finds, which the others read:
    the requests are as many as the ranks, not as their square.
    """

    def __init__(self, store: Store, ranks: Ranks) -> None:
        self._store, self._ranks = store, ranks
        self._pause_s = max(0.5, ranks.world_size / 512)  # some hundred requests a second at most, for any number
        self._patience_s = 4 * self._pause_s
        self._closing = threading.Event()
        self._finding: Finding | None = None
        if ranks.world_size > 1:
            threading.Thread(target=self._stand_by, name="roll call", daemon=True).start()

    def explain(self, error: Exception, advice: str) -> None:
        """Put down one's own error; where it only says that a collective failed, raise PeerFailed with the rank that
        it began with. Takes four seconds at the most, more above 256 ranks.

        Args:
            advice: what to look at where all are there.
        """
        if self._ranks.world_size == 1:
            return
        of_gloo = type(error) is RuntimeError and ("gloo" in str(error) or "pair closure" in str(error))
        followed = isinstance(error, dist.DistBackendError) or of_gloo
        cause = "" if followed else " ".join(f"{type(error).__name__}: {error}".split())[:300]
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not (followed and self._finding):
            self.close()  # this rank speaks for itself
            # in a thread, because the store's host may be what has stopped: under torchrun the launcher, else rank 0
            caller = threading.Thread(target=self._call, args=(cause, _place(frames)), name="roll call", daemon=True)
            caller.start()
            caller.join(2 * self._patience_s)
        if followed:
            found = self._finding or _judge({}, self._ranks.world_size, self._ranks.rank)
            reason = " ".join(str(error).split("]", 1)[-1].split())[:200]
            text = found.text if found.known else f"{found.text} ({reason})"
            lost = PeerFailed(
                f"{text}; {advice}" if not found.known and len(found.answered) == self._ranks.world_size else text
            )
            lost.reporter, lost.guess = found.reporter, not found.known
            raise lost from error

    def close(self) -> None:
        """No more questions."""
        self._closing.set()

    def _stand_by(self) -> None:
        main = threading.main_thread().ident
        with contextlib.suppress(RuntimeError):  # the store's host is gone, and with it whoever might ask
            while not self._closing.wait(self._pause_s):
                if self._store.check(["words"]):
                    frames = [frame for frame, _ in traceback.walk_stack(sys._current_frames().get(main or 0))]
                    self._say("", _place(frames[::-1]))
                    self._hear()
                    return

    def _call(self, cause: str, place: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store's host is gone: nobody answers
            self._say(cause, place)
            if self._store.add("called", 1) == 1:
                self._lead()
            self._hear()

    def _say(self, cause: str, place: str) -> None:
        self._append("words", json.dumps([self._ranks.rank, cause, place]) + "\n")

    def _lead(self) -> None:
        """Read until all have answered, or one names a cause and rank 0 has answered, who has the status to write."""
        deadline = time.monotonic() + self._patience_s
        while True:
            words = self._words()
            cause_known = any(cause for cause, _ in words.values())
            if len(words) == self._ranks.world_size or (cause_known and 0 in words) or time.monotonic() > deadline:
                break
            time.sleep(self._pause_s / 5)
        self._store.set("finding", json.dumps(_judge(words, self._ranks.world_size, self._ranks.rank)))

    def _hear(self) -> None:
        """Read what was found; rank 0, which may host the store, stays until those that live have read it too."""
        deadline = time.monotonic() + 1.5 * self._patience_s
        while not self._store.check(["finding"]):
            if time.monotonic() > deadline:  # the one that was to put it down is gone as well
                self._finding = _judge(self._words(), self._ranks.world_size, self._ranks.rank)
                return
            time.sleep(self._pause_s / 5)
        self._finding = found = Finding(*json.loads(self._store.get("finding")))
        self._append("heard", f"{self._ranks.rank} ")
        awaited = set(range(self._ranks.world_size) if found.known else found.answered)
        deadline = time.monotonic() + self._patience_s
        while self._ranks.is_main and awaited - set(map(int, self._store.get("heard").split())):
            if time.monotonic() > deadline:
                return
            time.sleep(self._pause_s / 5)

    def _append(self, key: str, text: str) -> None:
        self._store.append(key, text)  # type: ignore[attr-defined]

    def _words(self) -> dict[int, tuple[str, str]]:
        """By rank: its error, "" where that only followed; where it is."""
        words: dict[int, tuple[str, str]] = {}
        for line in self._store.get("words").splitlines():
            rank, cause, place = json.loads(line)
            if cause or rank not in words:
                words[rank] = (cause, place)
        return words


def _judge(words: dict[int, tuple[str, str]], world_size: int, own_rank: int) -> Finding:
    answered = sorted(words)
    reporter = answered[0] if answered else own_rank
    for rank in answered:
        if cause := words[rank][0]:
            return Finding(f"rank {rank} failed: {cause}", True, reporter, answered)
    silent = sorted(set(range(world_size)) - words.keys()) if words else [0]
    if silent:
        return Finding(f"{_name(silent)} did not answer any more, killed or stopped", False, reporter, answered)
    places: dict[str, list[int]] = {}
    for rank in answered:
        places.setdefault(words[rank][1], []).append(rank)
    where = "; ".join(f"{_name(group)} at {place}" for place, group in sorted(places.items(), key=lambda p: len(p[1])))
    return Finding(f"the ranks waited too long for each other: {where}", False, reporter, answered)
