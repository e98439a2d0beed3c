"""A sweep as jobs, with stand-ins for SLURM's commands: what a kill, a refusal, an end meanwhile leave."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from senet.distributed.preemption import StopFlag
from senet.errors import ConfigError
from senet.rundir.files import read_json, write_json
from senet.rundir.lease import Lease
from senet.rundir.locks import started_at, this_process
from senet.rundir.standing import state_of
from senet.sweep import __main__ as local_sweep
from senet.sweep.prepare import LOCK, only_one
from slurm import control
from slurm import sweep as slurm_sweep
from slurm.starts import stop_file
from tests.harness import tiny
from tests.test_slurm import SUBMIT, UNKNOWN, fake, install  # noqa: F401

TAKES = 'echo sent >>"$LOG"; echo "Submitted batch job'
"""Of sbatch, followed by the number of the job."""


class Sweep:
    """The sweep ``x`` in a folder, with stand-ins for SLURM's commands."""

    def __init__(self, folder: Path, commands: Path) -> None:
        self.folder, self.commands = folder / "runs" / "x", commands
        self.words = tiny("slurm.snapshot=false", "slurm.check=false", "sweep.name=x")
        self.log = folder / "log"

    def sbatch(self, does: str) -> None:
        install(self.commands, "sbatch", f'[ "$*" = --test-only ] && exit 0\nLOG={self.log}\n{does}')

    def squeue(self, states: dict[str, str], *logs: str) -> None:
        """``logs``: what it says of the jobs that are called x, "JOB|LOG|"."""
        named = "\n".join(f"echo '{line}'" for line in logs)
        lines = "\n".join(f"echo '{job}|{state}||0|'" for job, state in states.items())
        install(self.commands, "squeue", f'case "$*" in *--name=x*) :\n{named}\n;; *) {lines or UNKNOWN}\n;; esac')

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        given = [*SUBMIT, *words]
        return subprocess.run(given, cwd=self.folder.parent.parent, capture_output=True, text=True, timeout=400)

    def submit(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self("sweep", *self.words, *options)

    def job(self, name: str) -> str:
        return str(read_json(self.folder / name / "slurm" / "job.json").get("job", ""))

    def submissions(self) -> int:
        return self.log.read_text().count("sent")


@pytest.fixture
def sweep(fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    found = Sweep(tmp_path, fake)
    install(fake, "srun", "exit 1")  # submitit looks for it
    found.squeue({})
    return found


def test_a_submission_that_is_killed_after_sbatch_is_known_and_not_sent_again(sweep: Sweep) -> None:
    sweep.sbatch(f'{TAKES} 6"')
    assert sweep.submit("seed=0,5").returncode == 0
    sweep.sbatch(f'{TAKES} 7"; kill -9 $PPID')
    own = f"{sweep.folder}/slurm"
    sweep.squeue({"6_0": "RUNNING", "6_1": "RUNNING", "7_0": "PENDING", "7_1": "PENDING"})
    assert sweep.submit("seed=0,5,1,2").returncode == -9
    assert [sweep.job(f"seed={seed}") for seed in (0, 5, 1, 2)] == ["6_0", "6_1", "", ""]
    sweep.squeue(
        {"6_0": "RUNNING", "6_1": "RUNNING", "7_0": "PENDING", "7_1": "PENDING"},
        *(f"{job}|{own}/%A_%a_0_log.out|" for job in ("6_0", "6_1", "7_0", "7_1")),
        "8_0|/elsewhere/runs/x/slurm/%A_%a_0_log.out|",
    )
    again = sweep.submit("seed=0,5,1,2")
    assert again.stdout.startswith("nothing to submit: 4 cells: 2 starting, 2 waiting"), again
    assert sweep.submissions() == 2
    assert [sweep.job(f"seed={seed}") for seed in (0, 5, 1, 2)] == ["6_0", "6_1", "7_0", "7_1"]


def test_status_and_stop_know_the_jobs_of_a_submission_that_was_killed(sweep: Sweep) -> None:
    sweep.sbatch(f'{TAKES} 7"; kill -9 $PPID')
    assert sweep.submit("seed=0,1").returncode == -9
    logs = [f"7_{task}|{sweep.folder}/slurm/%A_%a_0_log.out|" for task in (0, 1)]
    sweep.squeue({"7_0": "PENDING", "7_1": "PENDING"}, *logs)
    table = sweep("status", "x")
    assert "2 cells: 2 waiting" in table.stdout, table
    for seed in (0, 1):
        (sweep.folder / f"seed={seed}" / "slurm" / "job.json").unlink()
    install(sweep.commands, "scancel", f'echo "$*" >>{sweep.log}')
    assert sweep("stop", "x").returncode == 0
    assert sweep.log.read_text().splitlines()[-1] == "7_0 7_1"


def test_cells_of_a_submission_that_is_killed_before_sbatch_are_sent_by_the_next(sweep: Sweep) -> None:
    sweep.sbatch("kill -9 $PPID")
    assert sweep.submit("seed=0,1").returncode == -9
    sweep.sbatch(f'{TAKES} 7"')
    done = sweep.submit("seed=0,1")
    assert done.stdout.startswith("submitted job 7 "), done
    assert [sweep.job(f"seed={seed}") for seed in (0, 1)] == ["7_0", "7_1"]


def test_a_refused_submission_leaves_the_cells_of_one_that_came_first(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {}

    @contextmanager
    def late(folder: Path, recorded: Mapping[str, Any]) -> Iterator[None]:
        """Another submission comes first."""
        sweep.sbatch(f'{TAKES} 6"')
        assert sweep.submit("seed=7,8").returncode == 0
        before.update({path: path.read_bytes() for path in sweep.folder.rglob("*") if path.is_file()})
        sweep.sbatch("echo sbatch: error: no >&2; exit 1")
        with only_one(folder, recorded):
            yield

    sweep.sbatch("exit 1")
    monkeypatch.setattr(slurm_sweep, "only_one", late)
    with pytest.raises(ConfigError, match="another command has just changed"):
        slurm_sweep.sweep([*sweep.words, "seed=0,1"], print, dry_run=False, quickstart=False)
    again = sweep.submit("seed=0,1")
    assert again.returncode == 2
    assert "sbatch refused" in again.stderr
    after = {path: path.read_bytes() for path in sweep.folder.rglob("*") if path.is_file()}
    assert before.keys() >= {sweep.folder / "sweep.json", sweep.folder / "seed=7" / "slurm" / "job.json"}
    assert {path: text for path, text in before.items() if path.name != LOCK}.items() <= after.items()
    assert {path.name for path in sweep.folder.glob("seed=*")} == {"seed=7", "seed=8"}


def test_a_refused_submission_of_a_new_sweep_leaves_nothing(sweep: Sweep) -> None:
    sweep.sbatch("echo sbatch: error: no >&2; exit 1")
    assert sweep.submit("seed=0,1").returncode == 2
    assert not sweep.folder.exists()


def test_a_cell_whose_job_has_ended_is_submitted_again_though_its_heartbeat_is_new(sweep: Sweep) -> None:
    sweep.sbatch(f'{TAKES} 6"')
    assert sweep.submit("seed=0,1").returncode == 0
    for task in (0, 1):
        run_dir = sweep.folder / f"seed={task}"
        Lease.acquire(run_dir).close()
        held = {"released": False, "host": "elsewhere", "job": f"6_{task}", "heartbeat": time.time()}
        write_json(run_dir / "owner.json", read_json(run_dir / "owner.json") | held)
        write_json(run_dir / "status.json", {"state": "running", "job": f"6_{task}"})
    sweep.squeue({"6_1": "RUNNING"})  # how the other has ended, if it has, nobody knows
    assert sweep.submit("seed=0,1").stdout.startswith("nothing to submit: 2 cells: 2 training")
    sweep.squeue({"6_0": "FAILED", "6_1": "RUNNING"})
    sweep.sbatch(f'{TAKES} 9"')
    assert sweep.submit("seed=0,1").stdout.startswith("submitted job 9 (x): 1 cell(s)")
    assert (sweep.job("seed=0"), sweep.job("seed=1")) == ("9", "6_1")


STATES = {"7_0": "RUNNING", "7_1": "RUNNING", "7_2": "PENDING", "7_3": "COMPLETING"}


@pytest.fixture
def submitted(sweep: Sweep) -> Sweep:
    cells = {f"seed={task}": {"seed": task} for task in range(4)}
    sweep.folder.mkdir(parents=True)
    write_json(sweep.folder / "sweep.json", {"name": "x", "base": {}, "varied": ["seed"], "cells": cells})
    for task, name in enumerate(cells):
        (sweep.folder / name / "slurm").mkdir(parents=True)
        write_json(sweep.folder / name / "slurm" / "job.json", {"job": f"7_{task}", "cluster": "slurm"})
    first = "; ".join(f"echo '{job}|{state}||0|'" for job, state in STATES.items())
    later = "echo '7_0|RUNNING||0|'; echo '7_1|COMPLETED||0|'; echo '7_2|CANCELLED||0|'; echo '7_3|COMPLETED||0|'"
    install(sweep.commands, "squeue", f"if [ -e {sweep.log} ]; then {later}; else {first}; fi")
    return sweep


def files(sweep: Sweep) -> list[bool]:
    return [stop_file(sweep.folder / f"seed={task}", f"7_{task}").exists() for task in range(4)]


def test_a_cell_that_ends_meanwhile_keeps_no_other_from_being_stopped(submitted: Sweep) -> None:
    ended = "echo 'scancel: error: Invalid job id specified' >&2; exit 1"
    install(submitted.commands, "scancel", f'echo "$*" >>{submitted.log}; case "$*" in *7_1*) {ended};; esac')
    control.stop(["x"])
    said = submitted.log.read_text().splitlines()
    assert said == ["7_2", "--signal=USR2 7_0 7_1", "--signal=USR2 7_0"]  # none to 7_3, which ends
    assert files(submitted) == [True] * 4
    assert {state_of(submitted.folder / f"seed={task}").word for task in range(4)} == {"not begun"}


def test_cells_that_have_jobs_are_not_trained_on_this_machine_until_those_are_stopped(
    submitted: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trains: list[Any] = []
    monkeypatch.setattr("senet.sweep.__main__.Local.train", lambda _, cells, __: trains.extend(cells))
    (submitted.folder / "sweep.json").unlink()
    words = [word for word in submitted.words if not word.startswith("slurm.")]
    assert local_sweep.main([*words, "seed=0..4"], StopFlag()) == 1
    assert [cell.name for cell in trains] == ["seed=4"]
    line = next(line for line in capsys.readouterr().err.splitlines() if "left alone" in line)
    assert "to train them here, end those first: " in line
    assert line.endswith("stop runs/x: seed=0, seed=1, seed=2, seed=3")
    install(submitted.commands, "squeue", UNKNOWN)  # somebody has cancelled them, or SLURM has lost them
    control.stop(["x"])
    assert "job 7 does not run any more: it is unknown to SLURM" in capsys.readouterr().out
    trains.clear()
    local_sweep.main([*words, "seed=0..4"], StopFlag())
    assert len(trains) == 5


def test_where_slurm_cannot_be_asked_no_job_is_taken_for_ended(
    submitted: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="job 7: there is no squeue on this machine"):
        control.stop(["x"])
    assert {state_of(submitted.folder / f"seed={task}").word for task in range(4)} == {"submitted"}


def test_a_cell_that_cannot_be_stopped_is_named_alone_and_the_others_are_not_requeued(submitted: Sweep) -> None:
    ended = "echo 'scancel: error: Access denied' >&2; exit 1"
    install(submitted.commands, "scancel", f'echo "$*" >>{submitted.log}; case "$*" in *7_0*) {ended};; esac')
    with pytest.raises(ConfigError, match=r"^scancel --signal=USR2 7_0: scancel: error: Access denied$"):
        control.stop(["x"])
    assert files(submitted) == [True] * 4


def test_sweep_stop_ends_no_submission(tmp_path: Path) -> None:
    waits = [str(shutil.which("sleep")), "60"]
    trains = [sys.executable, "-S", "-c", "import time; time.sleep(60)", "senet.sweep"]
    for command, is_trainer in ((waits, False), (trains, True)):
        with subprocess.Popen(command) as process:
            try:
                own = this_process() | {"pid": process.pid, "pid_started": started_at(process.pid)}
                write_json(tmp_path / LOCK, own)
                if is_trainer:
                    local_sweep.stop_trainer(tmp_path)
                    assert process.wait(180) == -15
                else:
                    with pytest.raises(ConfigError, match=f"process {process.pid} submits the sweep"):
                        local_sweep.stop_trainer(tmp_path)
                    assert process.poll() is None
            finally:
                process.kill()
