"""How messages name ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from senet.distributed.roster import Process, own_name
from tests.harness import on_hosts


def test_ranks_are_named_with_their_hosts() -> None:
    roster = on_hosts("n1", "n1", "n1", "n2")
    assert roster.name([1]) == "rank 1 on n1"
    assert roster.name(iter([3, 1, 0])) == "ranks 0, 1 on n1, rank 3 on n2"
    assert roster.name([0, 5, 4]) == "rank 0 on n1, ranks 4, 5"  # not known before they meet


def test_a_host_is_called_as_slurm_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert own_name() == f"rank 0 on {socket.gethostname()}"
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    assert own_name() == "rank 0 on n7"


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a space of pids: run as root")
def test_only_processes_that_see_each_other_know_each_other() -> None:
    def told(*before: str) -> str:
        code = "from senet.distributed.roster import Process; print(Process.own().boot)"
        return subprocess.run([*before, sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert told().strip() == Process.own().boot
    assert told("unshare", "--pid", "--fork").strip() != Process.own().boot
