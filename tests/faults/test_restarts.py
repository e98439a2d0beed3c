"""Restarts by torchrun and by launch.sh: the first one trains on, as soon as a fresh start would."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from senet import REPOSITORY
from tests.faults.conftest import FULL, Trial, Unbroken
from tests.faults.networks import AT
from tests.faults.runs import LAST, last_step, newest_step, options, ranks_of
from tests.harness import (
    descendants,
    differing,
    free_port,
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

PACED = "model.name=tests.faults.networks:paced"
STOPPED_S, LIMIT_S = 15, 8
SLACK_S = 5 if FULL else 60  # the quick form runs beside others


@pytest.mark.fault("SIGKILL of one rank or all, torchrun --max-restarts", quick=1, full=20)
def test_the_first_restart_trains_on(trial: Trial, data_root: Path, tmp_path: Path, unbroken: Unbroken) -> None:
    run_dir = tmp_path / "run"
    command = train_command(2, options(data_root, run_dir, PACED), restarts=2)
    moment = trial.random.randint(8, LAST - 10)
    victims = [{trial.random.randrange(2)}, {0, 1}][trial.number % 2]
    began = time.monotonic()
    with started(command, tmp_path / "log") as process:
        wait_until(lambda: last_step(run_dir) >= 1)
        fresh_s = time.monotonic() - began
        wait_until(lambda: last_step(run_dir) >= moment and newest_step(run_dir) > 0)
        ranks = ranks_of(process)
        for rank in victims:
            ranks[rank].kill()
        killed = time.monotonic()
        wait_until(lambda: _trains(run_dir, 2), 300)
        reached = last_step(run_dir)
        wait_until(lambda: last_step(run_dir) > reached or process.poll() is not None)
        restart_s = time.monotonic() - killed
        trial.recovered(restart_s)
        assert process.wait(400) == 0, (tmp_path / "log").read_text()
    assert status(run_dir)["generation"] == 2, (tmp_path / "log").read_text()
    assert restart_s < fresh_s + SLACK_S
    assert [row["step"] for row in rows(run_dir)] == list(range(1, LAST + 1))
    assert differing(unbroken(2), without_clock(payload(run_dir))) == []


@pytest.mark.fault("SIGTERM to torchrun while it starts", quick=2, full=20)
def test_a_start_that_is_told_to_stop_is_gone_at_once(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = train_command(2, options(data_root, run_dir, PACED), restarts=2)
    with started(command, tmp_path / "log") as process:
        wait_until(lambda: ranks_of(process) or trial.number % 4 == 0, what="a rank")  # each fourth earlier than that
        time.sleep(trial.random.uniform(0, 6))
        tree, began = descendants(process), time.monotonic()
        process.terminate()
        assert process.wait(180) != 0
        trial.recovered(time.monotonic() - began)
        wait_until(lambda: survivors(tree) == [])
    seconds = time.monotonic() - began
    assert seconds < 5 + SLACK_S, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert 'train_ddp.py", line' not in log  # no traceback of ours


@pytest.mark.fault("SIGSTOP of one rank, torchrun --max-restarts", quick=1, full=4)
def test_a_rank_that_is_stopped_costs_one_restart(
    trial: Trial, data_root: Path, tmp_path: Path, unbroken: Unbroken
) -> None:
    run_dir = tmp_path / "run"
    limit = f"distributed.step_timeout_s={STOPPED_S}"
    command = train_command(2, options(data_root, run_dir, PACED, limit), restarts=2)
    with started(command, tmp_path / "log", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="5") as process:
        wait_until(lambda: last_step(run_dir) >= 9 and newest_step(run_dir) > 0)
        ranks_of(process)[trial.number % 2].suspend()
        began = time.monotonic()
        wait_until(lambda: status(run_dir)["generation"] > 1, 300)
        trial.recovered(time.monotonic() - began)
        assert process.wait(400) == 0, (tmp_path / "log").read_text()
    assert status(run_dir)["generation"] == 2
    assert differing(unbroken(2), without_clock(payload(run_dir))) == []


@pytest.mark.fault("SIGKILL or SIGSTOP of one rank, twice, RESTARTS=3", quick=1, full=20)
def test_launch_starts_again_with_the_bits_of_the_undisturbed_run(
    trial: Trial, data_root: Path, tmp_path: Path, unbroken: Unbroken
) -> None:
    run_dir, how = tmp_path / "run", (signal.SIGKILL, signal.SIGSTOP)[trial.number % 2]
    command = [
        str(REPOSITORY / "launch.sh"),
        *options(data_root, run_dir, PACED, f"distributed.step_timeout_s={LIMIT_S}"),
    ]
    victims = [trial.random.randrange(2) for _ in range(2)]
    with started(command, tmp_path / "log", NPROC="2", RESTARTS="3") as process:
        for number, victim in enumerate(victims):
            wait_until(lambda count=number + 1: _trains(run_dir, count), 300)
            moment = max(last_step(run_dir), newest_step(run_dir)) + trial.random.randint(2, 8)
            wait_until(lambda moment=moment: last_step(run_dir) >= moment and newest_step(run_dir) > 0)
            ranks_of(process)[victim].send_signal(how)
            began = time.monotonic()
        wait_until(lambda: _trains(run_dir, 3), 300)
        trial.recovered(time.monotonic() - began)
        assert process.wait(400) == 0, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    again = [line for line in log.splitlines() if line.startswith("launch.sh: starts again from ")]
    state = "its process has ended" if how == signal.SIGKILL else "stopped by a signal (state T)"
    for line, victim in zip(again, victims, strict=True):
        assert f": {named(victim)} did not answer any more: {state}" in line
    assert log.count(": the stacks of all its threads") == (2 if how == signal.SIGSTOP else 0)
    assert [row["step"] for row in rows(run_dir)] == list(range(1, LAST + 1))
    assert differing(unbroken(2), without_clock(payload(run_dir))) == []


@pytest.mark.fault("a bug of a user, RESTARTS=3", quick=1, full=2)
def test_what_fails_twice_at_the_same_update_is_not_started_again(
    trial: Trial, data_root: Path, tmp_path: Path
) -> None:
    run_dir, faulty = tmp_path / "run", trial.number
    command = [str(REPOSITORY / "launch.sh"), *options(data_root, run_dir, "model.name=tests.faults.networks:bug")]
    with started(command, tmp_path / "log", NPROC="2", RESTARTS="3", FAULTY_RANK=str(faulty)) as process:
        assert process.wait(400) == 1
    found, log = status(run_dir), (tmp_path / "log").read_text()
    assert found["step"] == (AT - 1) // 2  # two forward passes make an update
    cause = "ValueError: a bug of a user, at faults/networks.py:"
    assert found["reason"].startswith(f"{named(faulty)} failed: {cause}")
    assert found["reason"].endswith(" fault")
    assert (found["failure"]["rank"], found["failure"]["host"]) == (faulty, socket.gethostname())
    assert found["failure"]["cause"].startswith(cause)
    *_, again, last = (line for line in log.splitlines() if line.startswith("launch.sh: "))
    assert again == f"launch.sh: starts again from the beginning: {found['reason']}"
    assert last.startswith(f"launch.sh: failed: failed twice at step {found['step']}: {found['reason']}")


@pytest.mark.fault("a refusal, torchrun --max-restarts", quick=1, full=1)
def test_a_refusal_is_refused_again_and_nothing_else(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    command = train_command(2, options(data_root, tmp_path / "run", "resume.mode=none.pt"), restarts=2)
    with started(command, tmp_path / "log") as process:
        assert process.wait(500) == 1
    log = (tmp_path / "log").read_text()
    assert log.count("train_ddp: resume.mode=none.pt: no such file") == 3
    assert 'train_ddp.py", line' not in log


@pytest.mark.fault("SIGKILL of a rank, two agents that count apart", quick=1, full=6)
def test_agents_that_count_their_restarts_apart_agree_on_a_start(
    trial: Trial, data_root: Path, tmp_path: Path, unbroken: Unbroken
) -> None:
    run_dir = tmp_path / "run"
    where = [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-backend=c10d", "--nnodes=2", "--local-addr=127.0.0.1"]
    command = train_command(1, options(data_root, run_dir, PACED), restarts=3)
    command[command.index("--standalone") : command.index("--standalone") + 1] = where
    with ExitStack() as stack:
        agents = [stack.enter_context(started(command, tmp_path / f"log{number}")) for number in range(2)]
        for kill in range(2):  # the same agent's rank twice: the counts are apart by two
            wait_until(lambda count=kill + 1: _trains(run_dir, count))
            moment = last_step(run_dir) + trial.random.randint(2, 8)
            wait_until(lambda moment=moment: last_step(run_dir) >= moment and newest_step(run_dir) > 0)
            [victim] = ranks_of(agents[trial.number % 2]).values()
            victim.kill()
        codes = [agent.wait(200) for agent in agents]
    logs = [(tmp_path / f"log{number}").read_text() for number in range(2)]
    assert codes == [0, 0], logs
    assert status(run_dir)["generation"] == 3, logs
    assert differing(unbroken(2), without_clock(payload(run_dir))) == []


def _trains(run_dir: Path, generation: int) -> bool:
    found = status(run_dir) if (run_dir / "status.json").exists() else {}
    return found.get("generation") == generation and found.get("state") in ("running", "finished")
