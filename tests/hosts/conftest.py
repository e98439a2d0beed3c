"""One cluster of two hosts for all tests of this folder, one for each process of ``pytest -n``.

With SOAK=1 (``make hosts-soak``) each test is repeated, and the outcomes are kept in the file HOSTS_RECORD (default
``runs/hosts.jsonl``): the same command goes on with what has not passed with this commit.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import psutil
import pytest

from tests.harness import told, wait_until
from tests.hosts.cluster import HostCluster, cluster_of_hosts, missing
from tests.hosts.glusterfs import MOUNT
from tests.record import Record
from tests.soak import SOAK
from tests.submitted import Run

MISSING = missing()
if MISSING and os.environ.get("HOSTS_TESTS") == "required":
    raise RuntimeError(f"HOSTS_TESTS=required, but {MISSING}")
FOLDER = Path(__file__).parent
RECORD = Path(os.environ.get("HOSTS_RECORD", "runs/hosts.jsonl"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.hosts)
            item.add_marker(pytest.mark.timeout(900))
            item.add_marker(pytest.mark.skipif(bool(MISSING), reason=MISSING))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``@pytest.mark.times(quick=2, soak=20)``; without it a test runs once, 5 times with SOAK=1."""
    mark = metafunc.definition.get_closest_marker("times")
    counts = mark.kwargs if mark else {"quick": 1, "soak": 5}
    if (count := counts["soak" if SOAK else "quick"]) > 1:
        metafunc.fixturenames.append("trial")
        metafunc.parametrize("trial", range(count), ids=lambda number: f"try{number}")


class Events(Record):
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.rows or self.is_worker:
            return
        seconds: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            if row["passed"]:
                name = row["id"].rpartition("::")[2].partition("[")[0]
                seconds[name].append(row["seconds"])
                for what, took_s in row["properties"].items():
                    seconds[f"{name}: {what}"].append(took_s)
        terminalreporter.section("two hosts: n, median and longest seconds")
        for name, all_s in seconds.items():
            terminalreporter.write_line(f"{len(all_s):4} {median(all_s):7.1f} {max(all_s):7.1f}  {name}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Events(config, "hosts", RECORD if SOAK else None), "hosts-record")


@pytest.fixture
def took(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """``took("from the kill to the next new step", seconds)`` puts a line into the table at the end."""
    return record_property


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Iterator[HostCluster]:
    with cluster_of_hosts(tmp_path_factory.mktemp("hosts"), shared=data_root.parent) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def no_orphans(cluster: HostCluster) -> Iterator[None]:
    """After each test both nodes are idle, and no process of its jobs is left on either."""
    yield
    for job in cluster.run("squeue", "--noheader", "--format=%i").split():  # of a test that failed
        cluster.cancel(job)

    def left() -> list[psutil.Process]:
        return [*cluster.processes(), *cluster.strays()]

    wait_until(lambda: not left(), 60, lambda: told(left()))
    cluster.wait_idle(timeout_s=60)  # a node that was cut off tells of its job's end a little later


@pytest.fixture
def run(cluster: HostCluster, tmp_path: Path, data_root: Path) -> Run:
    """Its run directory lies on the network file system."""
    inside = MOUNT / tmp_path.name
    return Run(cluster, inside, data_root, seen_at=cluster.machines["n0"].outside(inside))
