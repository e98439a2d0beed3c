"""The run directory on a network file system that hangs or is full, mounted by each host for itself."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.hosts.cluster import HostCluster
from tests.hosts.glusterfs import MOUNT, Volume, missing
from tests.hosts.test_hosts import LONG, Undisturbed, ends_with
from tests.submitted import SLOW, Run

MISSING = missing()
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install glusterfs-server: {MISSING} missing"),
    pytest.mark.usefixtures("volume"),
]
SOAK = bool(os.environ.get("SOAK"))


@pytest.fixture(scope="module")
def volume(cluster: HostCluster) -> Volume:
    return Volume(cluster)


@pytest.fixture
def run(cluster: HostCluster, tmp_path: Path, data_root: Path) -> Run:
    inside = MOUNT / tmp_path.name
    return Run(cluster, inside, data_root, seen_at=cluster.machines["n0"].outside(inside))


def test_what_one_host_writes_the_other_reads(cluster: HostCluster) -> None:
    cluster.run("srun", "--nodelist=n1", "sh", "-c", f"echo something >{MOUNT}/file")
    assert cluster.run("srun", "--nodelist=n2", "cat", f"{MOUNT}/file") == "something\n"


@pytest.mark.parametrize("seconds", [20, pytest.param(90, marks=pytest.mark.skipif(not SOAK, reason="a long form"))])
def test_a_hang_while_training_and_saving_costs_its_time(
    seconds: int, volume: Volume, run: Run, undisturbed: Undisturbed
) -> None:
    run.submit(*LONG, SLOW)
    run.wait_for_steps(10, 0)
    with volume.hung():
        time.sleep(seconds)
    ends_with(run, undisturbed(2, *LONG), restarts=0)
