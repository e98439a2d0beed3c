"""One cluster of two hosts for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.hosts.cluster import HostCluster, cluster_of_hosts, missing_packages
from tests.submitted import Run

MISSING = missing_packages()
if MISSING and os.environ.get("HOSTS_TESTS") == "required":
    raise RuntimeError(f"HOSTS_TESTS=required, but {MISSING}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.hosts)
            item.add_marker(pytest.mark.timeout(900))
            item.add_marker(pytest.mark.skipif(bool(MISSING), reason=MISSING))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    with cluster_of_hosts(tmp_path_factory.mktemp("hosts"), shared=tmp_path_factory.getbasetemp()) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def no_orphans(cluster: HostCluster) -> Iterator[None]:
    """After each test both nodes are idle, and no process of its jobs is left on either."""
    yield
    for job in cluster.run("squeue", "--noheader", "--format=%i").split():  # of a test that failed
        cluster.cancel(job)
    wait_until(lambda: not cluster.processes(), 20, f"the end of {cluster.processes()}")
    cluster.wait_idle()


@pytest.fixture
def run(cluster: HostCluster, tmp_path: Path, data_root: Path) -> Run:
    return Run(cluster, tmp_path / "run", data_root)
