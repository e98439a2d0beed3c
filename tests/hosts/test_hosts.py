"""Two emulated hosts: faults of one of them, and how the training ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.harness import differing, payload, rows, status, told, wait_until, without_clock
from tests.hosts import cgroups
from tests.hosts.cluster import HostCluster
from tests.hosts.machines import remove_leftovers
from tests.submitted import SLOW, Run

LONG = ("train.epochs=4", "checkpoint.every_steps=10", "log.every_steps=5")  # 88 steps, 18 s and more
Undisturbed = Callable[..., dict[str, Any]]


def ends_with(run: Run, expected: dict[str, Any], restarts: int) -> None:
    """The run is finished after so many requeues, with these bits, and each step once in metrics.jsonl."""
    assert run.wait_for("COMPLETED")["Restarts"] == str(restarts)
    assert status(run.run_dir)["state"] == "finished"
    assert differing(without_clock(payload(run.run_dir)), expected) == []
    steps = [row["step"] for row in rows(run.run_dir)]
    assert steps == sorted(set(steps))


def test_they_share_neither_names_nor_processes_nor_folders(cluster: HostCluster) -> None:
    script = "hostname; ps -A -o comm= | grep -c slurmd; touch /tmp/$(hostname); ls /tmp | grep '^n'"
    said = [cluster.run("srun", "--nodelist", node, "sh", "-c", script).split() for node in ("n1", "n2")]
    assert [words[0] for words in said] == ["n1", "n2"]
    assert [words[-1] for words in said] == ["n1", "n2"]


def test_what_ends_on_a_machine_without_a_parent_is_gone(cluster: HostCluster) -> None:
    node = cluster.machines["n1"]
    assert cluster.on("n1", "sh", "-c", "(sleep 0.5 >/dev/null 2>&1 &)").returncode == 0
    wait_until(lambda: not node.processes("sleep"), 120, lambda: told(node.processes("sleep")))


def test_what_a_killed_test_has_left_is_removed_by_the_next(cluster: HostCluster) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    left = f"{ended.pid:06x}"
    subprocess.run(["ip", "netns", "add", f"sn{left}n1"], check=True)
    subprocess.run(["ip", "link", "add", f"sb{left}", "type", "bridge"], check=True)
    cgroups.make(f"s{left}n1")
    remove_leftovers()
    assert not [name for name in (*psutil.net_if_addrs(), *map(str, Path("/run/netns").iterdir())) if left in name]
    assert not list(cgroups.ROOT.glob(f"*/s{left}*"))
    assert cluster.run("srun", "--nodelist", "n2", "hostname").split() == ["n2"]  # what is in use stays


def test_a_job_on_two_hosts_ends_with_the_bits_of_torchrun_on_one(run: Run, undisturbed: Undisturbed) -> None:
    run.submit()
    ends_with(run, undisturbed(2), restarts=0)


def test_a_host_without_power_costs_one_requeue(cluster: HostCluster, run: Run, undisturbed: Undisturbed) -> None:
    run.submit(*LONG, SLOW, "slurm.nodes=1")
    run.wait_for_steps(30, 0)
    lost = cluster.job(run.job)["NodeList"]
    cluster.power_off(lost)
    try:
        run.wait_for_steps(5, 1)
        ends_with(run, undisturbed(0, *LONG), restarts=1)
    finally:
        cluster.power_on(lost)
