"""With shards a job goes on without a host that has lost power; without that of its batch script it is requeued."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from tests.harness import status, text_of, wait_until
from tests.hosts.cluster import HostCluster
from tests.hosts.test_hosts import LONG, Undisturbed, ends_with
from tests.soak import soak
from tests.submitted import SLOW, Run

SHARDS = ("train.shards=4", "train.threads_per_rank=1")
PATIENCE = ("distributed.step_timeout_s=15",)


def test_the_ranks_are_launched_again_on_the_host_that_is_left(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed, took: Callable[[str, float], None]
) -> None:
    expected = undisturbed(1, *LONG, *SHARDS)
    run.submit(*LONG, *SHARDS, SLOW, *PATIENCE)
    run.wait_for_steps(10, 0)
    assert cluster.job(run.job)["BatchHost"] == "n1"
    began = time.monotonic()
    cluster.power_off("n2")
    try:
        run.wait_for_steps(1, 0, launch=1)
        took("from the power cut to the first new row of metrics.jsonl", time.monotonic() - began)
        ends_with(run, expected, restarts=0)
    finally:
        cluster.power_on("n2")
    starts = [json.loads(line) for line in text_of(run.run_dir / "starts.jsonl").splitlines()]
    assert [start["world_size"] for start in starts] == [2, 1]
    assert status(run.run_dir)["restart"]["host"] == "n2"


@soak
def test_a_job_that_has_lost_its_batch_script_is_requeued_by_a_rank_that_is_left(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed, took: Callable[[str, float], None]
) -> None:
    expected = undisturbed(1, *LONG, *SHARDS)
    run.submit(*LONG, *SHARDS, SLOW, *PATIENCE)
    run.wait_for_steps(10, 0)
    assert cluster.job(run.job)["BatchHost"] == "n1"
    began = time.monotonic()
    cluster.power_off("n1")
    try:
        wait_until(lambda: cluster.job(run.job)["Restarts"] == "1", 200, run.logs)
        took("from the power cut to the requeue", time.monotonic() - began)
    finally:
        cluster.power_on("n1")
    ends_with(run, expected, restarts=1)
