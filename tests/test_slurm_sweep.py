"""A sweep as one array on a real SLURM cluster of two nodes: each cell survives what a run survives.

``make slurm-soak`` (``SOAK=1``) has twice as many cells, and three preemptions.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from senet import REPOSITORY
from senet.rundir.files import read_json, write_json
from senet.sweep.record import state_of
from tests.cluster import Cluster, missing_packages
from tests.conftest import Train
from tests.harness import checkpoints, differing, payload, rows, tiny, told, wait_until, without_clock
from tests.soak import SOAK
from tests.submitted import SLOW, Run

MISSING = missing_packages()
if MISSING and os.environ.get("SLURM_TESTS") == "required":
    raise RuntimeError(f"SLURM_TESTS=required, but {MISSING}")
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(MISSING), reason=MISSING), pytest.mark.timeout(900)]

CELLS, PREEMPTIONS = (12, 3) if SOAK else (6, 1)
LONG = ("train.epochs=3", "checkpoint.every_steps=20", "log.every_steps=5")


class Sweep:
    """The sweep ``x``, submitted from a folder of its own."""

    def __init__(self, cluster: Cluster, folder: Path, data_root: Path) -> None:
        self.cluster, self.folder = cluster, folder / "runs" / "x"
        self.run = Run(cluster, folder / "run", data_root)
        self.run.env |= {"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0"}  # as from within another array
        self.words = tiny(f"data.root={data_root}", "slurm.check=false", "slurm.time=20m", "sweep.name=x", SLOW, *LONG)

    def submit(self, *options: str) -> str:
        """The id of the array."""
        done = self.run.tool("sweep", *self.words, *options)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("submitted job ")
        self.array = done.stdout.split()[2]
        return self.array

    def job(self, name: str) -> str:
        return str(read_json(self.folder / name / "slurm" / "job.json")["job"])

    def lose_jobs(self, names: list[str]) -> None:
        """As a submission leaves the sweep that is killed after sbatch."""
        files = {name: self.folder / name / "slurm" / "job.json" for name in names}
        cells = {
            name: {key: fact for key, fact in read_json(file).items() if key != "job"} for name, file in files.items()
        }
        write_json(self.folder / "slurm" / "sent.json", {"before": [], "cells": cells})
        for file in files.values():
            file.unlink()

    def queue(self) -> list[tuple[str, str, str]]:
        """Array, task and state of what SLURM still has of the sweep."""
        lines = self.cluster.run("squeue", "--noheader", "--array", "--format=%F %K %T %j").splitlines()
        return [(words[0], words[1], words[2]) for words in map(str.split, lines) if words[3] == "x"]

    def wait(self, timeout_s: float = 600) -> None:
        wait_until(lambda: not self.queue(), timeout_s, lambda: f"the end of the array: {self.logs()}")

    def finish(self, names: list[str], timeout_s: float = 600) -> None:
        self.wait(timeout_s)
        assert [state_of(self.folder, name).word for name in names] == ["finished"] * len(names), self.logs()

    def logs(self) -> str:
        return "\n".join(f"{path}:\n{path.read_text()[-800:]}" for path in self.folder.glob("**/slurm/*_log.out"))


@pytest.fixture
def sweep(cluster: Cluster, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweep]:
    monkeypatch.chdir(tmp_path)
    yield Sweep(cluster, tmp_path, data_root)
    for job in cluster.run("squeue", "--noheader", "--format=%A").split():  # of a test that failed
        cluster.cancel(job)
    wait_until(lambda: not cluster.processes(), 60, lambda: told(cluster.processes()))


def preempt_at_random(sweep: Sweep, most: int, parallel: int, meanwhile: Callable[[], None]) -> None:
    """Look at the queue until the array has ended, and take the nodes from it that many times."""
    draw, times, due = random.Random(0), 0, time.monotonic() + 15
    deadline = time.monotonic() + 600
    while queue := sweep.queue():
        assert time.monotonic() < deadline, sweep.logs()
        assert {array for array, _, _ in queue} == {sweep.array}
        assert sum(state == "RUNNING" for _, _, state in queue) <= parallel
        meanwhile()
        if times < most and time.monotonic() > due and any(state == "RUNNING" for _, _, state in queue):
            sweep.cluster.preempt(1)
            times, due = times + 1, time.monotonic() + draw.uniform(15, 40)
        time.sleep(0.3)
    assert times == most


def test_cells_survive_preemptions_a_cancelled_and_a_broken_one(sweep: Sweep, train_here: Train) -> None:
    rates = [f"0.{number:02}" for number in range(1, CELLS)]
    good, broken = [f"lr={float(rate):g}" for rate in rates], "lr=1e+30"
    options = (f"optim.lr={','.join(rates)},1e30", "sweep.parallel=3", "slurm.max_restarts=1")
    sweep.submit(*options)
    cancelled = good[3]

    def cancel() -> None:
        if rows(sweep.folder / cancelled) and state_of(sweep.folder, cancelled).word == "training":
            sweep.cluster.cancel(sweep.job(cancelled))

    preempt_at_random(sweep, PREEMPTIONS, 3, cancel)
    found = {name: state_of(sweep.folder, name) for name in [*good, broken]}
    assert [name for name, state in found.items() if state.word == "finished"] == [n for n in good if n != cancelled]
    assert found[broken].word == "failed", sweep.logs()
    assert "finite" in found[broken].reason
    requeues = [int(sweep.cluster.job(sweep.job(name))["Restarts"]) for name in good]
    assert sum(requeues) >= PREEMPTIONS
    table = sweep.run.tool("status", "x").stdout.splitlines()
    # scancel gives it KillWait to save
    done = f"{CELLS} cells: (1 failed, {CELLS - 2} finished, 1 stopped|1 cancelled, 1 failed, {CELLS - 2} finished)"
    assert re.fullmatch(done, table[CELLS + 1])

    again = sweep.submit(*options)
    assert len(sweep.queue()) == 2
    assert {sweep.job(name).partition("_")[0] for name in (cancelled, broken)} == {again}
    sweep.wait()
    for rate, name in zip(rates, good, strict=True):
        reference = sweep.folder.parent / f"single-{rate}"
        train_here(reference, *LONG, f"optim.lr={rate}")
        expected = without_clock(payload(reference))
        assert differing(without_clock(payload(sweep.folder / name)), expected) == [], name
        steps = [row["step"] for row in rows(sweep.folder / name)]
        assert steps == sorted(set(steps))
    assert state_of(sweep.folder, broken).word == "failed"


def test_stop_saves_the_cells_that_run_and_starts_no_other(sweep: Sweep, train_here: Train) -> None:
    names, longer = [f"seed={seed}" for seed in range(4)], "train.epochs=10"
    sweep.submit("seed=0..3", "sweep.parallel=2", longer)
    wait_until(lambda: all(rows(sweep.folder / name) for name in names[:2]), 180, sweep.logs)
    sweep.lose_jobs(names)
    twice = sweep.run.tool("sweep", *sweep.words, "seed=0..3", longer)
    assert twice.returncode == 0
    assert twice.stdout.startswith("nothing to submit: 4 cells: 2 training, 2 waiting")
    done = sweep.run.tool("stop", "x")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"job {sweep.array} (4 cells: 2 PENDING, 2 RUNNING) was asked to stop")
    sweep.wait()
    assert [state_of(sweep.folder, name).word for name in names] == ["stopped", "stopped", "not begun", "not begun"]
    assert all(checkpoints(sweep.folder / name) for name in names[:2])
    sweep.submit("seed=0..4", "sweep.parallel=3", longer)  # one more
    sweep.finish([*names, "seed=4"])
    assert "resumed from" in (sweep.folder / names[0] / "slurm" / f"{sweep.job(names[0])}_0_log.out").read_text()
    expected: dict[str, Any] = {}
    for seed in (0, 4):
        reference = sweep.folder.parent / f"single-{seed}"
        train_here(reference, *LONG, longer, f"seed={seed}")
        expected = without_clock(payload(reference))
        assert differing(without_clock(payload(sweep.folder / f"seed={seed}")), expected) == []


def test_why_and_follow_take_the_id_of_a_cell_and_one_cell_is_a_job_like_any_other(sweep: Sweep) -> None:
    names = ["seed=0", "seed=1"]
    sweep.submit("seed=0,1", "train.epochs=1")
    wait_until(lambda: all(rows(sweep.folder / name) for name in names), 180, sweep.logs)

    def ask(verb: str, *words: str) -> str:
        command = [sys.executable, "-P", "-m", f"slurm.{verb}", *words]
        env = sweep.run.env | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for word, expected in ((sweep.job("seed=1"), ["seed=1"]), (sweep.array, names)):
        found = [json.loads(line) for line in ask("why", "--json", word).splitlines()]
        assert [Path(each["run_dir"]).name for each in found] == expected
        assert {each["cause"] for each in found} <= {"running", "finished"}
    sweep.finish(names)
    assert "rank 0 on n" in ask("follow", sweep.job("seed=1"))
    sweep.submit("seed=2", "train.epochs=1", "slurm.check=true")
    assert sweep.job("seed=2") == sweep.array
    sweep.finish(["seed=2"])
    assert list((sweep.folder / "seed=2" / "slurm").glob("*.check.json"))


def test_what_sbatch_refuses_leaves_nothing(sweep: Sweep) -> None:
    for option, said in (("slurm.partition=none", "none does not exist"), ("slurm.sbatch.array=1", "cannot be passed")):
        done = sweep.run.tool("sweep", *sweep.words, "seed=0,1", option)
        assert done.returncode == 2
        assert said in done.stderr
        assert not sweep.folder.exists()
