"""How often each fault is tried, and the table of the results.

A test of a fault is marked ``fault(NAME, quick=N, full=M)`` and asks for ``trial``: it runs N times, or M times with
FAULTS=full, each with its own random numbers. A table ends the session: tries, survived, most steps lost, longest
time to recover. With FAULTS=full the outcomes are kept in the file FAULTS_RECORD (default ``runs/faults.jsonl``), and
the same command goes on with what has not been survived by this commit.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Once
from tests.faults.runs import options
from tests.harness import payload, train, without_clock
from tests.record import Record

Unbroken = Callable[[int], dict[str, Any]]
FULL = os.environ.get("FAULTS") == "full"
RECORD = Path(os.environ.get("FAULTS_RECORD", "runs/faults.jsonl"))


class Trial:
    """One try of a fault."""

    def __init__(self, number: int, report: Callable[[str, object], None], name: str) -> None:
        self.number = number
        self.random = random.Random(f"{name} {number}")
        self._report = report

    def lost(self, steps: int) -> None:
        """Updates that were done twice."""
        self._report("lost", steps)

    def recovered(self, seconds: float) -> None:
        """From typing the command again to the first update that is new; or from the fault to its end."""
        self._report("recovery_s", round(seconds, 1))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if mark := metafunc.definition.get_closest_marker("fault"):
        count = mark.kwargs["full" if FULL else "quick"]
        metafunc.parametrize("trial", range(count), indirect=True, ids=lambda number: f"try{number}")


@pytest.fixture
def trial(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Trial:
    name = request.node.get_closest_marker("fault").args[0]
    record_property("fault", name)
    return Trial(request.param, record_property, request.node.nodeid)


@pytest.fixture(scope="session")
def unbroken(data_root: Path, once: Once) -> Unbroken:
    """``unbroken(ranks)``: the last checkpoint of the run that nothing disturbs."""

    def whole(ranks: int) -> dict[str, Any]:
        def run(run_dir: Path) -> None:
            done = train(ranks, *options(data_root, run_dir))
            assert done.returncode == 0, done.stderr

        return without_clock(payload(once(f"whole-{ranks}", run)))

    return whole


class Faults(Record):
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.rows or self.is_worker:
            return
        by_fault = defaultdict(list)
        for row in self.rows:
            by_fault[row["properties"].get("fault", row["id"])].append(row)  # without: it failed before ``trial``
        terminalreporter.section("faults")
        terminalreporter.line(f"{'fault':62} {'tries':>5} {'survived':>8} {'lost':>5} {'recovery':>9}")
        for fault, rows in sorted(by_fault.items()):
            lost, recovery_s = (
                max((row["properties"][key] for row in rows if key in row["properties"]), default=None)
                for key in ("lost", "recovery_s")
            )
            survived = sum(row["passed"] for row in rows)
            last = f"{'-' if lost is None else lost:>5} {'-' if recovery_s is None else f'{recovery_s:.1f} s':>9}"
            terminalreporter.line(f"{fault:62} {len(rows):5} {survived:8} {last}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Faults(config, "fault", RECORD if FULL else None), "faults-record")


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("fault"):
        item.add_marker(pytest.mark.ranks)
