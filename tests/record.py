"""Hours of tests that may be cut off: what has passed with this commit is not run again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from senet.rundir.commit import commit


class Record:
    """A plugin of pytest. ``rows``: what each test with a mark came to, now and before."""

    def __init__(self, config: pytest.Config, mark: str, path: Path | None) -> None:
        """``path``: a file of JSON lines to go on from and to add to; None: nothing is kept."""
        self.is_worker = hasattr(config, "workerinput")
        self.rows: list[dict[str, Any]] = []
        self._mark, self._path, self._commit = mark, path, commit()
        if path and path.exists():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            self.rows = [row for row in rows if row["commit"] == self._commit]  # results of other code do not count

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        passed = {row["id"] for row in self.rows if row["passed"]}
        done = [item for item in items if item.nodeid in passed]
        if done:
            config.hook.pytest_deselected(items=done)
            items[:] = [item for item in items if item.nodeid not in passed]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.is_worker or self._mark not in report.keywords or report.skipped:
            return
        if report.when == "call" or report.failed:
            facts = {"id": report.nodeid, "passed": report.passed, "seconds": round(report.duration, 1)}
            facts |= {"time": round(time.time()), "commit": self._commit, "properties": dict(report.user_properties)}
            self.rows.append(facts)
            if self._path:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a") as file:
                    file.write(json.dumps(facts) + "\n")
