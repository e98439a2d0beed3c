"""The doctor on two hosts, as a job of SLURM: each fault is named on the host that has it, and a sound host never."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.harness import status, tiny
from tests.hosts.cluster import HostCluster
from tests.hosts.glusterfs import MOUNT
from tests.hosts.machines import HOMES
from tests.submitted import Run

PLANTED = '''\
import socket, sys

if "senet.doctor" in sys.orig_argv and socket.gethostname() == {host!r}:
    import fcntl, subprocess, torch

    whole = torch.matmul

    def one_element_wrong(left, right):
        product = whole(left, right)
        product[3, 5] += 1
        return product

    PAUSES = """
import os, signal, time
doctor = os.getppid()
while os.getppid() == doctor:
    for number, seconds in ((signal.SIGSTOP, 0.04), (signal.SIGCONT, 0.03)):
        os.kill(doctor, number)
        time.sleep(seconds)
"""

    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    {statement}
'''
Took = Callable[[str, float], None]
Fault = Callable[[HostCluster, Run], AbstractContextManager[None]]


def planted(statement: str, host: str = "n2") -> Fault:
    """Something in the Python of the doctor on one host."""

    def plant(_: HostCluster, run: Run) -> AbstractContextManager[None]:
        name = f"{run.run_dir.name}-planted"
        (run.run_dir.parent / name).mkdir()
        (run.run_dir.parent / name / "sitecustomize.py").write_text(PLANTED.format(host=host, statement=statement))
        run.env["PYTHONPATH"] = str(run.given.parent / name)
        return nullcontext()

    return plant


@contextmanager
def read_only(cluster: HostCluster, _run: Run) -> Iterator[None]:
    """The file system is mounted read-only on n2."""
    done = cluster.on("n2", "sh", "-c", f"mount --bind {MOUNT} {MOUNT} && mount -o remount,bind,ro {MOUNT}")
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        assert cluster.on("n2", "umount", str(MOUNT)).returncode == 0


def without_name(cluster: HostCluster, _run: Run) -> AbstractContextManager[None]:
    """n2 does not know n1."""
    known = [line for line in cluster.network.hosts().splitlines() if not line.endswith(" n1")]
    return cluster.machines["n2"].resolving("\n".join(known) + "\n")


def slow_link(cluster: HostCluster, _run: Run) -> AbstractContextManager[None]:
    return cluster.machines["n2"].slow("100mbit")


def wrong_clock(cluster: HostCluster, _run: Run) -> AbstractContextManager[None]:
    return cluster.machines["n2"].clock_off(-300)


def diagnosed(run: Run) -> dict[str, Any]:
    done = run.tool("doctor", "--json", *tiny("slurm.nodes=2", *run.options), timeout_s=180)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def names(report: dict[str, Any], kind: str) -> list[tuple[str, str]]:
    return [(each["host"], each["check"]) for each in report["findings"] if each["kind"] == kind]


@pytest.mark.times(quick=1, soak=30)
def test_two_sound_hosts_are_found_sound(run: Run, took: Took) -> None:
    report = diagnosed(run)
    assert (report["complete"], report["findings"]) == (True, [])
    took("the check", report["seconds"])


@pytest.mark.times(quick=1, soak=10)
@pytest.mark.parametrize(
    ("fault", "check"),
    [
        pytest.param(planted("torch.matmul = one_element_wrong"), "arithmetic", id="a wrong product"),
        pytest.param(read_only, "files", id="a read-only mount"),
        pytest.param(wrong_clock, "clock", id="a clock that is 5 minutes slow"),
    ],
)
def test_a_fault_is_named_on_its_host(fault: Fault, check: str, cluster: HostCluster, run: Run) -> None:
    with fault(cluster, run):
        report = diagnosed(run)
    found = names(report, "wrong")
    assert ("n2", check) in found, report["findings"]
    assert {host for host, _ in found} == {"n2"}


@pytest.mark.times(quick=1, soak=10)
@pytest.mark.parametrize(
    ("fault", "check"),
    [
        pytest.param(planted('torch.__version__ = "1.0"'), "versions", id="another torch, and no third host"),
        pytest.param(without_name, "names", id="the name of the other host is unknown"),
        pytest.param(slow_link, "links", id="a link of a tenth of its rate"),
        pytest.param(
            planted("subprocess.Popen([sys.executable, '-c', PAUSES])"), "speed", id="a rank at half its speed"
        ),
        pytest.param(planted("fcntl.flock = no_locks"), "locks", id="no locks"),
    ],
)
def test_what_is_slow_or_uncertain_is_named_on_its_host(
    fault: Fault, check: str, cluster: HostCluster, run: Run
) -> None:
    with fault(cluster, run):
        report = diagnosed(run)
    assert names(report, "wrong") == []
    assert ("n2", check) in names(report, "slow"), report["findings"]


def test_the_start_of_a_users_job_goes_round_a_node_with_wrong_products(cluster: HostCluster, tmp_path: Path) -> None:
    run_dir = HOMES / "ada" / tmp_path.name
    seen_at = cluster.machines["n0"].outside(run_dir)
    run = Run(cluster, run_dir, HOMES / "ada" / "data", seen_at=seen_at, check=True)
    run.here = partial(cluster.here, user="ada")
    planted("torch.matmul = one_element_wrong", host="n1")(cluster, run)
    run.submit("train.epochs=1", "slurm.nodes=1")  # SLURM takes n1 first
    found = run.wait_for("COMPLETED")
    assert (found["Restarts"], found["NodeList"], found["ExcNodeList"]) == ("1", "n2", "n1")
    assert status(run.run_dir)["state"] == "finished"
    assert "n1 is avoided since" in run.tool("status", str(run.given)).stdout
