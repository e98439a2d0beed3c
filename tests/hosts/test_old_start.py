"""A host that was cut off still runs an old start of a job that SLURM has started again elsewhere, and comes back."""

from __future__ import annotations

import time
from functools import partial

from tests.harness import told, wait_until
from tests.hosts.cluster import HostCluster
from tests.hosts.test_hosts import Undisturbed, ends_with
from tests.soak import soak
from tests.submitted import SLOW, Run

LONG = ("train.epochs=13", "checkpoint.every_steps=20", "log.every_steps=5")


@soak
def test_a_host_that_comes_back_leaves_the_younger_start_alone(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    run.submit(*LONG, SLOW, "slurm.nodes=1")
    run.wait_for_steps(10, 0)
    old = cluster.job(run.job)["NodeList"]
    cluster.machines[old].cut()
    try:
        run.wait_for_steps(5, 1)
    finally:
        cluster.machines[old].mend()
    # by itself, or because SLURM, which knows it again, ends it
    scripts = partial(cluster.machines[old].processes, "slurm_script")
    wait_until(lambda: not scripts(), 300, lambda: told(scripts()))
    time.sleep(3)  # for what it may have set going
    now = run.read("status.json")
    assert now["state"] in ("running", "finished")
    assert now["job_restarts"] == 1
    ends_with(run, undisturbed(0, *LONG), restarts=1)
    assert run.read("owner.json")["generation"] == 2
