"""What the ranks agree on while they train: over gloo, and in a trainer whose device never comes back."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch.amp import GradScaler

from senet.distributed.agreement import Agreement, NonFiniteLoss
from senet.distributed.preemption import steps_between_votes
from senet.distributed.ranks import PeerFailed, Ranks
from senet.training import trainer
from senet.training.run import run
from tests.harness import StopAt, named, run_ranks, tiny, tiny_config
from tests.test_groups import with_group

pytestmark = pytest.mark.ranks


def _agree(every: int, cases: list[tuple[int, dict[int, int], int]]) -> list[list[Any]]:
    """For each (step at which rank 1 wants to stop, first bad step by rank, step of a save): how the loop ends on this
    rank, in which step, whether anything was saved, and the error."""

    def end(ranks: Ranks, group: dist.ProcessGroup, stop_at: int, bad_at: dict[int, int], save_at: int) -> list[Any]:
        agreement, saved = Agreement(group, every), False
        for step in range(1, 100):
            bad = 0 < bad_at.get(ranks.rank, 0) <= step
            try:
                agreement.observe(step, torch.tensor(math.nan if bad else 1.0))
                agreement.exchange(stop=ranks.rank == 1 and step == stop_at)
                if step == save_at or agreement.stop_agreed:
                    agreement.conclude()
                    saved = True
            except NonFiniteLoss as error:
                return ["not finite", step, saved, str(error)]
            if agreement.stop_agreed:
                return ["stopped", step, saved, ""]
        return ["none", step, saved, ""]

    def loops(ranks: Ranks, group: dist.ProcessGroup) -> list[list[Any]]:
        return [end(ranks, group, *case) for case in cases]

    return with_group(loops)  # type: ignore[no-any-return]


@pytest.mark.parametrize("every", [1, 4])
def test_all_ranks_stop_at_one_step_soon_after_one_of_them_wants_to(every: int, tmp_path: Path) -> None:
    cases = [(stop_at, {}, save_at) for stop_at in (5, 6, 7, 8) for save_at in (0, 7)]
    one, *others = run_ranks(3, _agree, every, cases, tmp_path=tmp_path)
    assert others == [one] * 2
    for (stop_at, *_), (how, step, saved, _) in zip(cases, one, strict=True):
        assert (how, saved) == ("stopped", True)
        assert stop_at < step <= stop_at + 2 * every
        assert every > 1 or step == stop_at + 1


@pytest.mark.parametrize("every", [1, 4])
def test_a_loss_that_is_not_finite_ends_all_ranks_before_anything_is_published(every: int, tmp_path: Path) -> None:
    # one step later it is in the weights of all ranks: the message has its first step and number of ranks
    bad_at = {0: 7, 1: 6}
    cases = [(0, bad_at, 0), (0, bad_at, 6), (5, bad_at, 0)]
    one, other = run_ranks(2, _agree, every, cases, tmp_path=tmp_path)
    assert one == other
    for (_, _, save_at), (how, step, saved, message) in zip(cases, one, strict=True):
        assert (how, saved) == ("not finite", False)
        assert message.startswith("the loss of step 6 is not finite on 1 of 2 ranks")
        assert 6 <= step <= (save_at or 6 + 2 * every)


def test_one_rank_alone_stops_within_a_step(tmp_path: Path) -> None:
    [[[how, step, saved, _]]] = run_ranks(1, _agree, 1, [(0, {0: 6}, 0)], tmp_path=tmp_path)
    assert (how, step, saved) == ("not finite", 6, False)


def test_no_vote_waits_for_the_device_until_all_have_come_this_far(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forward:
        """Of a step that waits for a rank which is gone."""

        waited_for = False

        def query(self) -> bool:
            return False

        def synchronize(self) -> None:
            self.waited_for = True

    monkeypatch.setattr(dist, "get_world_size", lambda _: 1)
    agreement, forwards = Agreement(cast(dist.ProcessGroup, None), every=2), [Forward() for _ in range(4)]
    for step, forward in enumerate(forwards, start=1):
        agreement._unread.append((step, torch.tensor(1.0), cast(torch.cuda.Event, forward)))
        agreement.exchange(stop=False)
    assert not any(forward.waited_for for forward in forwards)
    agreement.conclude()
    assert all(forward.waited_for for forward in forwards)


def test_few_ranks_vote_at_each_step_and_many_at_some() -> None:
    assert [steps_between_votes(ranks) for ranks in (1, 2, 16, 17, 64, 128, 4096)] == [1, 1, 1, 2, 4, 8, 16]


def _lost(wait: str, folder: str, options: list[str]) -> None:
    """Rank 1 dies after its backward pass of step 4, before its vote. Rank 0, which from that step on would wait for
    its device for ever, writes down the error."""
    if os.environ["RANK"] == "1":
        exchange = Agreement.exchange

        def die(self: Agreement, *, stop: bool) -> None:
            if self._unread[-1][0] == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            exchange(self, stop=stop)

        Agreement.exchange = die  # type: ignore[method-assign]
    owner, name = {"fp16": (GradScaler, "step")}.get(wait, (trainer, wait))
    original, calls = getattr(owner, name), []

    def device(*args: Any) -> Any:
        calls.append(args)
        if wait != "fp16" or len(calls) == 4:
            time.sleep(600)
        return original(*args)

    setattr(owner, name, device)
    try:
        run(tiny_config(*options, world_size=2), tiny(*options), StopAt(10**6))
    except PeerFailed as error:
        (Path(folder) / "said").write_text(str(error))


@pytest.mark.parametrize(
    ("wait", "options"),
    [
        ("sum_over_ranks", ["log.every_steps=4"]),
        ("check_in_sync", ["train.desync_check_every=4", "log.every_steps=1000"]),
        ("fp16", ["train.amp=fp16", "model.name=tests.networks:no_norm", "log.every_steps=1000"]),
    ],
)
def test_a_dead_rank_is_named_where_the_device_would_be_waited_for(
    wait: str, options: list[str], data_root: Path, tmp_path: Path
) -> None:
    options = [*options, "checkpoint.every_steps=1000", f"run_dir={tmp_path}/run", f"data.root={data_root}"]
    with pytest.raises(FileNotFoundError):  # rank 1 leaves no result
        run_ranks(2, _lost, wait, str(tmp_path), options, tmp_path=tmp_path, timeout_s=180)
    assert (tmp_path / "said").read_text().startswith(f"{named(1)} did not answer any more: its process has ended")
