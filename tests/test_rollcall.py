"""The roll call of many ranks, each of them a few threads of this process."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist

from senet.distributed import findings, hangs
from senet.distributed.findings import is_of_others, judge_without_store, peer_failed
from senet.distributed.groups import RanksDiffer
from senet.distributed.ranks import PeerFailed, Ranks
from senet.distributed.rollcall import RollCall
from senet.distributed.roster import Process, Roster
from senet.errors import noted
from senet.rundir.files import patiently
from senet.rundir.locks import started_at
from tests.harness import on_hosts, wait_until

LOST = RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
FOUR = on_hosts("n1", "n1", "n2", "n2")


def rank(number: int, roster: Roster) -> Ranks:
    return Ranks(number, len(roster), 0, 1, torch.device("cpu"), roster)


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


def call(errors: dict[int, Exception], roster: Roster, *, silent: set[int]) -> tuple[dict[int, PeerFailed], int]:
    """What each failing rank raises, and the number of requests. Ranks without an error only answer."""
    store = CountingStore()
    stands = {each: RollCall(store, rank(each, roster)) for each in roster.keys() - silent}  # type: ignore[arg-type]
    for stand in stands.values():
        stand._timeout_s = 8.0  # the threads of all ranks share one interpreter
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
    for stand in stands.values():
        assert stand._done.wait(60)  # also those that only answer
        stand.close()
    return raised, store.requests.total()


@pytest.mark.slow
def test_a_roll_call_costs_requests_in_proportion_to_the_ranks() -> None:
    by_size = {}
    for world_size in (16, 64):
        roster = on_hosts(*(f"n{number // 8}" for number in range(world_size)))
        ranks = roster.keys() - {7}
        raised, by_size[world_size] = call(dict.fromkeys(ranks, LOST), roster, silent={7})
        assert raised.keys() == ranks
        for lost in raised.values():
            assert str(lost).startswith("rank 7 on n0 did not answer any more: its process has ended (")
            assert (lost.reporter, lost.guess) == (0, True)
    assert by_size[64] < 7 * by_size[16]  # the square would be 16 times as many


@pytest.mark.parametrize(
    ("how", "seen", "host", "hang", "kind"),
    [
        (signal.SIGKILL, "its process has ended", "n2", False, "rank was killed"),
        (signal.SIGSTOP, "stopped by a signal (state T)", "n2", True, "rank hangs"),
        # no rank that answers sees it
        (signal.SIGSTOP, "killed, stopped or cut off", "elsewhere", True, "rank was killed"),
    ],
)
def test_of_a_rank_that_does_not_answer_its_state_is_told_by_another_on_its_host(
    how: signal.Signals, seen: str, host: str, hang: bool, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        lost = Process(host, host, process.pid, started_at(process.pid))
        process.send_signal(how)
        wait_until(lambda: hangs.state(lost) in ("", "T"))
        roster = Roster(FOUR | {3: lost})
        raised, _ = call({0: LOST, 1: LOST}, roster, silent={3})
        if "elsewhere" in host:
            process.kill()
        assert process.wait(180) == -signal.SIGKILL  # also where it was only stopped
    for each in raised.values():
        assert str(each) == f"rank 3 on {host} did not answer any more: {seen} (Connection closed by peer)"
        failure = {"cause": f"did not answer any more: {seen}", "rank": 3, "host": host}
        assert noted(each) == {"kind": kind, "reason": str(each), "failure": failure}
    said = capfd.readouterr().err  # of three threads, at once
    assert sorted(re.findall(r"--- rank \d on n\d: the stacks of all its threads", said)) == hang * [
        f"--- rank {rank} on {at}: the stacks of all its threads" for rank, at in enumerate(["n1", "n1", "n2"])
    ]
    assert ("--- rank 3 on n2: stopped by" in said) == (hang and host == "n2")


def test_ranks_that_wait_for_each_other_tell_where_and_no_rank_is_to_blame() -> None:
    raised, _ = call({0: LOST, 1: dist.DistStoreError("wait timeout after 300000ms")}, FOUR, silent=set())
    assert raised.keys() == {0, 1}
    for each in raised.values():
        assert str(each).startswith("the ranks waited too long for each other: ranks ")
        assert noted(each)["kind"] == "rank hangs"
        assert noted(each)["failure"].keys() == {"cause"}
        assert " on n" not in noted(each)["failure"]["cause"]


def test_a_bug_of_a_user_is_told_with_its_line() -> None:
    def of_a_user() -> None:
        torch.ones(2).register_hook(lambda _: None)

    try:
        of_a_user()
    except RuntimeError as caught:
        error = caught
    raised, _ = call({2: error, 3: LOST}, FOUR, silent=set())
    line = of_a_user.__code__.co_firstlineno + 1
    cause = f"{type(error).__name__}: {error}, at tests/test_rollcall.py:{line} of_a_user"
    assert str(raised[3]) == f"rank 2 on n2 failed: {cause}"
    assert noted(raised[3])["failure"] == noted(error)["failure"] == {"cause": cause, "rank": 2, "host": "n2"}


def test_what_a_rank_says_of_itself_is_what_all_hear_also_those_that_fail_much_later() -> None:
    full = OSError(28, "No space left on device")
    raised, _ = call({0: full, 3: LOST}, FOUR, silent=set())
    assert raised.keys() == {3}  # rank 0 has an error of its own
    assert str(raised[3]) == "rank 0 on n1 failed: OSError: [Errno 28] No space left on device"  # it was never raised
    assert (raised[3].reporter, raised[3].guess) == (0, False)


def test_all_ranks_hear_the_kind_of_what_one_of_them_has_found() -> None:
    raised, _ = call({0: RanksDiffer("conv1.weight"), 3: LOST}, FOUR, silent=set())
    assert noted(raised[3])["kind"] == "ranks differ"


def test_the_rank_that_hosts_the_store_leaves_when_all_have_heard_why() -> None:
    """Without a launcher the store ends with rank 0: by then all ranks must have read the finding."""
    store = CountingStore()
    stands = [RollCall(store, rank(number, FOUR)) for number in range(4)]  # type: ignore[arg-type]
    stands[0].explain(OSError(28, "No space left on device"), "see the docs")
    store._store = None  # gone
    for stand in stands[1:]:
        with pytest.raises(PeerFailed, match=r"rank 0 on n1 failed: OSError: .Errno 28. No space left"):
            stand.explain(LOST, "see the docs")


class Gone(CountingStore):
    """A store whose host is gone."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("Connection reset by peer")


