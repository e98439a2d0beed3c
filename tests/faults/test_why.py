"""Runs that are ended, or held up, in each way that ``why`` tells apart; it is asked as a person asks it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from senet import REPOSITORY
from tests.faults.conftest import Trial
from tests.faults.interpose import failing, missing_compiler
from tests.faults.networks import AT
from tests.faults.runs import last_step, newest_step, options, ranks_of
from tests.harness import kill_all, named, rows, started, status, wait_until

NETWORK = "model.name=tests.faults.networks:"
LAUNCH = str(REPOSITORY / "launch.sh")
MEMORY = Path("/sys/fs/cgroup/memory")
QUICK_S = 30.0  # for ``why``, beside other tests; alone it takes less than one
needs_compiler = pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
needs_cgroup = pytest.mark.skipif(
    not os.access(MEMORY, os.W_OK), reason="limits the memory of a control group: needs root and cgroup v1"
)


def ask(*words: str) -> dict[str, Any]:
    """What ``why`` says of one run."""
    began = time.monotonic()
    done = subprocess.run([LAUNCH, "why", "--json", *words], capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < QUICK_S
    return dict(json.loads(done.stdout))


def says(found: dict[str, Any], cause: str, *words: str) -> None:
    """The cause, and each of the words in its line or its evidence."""
    assert found["cause"] == cause, found
    text = found["text"] + json.dumps(found["evidence"])
    assert not [word for word in words if word not in text], found
    assert found["remedy"]


def end(data_root: Path, run_dir: Path, *more: str, ranks: int = 2, **env: str) -> int:
    """Train to the end, whatever it is."""
    command = [LAUNCH, *options(data_root, run_dir, "train.accumulate=1", *more)]
    with started(command, run_dir.parent / "log", NPROC=str(ranks), **env) as process:
        return process.wait(200)


@contextmanager
def training(data_root: Path, run_dir: Path, *more: str, ranks: int = 2) -> Iterator[Any]:
    """A run that trains, with checkpoints already."""
    command = [LAUNCH, *options(data_root, run_dir, NETWORK + "paced", "train.epochs=2000", *more)]
    with started(command, run_dir.parent / "log", NPROC=str(ranks)) as process:
        wait_until(lambda: newest_step(run_dir) > 0, what=(run_dir.parent / "log").read_text())
        yield process


@pytest.mark.fault("why: NaN, drift, a bug, a GPU without memory", quick=1, full=2)
@pytest.mark.parametrize(
    ("network", "cause", "words"),
    [
        ("not_a_number", "loss is not finite", f"the loss of step {AT}"),
        ("drift", "ranks differ", "layer2.0.conv1.weight"),
        ("bug", "crash", "faults/networks.py:"),
        ("gpu_without_memory", "out of memory of a GPU", "CUDA out of memory"),
    ],
)
def test_an_error_is_named(network: str, cause: str, words: str, trial: Trial, data_root: Path, tmp_path: Path) -> None:
    assert end(data_root, tmp_path / "run", NETWORK + network, "train.desync_check_every=5") == 1
    says(ask(str(tmp_path / "run")), cause, words)


@pytest.mark.fault("why: a bug with RESTARTS", quick=1, full=1)
def test_a_bug_that_comes_again_is_named(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    assert end(data_root, tmp_path / "run", NETWORK + "bug", RESTARTS="3") == 1
    found = ask(str(tmp_path / "run"))
    says(found, "bug, twice", "a bug of a user", "faults/networks.py:", named(1), "restarts.jsonl:2")
    assert [each["where"] for each in found["start"]] == ["starts.jsonl"]


@needs_compiler
@pytest.mark.fault("why: the disk is full", quick=1, full=1)
def test_a_full_disk_is_named(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert end(data_root, run_dir, **failing("open", run_dir / "checkpoints", errno=errno.ENOSPC)) == 1
    says(ask(str(run_dir)), "disk is full", "No space left on device")


@pytest.mark.fault("why: a rank is killed", quick=2, full=2)
def test_a_killed_rank_is_named(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    victim = trial.number
    with training(data_root, tmp_path / "run") as process:
        ranks_of(process)[victim].kill()
        assert process.wait(180) == 1
    says(ask(str(tmp_path / "run")), "rank was killed", named(victim), "SIGKILL", "launch.json")


@needs_cgroup
@pytest.mark.fault("why: the host is out of memory", quick=1, full=1)
def test_a_rank_that_the_kernel_killed_for_memory_is_named(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    group = MEMORY / f"senet-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(3 * 2**30))
        command = [LAUNCH, *options(data_root, tmp_path / "run", NETWORK + "memory_eater")]
        inside = ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh", *command]
        with started(inside, tmp_path / "log", NPROC="2") as process:
            assert process.wait(400) == 1
        assert "oom_kill of this control group went from 0 to 1" in (tmp_path / "log").read_text()
        says(ask(str(tmp_path / "run")), "out of memory of the host", "oom_kill", named(1))
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@pytest.mark.fault("why: all is killed, and a stop", quick=1, full=1)
def test_a_kill_of_all_and_a_stop_are_told_apart_and_a_running_run_is_healthy(
    trial: Trial, data_root: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with training(data_root, run_dir) as process:
        found = ask(str(run_dir))
        says(found, "running", "training, at step")
        assert found["is_healthy"]
        kill_all(process)
    last = max(status(run_dir)["step"], rows(run_dir)[-1]["step"])
    says(ask(str(run_dir)), "killed", f"after step {last}")
    with training(data_root, run_dir) as process:
        wait_until(lambda: status(run_dir)["generation"] == 2 and status(run_dir)["state"] == "running")
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 85
    says(ask(str(run_dir)), "stopped", "Ctrl-C", "all saved")
    changed = options(data_root, run_dir, NETWORK + "paced", "train.epochs=2000", "optim.lr=0.3")
    with started([LAUNCH, *changed], tmp_path / "log", NPROC="2") as process:
        assert process.wait(180) == 2
    says(ask(str(run_dir)), "refused", "optim.lr", "launch.json")


@pytest.mark.fault("why: a rank is stopped", quick=1, full=1)
def test_a_run_that_waits_for_a_stopped_rank_says_for_which_and_later_why_it_ended(
    trial: Trial, data_root: Path, tmp_path: Path
) -> None:
    with training(data_root, tmp_path / "run", "distributed.step_timeout_s=40") as process:
        ranks_of(process)[1].suspend()
        says(ask(str(tmp_path / "run")), "waits for a rank", named(1), "state T")
        assert process.wait(240) == 1
    says(
        ask(str(tmp_path / "run")), "rank hangs", named(1), "state T", "gloo:all_reduce", "of rank 1 there is no record"
    )


@pytest.mark.fault("why: finished", quick=1, full=1)
def test_a_finished_run_is_healthy(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    assert end(data_root, tmp_path / "run", "train.epochs=1") == 0
    found = ask(str(tmp_path / "run"))
    says(found, "finished")
    assert found["is_healthy"]
    assert last_step(tmp_path / "run") == 22
