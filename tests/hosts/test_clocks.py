"""The clock of one host is five minutes off."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from senet.errors import REFUSED_EXIT_CODE
from tests.harness import started, tiny, wait_until
from tests.hosts.cluster import HostCluster
from tests.hosts.test_hosts import Undisturbed, ends_with
from tests.soak import SOAK
from tests.submitted import SLOW, Run

OFF_S = (-300, 300)


@pytest.mark.parametrize(
    ("node", "seconds"), [("n1", -300), ("n2", 300), *([("n1", 300), ("n2", -300)] if SOAK else [])]
)
def test_a_job_does_not_mind_the_clock_of_one_host(
    node: str, seconds: int, cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    with cluster.machines[node].clock_off(seconds):
        run.submit("train.epochs=3")
        ends_with(run, undisturbed(2, "train.epochs=3"), restarts=0)


@pytest.mark.parametrize("seconds", OFF_S)
def test_a_living_run_is_not_taken_over_by_a_host_whose_clock_differs(
    seconds: int, cluster: HostCluster, run: Run, tmp_path: Path
) -> None:
    words = [sys.executable, str(run.checkout / "train_ddp.py"), *tiny(*run.options, SLOW, "train.epochs=3000")]
    with started(
        cluster.machines["n1"].command(*words), tmp_path / "log", **cluster.env, **cluster.network.wrong_clock(seconds)
    ):
        wait_until(lambda: run.read("status.json").get("step", 0) >= 5)
        second = cluster.on("n2", *words, timeout_s=120)
        assert second.returncode == REFUSED_EXIT_CODE, second.stderr
        assert "is owned by a run that is alive" in second.stderr
        assert "on host n1" in second.stderr
