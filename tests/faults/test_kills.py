"""SIGKILL, anywhere: the newest published checkpoint is whole, and the run ends with the bits of an unbroken one."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from senet.rundir.checkpoint import read_checkpoint
from tests.faults.conftest import FULL, Trial, Unbroken
from tests.faults.interpose import failing, missing_compiler
from tests.faults.networks import AT
from tests.faults.runs import EVERY, LAST, last_step, newest_step, options, ranks_of, recover
from tests.harness import (
    checkpoints,
    descendants,
    differing,
    named,
    payload,
    rows,
    started,
    status,
    survivors,
    train_command,
    wait_until,
    without_clock,
)
from tests.soak import soak

PACED = "model.name=tests.faults.networks:paced"
LIMIT_S, LAUNCHER_S = 5, 30  # torchrun gives the other ranks of a failed group so long to end
SLACK_S = 5 if FULL else 40  # the quick form runs beside others
CALLS = ("open", "write", "fsync", "rename", "fsyncdir", "unlink")


@pytest.mark.fault("SIGKILL of all ranks at a random moment", quick=2, full=50)
def test_a_run_killed_at_a_random_moment_ends_with_the_bits_of_an_unbroken_one(
    trial: Trial, data_root: Path, tmp_path: Path, unbroken: Unbroken
) -> None:
    ranks = (1, 2, 4)[trial.number % 3]
    run_dir = tmp_path / "run"
    command = train_command(ranks, options(data_root, run_dir, PACED))
    # a step behind a checkpoint, so that some are repeated
    moment = trial.random.choice([step for step in range(EVERY + 2, LAST - 1) if step % EVERY not in (0, EVERY - 1)])
    with started(command, tmp_path / "log") as process:
        wait_until(lambda: last_step(run_dir) >= moment and newest_step(run_dir) > 0)
        time.sleep(trial.random.uniform(0, 0.06))  # an update takes as long
    assert process.returncode != 0
    reached, saved = last_step(run_dir), newest_step(run_dir)
    in_flight = 0 if FULL else EVERY  # with other tests running, a write may take longer than the updates after it
    assert 0 < saved <= reached <= saved + EVERY + in_flight
    recover(trial, command, run_dir, tmp_path / "log2")
    assert f"at step {saved}" in (tmp_path / "log2").read_text()
    assert differing(unbroken(ranks), without_clock(payload(run_dir))) == []


@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
@pytest.mark.fault("SIGKILL in each call of a save, prune included", quick=6, full=100)
def test_killed_inside_a_save_there_is_always_a_checkpoint(
    trial: Trial, data_root: Path, tmp_path: Path, unbroken: Unbroken
) -> None:
    call = CALLS[trial.number % len(CALLS)]
    # of 8 saves, the last has none after it that could tidy up
    at = 1 + trial.number // len(CALLS) % (7 if call == "fsyncdir" else 10)
    if trial.number < len(CALLS):
        at = trial.random.randint(1, 6)
    run_dir = tmp_path / "run"
    command = train_command(0, options(data_root, run_dir, "checkpoint.keep=1"))
    fault = failing(call, run_dir / "checkpoints", at=at)
    with started(command, tmp_path / "log", **fault) as process:
        assert process.wait(400) == -signal.SIGKILL, f"{call} {at}: {(tmp_path / 'log').read_text()}"
    published = checkpoints(run_dir)
    assert published or at <= 2, f"{call} {at}"
    for path in published:
        read_checkpoint(path)
    recover(trial, command, run_dir, tmp_path / "log2")
    assert "set aside" not in (tmp_path / "log2").read_text()
    assert differing(unbroken(1), without_clock(payload(run_dir))) == []
    left = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    kept = [path.with_suffix("").name for path in checkpoints(run_dir)]
    assert left == sorted(f"{name}.{kind}" for name in kept for kind in ("json", "pt"))
    assert len(kept) <= 2  # the last and the best


@soak
@pytest.mark.fault("ten kills in a row", quick=1, full=1)
def test_after_ten_kills_each_step_is_written_down_once(
    trial: Trial, data_root: Path, tmp_path: Path, unbroken: Unbroken
) -> None:
    run_dir = tmp_path / "run"
    command = train_command(0, options(data_root, run_dir, PACED, "log.to=[tensorboard]"))
    for number in range(10):
        with started(command, tmp_path / "log") as process:
            goal = 4 * number + trial.random.randint(3, 6)
            wait_until(lambda count=number + 1, goal=goal: _trained(run_dir, count, goal))
        assert process.returncode != 0
    recover(trial, command, run_dir, tmp_path / "log")
    assert differing(unbroken(1), without_clock(payload(run_dir))) == []
    for folder, steps in (("train", [row["step"] for row in rows(run_dir)]), ("test", [22, LAST])):
        events = EventAccumulator(str(run_dir / "tensorboard" / folder))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == steps


def _trained(run_dir: Path, generation: int, step: int) -> bool:
    """Whether this start has got so far."""
    path = run_dir / "status.json"
    found = status(run_dir) if path.exists() else {}
    return (found.get("generation"), found.get("state")) == (generation, "running") and last_step(run_dir) >= step


@pytest.mark.fault("one rank SIGKILL or SIGSTOP, 2 and 4 ranks", quick=2, full=20)
def test_a_rank_that_is_killed_or_stopped_takes_the_others_down_and_is_named(
    trial: Trial, data_root: Path, tmp_path: Path
) -> None:
    how = (signal.SIGKILL, signal.SIGSTOP)[trial.number % 2]
    ranks = (4, 2, 2, 4)[trial.number % 4]
    victim = trial.random.randrange(ranks)
    limits = [f"distributed.step_timeout_s={LIMIT_S}", "train.epochs=2000"]
    command = train_command(ranks, options(data_root, tmp_path / "run", *limits))
    with started(command, tmp_path / "log") as process:
        wait_until(lambda: last_step(tmp_path / "run") >= 10, 400)
        tree, began = descendants(process), time.monotonic()
        ranks_of(process)[victim].send_signal(how)
        assert process.wait(25 + SLACK_S if how == signal.SIGKILL else LIMIT_S + LAUNCHER_S + SLACK_S) != 0
        trial.recovered(time.monotonic() - began)
        assert survivors(tree) == []
    log = (tmp_path / "log").read_text()
    assert f"failed: {named(victim)} did not answer any more" in log, log
    assert not re.search(r'train_ddp\.py", line \d+, in', log)  # no traceback of ours; a stack has no comma there
    if victim != 0:
        found = status(tmp_path / "run")
        assert (found["state"], f"{named(victim)} did not answer" in found["reason"]) == ("failed", True)


@pytest.mark.fault("a rank stuck in its own code", quick=1, full=4)
def test_where_each_rank_is_when_one_does_not_come_back(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    ranks = 2 + trial.number % 2 * 2
    stuck = ("model.name=tests.faults.networks:stuck", "train.accumulate=1", f"distributed.step_timeout_s={LIMIT_S}")
    began = time.monotonic()
    with started(train_command(ranks, options(data_root, tmp_path / "run", *stuck)), tmp_path / "log") as process:
        wait_until(lambda: last_step(tmp_path / "run") == AT - 1)
        began = time.monotonic()
        tree = descendants(process)
        assert process.wait(LIMIT_S + LAUNCHER_S + SLACK_S) != 0
        trial.recovered(time.monotonic() - began)
        assert survivors(tree) == []
    reason = status(tmp_path / "run")["reason"]
    assert "the ranks waited too long for each other: rank" in reason
    assert f"{named(1)} at faults/networks.py:" in reason


@pytest.mark.fault("the launcher SIGKILL", quick=1, full=10)
def test_workers_die_with_their_launcher(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    command = train_command(4, options(data_root, tmp_path / "run", "train.epochs=100000"))
    moment = trial.random.randint(1, 30)
    with started(command, tmp_path / "log") as process:
        wait_until(lambda: last_step(tmp_path / "run") >= moment, 400)
        ranks = list(ranks_of(process).values())
        assert len(ranks) == 4
        began = time.monotonic()
        process.kill()
        wait_until(lambda: survivors(ranks) == [], 60, "workers to die with torchrun")
        trial.recovered(time.monotonic() - began)
