"""What ``train_ddp.py`` says when a run fails."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import train_ddp
from senet.distributed.preemption import StopFlag
from senet.errors import ConfigError, RunError
from senet.rundir.files import read_json
from senet.training import run as run_module
from tests.faults.networks import AT, Bug
from tests.harness import named, tiny, train

LAUNCHED = {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("rank", "ended_by_the_launcher", "speaks"),
    [(0, False, True), (1, True, False), (1, False, True)],  # the last: rank 0 is stuck and cannot say it
)
@pytest.mark.parametrize(("kind", "state", "code"), [(RunError, "failed", 1), (ConfigError, "refused", 2)])
def test_one_rank_says_why_and_another_where_that_one_cannot(
    kind: type[Exception],
    state: str,
    code: int,
    rank: int,
    ended_by_the_launcher: bool,
    speaks: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Stop(StopFlag):
        def wait(self, timeout_s: float) -> bool:
            assert timeout_s <= 10
            return ended_by_the_launcher

    def run(*_: object) -> None:
        raise kind("the ranks did not meet")

    for name, value in (LAUNCHED | {"RANK": str(rank), "LOCAL_RANK": str(rank)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(run_module, "run", run)
    monkeypatch.setenv("SENET_STATUS_FILE", str(tmp_path / "status.json"))
    assert train_ddp.main(tiny(), Stop()) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == speaks
    assert all(line.startswith("train_ddp: ") and line.endswith("the ranks did not meet") for line in lines)
    assert read_json(tmp_path / "status.json").get("state", "") == (state if speaks else "")


@pytest.mark.ranks
def test_a_bug_of_a_user_is_a_reason_with_its_line_and_step(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULTY_RANK", "0")
    monkeypatch.setenv("SENET_STATUS_FILE", str(tmp_path / "mirror.json"))
    done = train(0, *tiny(f"model.name={Bug.__module__}:bug", f"data.root={data_root}", f"run_dir={tmp_path}/run"))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "ValueError: a bug of a user")
    cause = f"ValueError: a bug of a user, at faults/networks.py:{Bug.fault.__code__.co_firstlineno + 2} fault"
    for file in ("mirror.json", "run/status.json"):
        found = read_json(tmp_path / file)
        assert (found["state"], found["step"]) == ("failed", AT - 1)
        assert found["reason"] == f"{named(0)} failed: {cause}"
        assert found["failure"] == {"cause": cause, "rank": 0, "host": socket.gethostname()}
