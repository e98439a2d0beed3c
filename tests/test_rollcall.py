"""The roll call of many ranks, each of them a few threads of this process."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist

from senet.distributed.ranks import PeerFailed, Ranks
from senet.distributed.rollcall import RollCall
from tests.harness import on_hosts

HOSTS = ["n1", "n2", "n3", "n4"]
LOST = RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer")


def rank(number: int, world_size: int) -> Ranks:
    """Of as many ranks on each of four hosts."""
    hosts = [host for host in HOSTS for _ in range(-(-world_size // len(HOSTS)))][:world_size]
    return Ranks(number, world_size, 0, 1, torch.device("cpu"), on_hosts(*hosts))


class CountingStore:
    """A store that counts its requests."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self._store = dist.HashStore()  # type: ignore[attr-defined]
        self._lock = threading.Lock()  # one server, which answers one after another

    def __getattr__(self, name: str) -> Any:
        def ask(*args: Any) -> Any:
            with self._lock:
                self.requests[name] += 1
                return getattr(self._store, name)(*args)

        return ask


def call(errors: dict[int, Exception], *, world_size: int, silent: set[int]) -> tuple[dict[int, PeerFailed], int]:
    """What each failing rank raises, and the number of requests. Ranks without an error only answer."""
    store = CountingStore()
    stands = {each: RollCall(store, rank(each, world_size)) for each in set(range(world_size)) - silent}  # type: ignore[arg-type]
    raised: dict[int, PeerFailed] = {}

    def explain(number: int) -> None:
        try:
            stands[number].explain(errors[number], "see the docs")
        except PeerFailed as lost:
            raised[number] = lost

    threads = [threading.Thread(target=explain, args=(number,)) for number in errors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.6)  # the ranks that only answer have done so
    for stand in stands.values():
        stand.close()
    return raised, store.requests.total()


@pytest.mark.slow
def test_a_roll_call_costs_requests_in_proportion_to_the_ranks() -> None:
    by_size = {}
    for world_size in (16, 64):
        ranks = set(range(world_size)) - {7}
        raised, by_size[world_size] = call(dict.fromkeys(ranks, LOST), world_size=world_size, silent={7})
        assert raised.keys() == ranks
        for lost in raised.values():
            host = HOSTS[7 * 4 // world_size]
            assert str(lost).startswith(f"rank 7 on {host} did not answer any more, killed or stopped (")
            assert (lost.reporter, lost.guess) == (0, True)
    assert by_size[64] < 7 * by_size[16]  # the square would be 16 times as many


def test_what_a_rank_says_of_itself_is_what_all_hear_also_those_that_fail_much_later() -> None:
    full = OSError(28, "No space left on device")
    raised, _ = call({0: full, 3: LOST}, world_size=5, silent=set())
    assert raised.keys() == {3}  # rank 0 has an error of its own
    assert str(raised[3]) == "rank 0 on n1 failed: OSError: [Errno 28] No space left on device"
    assert (raised[3].reporter, raised[3].guess) == (0, False)


def test_the_rank_that_hosts_the_store_leaves_when_all_have_heard_why() -> None:
    """Without a launcher the store ends with rank 0: by then all ranks must have read the finding."""
    store = CountingStore()
    stands = [RollCall(store, rank(number, 4)) for number in range(4)]  # type: ignore[arg-type]
    stands[0].explain(OSError(28, "No space left on device"), "see the docs")
    store._store = None  # gone
    for stand in stands[1:]:
        with pytest.raises(PeerFailed, match=r"rank 0 on n1 failed: OSError: .Errno 28. No space left"):
            stand.explain(LOST, "see the docs")


def test_a_store_that_is_gone_leaves_a_guess_at_its_host() -> None:
    class Gone(CountingStore):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("Connection reset by peer")

    stand = RollCall(Gone(), rank(1, 2))  # type: ignore[arg-type]
    with pytest.raises(PeerFailed, match="rank 0 on n1 did not answer any more") as caught:
        stand.explain(LOST, "see the docs")
    assert (caught.value.reporter, caught.value.guess) == (1, True)
