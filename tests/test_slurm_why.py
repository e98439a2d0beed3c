"""``why`` and ``follow`` of jobs that wait, are ended, or are held up, on a real SLURM cluster and without one."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from senet import REPOSITORY
from senet.rundir.locks import this_process
from tests.cluster import Cluster, missing_packages
from tests.harness import named, started, tiny, wait_until
from tests.submitted import SLOW, Run
from tests.test_slurm_check import finding, plan
from tests.test_slurm_cluster import no_orphans, preempt  # noqa: F401
from tests.test_slurm_local import Local, local  # noqa: F401

LONG = ("train.epochs=3000", "checkpoint.every_steps=10", "log.every_steps=2", SLOW)
QUICK_S = 30.0  # for ``why``, beside other tests; alone it takes one
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
on_slurm = pytest.mark.skipif(bool(missing_packages()), reason=missing_packages())


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path, data_root: Path) -> Run:
    return Run(cluster, tmp_path / "run", data_root)


def ask(word: str, env: dict[str, str]) -> dict[str, Any]:
    """What ``why`` says of one run."""
    began = time.monotonic()
    command = [sys.executable, "-P", "-m", "slurm.why", "--json", word]
    environment = env | {"PYTHONPATH": f"{REPOSITORY}:{env.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < QUICK_S
    return dict(json.loads(done.stdout))


def says(run: Run, cause: str, *words: str) -> None:
    """The cause, each of the words in its line or its evidence, and SLURM's own."""
    found = ask(str(run.run_dir), run.env)
    text = found["text"] + json.dumps(found["evidence"] + found["start"])
    assert found["cause"] == cause, f"{found}\n{run.logs()}"
    assert not [word for word in words if word not in text], found
    assert f"JobState={run.cluster.job(run.job)['JobState']}" in text


def wait_to_start_again(run: Run, restarts: int = 1, timeout_s: float = 240) -> None:
    def waits() -> bool:
        job = run.cluster.job(run.job)
        return (job["JobState"], job["Restarts"]) == ("PENDING", str(restarts))

    wait_until(waits, timeout_s, lambda: f"the requeue of {run.cluster.job(run.job)}\n{run.logs()}")


@on_slurm
def test_a_job_that_waits_says_for_what(cluster: Cluster, run: Run) -> None:
    blocker = cluster.preempt(600)
    run.submit(*LONG)
    wait_until(lambda: cluster.job(run.job)["Reason"] not in ("None", "Priority"))
    says(run, "in the queue", "first start", cluster.job(run.job)["Reason"])
    assert ask(run.job, run.env)["run_dir"] == str(run.run_dir)
    cluster.run("scontrol", "hold", run.job)
    wait_until(lambda: cluster.job(run.job)["Reason"].startswith("JobHeld"))
    says(run, "held", "JobHeld")
    cluster.cancel(blocker)
    cluster.cancel(run.job)
    says(run, "cancelled")


@on_slurm
def test_preempted_requeued_cancelled_and_stopped_are_told_apart_and_a_follower_hears_all(
    cluster: Cluster, run: Run, tmp_path: Path
) -> None:
    run.submit(*LONG)
    command = [sys.executable, "-P", "-m", "slurm.follow", str(run.run_dir)]
    env = run.env | {"PYTHONPATH": str(REPOSITORY)}
    with started(command, tmp_path / "followed", **env) as follower:
        run.wait_for_steps(5, 0)
        says(run, "running", "training, at step")
        blocker = cluster.preempt(600)
        wait_to_start_again(run)
        says(run, "preempted", "SIGTERM", "waits to start again")
        wait_until(lambda: "waits: " in (tmp_path / "followed").read_text())  # it asks SLURM every 10 s
        cluster.cancel(blocker)
        run.wait_for_steps(5, 1)
        with cluster.drained():
            cluster.run("scontrol", "requeue", run.job)
            wait_to_start_again(run, 2)
            says(run, "requeued", "waits to start again")
        run.wait_for_steps(5, 2)
        assert run.tool("stop", str(run.run_dir)).returncode == 0
        run.wait_for("CANCELLED")
        says(run, "stopped", "slurm stop", "all saved")
        assert follower.wait(180) == 85
    said = (tmp_path / "followed").read_text()
    for rank in (0, 1):
        assert said.count(f"rank {rank} on n{rank + 1}  slurm: rank {rank} on n{rank + 1} begins") == 3
    assert said.count("  resumed from ") == 2
    assert said.splitlines()[-1].startswith(f"follow: {run.run_dir}: stopped: stopped by slurm stop at step ")
    assert "\033[" not in said


@on_slurm
def test_a_budget_and_a_rank_and_a_refusal_are_named(run: Run) -> None:
    run.submit(*LONG, "slurm.max_requeues=0")
    run.wait_for_steps(5, 0)
    preempt(run)
    run.wait_for("FAILED")
    says(run, "requeues are used up", "slurm.max_requeues=0")
    run.submit(*LONG, "slurm.max_restarts=0")
    run.wait_for_steps(2, 0)
    run.ranks()[1].kill()
    run.wait_for("FAILED")
    says(run, "rank was killed", "rank 1 on n2")
    run.submit("model.name=tests.networks:fails_at_step_40", "train.epochs=4", "checkpoint.every_steps=30")
    run.wait_for("FAILED")
    says(run, "refused", "model.name")  # the checkpoint is of another network


