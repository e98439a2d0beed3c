"""Ranks that fail, and runs that disturb each other."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from senet.rundir.files import read_json, write_json
from senet.rundir.owner import OLD_S
from tests.faults.conftest import FULL, Trial
from tests.faults.interpose import failing, missing_compiler
from tests.faults.networks import AT
from tests.faults.runs import last_step, newest_step, options
from tests.harness import free_port, kill_all, named, rows, started, status, train, train_command, wait_until

NETWORK = "model.name=tests.faults.networks:"
needs_compiler = pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives itself another host name: run as root")


@pytest.mark.parametrize("what", ["NaN", "overflow"])
@pytest.mark.fault("NaN in one rank's loss; overflow under fp16", quick=1, full=2)
def test_a_nan_stops_all_ranks_and_an_overflow_none(what: str, trial: Trial, data_root: Path, tmp_path: Path) -> None:
    ranks = 2 + 2 * trial.number
    run_dir = tmp_path / "run"
    if what == "NaN":
        network = (NETWORK + "not_a_number", "train.accumulate=1", "checkpoint.every_steps=4")
        done = train(ranks, *options(data_root, run_dir, *network))
        found = status(run_dir)
        assert (found["state"], done.returncode) == ("failed", 1)
        assert f"the loss of step {AT} is not finite on 1 of {ranks} ranks" in found["reason"]
        assert last_step(run_dir) <= AT + 1
        assert newest_step(run_dir) < AT
        assert done.stderr.count("train_ddp: failed: ") == 1
    else:
        network = (NETWORK + "overflow", "train.accumulate=1", "train.amp=fp16", "train.epochs=1")
        done = train(ranks, *options(data_root, run_dir, *network))
        assert done.returncode == 0, done.stderr
        [row] = rows(run_dir, "epoch")
        assert row["skipped_steps"] >= 1


@pytest.mark.fault("a weight changed on one rank", quick=1, full=4)
def test_a_weight_that_changes_on_one_rank_is_found_and_named(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    ranks, every = (3, 2, 4, 2)[trial.number % 4], 5
    faulty = trial.number // 2 % 2
    change = ("train.accumulate=1", f"train.desync_check_every={every}", "checkpoint.every_steps=1000")
    shared = ("train.global_batch_size=63",) if ranks == 3 else ()
    command = train_command(ranks, options(data_root, tmp_path / "run", NETWORK + "drift", *change, *shared))
    with started(command, tmp_path / "log", FAULTY_RANK=str(faulty)) as process:
        assert process.wait(300) == 1, (tmp_path / "log").read_text()
    found = status(tmp_path / "run")
    assert found["state"] == "failed"
    who = f"of {named(faulty)} is not that of the other ranks" if ranks > 2 else "is not the same on all ranks"
    assert f"layer2.0.conv1.weight {who}" in found["reason"]
    assert AT <= last_step(tmp_path / "run") <= AT + every
    assert newest_step(tmp_path / "run") < AT
    trial.lost(last_step(tmp_path / "run"))


@pytest.mark.fault("a slow rank", quick=1, full=2)
def test_a_slow_rank_is_named_with_its_share_of_the_step(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    every, faulty = 5, trial.number
    slow = (NETWORK + "slow", "train.accumulate=1", "train.epochs=1", f"log.every_steps={every}")
    command = train_command(2, options(data_root, tmp_path / "run", *slow))
    with started(command, tmp_path / "log", FAULTY_RANK=str(faulty)) as process:
        assert process.wait(300) == 0, (tmp_path / "log").read_text()
    line = next(line for line in (tmp_path / "log").read_text().splitlines() if f"{named(faulty)} is slow" in line)
    step, text = line.removeprefix("WARNING: step ").split(": ", 1)
    assert int(step) <= (2 if FULL else 4) * every  # other tests may slow either rank at first
    own, others = (int(share) for share in re.findall(r"(\d+)%", text))
    assert own > 1.5 * others


CASES = ["alive here", "dead here", *(pytest.param(f"{how} elsewhere", marks=needs_root) for how in ("alive", "dead"))]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.fault("two runs, one directory; the holder dead, or on another host", quick=1, full=1)
def test_a_run_directory_has_one_owner(case: str, trial: Trial, data_root: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = train_command(0, options(data_root, run_dir, NETWORK + "paced", "train.epochs=2000"))
    # processes in it see another host name
    elsewhere = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    with ExitStack() as stack:
        prefix = elsewhere if "elsewhere" in case else []
        holder = stack.enter_context(started([*prefix, *command], tmp_path / "log"))
        wait_until(lambda: last_step(run_dir) > 10)
        generation = status(run_dir)["generation"]
        if case.startswith("dead"):
            kill_all(holder)
        if case == "dead elsewhere":
            owner = run_dir / "owner.json"
            ahead_s = 300 if FULL else -2 * OLD_S  # a wrong clock; without it the test need not wait for a minute
            write_json(owner, read_json(owner) | {"heartbeat": time.time() + ahead_s})
            if not FULL:
                os.utime(owner, (time.time() + ahead_s,) * 2)
        began = time.monotonic()
        second = stack.enter_context(started(command, tmp_path / "log2"))
        if case.startswith("dead"):
            wait_until(lambda: status(run_dir)["generation"] == generation + 1)
            trial.recovered(time.monotonic() - began)
            return
        assert second.wait(400) == 2
        host = "elsewhere" if "elsewhere" in case else socket.gethostname()
        *_, line = (tmp_path / "log2").read_text().splitlines()
        assert f"process {holder.pid} on host {host}" in line
        assert holder.poll() is None


@pytest.mark.fault("many launches at once: each has a port", quick=1, full=1)
def test_many_launches_at_once_do_not_meet(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    count = 20 if FULL else 4
    with ExitStack() as stack:
        launches = []
        for number in range(count):
            brief = options(data_root, tmp_path / f"run{number}", "train.epochs=1", "distributed.start_timeout_s=900")
            launches.append(stack.enter_context(started(train_command(1, brief), tmp_path / f"log{number}")))
        for number, launch in enumerate(launches):
            assert launch.wait(900) == 0, (tmp_path / f"log{number}").read_text()
    assert all(status(tmp_path / f"run{number}")["state"] == "finished" for number in range(count))


@pytest.mark.fault("the master port is taken", quick=1, full=4)
def test_a_port_that_is_taken_is_named(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = train_command(0, options(data_root, tmp_path / "run"))
        with started(command, tmp_path / "log", **place) as process:
            assert process.wait(180) == 1
    assert f"failed: MASTER_PORT={port} is in use on host" in (tmp_path / "log").read_text()


@needs_compiler
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.fault("no checkpoint can be written, two ranks without a launcher", quick=1, full=4)
def test_the_rank_that_cannot_save_is_the_one_that_says_why(
    number: int, trial: Trial, data_root: Path, tmp_path: Path
) -> None:
    """Without a launcher rank 0 hosts the store, which ends with it."""
    run_dir, mirror = tmp_path / "run", tmp_path / "status.json"
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place |= {"SENET_STATUS_FILE": str(mirror)}
    place |= failing("open", run_dir / "checkpoints", errno=number)
    command = train_command(0, options(data_root, run_dir))
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                started(command, tmp_path / f"log{rank}", **place, RANK=str(rank), LOCAL_RANK=str(rank))
            )
            for rank in range(2)
        ]
        assert [rank.wait(400) for rank in ranks] == [1, 1]
    for file in (mirror, run_dir / "status.json"):
        found = read_json(file)
        assert found["state"] == "failed"
        assert os.strerror(number) in found["reason"]
    said = [line for log in tmp_path.glob("log*") for line in log.read_text().splitlines() if "failed:" in line]
    assert said
    assert all(os.strerror(number) in line for line in said)
