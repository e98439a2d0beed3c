"""One owner of a run directory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from senet import lease as module
from senet.config import REPOSITORY, ConfigError, RunError
from senet.files import read_json
from senet.lease import Lease


def edit_owner(run_dir: Path, **changes: Any) -> None:
    path = run_dir / "owner.json"
    path.write_text(json.dumps(read_json(path) | changes))


def test_a_second_run_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path), pytest.raises(ConfigError, match=r"process \d+ on host .*it is running"):
        Lease.acquire(tmp_path)
    with Lease.acquire(tmp_path) as second:  # released
        assert second.generation == 2


def test_a_holder_that_was_killed_here_is_succeeded_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from senet.lease import Lease; Lease.acquire(pathlib.Path(sys.argv[1])); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY).returncode == 9
    assert not read_json(tmp_path / "owner.json").get("released")
    with Lease.acquire(tmp_path) as after:
        assert after.generation == 2


def test_a_process_id_used_again_by_another_program_does_not_hold(tmp_path: Path) -> None:
    Lease.acquire(tmp_path)
    edit_owner(tmp_path, pid_started=1)
    Lease.acquire(tmp_path).close()


def test_a_holder_on_another_host_holds_while_its_heart_beats(tmp_path: Path) -> None:
    Lease.acquire(tmp_path).close()
    edit_owner(tmp_path, released=False, host="elsewhere", heartbeat=time.time() - 10)
    with pytest.raises(ConfigError, match="on host elsewhere, last heartbeat 10 s ago"):
        Lease.acquire(tmp_path)
    edit_owner(tmp_path, heartbeat=time.time() - module.STALE_S - 1)
    Lease.acquire(tmp_path).close()


def test_another_boot_of_this_host_counts_as_elsewhere(tmp_path: Path) -> None:
    Lease.acquire(tmp_path).close()
    edit_owner(tmp_path, released=False, boot="another", heartbeat=time.time() - 1)
    with pytest.raises(ConfigError, match="last heartbeat"):
        Lease.acquire(tmp_path)


def test_a_restarted_job_takes_over_from_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    Lease.acquire(tmp_path).close()
    edit_owner(tmp_path, released=False, host="elsewhere")
    with pytest.raises(ConfigError, match="elsewhere"):
        Lease.acquire(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    with pytest.raises(ConfigError, match="elsewhere"):
        Lease.acquire(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    Lease.acquire(tmp_path).close()


def test_the_old_holder_notices_and_writes_no_more(tmp_path: Path) -> None:
    old = Lease.acquire(tmp_path)
    old.start(0)
    edit_owner(tmp_path, pid_started=1)
    with Lease.acquire(tmp_path) as new:
        new.start(4)
        assert not old.is_held()
        old.update(state="finished")
        old.close()
        assert new.is_held()
        assert read_json(tmp_path / "status.json")["state"] == "running"
        assert read_json(tmp_path / "status.json")["generation"] == 2
        assert read_json(tmp_path / "owner.json")["resumed_from"] == {"1": 0, "2": 4}


def test_a_start_that_was_overtaken_while_preparing_ends(tmp_path: Path) -> None:
    slow = Lease.acquire(tmp_path)
    edit_owner(tmp_path, pid_started=1)
    with Lease.acquire(tmp_path) as new:
        with pytest.raises(RunError, match="taken over"):
            slow.start(0)
        slow.close()
        assert new.is_held()


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    with Lease.acquire(tmp_path) as lease:
        lease.start(0)
        before = read_json(tmp_path / "owner.json")["heartbeat"], read_json(tmp_path / "status.json")["heartbeat"]
        lease.update(step=7)
        time.sleep(0.3)
        assert read_json(tmp_path / "owner.json")["heartbeat"] > before[0]
        status = read_json(tmp_path / "status.json")
        assert status["heartbeat"] > before[1]
        assert status["step"] == 7


def test_a_start_that_is_refused_leaves_the_status_of_the_last_run(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path) as first:
        first.start(0)
        first.update(state="stopped", step=9)
    before = (tmp_path / "status.json").read_text()
    with pytest.raises(ConfigError), Lease.acquire(tmp_path):
        raise ConfigError("found later")
    assert (tmp_path / "status.json").read_text() == before


def test_a_failure_is_put_down_with_its_reason(tmp_path: Path) -> None:
    def fail() -> None:
        with Lease.acquire(tmp_path) as lease:
            lease.start(0)
            raise RuntimeError("the\nreason")

    with pytest.raises(RuntimeError):
        fail()
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["reason"]) == ("failed", "RuntimeError: the reason")


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Lease.acquire(tmp_path / "file" / "run")
