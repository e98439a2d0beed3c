"""What ranks tell each other through the store when the process groups have failed. No collectives."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from senet.ranks import PeerFailed, Ranks

_ROLL_CALL_S = 2.0


class RollCall:
    """Who is still there when a collective has failed, and where in the program each rank is. Through the store, since
    the groups are of no use by then.

    A thread answers for a rank that has not failed itself; a rank that is killed or stopped does not answer.
    """

    def __init__(self, store: Store, ranks: Ranks) -> None:
        self._store, self._ranks = store, ranks
        self._closing = threading.Event()
        self._heard: dict[int, tuple[str, str]] = {}  # by rank: its error, "" where that only followed; where it was
        if ranks.world_size > 1:
            threading.Thread(target=self._stand_by, name="roll call", daemon=True).start()

    def explain(self, error: Exception, advice: str) -> None:
        """Put down one's own error; where it only says that a collective failed, raise PeerFailed with the rank that
        it began with. Takes three seconds at the most.

        Args:
            advice: what to look at where all are there.
        """
        if self._ranks.world_size == 1:
            return
        of_gloo = type(error) is RuntimeError and ("gloo" in str(error) or "pair closure" in str(error))
        followed = isinstance(error, dist.DistBackendError) or of_gloo
        mine = "" if followed else " ".join(f"{type(error).__name__}: {error}".split())[:300]
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        # in a thread, because the store's host may be what has stopped: under torchrun the launcher, else rank 0
        caller = threading.Thread(target=self._call, args=(mine, _place(frames)), name="roll call", daemon=True)
        caller.start()
        caller.join(_ROLL_CALL_S + 1)
        if followed:
            lost = PeerFailed(self._finding(" ".join(str(error).split("]", 1)[-1].split())[:200], advice))
            lost.reporter = 0 if 0 in self._heard else min(self._heard, default=self._ranks.rank)
            raise lost from error

    def close(self) -> None:
        """No more questions."""
        self._closing.set()

    def _finding(self, reason: str, advice: str) -> str:
        heard = dict(self._heard)
        for rank, (cause, _) in sorted(heard.items()):
            if cause:
                return f"rank {rank} failed: {cause}"
        silent = sorted(set(range(self._ranks.world_size)) - heard.keys()) if heard else [0]
        if silent:
            return f"{_name(silent)} did not answer any more, killed or stopped ({reason})"
        places: dict[str, list[int]] = {}
        for rank, (_, place) in sorted(heard.items()):
            places.setdefault(place, []).append(rank)
        where = "; ".join(
            f"{_name(group)} at {place}" for place, group in sorted(places.items(), key=lambda p: len(p[1]))
        )
        return f"the ranks waited too long for each other: {where} ({reason}); {advice}"

    def _call(self, mine: str, place: str) -> None:
        """Ask, and collect what is said until all have answered, or one names a cause and rank 0 has answered."""
        store, own, deadline = self._store, self._ranks.rank, time.monotonic() + _ROLL_CALL_S
        waited_for = set(range(self._ranks.world_size)) - {own}
        with contextlib.suppress(RuntimeError):  # the store's host is gone: nobody answers
            store.set(f"said/{own}", json.dumps([mine, place]))
            store.set("asked", "")
            store.check(["asked"])  # a host that has stopped does not come back from here
            self._heard[own] = (mine, place)
            while waited_for and time.monotonic() < deadline:
                for rank in sorted(waited_for):
                    for key in (f"said/{rank}", f"here/{rank}"):
                        if store.check([key]):
                            self._heard[rank] = tuple(json.loads(store.get(key)))
                            waited_for.discard(rank)
                            break
                if any(cause for cause, _ in self._heard.values()) and 0 not in waited_for:
                    return
                time.sleep(0.05)

    def _stand_by(self) -> None:
        main = threading.main_thread().ident
        with contextlib.suppress(RuntimeError):  # the store's host is gone, and with it whoever might ask
            while not self._closing.wait(_ROLL_CALL_S / 4):
                if self._store.check(["asked"]):
                    frames = [frame for frame, _ in traceback.walk_stack(sys._current_frames().get(main or 0))]
                    self._store.set(f"here/{self._ranks.rank}", json.dumps(["", _place(frames[::-1])]))
                    return


def _place(frames: Sequence[FrameType]) -> str:
    """Where a program is, outside of torch: file, line and function of the innermost of these frames."""
    own = [frame for frame in frames if "torch" not in Path(frame.f_code.co_filename).parts]
    if not own:
        return "an unknown place"
    code = own[-1].f_code
    return f"{'/'.join(Path(code.co_filename).parts[-2:])}:{own[-1].f_lineno} {code.co_name}"


def _name(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
