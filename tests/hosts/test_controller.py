"""SLURM's controller does not answer or is restarted, or its database is away."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from senet.errors import FAILED_EXIT_CODE, REFUSED_EXIT_CODE
from tests.harness import status, tiny, wait_until
from tests.hosts.cluster import HostCluster
from tests.hosts.test_hosts import LONG, Undisturbed, ends_with
from tests.soak import soak
from tests.submitted import SLOW, Run


def test_no_answer_is_neither_yes_nor_no(cluster: HostCluster, tmp_path: Path, data_root: Path) -> None:
    runs = [Run(cluster, tmp_path / f"run{number}", data_root) for number in range(5)]
    for run in runs:
        run.submit("train.epochs=3000", SLOW, "slurm.nodes=1", "slurm.sbatch.hold=true")
    cluster.run("scontrol", "release", runs[0].job)
    runs[0].wait_for_steps(5, 0)
    with cluster.silent_controller():
        began = time.monotonic()
        said = runs[0].tool("status", *(str(run.run_dir) for run in runs))
        assert time.monotonic() - began < 45  # one question of 10 s for all
        assert [line.split()[2] for line in said.stdout.splitlines()[1:6]] == ["training", *["submitted"] * 4]
        stop = runs[0].tool("stop", str(runs[0].run_dir))
        assert stop.returncode == FAILED_EXIT_CODE
        assert "was not stopped, try again: squeue does not answer" in stop.stderr
        again = runs[1].tool(*tiny(*runs[1].options, "slurm.time=20m"))
        assert again.returncode == REFUSED_EXIT_CODE
        assert f"whether job {runs[1].job} still waits or runs is not known" in again.stderr
    table = wait_until(lambda: runs[0].tool("status", *(str(run.run_dir) for run in runs)).stdout.splitlines()[1:6])
    assert [line.split()[2] for line in table] == ["training", *["waiting"] * 4]
    assert all("JobHeldUser" in line for line in table[1:])


@soak
def test_a_job_that_wants_to_be_requeued_waits_for_it(cluster: HostCluster, run: Run, undisturbed: Undisturbed) -> None:
    run.submit(*LONG, SLOW)
    run.wait_for_steps(10, 0)
    with cluster.silent_controller():
        for rank in run.ranks():
            rank.send_signal(signal.SIGUSR2)
        wait_until(lambda: status(run.run_dir)["state"] == "stopped")
        time.sleep(30)
    ends_with(run, undisturbed(2, *LONG), restarts=1)


def test_a_controller_that_is_killed_and_comes_back_costs_nothing(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    run.submit(*LONG, SLOW)
    run.wait_for_steps(10, 0)
    with cluster.without("slurmctld"):
        time.sleep(12)
    ends_with(run, undisturbed(2, *LONG), restarts=0)


def test_without_the_database_of_accounts_a_job_is_submitted_trains_and_is_stopped(
    cluster: HostCluster, run: Run
) -> None:
    with cluster.without("slurmdbd"):
        run.submit("train.epochs=3000", SLOW)
        run.wait_for_steps(5, 0)
        began = time.monotonic()
        assert run.tool("status", str(run.given)).stdout.splitlines()[1].split()[2] == "training"
        assert time.monotonic() - began < 30
        assert run.tool("stop", str(run.given)).returncode == 0
        run.wait_for("CANCELLED")
    assert status(run.run_dir)["state"] == "stopped"


def test_without_controller_and_database_status_tells_what_the_run_says(cluster: HostCluster, run: Run) -> None:
    run.submit("train.epochs=3000", SLOW)
    run.wait_for_steps(5, 0)
    with cluster.without("slurmctld", "slurmdbd"):
        began = time.monotonic()
        said = run.tool("status", str(run.given))
        assert time.monotonic() - began < 50
        assert said.stdout.splitlines()[1].split()[2] == "training"
        assert "squeue does not answer" in said.stderr
    wait_until(lambda: run.tool("stop", str(run.given)).returncode == 0)
    run.wait_for("CANCELLED")
