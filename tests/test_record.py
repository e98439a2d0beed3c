"""A series of tests that is cut off goes on with what has not passed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

import tests.record
from tests.record import Record


def outcome(name: str, outcome: Any, when: Any = "call", mark: str = "power") -> pytest.TestReport:
    facts: dict[str, Any] = {"duration": 1.5, "user_properties": [("lost", 3)]}
    return pytest.TestReport(name, ("", 0, name), {mark: 1}, outcome, None, when, **facts)


def record(path: Path | None) -> Record:
    return Record(SimpleNamespace(), "power", path)  # type: ignore[arg-type]


def left(there: Record) -> list[str]:
    items = [SimpleNamespace(nodeid=name) for name in "abcdef"]
    there.pytest_collection_modifyitems(Mock(), items)  # type: ignore[arg-type]
    return [item.nodeid for item in items]


def test_what_passed_is_not_run_again_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "record.jsonl"
    first = record(path)
    for report in (
        outcome("a", "passed"),
        outcome("b", "failed"),
        outcome("c", "passed", when="setup"),
        outcome("c", "skipped"),
        outcome("d", "failed", when="setup"),
        outcome("e", "passed", mark="links"),
    ):
        first.pytest_runtest_logreport(report)
    second = record(path)
    assert left(second) == ["b", "c", "d", "e", "f"]
    found = [(row["id"], row["passed"], row["seconds"], row["properties"]["lost"]) for row in second.rows]
    assert found == [("a", True, 1.5, 3), ("b", False, 1.5, 3), ("d", False, 1.5, 3)]
    second.pytest_runtest_logreport(outcome("b", "passed"))
    assert left(record(path)) == ["c", "d", "e", "f"]
    monkeypatch.setattr(tests.record, "commit", lambda: "another")
    assert left(record(path)) == list("abcdef")


def test_a_worker_of_xdist_leaves_writing_to_the_one_that_shares_the_tests_out(tmp_path: Path) -> None:
    worker = Record(SimpleNamespace(workerinput={}), "power", tmp_path / "record.jsonl")  # type: ignore[arg-type]
    worker.pytest_runtest_logreport(outcome("a", "passed"))
    kept = record(None)
    kept.pytest_runtest_logreport(outcome("a", "passed"))
    assert (worker.rows, len(kept.rows), list(tmp_path.iterdir())) == ([], 1, [])
