"""The check of the nodes in front of each start, as it is by default."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.harness import wait_until
from tests.hosts.cluster import HostCluster
from tests.hosts.glusterfs import MOUNT
from tests.hosts.test_hosts import Undisturbed, ends_with
from tests.soak import soak
from tests.submitted import Run


@pytest.fixture
def run(cluster: HostCluster, tmp_path: Path, data_root: Path) -> Run:
    inside = MOUNT / tmp_path.name
    return Run(cluster, inside, data_root, seen_at=cluster.machines["n0"].outside(inside), check=True)


def checks(cluster: HostCluster) -> list[psutil.Process]:
    """The ranks of the check that run now."""
    return [each for node in ("n1", "n2") for each in cluster.machines[node].processes("python") if is_check(each)]


def is_check(process: psutil.Process) -> bool:
    try:
        return any(word in ("slurm.check_rank", "senet.doctor") for word in process.cmdline())
    except psutil.Error:  # has just ended
        return False


def excludes_no_node(run: Run) -> bool:
    return run.cluster.job(run.job)["ExcNodeList"] == "(null)"


def test_hosts_that_are_well_start_to_train(run: Run, undisturbed: Undisturbed) -> None:
    run.submit()
    ends_with(run, undisturbed(2), restarts=0)
    assert excludes_no_node(run)


@soak
def test_a_host_whose_python_comes_40_s_late_trains_too(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    with cluster.machines["n2"].before_tasks("sleep 40"):
        run.submit()
        ends_with(run, undisturbed(2), restarts=0)
    assert excludes_no_node(run)


def test_a_preemption_during_the_check_costs_one_requeue(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    run.submit()
    wait_until(lambda: checks(cluster), 120, "the check")
    cluster.preempt(1)
    ends_with(run, undisturbed(2), restarts=1)
    assert excludes_no_node(run)
