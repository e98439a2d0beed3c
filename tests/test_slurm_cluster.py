"""A real SLURM cluster of two nodes: after any event the training ends with the bits of an undisturbed one.

``make slurm-soak`` (``SOAK=1``) runs the long forms too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from senet import REPOSITORY
from senet.rundir.hours import read_hours
from slurm.logs import parse_ended
from tests.cluster import Cluster, missing_packages
from tests.harness import (
    CLOCKS,
    differing,
    payload,
    rows,
    started,
    status,
    tiny,
    told,
    train,
    wait_until,
    without_clock,
)
from tests.soak import SOAK, soak
from tests.submitted import SLOW, Run

MISSING = missing_packages()
if MISSING and os.environ.get("SLURM_TESTS") == "required":
    raise RuntimeError(f"SLURM_TESTS=required, but {MISSING}")
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(MISSING), reason=MISSING), pytest.mark.timeout(900)]

LONG = ("train.epochs=4", "checkpoint.every_steps=20", "log.every_steps=5")  # 88 steps, 18 s and more
STEP_TIMEOUT = ("distributed.step_timeout_s=12",)


@pytest.fixture(autouse=True)
def no_orphans(cluster: Cluster) -> Iterator[None]:
    """After each test no process of its jobs is left."""
    yield
    jobs = cluster.run("squeue", "--noheader", "--format=%i").split()
    for job in jobs:  # of a test that failed
        cluster.cancel(job)
    wait_until(lambda: not cluster.processes(), 60, lambda: told(cluster.processes()))


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path, data_root: Path) -> Run:
    return Run(cluster, tmp_path / "run", data_root)


def preempt(run: Run) -> None:
    """A job of higher priority takes both nodes for a second."""
    run.cluster.preempt(1)


def requeue(run: Run) -> None:
    """An administrator requeues it; SLURM gives KillWait."""
    run.cluster.run("scontrol", "requeue", run.job)


def signal_direct_tasks(run: Run) -> None:
    """As sites with proctrack/cgroup send --signal: to the tasks, not to their children."""
    for process in run.ranks():
        process.send_signal(signal.SIGUSR2)


def signal_all_descendants(run: Run) -> None:
    """As proctrack/linuxproc sends it."""
    run.cluster.run("scancel", "--signal=USR2", run.job)


def survive(
    run: Run, events: list[Callable[[Run], None]], expected: dict[str, Any], options: tuple[str, ...] = LONG
) -> None:
    """Submit, let each event happen to a start of its own, and compare what the last one leaves."""
    run.submit(*options, SLOW)
    for restarts, event in enumerate(events):
        run.wait_for_steps(10, restarts)
        event(run)
        run.wait_for_stop(restarts)
        assert run.cluster.job(run.job)["JobState"] not in ("COMPLETED", "FAILED")
    run.wait_for("COMPLETED")
    assert run.cluster.job(run.job)["Restarts"] == str(len(events))
    assert status(run.run_dir)["state"] == "finished"
    assert differing(without_clock(payload(run.run_dir)), expected) == []
    steps = [row["step"] for row in rows(run.run_dir)]
    assert steps == sorted(set(steps))
    assert run.log().count("stopped at step") == len(events)  # one save and one requeue each; the log was appended to
    assert "Traceback" not in run.logs()
    check_hours(run)


def check_hours(run: Run) -> None:
    """All parts sum to the time since the submission, and each start has waited in the queue."""
    hours = read_hours(run.run_dir)
    assert hours is not None
    first = json.loads((run.run_dir / "starts.jsonl").read_text().splitlines()[0])
    submitted = first["submitted"]
    assert run.asked < submitted < json.loads((run.run_dir / "slurm/job.json").read_text())["submitted"]
    assert hours.wall_s == pytest.approx(status(run.run_dir)["heartbeat"] - submitted, abs=1)
    waits_s = [after["began"] - before["heartbeat"] for before, after in _stops_and_starts(run)]
    queued_s = first["began"] - submitted + sum(waits_s)
    assert hours.parts["queued"] == pytest.approx(queued_s, rel=0.05, abs=1)
    assert hours.parts["lost"] == hours.parts["not_running"] == 0
    assert hours.parts["again"] < 0.1


def _stops_and_starts(run: Run) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    starts = [json.loads(line) for line in (run.run_dir / "starts.jsonl").read_text().splitlines()]
    return [(start["after"], start) for start in starts[1:]]


def test_a_job_ends_with_the_tensors_of_torchrun(run: Run, undisturbed: Callable[..., dict[str, Any]]) -> None:
    run.submit()
    run.wait_for("COMPLETED")
    assert differing(without_clock(payload(run.run_dir)), undisturbed(2)) == []
    table = run.tool("status", str(run.run_dir)).stdout.splitlines()
    assert table[1].split()[:5] == [str(run.run_dir), run.job, "finished", "44", "2"]


@pytest.mark.parametrize("typed", [["slurm.sbatch.export=NONE", "slurm.environment.SLURM_EXPORT_ENV=NONE"], []])
def test_what_was_typed_wins_over_the_environment_and_all_of_it_reaches_the_ranks(run: Run, typed: list[str]) -> None:
    names = {"TIMELIMIT": "1", "NO_REQUEUE": "1", "SIGNAL": "USR1@5", "OUTPUT": "/nowhere", "ARRAY_INX": "0-1"}
    names |= {"PARTITION": "high"} | ({} if typed else {"EXPORT": "NONE"})
    run.env |= {f"SBATCH_{name}": value for name, value in names.items()}
    run.submit("train.epochs=1", "slurm.partition=low", *typed)
    found = run.wait_for("COMPLETED")
    assert (found["TimeLimit"], found["Requeue"], found["Partition"]) == ("00:20:00", "1", "low")
    assert status(run.run_dir)["state"] == "finished"


def test_preempted_requeued_and_signalled_it_ends_with_the_same_bits(
    run: Run, undisturbed: Callable[..., dict[str, Any]]
) -> None:
    survive(run, [preempt, requeue, signal_direct_tasks], undisturbed(2, *LONG))


@soak
@pytest.mark.parametrize("event", [preempt, requeue, signal_direct_tasks, signal_all_descendants])
def test_five_times_in_a_row(
    event: Callable[[Run], None], run: Run, undisturbed: Callable[..., dict[str, Any]]
) -> None:
    long = ("train.epochs=8", *LONG[1:])
    survive(run, [event] * 5, undisturbed(2, *long), long)


def test_at_the_time_limit_it_is_saved_and_requeued(run: Run, undisturbed: Callable[..., dict[str, Any]]) -> None:
    limits = 3 if SOAK else 1
    long = (f"train.epochs={18 * limits}", *LONG[1:])  # 79 s and more
    run.submit(*long, SLOW)
    for restarts in range(limits):
        run.wait_for_steps(5, restarts)
        run.reach_time_limit()
        run.wait_for_stop(restarts, timeout_s=180)
        assert status(run.run_dir)["reason"] == "SIGUSR2"
        run.set_time_limit(20)
    run.wait_for("COMPLETED", timeout_s=500)
    assert differing(without_clock(payload(run.run_dir)), undisturbed(2, *long)) == []


def test_a_cancelled_job_stays_cancelled(run: Run) -> None:
    run.submit("train.epochs=3000", SLOW)
    run.wait_for_steps(5, 0)
    run.cluster.cancel(run.job)
    wait_until(lambda: not run.cluster.processes(), 120, lambda: told(run.cluster.processes()))
    time.sleep(10)  # longer than a requeued job waits here
    found = run.cluster.job(run.job)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0")
    assert status(run.run_dir)["state"] == "stopped"


def test_stop_saves_and_ends_the_job(run: Run) -> None:
    run.submit("train.epochs=3000", SLOW)
    run.wait_for_steps(5, 0)
    assert run.tool("stop", str(run.run_dir)).returncode == 0
    assert run.wait_for("CANCELLED")["Restarts"] == "0"
    assert status(run.run_dir)["state"] == "stopped"
    again = run.tool("stop", str(run.run_dir))
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"job {run.job} does not run any more: it is CANCELLED\n"


@soak
def test_with_shards_it_goes_on_with_other_nodes_and_the_same_bits(run: Run, data_root: Path, tmp_path: Path) -> None:
    options = ("train.epochs=2", "checkpoint.every_steps=10", "log.every_steps=5")
    options += ("train.shards=4", "train.threads_per_rank=0")

    def submit(job: str, ranks: int) -> None:
        run.submit(*options, SLOW, *job.split())
        run.wait_for_steps(5, 0)
        start = json.loads((run.run_dir / "starts.jsonl").read_text().splitlines()[-1])
        assert (start["world_size"], start["threads_per_rank"]) == (ranks, 1)  # threads as at the first start

    submit("slurm.nodes=2 slurm.cpus_per_task=1", 2)
    requeue(run)
    run.wait_for_stop(0)
    run.wait_for_steps(5, 1)
    assert run.tool("stop", str(run.run_dir)).returncode == 0
    run.wait_for("CANCELLED")
    submit("slurm.nodes=1 slurm.cpus_per_task=2 slurm.max_restarts=0", 1)
    for rank in run.ranks():
        rank.kill()
    run.wait_for("FAILED")
    submit("slurm.nodes=2 slurm.ranks_per_node=2 slurm.cpus_per_task=3", 4)
    run.wait_for("COMPLETED")

    assert "not bit for bit" not in run.logs()
    unbroken = tmp_path / "unbroken"
    alone = ("train.threads_per_rank=1", f"data.root={data_root}", f"run_dir={unbroken}")
    assert train(1, *tiny(*options, *alone)).returncode == 0
    assert differing(without_clock(payload(run.run_dir)), without_clock(payload(unbroken))) == []
    for kind in ("train", "epoch"):
        assert without_clocks(rows(run.run_dir, kind)) == without_clocks(rows(unbroken, kind)) != []


def without_clocks(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in found]


def test_without_restarts_a_killed_rank_fails_the_job_at_once(run: Run) -> None:
    run.submit("train.epochs=3000", SLOW, "slurm.max_restarts=0", "distributed.step_timeout_s=600")
    run.wait_for_steps(5, 0)
    run.ranks()[1].kill()
    found = run.wait_for("FAILED")
    wait_until(lambda: not run.cluster.processes(), 120, lambda: told(run.cluster.processes()))
    assert found["Restarts"] == "0"
    assert status(run.run_dir)["state"] == "failed"


def resumes(
    run: Run, events: list[Callable[[Run], None]], expected: dict[str, Any], *options: str, restarts: int = 0
) -> None:
    """Submit, let each event happen to a launch of its own, and compare what the last one leaves in the same job."""
    run.submit(*LONG, SLOW, *STEP_TIMEOUT, *options)
    for launch, event in enumerate(events):
        run.wait_for_steps(5, 0, launch=launch)
        began = time.time()
        event(run)
        if event not in (preempt, requeue):
            run.wait_for_steps(1, 0, launch=launch + 1)
            print(f"{event.__name__}: the first new step was logged after {time.time() - began:.1f} s")
    found = run.wait_for("COMPLETED")
    assert found["Restarts"] == str(restarts)
    assert differing(without_clock(payload(run.run_dir)), expected) == []
    steps = [row["step"] for row in rows(run.run_dir)]
    assert steps == sorted(set(steps))
    assert run.log().count("launches its ranks again") == len(events)  # appended to


def kill_rank_0(run: Run) -> None:
    run.ranks()[0].kill()


def kill_rank_1(run: Run) -> None:
    run.ranks()[1].kill()


def freeze_rank_0(run: Run) -> None:
    run.ranks()[0].suspend()


def freeze_rank_1(run: Run) -> None:
    run.ranks()[1].suspend()


def kill_all_ranks(run: Run) -> None:
    for rank in run.ranks():
        rank.kill()


@pytest.mark.parametrize(
    "events",
    [
        [kill_rank_1, kill_rank_0],
        [freeze_rank_0],
        pytest.param([freeze_rank_1], marks=soak),
        pytest.param([kill_all_ranks], marks=soak),
    ],
)
def test_a_rank_that_dies_or_hangs_costs_seconds_in_the_same_job(
    events: list[Callable[[Run], None]], run: Run, undisturbed: Callable[..., dict[str, Any]]
) -> None:
    resumes(run, events, undisturbed(2, *LONG))
    table = run.tool("status", str(run.run_dir)).stdout.splitlines()
    assert table[0].split()[8:10] == ["requeues", "restarts"]
    assert table[1].split()[7:9] == ["0", str(len(events))]
    told = status(run.run_dir)["restart"]
    assert 0 < told["lost_s"] < 180
    assert f"last restart, {told['lost_s']:.0f} s lost: {told['reason']}" in table[1]


@soak
@pytest.mark.parametrize("event", [kill_rank_0, kill_rank_1, freeze_rank_0, freeze_rank_1])
def test_three_restarts_in_a_row(
    event: Callable[[Run], None], run: Run, undisturbed: Callable[..., dict[str, Any]]
) -> None:
    resumes(run, [event] * 3, undisturbed(2, *LONG))


def test_a_preemption_right_after_a_restart_is_a_requeue(run: Run, undisturbed: Callable[..., dict[str, Any]]) -> None:
    run.submit(*LONG, SLOW)
    run.wait_for_steps(5, 0)
    kill_rank_1(run)
    wait_until(lambda: "launches its ranks again" in run.log())
    preempt(run)
    found = run.wait_for("COMPLETED")
    assert found["Restarts"] == "1"
    assert differing(without_clock(payload(run.run_dir)), undisturbed(2, *LONG)) == []
    assert status(run.run_dir)["state"] == "finished"


def test_a_bug_ends_the_job_at_its_second_time(run: Run) -> None:
    run.submit(*LONG, "model.name=tests.networks:fails_at_step_40", "checkpoint.every_steps=30")
    found = run.wait_for("FAILED")
    assert found["Restarts"] == "0"
    reason = status(run.run_dir)["reason"]
    assert reason.startswith("failed twice at step 40: ")
    assert "ValueError: boom: 41 is too much" in reason
    assert run.log().count("launches its ranks again") == 1
    assert "failed twice at step 40: " in run.tool("status", str(run.run_dir)).stdout


def test_launches_that_reach_no_new_checkpoint_end_the_job(run: Run) -> None:
    run.submit("train.epochs=3000", "checkpoint.every_steps=1000", SLOW, "slurm.max_restarts=1")
    for launch in range(2):
        run.wait_for_steps(5, 0, launch=launch)
        if launch == 1:
            (run.run_dir / "restarts.jsonl").unlink()  # as if the disk had been full
        kill_rank_1(run)
    run.wait_for("FAILED")
    used_up, _, reason = status(run.run_dir)["reason"].partition(": ")
    assert used_up == "slurm.max_restarts=1 is used up"
    # by srun, or by rank 0, if SLURM leaves it the time
    assert re.match("rank 1 on n2 (ended by SIGKILL, without a word$|did not answer any more: its process has)", reason)
    [row] = [json.loads(line) for line in (run.run_dir / "restarts.jsonl").read_text().splitlines()]
    assert (row["rank"], row["host"], row["again"]) == (1, "n2", False)
    words = re.findall(r"srun: error: \S+: task 1:.*", run.log())
    assert [parse_ended(line)["failure"] for line in words] == [{"rank": 1, "host": "n2"}] * 2
    assert "rank 1 on n2 ended by SIGKILL" in parse_ended(words[0])["reason"]


def test_a_stop_after_a_restart_is_a_stop(run: Run) -> None:
    run.submit("train.epochs=3000", SLOW)
    run.wait_for_steps(5, 0)
    kill_rank_1(run)
    wait_until(lambda: "launches its ranks again" in run.log())
    assert run.tool("stop", str(run.run_dir)).returncode == 0
    assert run.wait_for("CANCELLED")["Restarts"] == "0"


@soak  # tests/hosts/test_fewer_hosts.py does it with a host that has lost its power
def test_with_shards_a_job_goes_on_without_a_lost_node_and_with_the_same_bits(
    run: Run, undisturbed: Callable[..., dict[str, Any]]
) -> None:
    shards = ("train.shards=4", "train.threads_per_rank=1")
    expected = undisturbed(1, *LONG, *shards)
    run.submit(*LONG, *shards, SLOW, *STEP_TIMEOUT)
    run.wait_for_steps(5, 0)
    batch_host = run.cluster.job(run.job)["BatchHost"]
    lost = "n2" if batch_host == "n1" else "n1"
    run.cluster.kill_slurmd(lost)
    run.cluster.run("scontrol", "update", f"NodeName={lost}", "State=DOWN", "Reason=lost")
    run.wait_for_steps(10, 0)  # a slurmd that has died alone stops no training
    for rank in run.ranks():
        if rank.environ()["SLURMD_NODENAME"] == lost:
            rank.kill()
    try:
        run.wait_for_steps(1, 0, launch=1)
        found = run.wait_for("COMPLETED")
    finally:
        run.cluster.start_slurmd(lost)
        run.cluster.wait_idle()
    assert (found["Restarts"], found["NodeList"]) == ("0", batch_host)
    starts = [json.loads(line) for line in (run.run_dir / "starts.jsonl").read_text().splitlines()]
    assert [start["world_size"] for start in starts] == [2, 1]
    assert differing(without_clock(payload(run.run_dir)), expected) == []
    steps = [row["step"] for row in rows(run.run_dir)]
    assert steps == sorted(set(steps))
    assert f"no answer from {lost}" in run.tool("status", str(run.run_dir)).stdout


@soak  # tests/hosts/test_hosts.py does it with a host that has lost its power
def test_a_lost_node_requeues_the_job_and_the_rank_left_there_is_ignored(
    run: Run, undisturbed: Callable[..., dict[str, Any]]
) -> None:
    # SLURM misses a node after some 30 s; a site's health check is quicker
    long = ("train.epochs=15", "checkpoint.every_steps=20", "log.every_steps=5")
    run.submit(*long, SLOW, "slurm.nodes=1")
    run.wait_for_steps(5, 0)
    lost = run.cluster.job(run.job)["NodeList"]
    run.cluster.kill_slurmd(lost)
    if not SOAK:
        run.cluster.run("scontrol", "update", f"NodeName={lost}", "State=DOWN", "Reason=lost")
    try:
        run.wait_for_steps(5, 1, timeout_s=180)
        found = run.wait_for("COMPLETED", timeout_s=400)
        assert (found["Restarts"], found["NodeList"]) == ("1", "n2" if lost == "n1" else "n1")
        assert differing(without_clock(payload(run.run_dir)), undisturbed(0, *long)) == []
        # the first rank trained on all the while, until it wanted to publish
        assert run.log().count("another start has taken the run directory over") == 1
        steps = [row["step"] for row in rows(run.run_dir)]
        assert steps == sorted(set(steps))
    finally:
        run.cluster.start_slurmd(lost)
        run.cluster.wait_idle()


def test_three_starts_without_a_checkpoint_are_the_last(run: Run) -> None:
    run.submit("model.name=tests.networks:never_ready", "slurm.nodes=1")
    for restarts in range(3):
        record = run.run_dir / "slurm" / f"{run.job}.starts.jsonl"
        wait_until(lambda count=restarts + 1, path=record: path.exists() and path.read_text().count("\n") == count)
        wait_until(run.ranks)
        requeue(run)
    run.wait_for("FAILED")
    assert "3 starts in a row ended without a new checkpoint" in status(run.run_dir)["reason"]
    assert "3 starts in a row" in run.tool("status", str(run.run_dir)).stdout


def test_many_jobs_at_once_find_a_port_each(cluster: Cluster, tmp_path: Path, data_root: Path) -> None:
    runs = [Run(cluster, tmp_path / f"run{number}", data_root) for number in range(20 if SOAK else 4)]
    for run in runs:
        run.submit("train.epochs=1", "distributed.start_timeout_s=600")
    for run in runs:
        run.wait_for("COMPLETED", timeout_s=600)
    assert all(status(run.run_dir)["state"] == "finished" for run in runs)


def test_what_runs_is_what_was_submitted(cluster: Cluster, tmp_path: Path, data_root: Path) -> None:
    checkout = tmp_path / "checkout"
    kept_out = {".git", ".venv", ".venv-oldest", "runs", "data"}  # senet/data is code

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {"__pycache__", *(kept_out if Path(folder) == REPOSITORY else ())} & set(names)

    shutil.copytree(REPOSITORY, checkout, ignore=ignored)
    runs = {snapshot: Run(cluster, tmp_path / snapshot, data_root) for snapshot in ("true", "false")}
    for snapshot, run in runs.items():
        run.checkout = checkout
        run.submit("train.epochs=1", f"slurm.snapshot={snapshot}", "slurm.sbatch.hold=true")
    network = checkout / "senet" / "training" / "trainer.py"
    network.write_text("raise RuntimeError('edited since')\n")
    for run in runs.values():
        cluster.run("scontrol", "release", run.job)
    runs["true"].wait_for("COMPLETED")
    runs["false"].wait_for("FAILED")
    assert "edited since" in runs["false"].log()
    start = json.loads((runs["true"].run_dir / "starts.jsonl").read_text())
    assert start["commit"] == "unknown"  # of the copy; not that of some repository around the run directory


def test_bad_options_that_only_a_rank_sees_fail_the_job_with_the_line(run: Run) -> None:
    run.submit("model.name=tests.networks:nothing")
    run.wait_for("FAILED")
    assert run.logs().count("train_ddp: ") == 1
    assert "tests.networks:nothing" in status(run.run_dir)["reason"]


def test_sbatch_refusing_is_one_line(run: Run) -> None:
    for option, expected in (
        ("slurm.partition=low,nope", "nope does not exist; this cluster has high, low"),
        ("slurm.constraint=nope", "Invalid feature specification"),
        ("slurm.sbatch.reservation=nope", "Requested reservation is invalid"),
        ("slurm.sbatch.nonsense=1", "sbatch: unrecognized option"),
    ):
        done = run.tool(*tiny(*run.options, "slurm.time=20m", option))
        assert done.returncode == 2
        [line] = [line for line in done.stderr.splitlines() if not line.startswith("slurm: warning")]
        assert expected in line
        assert not run.run_dir.exists()
    assert "node configuration is not available" in run.tool("--dry-run", *tiny("slurm.cpus_per_task=999")).stdout


def test_a_python_that_is_not_there_fails_the_job_and_status_names_the_log(run: Run) -> None:
    run.submit("slurm.python=/no/python")
    run.wait_for("FAILED")
    log = f"{run.run_dir}/slurm/{run.job}_0_log.out"
    assert f"see {log}" in run.tool("status", str(run.run_dir)).stdout
    assert "/no/python" in run.log()


# --- slurm drill ---


def drill_words(run: Run, *options: str) -> list[str]:
    return ["drill", *tiny("drill.steps=8", "train.epochs=3", "slurm.time=20m", *run.options, *options)]


def scratch_of(run: Run) -> list[Path]:
    return list(run.run_dir.parent.glob("run-drill-*"))


def jobs_of(run: Run, said: str) -> list[dict[str, str]]:
    """The jobs that a drill has told of, in their order."""
    return [run.cluster.job(job_id) for job_id in dict.fromkeys(re.findall(r"^slurm: job (\d+): ", said, re.MULTILINE))]


def test_a_drill_requeues_its_jobs_and_has_the_same_bits_on_other_nodes(run: Run) -> None:
    sound = ("model.name=tests.planted:attention_and_dropout", "train.shards=2", "slurm.nodes=2")
    done = run.tool(*drill_words(run, *sound), timeout_s=600)
    assert (done.returncode, done.stdout[:6]) == (0, "same: "), done.stdout + done.stderr
    assert "7 starts on 2, 1 rank(s), requeue after updates" in done.stdout
    found = [(job["NumNodes"], job["Restarts"], job["JobState"]) for job in jobs_of(run, done.stderr)]
    assert found == [
        ("2", "0", "FAILED"),  # it stops as planned, and has no requeue left
        ("2", "2", "FAILED"),
        ("1", "0", "CANCELLED"),
        ("2", "0", "CANCELLED"),
        ("1", "0", "FAILED"),
    ]
    assert (done.stderr.count("scontrol requeue after update"), done.stderr.count("scancel after update")) == (2, 2)
    assert scratch_of(run) == []


@soak
def test_a_drill_finds_what_a_requeued_job_has_lost(run: Run) -> None:
    done = run.tool(*drill_words(run, "model.name=tests.planted:counter_in_an_attribute"), timeout_s=600)
    assert done.returncode == 1
    assert "probable cause: state that is not saved" in done.stdout, done.stdout + done.stderr
    assert "defect.updates: " in done.stdout
    [scratch] = scratch_of(run)
    assert f"kept: {scratch}" in done.stdout


def test_a_drill_says_that_it_waits_and_ctrl_c_cancels_its_job(run: Run, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "slurm" / "submit.py"), *drill_words(run, "slurm.sbatch.hold=true")]
    log = tmp_path / "log"
    with started(command, log, **run.env) as process:
        wait_until(lambda: "pending (JobHeldUser)" in log.read_text(), 120, log.read_text)
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 130
    [job] = jobs_of(run, log.read_text())
    assert (job["JobState"], scratch_of(run)) == ("CANCELLED", [])
    assert "Traceback" not in log.read_text()


def test_a_drill_without_slurm_names_the_other_drill(run: Run) -> None:
    done = run.tool(*drill_words(run, "slurm.cluster=local"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "slurm.cluster=local has no scontrol requeue; use " in done.stderr
