"""``slurm.cluster=local``: the same job on a machine without SLURM."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from senet import REPOSITORY
from senet.rundir.files import read_json
from tests.harness import differing, payload, rows, status, tiny, train, wait_until, without_clock

pytestmark = pytest.mark.slurm
SUBMIT = [sys.executable, str(REPOSITORY / "slurm" / "submit.py")]
OPTIONS = ("train.epochs=16", "checkpoint.every_steps=20", "log.every_steps=5")  # 352 steps, 70 s at the least
JOB = (
    "model.name=tests.networks:slow_senet",
    "slurm.cluster=local",
    "slurm.ranks_per_node=2",
    "slurm.time=0:01:30",
    "slurm.signal_lead_s=20",  # told to stop after 70 s; six starts must do, also where each takes 40 s to begin
)
MARK = "SENET_TEST_MARK"


class Local:
    """A run directory, and every process that was started for it."""

    def __init__(self, folder: Path, data_root: Path) -> None:
        self.run_dir, self.folder = folder / "run", folder
        self.options = [f"data.root={data_root}", f"run_dir={self.run_dir}"]

    def tool(self, *args: str) -> str:
        environment = os.environ | {MARK: str(self.folder)}
        done = subprocess.run([*SUBMIT, *args], capture_output=True, text=True, env=environment, timeout=180)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def local(tmp_path: Path, data_root: Path) -> Iterator[Local]:
    local = Local(tmp_path, data_root)
    yield local
    left = local.processes()
    for process in left:
        process.kill()
    assert left == []


@pytest.mark.timeout(900)
def test_at_the_time_limit_it_is_saved_and_started_again(local: Local, data_root: Path, tmp_path: Path) -> None:
    assert local.tool(*tiny(*OPTIONS, *JOB, *local.options)).startswith("submitted job ")
    assert local.tool("status", str(local.run_dir)).splitlines()[1].split()[2] in ("starting", "training")
    wait_until(lambda: not local.processes(), 600, "the end of the job")
    table = local.tool("status", str(local.run_dir))
    assert table.splitlines()[1].split()[2:5] == ["finished", "352", "16"]
    [log] = local.run_dir.glob("slurm/*_0_log.out")
    restarts = log.read_text().count("resumed from")
    assert restarts == log.read_text().count("stopped at step") > 0
    assert train(2, *tiny(*OPTIONS, f"data.root={data_root}", f"run_dir={tmp_path}/undisturbed")).returncode == 0
    assert differing(without_clock(payload(local.run_dir)), without_clock(payload(tmp_path / "undisturbed"))) == []


def test_stop_saves_and_ends_it(local: Local) -> None:
    local.tool(*tiny(*OPTIONS, *JOB, *local.options))
    wait_until(lambda: rows(local.run_dir))
    local.tool("stop", str(local.run_dir))
    wait_until(lambda: not local.processes(), 120)
    assert status(local.run_dir)["state"] == "stopped"


def test_a_budget_of_no_requeue_is_kept(local: Local) -> None:
    local.tool(*tiny(*OPTIONS, *JOB, *local.options, "slurm.max_requeues=0"))
    wait_until(lambda: not local.processes(), 240)
    assert status(local.run_dir)["reason"] == "slurm.max_requeues=0 is used up"
    assert read_json(local.run_dir / "status.json")["state"] == "stopped"
