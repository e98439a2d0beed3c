"""What ``train_ddp.py`` says when a run fails."""

from __future__ import annotations

from typing import Any

import pytest

import senet.run
import train_ddp
from senet.config import RunError
from senet.preemption import StopFlag
from tests.harness import tiny

LAUNCHED = {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("rank", "ended_by_the_launcher", "speaks"),
    [(0, False, True), (1, True, False), (1, False, True)],  # the last: rank 0 is stuck and cannot say it
)
def test_one_rank_says_why_and_another_where_that_one_cannot(
    rank: int, ended_by_the_launcher: bool, speaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Stop(StopFlag):
        def wait(self, timeout_s: float) -> bool:
            assert timeout_s <= 10
            return ended_by_the_launcher

    def run(*_: object) -> None:
        raise RunError("the ranks did not meet")

    for name, value in (LAUNCHED | {"RANK": str(rank), "LOCAL_RANK": str(rank)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(senet.run, "run", run)
    assert train_ddp.main(tiny(), Stop()) == 1
    assert capsys.readouterr().err == ("train_ddp: failed: the ranks did not meet\n" if speaks else "")