@on_slurm
def test_a_lost_node_is_named_while_its_job_waits_for_another(cluster: Cluster, run: Run) -> None:
    run.submit(*LONG, "slurm.nodes=1")
    run.wait_for_steps(5, 0)
    lost = cluster.job(run.job)["NodeList"]
    other = "n2" if lost == "n1" else "n1"
    cluster.run("scontrol", "update", f"NodeName={other}", "State=DRAIN", "Reason=test")
    ranks = run.ranks()
    cluster.kill_slurmd(lost)
    for rank in ranks:
        rank.kill()
    try:
        cluster.run("scontrol", "update", f"NodeName={lost}", "State=DOWN", "Reason=lost")
        wait_to_start_again(run)
        says(run, "node lost", "waits to start again")
    finally:
        cluster.cancel(run.job)
        cluster.start_slurmd(lost)
        cluster.run("scontrol", "update", f"NodeName={other}", "State=RESUME")
        cluster.wait_idle()


@on_slurm
def test_what_the_check_of_the_nodes_found_is_shown(cluster: Cluster, tmp_path: Path, data_root: Path) -> None:
    run = Run(cluster, tmp_path / "run", data_root, check=True)
    plan(run, finding("n1"))
    options = ("--parsable", "--partition=high", "--nodelist=n2", "--exclusive", "--output=/dev/null")
    blocker = cluster.run("sbatch", *options, "--wrap=sleep 600").strip()
    run.submit(*LONG, "slurm.nodes=1")
    wait_to_start_again(run)
    says(run, "node excluded", "what arithmetic found", "n1 is avoided since")
    cluster.cancel(run.job)
    cluster.cancel(blocker)
    assert run.tool("clear", str(run.run_dir)).returncode == 0
    plan(run, finding("n2", kind="slow"))
    run.submit(*LONG, "slurm.max_restarts=0")
    run.wait_for_steps(2, 0)
    run.ranks()[1].kill()
    run.wait_for("FAILED")
    says(run, "rank was killed", "before this start n2 was slow: arithmetic: what arithmetic found")
    plan(run, finding("n1"), finding("n2"))
    run.submit(*LONG)
    run.wait_for("FAILED")
    says(run, "nodes are unfit", "all nodes have the same fault")


@on_slurm
def test_a_time_limit_is_named(cluster: Cluster, run: Run) -> None:
    run.submit(*LONG)
    run.wait_for_steps(5, 0)
    with cluster.drained():
        run.reach_time_limit()
        wait_to_start_again(run)
        says(run, "time limit", "SIGUSR2", "waits to start again")
        cluster.cancel(run.job)


@on_slurm
def test_a_port_that_stays_taken_is_named(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("", 0), reuse_port=False) as taken:
        port = taken.getsockname()[1]
        python = tmp_path / "python"
        begin = f'said=$({sys.executable} "$@") && echo "$said; export MASTER_PORT={port}"'
        script = f'case "$*" in "-m slurm.batch begin") {begin} ;; *) exec {sys.executable} "$@" ;; esac'
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        run.submit(*LONG, f"slurm.python={python}")
        run.wait_for("FAILED")
    says(run, "port is taken", f"MASTER_PORT={port} is in use on host")


def waits_here(local: Local, cause: str, *words: str) -> None:  # noqa: F811
    def found() -> dict[str, Any]:
        said = ask(str(local.run_dir), dict(os.environ))
        return said if said["cause"] == cause else {}

    said = wait_until(found, 90, f"{cause}: {[path.read_text() for path in local.run_dir.glob('slurm/*_log.out')]}")
    text = said["text"] + json.dumps(said["evidence"])
    assert not [word for word in words if word not in text], said


def test_a_start_that_waits_for_a_lock_names_the_holder(local: Local) -> None:  # noqa: F811
    lock = local.run_dir / ".owner.lock"
    local.run_dir.mkdir()
    with lock.open("w") as file:
        file.write(json.dumps(this_process()))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        alive = time.monotonic() + 120
        local.tool(*tiny(*LONG, "slurm.cluster=local", *local.options))
        while time.monotonic() < alive and not any(
            ", which holds " in path.read_text() for path in local.run_dir.glob("slurm/*_log.out")
        ):
            os.utime(lock)
            time.sleep(0.5)
        waits_here(local, "waits for a lock", str(lock), f"process {os.getpid()} on host")
    wait_until(lambda: (local.run_dir / "status.json").exists(), 120)
    said = ask(str(local.run_dir), dict(os.environ))
    assert said["cause"] == "running", said
    local.tool("stop", str(local.run_dir))
    wait_until(lambda: not local.processes(), 120)
    assert ask(str(local.run_dir), dict(os.environ))["cause"] == "stopped"


def test_a_start_whose_rank_does_not_come_names_it(local: Local) -> None:  # noqa: F811
    options = ("slurm.cluster=local", "slurm.ranks_per_node=2")
    local.tool(*tiny(*LONG, *options, *local.options))

    def rank_1() -> psutil.Process | None:
        for process in local.processes():
            try:
                if process.environ().get("SUBMITIT_LOCAL_GLOBALID") == "1" and "_submit" in " ".join(process.cmdline()):
                    return process
            except psutil.Error:
                continue
        return None

    wait_until(rank_1).send_signal(signal.SIGSTOP)
    waits_here(local, "waits for a rank", f"{named(0)}: still meeting ", "rank 1 has not begun this launch")
    for process in local.processes():
        process.kill()
    wait_until(lambda: not local.processes(), 20)
