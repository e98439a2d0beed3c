"""SLURM's controller accepts connections, but does not answer."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from senet.errors import FAILED_EXIT_CODE, REFUSED_EXIT_CODE
from tests.harness import status, tiny, wait_until
from tests.hosts.cluster import HostCluster
from tests.hosts.test_hosts import LONG, Undisturbed, ends_with
from tests.submitted import SLOW, Run


def test_no_answer_is_neither_yes_nor_no(cluster: HostCluster, tmp_path: Path, data_root: Path) -> None:
    runs = [Run(cluster, tmp_path / f"run{number}", data_root) for number in range(3)]
    for run in runs:
        run.submit("train.epochs=3000", SLOW, "slurm.nodes=1", "slurm.sbatch.hold=true")
    cluster.run("scontrol", "release", runs[0].job)
    runs[0].wait_for_steps(5, 0)
    with cluster.silent_controller():
        began = time.monotonic()
        said = runs[0].tool("status", *(str(run.run_dir) for run in runs))
        assert time.monotonic() - began < 20  # one question for all
        assert [line.split()[2] for line in said.stdout.splitlines()[1:]] == ["training", "unknown", "unknown"]
        stop = runs[0].tool("stop", str(runs[0].run_dir))
        assert stop.returncode == FAILED_EXIT_CODE
        assert "was not stopped, try again: squeue does not answer" in stop.stderr
        again = runs[1].tool(*tiny(*runs[1].options, "slurm.time=20m"))
        assert again.returncode == REFUSED_EXIT_CODE
        assert f"whether job {runs[1].job} still waits or runs is not known" in again.stderr
    table = wait_until(lambda: runs[0].tool("status", *(str(run.run_dir) for run in runs)).stdout.splitlines()[1:])
    assert [line.split()[2] for line in table] == ["training", "waiting", "waiting"]
    assert all("JobHeldUser" in line for line in table[1:])


def test_a_job_that_wants_to_be_requeued_waits_for_it(cluster: HostCluster, run: Run, undisturbed: Undisturbed) -> None:
    run.submit(*LONG, SLOW)
    run.wait_for_steps(10, 0)
    with cluster.silent_controller():
        for rank in run.ranks():
            rank.send_signal(signal.SIGUSR2)
        wait_until(lambda: status(run.run_dir)["state"] == "stopped")
        time.sleep(30)
    ends_with(run, undisturbed(2, *LONG), restarts=1)
