"""Whether a training that has failed is launched again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from senet.rundir import restarts
from senet.rundir.files import read_json, read_rows
from senet.rundir.restarts import count_restarts, last_restart, launch_again, newest_checkpoint
from senet.training.trainer import Trainer
from tests.conftest import Train
from tests.harness import StopAt

KILLED = {"state": "failed", "reason": "rank 1 on n2 did not answer any more: killed", "step": 40}
KILLED |= {"failure": {"cause": f"{restarts.SILENT}: killed", "rank": 1, "host": "n2"}}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def publish(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints" / f"step_{step:09d}.g0001.pt").write_text("")


def bug(step: int | None, cause: str, rank: int) -> dict[str, Any]:
    reason = f"rank {rank} on n{rank} failed: {cause}"
    known = {"cause": cause, "rank": rank, "host": f"n{rank}"}
    return {"state": "failed", "reason": reason, "failure": known, **({} if step is None else {"step": step})}


def asked(run_dir: Path, outcomes: list[dict[str, Any]], most: int = 3) -> list[str]:
    """What is answered after each launch of one start."""
    return [
        launch_again(run_dir, outcome, most=most, option="slurm.max_restarts", job="7", launch=launch)
        for launch, outcome in enumerate(outcomes)
    ]


def test_a_killed_rank_costs_a_launch_until_the_budget_is_used_up(run_dir: Path) -> None:
    *again, why = asked(run_dir, [KILLED] * 4)
    assert again == ["", "", ""]
    assert why == f"slurm.max_restarts=3 is used up: {KILLED['reason']}"
    assert count_restarts(run_dir, "7") == 3


def test_a_new_checkpoint_gives_the_whole_budget_again(run_dir: Path) -> None:
    answers = []
    for launch in range(9):
        if launch in (2, 4, 6):
            publish(run_dir, launch)
        answers.append(launch_again(run_dir, KILLED, most=2, option="RESTARTS", job="7", launch=launch))
    assert answers == [""] * 8 + [f"RESTARTS=2 is used up: {KILLED['reason']}"]


@pytest.mark.parametrize(
    ("second", "again"),
    [
        (bug(40, "ValueError: boom at 0x7f00 with 3 of 4", rank=0), False),  # another rank speaks first
        (bug(41, "ValueError: boom at 0x7f01 with 3 of 4", rank=1), True),
        (bug(40, "OSError: no space", rank=1), True),
        (bug(None, "ValueError: boom at 0x7f02 with 3 of 4", rank=1), True),
        (KILLED, True),
    ],
)
def test_the_same_cause_at_the_same_step_is_a_bug(run_dir: Path, second: dict[str, Any], again: bool) -> None:
    first, why = asked(run_dir, [bug(40, "ValueError: boom at 0x7eff with 1 of 4", rank=1), second])
    assert first == ""
    assert why == ("" if again else f"failed twice at step 40: {second['reason']}")


def test_a_bug_is_found_again_after_other_failures_and_progress(run_dir: Path) -> None:
    *again, why = asked(run_dir, [bug(40, "ValueError: boom", 0), KILLED, KILLED, bug(40, "ValueError: boom", 1)])
    assert again == ["", "", ""]
    assert why == "failed twice at step 40: rank 1 on n1 failed: ValueError: boom"


def test_a_start_that_fails_twice_before_its_first_update_is_not_made_a_third_time(run_dir: Path) -> None:
    failed = {"state": "failed", "reason": "RuntimeError: edited since"}
    assert asked(run_dir, [failed, failed]) == ["", "failed twice before the first update: RuntimeError: edited since"]


def test_what_a_start_had_to_do_without_once_may_be_away_again_in_another_start_or_after_progress(
    run_dir: Path,
) -> None:
    failed = {"state": "failed", "reason": "OSError: Input/output error"}
    where: dict[str, Any] = {"most": 3, "option": "RESTARTS", "job": "7"}
    assert launch_again(run_dir, failed, start=0, launch=0, **where) == ""
    assert launch_again(run_dir, failed, start=1, launch=0, **where) == ""
    publish(run_dir, 5)
    assert launch_again(run_dir, failed, start=1, launch=1, **where) == ""
    assert "failed twice before the first update" in launch_again(run_dir, failed, start=1, launch=2, **where)


def test_a_rank_that_ended_without_a_word_has_no_cause(run_dir: Path) -> None:
    silent = {"state": "running", "step": 40, "reason": "rank 1 ended by SIGKILL, without a word"}
    assert asked(run_dir, [silent, silent, silent]) == ["", "", ""]


@pytest.mark.parametrize("state", ["finished", "stopped", "refused", "port_taken"])
def test_what_is_no_failure_is_neither_recorded_nor_launched_again(run_dir: Path, state: str) -> None:
    assert asked(run_dir, [{"state": state, "reason": "why"}, {"state": state}]) == ["why", state]
    assert not (run_dir / "restarts.jsonl").exists()


def test_without_a_budget_the_reason_stays_as_it_is(run_dir: Path) -> None:
    assert asked(run_dir, [KILLED], most=0) == [KILLED["reason"]]
    assert last_restart(run_dir, "7") == {}


def test_a_job_does_not_pay_for_another(run_dir: Path) -> None:
    assert asked(run_dir, [KILLED] * 3)[-1] == ""
    assert launch_again(run_dir, KILLED, most=1, option="RESTARTS", job="8") == ""
    assert (count_restarts(run_dir, "7"), count_restarts(run_dir, "8")) == (3, 1)


def test_a_budget_is_that_of_a_job_over_its_requeues(run_dir: Path) -> None:
    for start in (0, 1):
        assert launch_again(run_dir, KILLED, most=2, option="RESTARTS", job="7", start=start) == ""
    assert "used up" in launch_again(run_dir, KILLED, most=2, option="RESTARTS", job="7", start=2)


def test_who_asks_twice_has_failed_once(run_dir: Path) -> None:
    failed = bug(40, "ValueError: boom", 1)
    answers = [launch_again(run_dir, failed, most=1, option="RESTARTS", job="7") for _ in range(3)]
    assert answers == ["", "", ""]
    assert count_restarts(run_dir, "7") == 1


def test_a_job_that_goes_back_into_the_queue_was_not_launched_again(run_dir: Path) -> None:
    assert launch_again(run_dir, KILLED, most=1, option="RESTARTS", job="7", at_once=False) == ""
    assert (count_restarts(run_dir, "7"), last_restart(run_dir, "7")) == (0, {})
    assert "used up" in launch_again(run_dir, KILLED, most=1, option="RESTARTS", job="7", start=1)  # but it has failed


def test_a_full_disk_stops_no_launch_and_makes_no_endless_loop(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(restarts, "replace_file", full)
    *again, why = asked(run_dir, [KILLED] * 4)
    assert again == ["", "", ""]
    assert "slurm.max_restarts=3 is used up" in why
    assert caplog.text.count("No space left on device") == 4


def test_a_row_says_when_where_and_why(run_dir: Path) -> None:
    publish(run_dir, 20)
    (run_dir / "restarts.jsonl").write_text('{"job": "6"}\n{"torn": ')
    asked(run_dir, [KILLED | {"heartbeat": 1.5, "kind": "rank was killed"}])
    [row] = read_rows(run_dir / "restarts.jsonl")
    assert row == last_restart(run_dir, "7")
    assert last_restart(run_dir, "8") == {}
    assert row == {
        "time": 1.5,
        "step": 40,
        "reason": KILLED["reason"],
        "cause": "did not answer any more: killed",
        "kind": "rank was killed",
        "rank": 1,
        "host": "n2",
        "checkpoint": "step_000000020.g0001.pt",
        "job": "7",
        "start": 0,
        "launch": 0,
        "again": True,
    }


def test_the_newest_checkpoint_is_the_one_that_was_published_last(run_dir: Path) -> None:
    assert newest_checkpoint(run_dir) == ""
    publish(run_dir, 20)
    assert newest_checkpoint(run_dir) == "step_000000020.g0001.pt"


def test_the_seconds_lost_run_to_the_first_update_beyond_the_failed_step(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def observe(trainer: Trainer) -> Callable[[], None]:
        assert trainer.record.lease is not None
        facts = trainer.record.lease._status
        return lambda: told.append((trainer.state.step, "restart" in facts))

    light = "model.name=tests.networks:no_norm"
    first = train_here(tmp_path, light, stop=StopAt(5)).step
    failed = {"state": "failed", "reason": "why", "step": first + 2, "heartbeat": time.time() - 100}
    assert launch_again(tmp_path, failed, most=3, option="RESTARTS", job="7") == ""
    monkeypatch.setenv("SENET_JOB", "7")
    train_here(tmp_path, light, stop=StopAt(5), observe=observe)
    assert next(step for step, known in told if known) == first + 3
    restart = read_json(tmp_path / "status.json")["restart"]
    assert 100 < restart["lost_s"] < 400
    assert restart["reason"] == "why"
    train_here(tmp_path, light, stop=StopAt(5))
    assert read_json(tmp_path / "status.json")["restart"] == restart  # later starts keep it
