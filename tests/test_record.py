"""A series of tests that is cut off goes on with what has not passed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

import tests.record
from tests.record import Record

PARTS: Any = ("setup", "call", "teardown")


def happen(there: Record, name: str, *outcomes: Any, mark: str = "power") -> None:
    """The reports of one test, as pytest gives them; of one whose setup does not pass there is none of the call."""
    facts: dict[str, Any] = {"duration": 1.5, "user_properties": [("lost", 3)]}
    for when, outcome in zip(PARTS if outcomes[0] == "passed" else PARTS[::2], outcomes, strict=False):
        there.pytest_runtest_logreport(pytest.TestReport(name, ("", 0, name), {mark: 1}, outcome, None, when, **facts))


def record(path: Path | None, **worker: Any) -> Record:
    return Record(SimpleNamespace(**worker), "power", path)  # type: ignore[arg-type]


def left(there: Record) -> str:
    items = [SimpleNamespace(nodeid=name) for name in "abcdefg"]
    there.pytest_collection_modifyitems(Mock(), items)  # type: ignore[arg-type]
    return "".join(item.nodeid for item in items)


@pytest.fixture(autouse=True)
def _one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.record, "commit", lambda: "one")


def test_what_passed_is_not_run_again_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "record.jsonl"
    first = record(path)
    happen(first, "a", "passed", "passed", "passed")
    happen(first, "b", "passed", "failed", "passed")
    happen(first, "c", "passed", "passed", "failed")  # such as a process that is left
    happen(first, "d", "failed", "passed")
    happen(first, "e", "skipped", "passed")
    happen(first, "f", "passed", "passed", "passed", mark="links")
    happen(first, "g", "passed", "passed")  # and then the power is lost
    with path.open("a") as file:
        file.write('{"id": "a')
    second = record(path)
    assert left(second) == "bcdefg"
    found = [(row["id"], row["passed"], row["seconds"], row["properties"]["lost"]) for row in second.rows]
    assert found == [("a", True, 1.5, 3), ("b", False, 1.5, 3), ("c", False, 1.5, 3), ("d", False, 0, 3)]
    for commit in ("another", "one+", "unknown"):
        monkeypatch.setattr(tests.record, "commit", lambda commit=commit: commit)
        assert left(record(path)) == "abcdefg"
        happen(record(path), "a", "passed", "passed", "passed")
        assert left(record(path)) == ("bcdefg" if commit == "another" else "abcdefg")  # the code may be another


def test_a_failure_that_passes_at_the_next_try_has_passed(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    happen(record(path), "a", "passed", "failed", "passed")
    happen(record(path), "a", "passed", "passed", "passed")
    assert left(record(path)) == "bcdefg"


def test_a_worker_of_xdist_knows_what_had_passed_when_the_tests_were_shared_out(tmp_path: Path) -> None:
    path, node = tmp_path / "record.jsonl", SimpleNamespace(workerinput={})
    happen(record(path), "a", "passed", "passed", "passed")
    record(path).pytest_configure_node(node)
    happen(record(path), "b", "passed", "passed", "passed")
    worker = record(path, workerinput=node.workerinput)
    happen(worker, "c", "passed", "passed", "passed")
    assert left(worker) == "bcdefg"
    assert left(record(path)) == "cdefg"


def test_where_all_has_passed_before_the_series_is_a_success(tmp_path: Path) -> None:
    path, nothing_run = tmp_path / "record.jsonl", pytest.ExitCode.NO_TESTS_COLLECTED
    session = SimpleNamespace(exitstatus=nothing_run)
    record(path).pytest_sessionfinish(session, nothing_run)  # type: ignore[arg-type]
    assert session.exitstatus == nothing_run
    happen(record(path), "a", "passed", "passed", "passed")
    record(path).pytest_sessionfinish(session, nothing_run)  # type: ignore[arg-type]
    assert session.exitstatus == 0
