"""A link of one host is cut, or slow."""

from __future__ import annotations

import time
from functools import partial

import pytest

from tests.harness import survivors, told, wait_until
from tests.hosts.cluster import HostCluster
from tests.hosts.test_hosts import LONG, Undisturbed, ends_with
from tests.soak import soak
from tests.submitted import SLOW, Run

STEP_TIMEOUT_S = 20
LIMIT_S = STEP_TIMEOUT_S + 45  # after it 9 s for the roll call, 5 to record collectives, and SLURM is asked
SLURMD_TIMEOUT_S = 120  # SLURM looks after a third of it, and a job is requeued some 40 s later


@pytest.mark.parametrize(
    ("node", "seconds"), [("n2", 10), pytest.param("n1", 60, marks=soak), pytest.param("n2", 60, marks=soak)]
)
def test_a_link_that_is_down_for_a_while_costs_that_while(
    node: str, seconds: int, cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    with cluster.slurmd_timeout(300):  # SLURM's default
        run.submit(*LONG, SLOW)
        run.wait_for_steps(10, 0)
        cluster.machines[node].cut()
        time.sleep(seconds)
        cluster.machines[node].mend()
        ends_with(run, undisturbed(2, *LONG), restarts=0)


def test_a_link_at_a_tenth_of_what_the_steps_need_makes_them_slow(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    run.submit(*LONG, SLOW)
    run.wait_for_steps(10, 0)
    with cluster.machines["n2"].slow("1mbit"):
        time.sleep(10)
    ends_with(run, undisturbed(2, *LONG), restarts=0)


@soak
def test_a_host_that_is_cut_off_for_good_ends_its_own_ranks(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    ranks = partial(cluster.machines["n2"].processes, "python")
    with cluster.slurmd_timeout(SLURMD_TIMEOUT_S):
        run.submit(*LONG, SLOW, f"distributed.step_timeout_s={STEP_TIMEOUT_S}")
        run.wait_for_steps(10, 0)
        assert len(ranks()) == 1
        cluster.machines["n2"].cut()
        try:
            # one that has exited may still have a thread in the kernel
            wait_until(lambda: not survivors(ranks()), LIMIT_S, lambda: told(ranks()))
            # of which it cannot leave a call to GlusterFS, which gives up 42 to 84 s after the last one
            wait_until(lambda: not ranks(), 120, lambda: told(ranks()))
            wait_until(lambda: cluster.job(run.job)["Restarts"] == "1", SLURMD_TIMEOUT_S + 200, run.logs)
            assert run.read("status.json")["reason"].startswith("no answer from n2; the job starts again when SLURM")
        finally:
            cluster.machines["n2"].mend()
        ends_with(run, undisturbed(2, *LONG), restarts=1)
