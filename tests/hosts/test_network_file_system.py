"""The file system of the run directory hangs, is full, or its client loses power."""

from __future__ import annotations

import time

import pytest

from tests.harness import checkpoints, wait_until
from tests.hosts.cluster import HostCluster
from tests.hosts.glusterfs import MOUNT
from tests.hosts.test_hosts import LONG, Undisturbed, ends_with
from tests.soak import soak
from tests.submitted import SLOW, Run

SAVING = ("train.epochs=4", "checkpoint.every_steps=1", "log.every_steps=5")


def wait_for_a_save(cluster: HostCluster, run: Run) -> None:
    """Until a checkpoint is half written."""
    folder = cluster.volume.on_disk(MOUNT / run.run_dir.name) / "checkpoints"
    wait_until(lambda: any(folder.glob("step_*.tmp")), 120, f"a save in {folder}")


def test_what_one_host_writes_the_other_reads(cluster: HostCluster) -> None:
    cluster.run("srun", "--nodelist=n1", "sh", "-c", f"echo something >{MOUNT}/file")
    assert cluster.run("srun", "--nodelist=n2", "cat", f"{MOUNT}/file") == "something\n"


@pytest.mark.parametrize("options", [LONG, SAVING], ids=["training", "saving"])
@pytest.mark.parametrize("seconds", [20, pytest.param(90, marks=soak)])
def test_a_hang_costs_its_time(
    seconds: int, options: tuple[str, ...], cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    run.submit(*options, SLOW)
    run.wait_for_steps(10, 0)
    if options == SAVING:
        wait_for_a_save(cluster, run)
    with cluster.volume.hung():
        time.sleep(seconds)
    ends_with(run, undisturbed(2, *options), restarts=0)


def test_a_full_disk_ends_the_job_with_that_reason_and_with_room_it_goes_on(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    run.submit(*LONG, SLOW)
    run.wait_for_steps(30, 0)
    with cluster.volume.full():
        run.wait_for("FAILED")
        assert "No space left on device" in run.tool("status", str(run.given)).stdout, run.logs()
    assert checkpoints(run.run_dir)
    run.submit(*LONG, SLOW)
    ends_with(run, undisturbed(2, *LONG), restarts=0)


def test_power_lost_while_saving_leaves_a_whole_checkpoint(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    run.submit(*SAVING, SLOW, "slurm.nodes=1")
    run.wait_for_steps(30, 0)
    lost = cluster.job(run.job)["NodeList"]
    wait_for_a_save(cluster, run)
    cluster.power_off(lost)
    published = checkpoints(run.run_dir)[-1]
    try:
        run.wait_for_steps(5, 1)
        resumed = run.read("owner.json")["resumed_from"]["2"]
        assert resumed >= int(published.name[5:].partition(".")[0])
        ends_with(run, undisturbed(0, *SAVING), restarts=1)
    finally:
        cluster.power_on(lost)
