"""A host without power in a job of two, where SLURM is slow to give it up (by default after five minutes)."""

from __future__ import annotations

import time

from tests.harness import wait_until
from tests.hosts.cluster import HostCluster
from tests.hosts.test_hosts import LONG, Undisturbed, ends_with
from tests.soak import SOAK, soak
from tests.submitted import SLOW, Run

SLURMD_TIMEOUT_S = 300 if SOAK else 120  # SLURM looks after a third of it, and a job is requeued some 40 s later


@soak
def test_the_step_ends_and_the_job_is_requeued_before_slurm_gives_the_host_up(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    with cluster.slurmd_timeout(SLURMD_TIMEOUT_S):
        run.submit(*LONG, SLOW, "distributed.step_timeout_s=30")
        run.wait_for_steps(10, 0)
        began = time.monotonic()
        cluster.power_off("n2")
        try:
            wait_until(lambda: cluster.job(run.job)["Restarts"] == "1", SLURMD_TIMEOUT_S + 200, run.logs)
            requeued_s = time.monotonic() - began
            assert not is_down(cluster)
            assert run.read("status.json")["reason"].startswith("no answer from n2; the job starts again when SLURM")
            row = run.tool("status", str(run.given)).stdout.splitlines()[1]
            assert row.split()[2] in ("ending", "waiting")
            wait_until(lambda: is_down(cluster), 2 * SLURMD_TIMEOUT_S)
            given_up_s = time.monotonic() - began
            print(f"{SLURMD_TIMEOUT_S=}: requeued after {requeued_s:.0f} s, given up after {given_up_s:.0f} s")
        finally:
            cluster.power_on("n2")
        ends_with(run, undisturbed(2, *LONG), restarts=1)


def is_down(cluster: HostCluster) -> bool:
    """Whether SLURM has given the host up."""
    return "DOWN" in cluster.run("scontrol", "show", "node", "--oneliner", "n2").partition(" State=")[2].split()[0]
