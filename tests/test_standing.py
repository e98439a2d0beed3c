"""One word says what a run has come to, whoever asks: by its files, and by SLURM's word where it has a job."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from senet import REPOSITORY
from senet.rundir.files import write_json
from senet.rundir.lease import Lease
from senet.rundir.standing import TAKEN, WORDS, over_file, state_of
from slurm.cluster import JobState

SENT = {"job": "7", "cluster": "slurm", "submitted": 1000.0}
OF_JOB = {"job": "7", "heartbeat": 1001.0}


def found(
    run_dir: Path, status: dict[str, Any], sent: dict[str, Any] | None = None, job: JobState | None = None
) -> tuple[str, str]:
    write_json(run_dir / "status.json", status)
    if sent:
        (run_dir / "slurm").mkdir(exist_ok=True)
        write_json(run_dir / "slurm" / "job.json", sent)
    state = state_of(run_dir, job)
    return state.word, re.sub(r"\d{4,}", "N", state.reason)


@pytest.mark.parametrize(
    ("slurm", "run", "expected"),
    [
        (("PENDING", "Priority", 0), {}, ("waiting", "Priority")),
        (("PENDING", "BeginTime", 1), {"state": "running"}, ("waiting", "BeginTime")),
        (("PENDING", "BeginTime", 1), {"state": "stopped", "reason": "SIGTERM"}, ("waiting", "BeginTime")),
        (("RUNNING", "", 0), {}, ("starting", "")),
        (("RUNNING", "", 0), {"state": "running"}, ("training", "")),
        (("RUNNING", "", 1), {"state": "running", "job_restarts": 0}, ("starting", "")),
        (("RUNNING", "", 1), {"state": "failed", "job_restarts": 0}, ("starting", "")),
        (("RUNNING", "", 0), {"state": "failed", "reason": "why"}, ("ending", "why")),
        (("COMPLETING", "", 0), {"state": "stopped", "reason": "SIGUSR2"}, ("ending", "SIGUSR2")),
        (("SUSPENDED", "", 0), {"state": "running"}, ("suspended", "")),
        (("COMPLETED", "", 0), {"state": "finished"}, ("finished", "")),
        (("CANCELLED", "", 0), {"state": "stopped", "reason": "SIGUSR2"}, ("stopped", "SIGUSR2")),
        (("CANCELLED", "", 0), None, ("cancelled", "")),
        (("TIMEOUT", "", 0), {"state": "running"}, ("timeout", "silent for N s")),
        (("FAILED", "", 0), {"state": "failed", "reason": "why"}, ("failed", "why")),
        (("", "", 0), {"state": "running"}, ("killed", "silent for N s")),
        (("", "", 0), None, ("not begun", "SLURM does not know job 7")),
        (None, {"state": "running"}, ("submitted", "job 7; it was running")),
        (None, {"state": "stopped", "reason": "SIGTERM"}, ("submitted", "job 7; it was stopped: SIGTERM")),
        (None, None, ("submitted", "job 7")),
        (None, {"state": "failed", "reason": "why"}, ("failed", "why")),
        (None, {"state": "finished"}, ("finished", "")),
    ],
)
def test_of_a_run_with_a_job(
    tmp_path: Path, slurm: tuple[str, str, int] | None, run: dict[str, Any] | None, expected: tuple[str, str]
) -> None:
    status = {} if run is None else OF_JOB | run
    assert found(tmp_path, status, SENT, JobState(*slurm) if slurm else None) == expected


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({}, ("not begun", "")),
        ({"state": "running"}, ("killed", "")),
        ({"state": "stopped", "reason": "SIGINT"}, ("stopped", "SIGINT")),
        ({"state": "failed", "reason": "why"}, ("failed", "why")),
        ({"state": "finished"}, ("finished", "")),
    ],
)
def test_of_a_run_without_a_job(tmp_path: Path, run: dict[str, Any], expected: tuple[str, str]) -> None:
    assert found(tmp_path, run) == expected


def test_a_process_that_lives_trains_or_starts(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path):
        assert found(tmp_path, {"state": "stopped"}) == ("starting", "")  # of the start before
        assert found(tmp_path, {"state": "running"}) == ("training", "")
        assert found(tmp_path, OF_JOB | {"state": "running"}, SENT) == ("training", "")
    assert found(tmp_path, {"state": "running"})[0] == "submitted"


def test_what_was_trained_after_a_job_without_it_counts(tmp_path: Path) -> None:
    later = {"job": "", "heartbeat": time.time(), "state": "stopped", "reason": "SIGINT"}
    assert found(tmp_path, later, SENT) == ("stopped", "SIGINT")
    assert found(tmp_path, later, SENT, JobState("CANCELLED")) == ("stopped", "SIGINT")
    assert found(tmp_path, later | {"heartbeat": 1.0}, SENT, JobState("CANCELLED")) == ("cancelled", "")


def test_the_status_of_an_earlier_job_is_not_that_of_the_newest_whatever_its_clock(tmp_path: Path) -> None:
    before = {"job": "6", "heartbeat": 1010.0, "state": "failed", "reason": "why"}
    assert found(tmp_path, before, SENT) == ("submitted", "job 7")
    assert found(tmp_path, before, SENT, JobState("RUNNING")) == ("starting", "")
    after = before | {"job": "8_3", "heartbeat": 1.0, "state": "finished", "reason": ""}  # that of an allocation
    assert found(tmp_path, after, SENT) == found(tmp_path, after, SENT, JobState("TIMEOUT")) == ("finished", "")
    local = SENT | {"cluster": "local"}
    assert found(tmp_path, before, local) == ("failed", "why")  # that of the allocation in which it was started


def test_a_job_that_was_stopped_does_not_come_back(tmp_path: Path) -> None:
    stopped = OF_JOB | {"state": "stopped", "reason": "SIGUSR2"}
    assert found(tmp_path, stopped, SENT)[0] == "submitted"
    over_file(tmp_path, "7").touch()
    assert found(tmp_path, stopped, SENT) == ("stopped", "SIGUSR2")
    assert found(tmp_path, {}, SENT) == ("not begun", "")
    assert found(tmp_path, {}, SENT | {"job": "8"}) == ("submitted", "job 8")


def test_an_end_without_a_word_is_that_of_the_disk_if_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senet.rundir.standing.is_full", lambda _: True)
    running, failed = OF_JOB | {"state": "running"}, JobState("FAILED")
    assert found(tmp_path, running, SENT, failed) == ("failed", "No space left on device")
    assert found(tmp_path, OF_JOB | {"state": "failed", "reason": "why"}, SENT, failed) == ("failed", "why")


def test_each_word_has_its_row_on_the_page() -> None:
    page = (REPOSITORY / "docs" / "run-directory.md").read_text()
    [table] = re.findall(r"^## What has become of it$(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^\| `([a-z ]+)` \| ", table, re.MULTILINE) == [*WORDS]
    assert set(TAKEN) < WORDS.keys()