def without_store(own: int, roster: Roster, error: Exception = LOST) -> PeerFailed:
    with pytest.raises(PeerFailed) as caught:
        RollCall(Gone(), rank(own, roster)).explain(error, "see the docs")  # type: ignore[arg-type]
    assert (caught.value.reporter, caught.value.guess) == (own, True)
    return caught.value


def test_a_store_that_is_gone_leaves_a_guess_at_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = without_store(3, FOUR)
    assert str(lost).startswith("rank 0 on n1 did not answer any more: killed, stopped or cut off (")
    assert lost.cut_off
    of_the_store = dist.DistNetworkError("Broken pipe")
    assert str(without_store(3, FOUR, of_the_store)).startswith("rank 0 on n1 did not answer any more: killed, stopped")
    monkeypatch.setenv("MASTER_ADDR", "n9")
    monkeypatch.setenv("MASTER_PORT", "1234")
    lost = without_store(0, FOUR)  # torchrun may have its store on another host than rank 0
    assert str(lost).startswith("the store at n9:1234 did not answer any more (")
    assert lost.cut_off


def test_a_rank_that_has_not_met_the_others_may_be_cut_off_from_them() -> None:
    for local_world_size, cut_off in ((1, True), (4, False)):
        alone = Ranks(3, 4, 0, local_world_size, torch.device("cpu"))
        lost = peer_failed(judge_without_store(alone), dist.DistNetworkError("Broken pipe"), alone)
        assert str(lost).startswith("rank 0 did not answer any more: killed, stopped or cut off (")
        assert lost.cut_off == cut_off


def test_the_error_of_a_store_of_the_users_own_is_his() -> None:
    def of_a_user() -> None:
        raise dist.DistStoreError("wait timeout after 10ms, keys: /mine")

    with pytest.raises(dist.DistStoreError) as caught:
        patiently(of_a_user)  # called by this project
    assert not is_of_others(caught.value)
    assert is_of_others(dist.DistStoreError("wait timeout after 10ms"))


def test_without_a_store_no_rank_that_lives_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        lives = Process("n2", "n2", process.pid, started_at(process.pid))
        assert without_store(3, Roster(FOUR | {2: lives})).cut_off
        one_host = Roster({0: lives, 1: lives._replace(started=-1)})
        lost = without_store(1, one_host)
        assert (str(lost).startswith("the store at "), lost.cut_off) == (True, False)
        assert process.poll() is None
        monkeypatch.setattr(findings, "_DYING_S", 60.0)
        threading.Timer(0.3, process.kill).start()  # as another rank does that has seen it stopped
        lost = without_store(1, one_host)
        assert str(lost).startswith("rank 0 on n2 did not answer any more: its process has ended (")
