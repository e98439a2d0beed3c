"""Hours of tests that may be cut off: what has passed with this commit is not run again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from senet.rundir.commit import commit
from senet.rundir.files import read_rows


class Record:
    """A plugin of pytest. ``rows``: what each test with a mark came to, from its setup to its teardown, now and before.

    Under pytest-xdist the process that shares the tests out keeps it, and tells the others what has passed: one that
    takes the place of a crashed one must find the same tests.
    """

    def __init__(self, config: pytest.Config, mark: str, path: Path | None) -> None:
        """``path``: a file of JSON lines to go on from and to add to; None: nothing is kept.

        Nothing is gone on from in a checkout with changes: what has passed may have been other code.
        """
        self.rows: list[dict[str, Any]] = []
        self.is_worker = hasattr(config, "workerinput")
        self._mark, self._path, self._commit = mark, path, commit()
        self._reports: dict[str, list[pytest.TestReport]] = {}
        if self.is_worker:
            self._passed = set(config.workerinput.get(mark, ()))  # type: ignore[attr-defined]
            return
        if path and not self._commit.endswith(("+", "unknown")):
            self.rows = [row for row in read_rows(path) if row["commit"] == self._commit]
        self._passed = {row["id"] for row in self.rows if row["passed"]}

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[self._mark] = sorted(self._passed)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = [item for item in items if item.nodeid in self._passed]
        if done:
            config.hook.pytest_deselected(items=done)
            items[:] = [item for item in items if item.nodeid not in self._passed]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.is_worker or self._mark not in report.keywords:
            return
        parts = self._reports.setdefault(report.nodeid, [])
        parts.append(report)
        if report.when == "teardown" and not any(part.skipped for part in self._reports.pop(report.nodeid)):
            row = {"id": report.nodeid, "passed": all(part.passed for part in parts), "commit": self._commit}
            call_s = sum(part.duration for part in parts if part.when == "call")
            row |= {"seconds": round(call_s, 1), "time": round(time.time())}
            self._add(row | {"properties": dict(report.user_properties)})

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._passed:  # all has passed before
            session.exitstatus = pytest.ExitCode.OK

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(f"\n{json.dumps(row)}\n")  # the line before may be one that was cut off
