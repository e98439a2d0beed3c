"""Jobs without a cluster: options, batch script, preflight, snapshot, requeue."""

from __future__ import annotations

import os
import pickletools
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import submitit

from senet import REPOSITORY
from senet.config.load import load_config, to_flat
from senet.data.stores.encoded import encoded_folder
from senet.distributed.preemption import StopFlag
from senet.errors import REFUSED_EXIT_CODE, STOPPED_EXIT_CODE, ConfigError
from senet.rundir import commit as commit_module
from senet.rundir.files import read_json, write_json
from senet.rundir.lease import Lease
from senet.rundir.restarts import SILENT, count_restarts, last_restart
from slurm import batch, cluster, drill, guard, ports, preflight, sbatch, snapshot, starts
from slurm.gpus import gpus_per_node, ranks_per_node
from slurm.job import Job
from slurm.logs import parse_ended
from slurm.ports import free_port
from slurm.starts import Launch
from tests.harness import tiny, wait_until

SUBMIT = [sys.executable, str(REPOSITORY / "slurm" / "submit.py")]
RUNNING = "JobId=7 JobName=x JobState=RUNNING Reason=None PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None"
UNKNOWN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
DOWN = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-01-01T00:00:09")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints").mkdir()
    return tmp_path / "run"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands as the only one in PATH, without SLURM's; ``install`` adds stand-ins for them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cut", "grep", "head", "rm", "sh", "sleep", "tail", "touch", "wc"):
        (folder / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def set_environment(monkeypatch: pytest.MonkeyPatch, run_dir: Path, *options: str) -> None:
    """What the batch script sets for its decisions."""
    variables = starts.launch_variables(load_config(tiny(*options)), run_dir)
    for name, value in (variables | {"SLURM_JOB_ID": "7", "SENET_LAUNCH": "0", "SLURM_JOB_NUM_NODES": "2"}).items():
        monkeypatch.setenv(name, value)


def publish(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints" / f"step_{step:09d}.g0001.pt").write_text("")


# --- options ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90m", 90), ("8h", 480), ("2d", 2880), ("1.5h", 90), ("61s", 2), ("02:00:00", 120), ("1-00:00:01", 1441)],
)
def test_times(text: str, expected: int) -> None:
    assert sbatch.minutes(text) == expected


@pytest.mark.parametrize("text", ["5400", "", "8 hours", "1:30", "0h", "-1h", "infinite"])
def test_times_without_unit_or_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"slurm\.time="):
        sbatch.minutes(text)


def test_text_stays_text_on_the_command_line() -> None:
    config = load_config(tiny("slurm.time=1:30:00", "run_dir=007", "slurm.environment.A=true"))
    assert (config.slurm.time, config.run_dir, config.slurm.environment) == ("1:30:00", "007", {"A": "true"})


@pytest.mark.parametrize(
    "argument", ["slurm.environment.1A=x", "slurm.environment.A.B=x", "slurm.sbatch.a.b=1", "slurm.sbatch.x="]
)
def test_mappings_are_checked(argument: str) -> None:
    with pytest.raises(ConfigError, match=argument.partition("=")[0].rpartition(".")[0].replace(".", r"\.")):
        load_config(tiny(argument))


def test_a_checkpoint_says_nothing_about_the_job() -> None:
    assert not [key for key in to_flat(load_config(tiny("slurm.environment.TOKEN=x"))) if key.startswith("slurm")]


# --- the batch script ---


def script(*overrides: str) -> str:
    config = load_config(tiny("run_dir=/scratch/a b/run", *overrides))
    return sbatch.make_slurm_executor(config, Path(config.run_dir), Path("/code")).text()


def test_the_batch_script_has_what_was_asked_for() -> None:
    text = script(
        "slurm.partition=gpu",
        "slurm.nodes=2",
        "slurm.gpus_per_node=4",
        "slurm.time=8h",
        "slurm.mem=64G",
        "slurm.sbatch.exclusive=true",
        "slurm.sbatch.mail_type=END",
        "slurm.environment.NCCL_DEBUG=a b",
        "slurm.cpus_per_task=3",
        "slurm.setup=[module load cuda]",
    )
    flags = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert flags == [
        "chdir=/code",
        "cpus-per-task=3",
        "exclusive",
        "gpus-per-node=4",
        "job-name=run",
        "mail-type=END",
        "mem=64G",
        "nodes=2",
        "ntasks-per-node=4",
        "open-mode=append",
        "output='/scratch/a b/run/slurm/%j_0_log.out'",
        "partition=gpu",
        "requeue",
        "signal=USR2@120",
        "time=480",
    ]
    setup = text[text.index("# setup") : text.index("# command")]
    assert setup.splitlines()[1] == "module load cuda"
    assert "export NCCL_DEBUG='a b'" in setup
    assert "export SENET_CORES_PER_RANK=3\n" in setup
    assert "--kill-on-bad-exit=1 --export=ALL" in text[text.index("# command") :]
    assert "export SENET_MAY_SHRINK=0\n" in setup
    assert text.rstrip().endswith("finish")
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize(
    "name", ["time=1", "array=0-3", "no_requeue=true", "signal=B:USR1@10", "no_kill=true", "clusters=x"]
)
def test_sbatch_options_that_the_job_depends_on_cannot_be_passed_through(name: str) -> None:
    with pytest.raises(ConfigError, match=r"slurm\.sbatch\."):
        script(f"slurm.sbatch.{name}")


def test_only_a_job_with_shards_on_several_nodes_goes_on_without_one_of_them() -> None:
    for options, expected in (
        ("train.shards=4 slurm.nodes=2", True),
        ("train.shards=4 slurm.nodes=1", False),
        ("slurm.nodes=2", False),
        ("train.shards=4 slurm.nodes=2 slurm.max_restarts=0", False),
    ):
        text = script(*options.split())
        assert ("#SBATCH --no-kill\n" in text, "SENET_MAY_SHRINK=1\n" in text) == (expected, expected)
        assert ("--export=ALL --no-kill " in text) == expected


def test_the_python_of_a_container_starts_ranks_and_decisions() -> None:
    text = script("slurm.python=apptainer exec --nv image.sif python3")
    assert 'run_python() { apptainer exec --nv image.sif python3 "$@"; }' in text
    assert "--export=ALL apptainer exec --nv image.sif python3 -u -m submitit.core._submit" in text


def test_a_dry_run_needs_neither_sbatch_nor_torch_and_writes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, SUBMIT[1], "--dry-run", *tiny("slurm.nodes=2", "run_dir=run")]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/nowhere", "HOME": str(tmp_path)}
    )
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("# preflight", "run_dir=run is relative", "#SBATCH --nodes=2", "# launch line"):
        assert part in done.stdout
    assert list(tmp_path.iterdir()) == []


# --- how a job ends ---


def test_three_starts_without_a_checkpoint_are_enough(run_dir: Path) -> None:
    for restarts in range(3):
        assert batch.begin(Launch(run_dir, "7", restarts)) == ""
        assert batch.begin(Launch(run_dir, "7", restarts)) == ""  # a second try of the same start is not counted
        assert batch.begin(Launch(run_dir, "7", restarts, 1)) == ""  # nor is another launch of it
    assert "3 starts in a row" in batch.begin(Launch(run_dir, "7", 3))
    publish(run_dir, 5)
    assert batch.begin(Launch(run_dir, "7", 3)) == ""
    assert batch.begin(Launch(run_dir, "8")) == ""  # another job counts from 0
    assert starts.count_starts(run_dir, "7") == 4


def test_a_start_of_many_launches_is_one_start(run_dir: Path) -> None:
    for launch in range(5):
        assert batch.begin(Launch(run_dir, "7", 0, launch)) == ""
    assert batch.begin(Launch(run_dir, "7", 1)) == ""
    assert starts.count_starts(run_dir, "7") == 2


def test_a_start_beyond_the_budget_does_not_begin(run_dir: Path) -> None:
    assert batch.begin(Launch(run_dir, "7", 2, max_requeues=2)) == ""
    assert "slurm.max_requeues=2" in batch.begin(Launch(run_dir, "7", 3, max_requeues=2))


@pytest.mark.parametrize(
    ("outcome", "job", "restarts", "expected"),
    [
        ("finished", RUNNING, 0, "finished"),
        ("finished", RUNNING.replace("RUNNING", "COMPLETING"), 0, "finished"),
        ("stopped", RUNNING, 0, "requeue"),
        ("stopped", RUNNING.replace("RUNNING", "SIGNALING"), 0, "requeue"),
        ("stopped", RUNNING, 5, "slurm.max_requeues=5 is used up"),
        ("stopped", RUNNING.replace("RUNNING", "COMPLETING"), 0, "not requeued: SLURM has the job as COMPLETING"),
        ("stopped", "", 0, "not requeued: SLURM has the job as unknown"),
        ("running", RUNNING, 0, "relaunch"),
        ("running", PREEMPTED, 0, "requeue"),
        ("starting", RUNNING, 0, "relaunch"),
        ("starting", PREEMPTED, 0, "requeue"),
        ("starting", RUNNING.replace("RUNNING", "CANCELLED"), 0, "stopped, and not requeued: SLURM has the job as"),
        ("", RUNNING, 0, "rank 0 did not start"),
        ("", PREEMPTED, 0, "requeue"),
        ("failed", RUNNING, 0, "relaunch"),
        ("failed", RUNNING, 5, "relaunch"),
        ("failed", RUNNING.replace("RUNNING", "CANCELLED"), 0, "why"),
        ("failed", PREEMPTED, 0, "requeue"),
        ("refused", RUNNING, 0, "why"),
        ("port_taken", RUNNING, 0, "why"),
    ],
)
def test_what_becomes_of_a_job(run_dir: Path, outcome: str, job: str, restarts: int, expected: str) -> None:
    status = {"state": outcome, "reason": "why"} if outcome else {}
    launch = Launch(run_dir, "7", restarts, max_requeues=5)
    assert expected in batch.end(launch, job, status)
    starts.stop_file(run_dir, "7").touch()
    if outcome not in ("finished", "failed", "refused", "port_taken"):
        assert batch.end(launch, job, status) == "cancel"


@pytest.mark.parametrize(
    ("said", "reason", "rank", "host"),
    [
        ("Unknown: task 1: Killed", "rank 1 ended by SIGKILL, without a word", 1, None),
        ("n2: task 1: Killed", "rank 1 on n2 ended by SIGKILL, without a word", 1, "n2"),
        ("n2: task 1: Bus error (core dumped)", "rank 1 on n2 ended by SIGBUS, without a word", 1, "n2"),
        ("n2: task 12: Exited with exit code 1", "rank 12 on n2 ended by exit code 1: see its log", None, None),
        ("n1: task 0: Out Of Memory", "rank 0 on n1 ended by Out Of Memory", 0, "n1"),
        ("n1: tasks 0-1: Killed", "ranks 0-1 on n1 ended by SIGKILL, without a word", None, "n1"),
        ("n[1-2]: tasks 0-1: Killed", "ranks 0-1 on n[1-2] ended by SIGKILL, without a word", None, None),
        ("", "a rank ended and reported no reason: see the logs", None, None),
    ],
)
def test_of_a_rank_without_a_word_srun_says_how_it_ended(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, said: str, reason: str, rank: int | None, host: str | None
) -> None:
    set_environment(monkeypatch, run_dir, "slurm.max_restarts=1")
    outcome, words = run_dir / "slurm" / "7.0.0.status.json", f"srun: error: {said}" if said else ""
    write_json(outcome, {"state": "running", "step": 5})
    assert batch.main(["end", RUNNING, "", "n1 n2", words]) == 0
    row = last_restart(run_dir, "7")
    assert (row["reason"], row["rank"], row["host"]) == (reason, rank, host)
    assert SILENT in row["cause"]  # it may be killed again at the same step
    outcome.unlink()
    assert batch.main(["end", RUNNING, "", "n1 n2", words]) == 1
    why = read_json(run_dir / "status.json")["reason"]
    assert why == f"rank 0 did not start{f'; {reason}' if said else ': see its log'}"


def test_what_a_rank_has_said_is_not_mixed_with_what_srun_says(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, run_dir, "slurm.max_restarts=1")
    outcome, words = run_dir / "slurm" / "7.0.0.status.json", "srun: error: n1: task 0: Exited with exit code 1"
    write_json(outcome, {"state": "failed", "reason": "rank 1 on n2 could not start: OSError"})
    assert batch.main(["end", RUNNING, "", "n1 n2", words]) == 0
    row = last_restart(run_dir, "7")
    assert (row["reason"], row["rank"], row["host"]) == ("rank 1 on n2 could not start: OSError", None, None)
    write_json(outcome, {"state": "stopped"})
    assert batch.main(["end", PREEMPTED, "", "n1 n2", words]) == 0
    assert read_json(outcome).keys() == {"state", "ended", "slurm"}


@pytest.mark.parametrize("outcome", ["failed", "running"])
def test_without_restarts_a_failure_is_the_end(run_dir: Path, outcome: str) -> None:
    for job in (RUNNING, RUNNING.replace("RUNNING", "SIGNALING")):
        said = batch.end(Launch(run_dir, "7", max_restarts=0), job, {"state": outcome})
        assert said == "a rank ended and reported no reason: see the logs"


def test_the_same_bug_twice_ends_the_job(run_dir: Path) -> None:
    bug = {"state": "failed", "reason": "rank 0 on n1 failed: ValueError: boom", "step": 40}
    bug["failure"] = {"cause": "ValueError: boom", "rank": 0, "host": "n1"}
    assert batch.end(Launch(run_dir, "7"), RUNNING, bug) == "relaunch"
    assert batch.end(Launch(run_dir, "7"), RUNNING, bug) == "relaunch"  # asked again about the same launch
    assert batch.end(Launch(run_dir, "7", 0, 1), RUNNING, bug) == f"failed twice at step 40: {bug['reason']}"


def test_three_launches_without_a_checkpoint_are_enough_over_all_starts(run_dir: Path) -> None:
    killed = {"state": "failed", "reason": "rank 1 did not answer any more", "failure": {"cause": SILENT}}
    for start, number in ((0, 0), (0, 1), (1, 0)):
        assert batch.end(Launch(run_dir, "7", start, number), RUNNING, killed) == "relaunch"
    said = batch.end(Launch(run_dir, "7", 1, 1), RUNNING, killed)
    assert said == "slurm.max_restarts=3 is used up: rank 1 did not answer any more"
    publish(run_dir, 5)
    assert batch.end(Launch(run_dir, "7", 1, 2), RUNNING, killed) == "relaunch"


@pytest.mark.parametrize(("left_s", "expected"), [(600, "relaunch"), (170, "requeue"), (-5, "requeue")])
def test_a_launch_that_the_signal_before_the_time_limit_would_miss_is_a_requeue(
    run_dir: Path, left_s: float, expected: str
) -> None:
    job = f"{RUNNING} EndTime={time.time() + left_s:.0f} Deadline=N/A"
    assert batch.end(Launch(run_dir, "7", lead_s=120), job, {"state": "failed"}) == expected
    assert count_restarts(run_dir, "7") == (expected == "relaunch")


def test_a_failure_beside_a_lost_host_is_the_hosts(run_dir: Path) -> None:
    failed = {"state": "failed", "reason": "rank 1 did not answer any more"}
    launch = Launch(run_dir, "7", max_requeues=5)
    assert batch.end(launch, RUNNING, failed, ["n2"], ["n1", "n2"]) == "requeue"
    assert "used up" in batch.end(replace(launch, start=5), RUNNING, failed, ["n2"], ["n1", "n2"])
    assert batch.end(launch, RUNNING, {"state": "finished"}, ["n2"], ["n1", "n2"]) == "finished"
    assert not (run_dir / "restarts.jsonl").exists()
    starts.stop_file(run_dir, "7").touch()
    assert batch.end(launch, RUNNING, failed, ["n2"], ["n1", "n2"]) == "cancel"


@pytest.mark.parametrize(
    ("hosts", "lost", "left"),
    [
        ("n1 n2", "n2", "n1"),
        ("n1 n2 n3 n4", "n3", "n1 n2"),
        ("n1 n2 n3 n4 n5 n6 n7 n8", "n2 n7", "n1 n3 n4 n5"),
        ("n1 n2 n3 n4", "n1 n2 n3", "n4"),
    ],
)
def test_with_shards_a_job_goes_on_with_a_power_of_two_of_the_hosts_left(
    run_dir: Path, hosts: str, lost: str, left: str
) -> None:
    launch = Launch(run_dir, "7", may_shrink=True)
    failed = {"state": "failed", "reason": "rank 1 did not answer any more", "step": 40}
    assert batch.end(launch, RUNNING, failed, lost.split(), hosts.split()) == f"relaunch {left}"
    assert last_restart(run_dir, "7")["host"] == lost.replace(" ", ", ")
    # not where the nodes are taken away in any case, or the budget is used up
    stopped = {"state": "stopped", "reason": "SIGUSR2"}
    for job, outcome in ((PREEMPTED, failed), (RUNNING, stopped)):
        assert batch.end(replace(launch, number=1), job, outcome, lost.split(), hosts.split()) == "requeue"
    # SLURM may not launch on them
    assert batch.end(replace(launch, number=1, nodes=9), RUNNING, {}, [], left.split()) == "requeue"
    spent = replace(launch, number=1, max_restarts=1)
    assert batch.end(spent, RUNNING, failed, lost.split(), hosts.split()) == "requeue"


def test_a_step_has_a_number_that_no_start_has_which_may_come_back(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_environment(monkeypatch, run_dir)
    idle = []
    for start, end in enumerate((None, "", "", "n2", "")):  # no outcome; a normal end; without one of its hosts
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(start))
        publish(run_dir, start)
        assert batch.main(["begin"]) == 0
        idle.append(int(capsys.readouterr().out.rpartition("idle_steps=")[2]))
        if end is not None:
            write_json(run_dir / "slurm" / f"7.{start}.0.status.json", {"state": "stopped"})
            assert batch.main(["end", RUNNING, end, "n1 n2"]) == 0
            assert capsys.readouterr().out == "requeue\n"
    assert idle == [0, 3, 3, 3, 6]  # srun is called three times at the most in a launch


def test_the_numbers_of_all_launches_up_to_a_silent_one_are_skipped(run_dir: Path) -> None:
    for start, ended in ((0, [True, True]), (1, [True, False, True]), (2, [False])):
        for number, has_ended in enumerate(ended):
            starts.record_start(run_dir, "7", start, number)
            write_json(Launch(run_dir, "7", start, number).outcome_file, {"ended": has_ended})
    assert [starts.idle_steps(run_dir, "7", start) for start in range(4)] == [0, 0, 6, 9]


def test_a_rank_that_the_system_has_ended_is_told_of(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_environment(monkeypatch, run_dir, "slurm.max_restarts=0")
    crash = run_dir / "slurm" / "7.0.0.crash"
    for trace, expected in (("", False), ("Fatal Python error: Bus error\n\nCurrent thread ...", True)):
        crash.write_text("of an earlier try")
        assert batch.main(["begin"]) == 0
        assert not crash.exists()
        crash.write_text(trace)
        write_json(run_dir / "slurm" / "7.0.0.status.json", {"state": "running"})
        assert batch.main(["end", RUNNING, "", "n1 n2"]) == 1
        reason = read_json(run_dir / "status.json")["reason"]
        assert "a rank ended and reported no reason" in reason
        told = "; a rank crashed: Bus error (a page of a mapped file could not be read or"
        assert (told in reason, f"; where: {crash}" in reason) == (expected, expected)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("outcome", "lost", "kind"),
    [
        ({"state": "failed", "reason": "x", "kind": "ranks differ"}, "", "ranks differ"),
        ({"state": "failed", "reason": "x"}, "", ""),
        ({"state": "stopped", "reason": "SIGTERM"}, "", "requeues are used up"),
        ({"state": "running"}, "n2", "requeues are used up"),
    ],
)
def test_the_kind_of_an_end_goes_with_its_reason_into_the_status(
    outcome: dict[str, Any], lost: str, kind: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, run_dir, "slurm.max_restarts=0", "slurm.max_requeues=0")
    write_json(run_dir / "status.json", {"kind": "taken over"})
    write_json(run_dir / "slurm" / "7.0.0.status.json", outcome)
    assert batch.main(["end", RUNNING, lost, "n1 n2"]) in (1, 85)
    assert read_json(run_dir / "status.json")["kind"] == kind
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert batch.main(["begin"]) == 1
    assert read_json(run_dir / "slurm" / "7.1.0.status.json")["kind"] == "requeues are used up"


def test_a_torn_line_of_a_killed_writer_stops_no_start(run_dir: Path) -> None:
    starts.record_start(run_dir, "7", 0)
    with (run_dir / "slurm" / "7.starts.jsonl").open("a") as file:
        file.write('{"start": 1, "ti')
    assert batch.begin(Launch(run_dir, "7", 1)) == ""
    assert starts.count_starts(run_dir, "7") == 2


def test_the_reason_reaches_the_status_of_the_newest_job_only(run_dir: Path) -> None:
    write_json(run_dir / "status.json", {"state": "running", "job": "7", "step": 3})
    starts.explain(run_dir, "7", 0, "failed", "why")
    expected = {"state": "failed", "job": "7", "step": 3, "reason": "why", "kind": ""}
    assert read_json(run_dir / "status.json") == expected
    write_json(run_dir / "slurm" / "job.json", {"job": "8"})
    starts.explain(run_dir, "7", 0, "failed", "another")
    assert read_json(run_dir / "status.json")["reason"] == "why"


def test_the_reason_of_an_older_start_does_not_reach_the_status(run_dir: Path) -> None:
    write_json(run_dir / "status.json", {"state": "running", "job": "7", "job_restarts": 1})
    for start in (0, 1):
        starts.record_start(run_dir, "7", start)
    starts.explain(run_dir, "7", 0, "failed", "cut off")
    assert read_json(run_dir / "status.json")["state"] == "running"
    starts.explain(run_dir, "7", 1, "failed", "why")
    assert read_json(run_dir / "status.json")["reason"] == "why"


def test_ports_are_free_and_below_the_ephemeral_ones() -> None:
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [free_port() for _ in range(50)]
    assert max(ports) < ephemeral
    with socket.create_server(("", ports[0])):
        assert len(set(ports)) > 40


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = free_port()
    offered = iter([taken, taken + 1, taken + 2, taken + 3])
    monkeypatch.setattr(ports.random, "randrange", lambda *_: next(offered))
    with socket.create_server(("", taken)):
        assert free_port() != taken


def run_batch_sh(
    fake: Path,
    run_dir: Path,
    begin: str,
    srun: str,
    end: str,
    *,
    job: str = "echo JobId=7 Restarts=0 Batch=1",
    nodes: str = 'echo "NodeName=n1 NodeAddr=10.0.0.1 State=IDLE"',
    sleep: str = "true",
    words: str = "",
    requeue: str = "true",
    setup: str = "",
    decide: str = "",
    log: IO[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """The real batch.sh with stand-ins for SLURM's commands and the decisions; each logs its call."""
    called = fake / "log"
    hostnames = 'case $3 in *-2]) echo n1; echo n2 ;; *) echo "$3" ;; esac'
    answers = f"hostnames) {hostnames} ;; node) {nodes} ;; job) {job} ;; 7) {requeue} ;;"
    install(fake, "scontrol", f'echo "scontrol $*" >>{called}; case $2 in {answers} esac')
    install(fake, "srun", f'echo "srun $MASTER_ADDR:$MASTER_PORT${{*:+ $*}}" >>{called}; {srun}')
    install(fake, "scancel", f'echo "scancel $*" >>{called}')
    install(fake, "squeue", "echo 7.batch; echo 7.3")
    install(fake, "sleep", sleep)
    install(fake, "decide", f'case $3 in begin) {begin} ;; end) echo "end" >>{called}; {end} ;; {decide} esac')
    body = (
        f'{setup}\nrun_python() {{ decide "$@"; }}\nexport SENET_RUN_DIR={run_dir} SLURM_NTASKS_PER_NODE=2\n'
        f"source {REPOSITORY}/slurm/batch.sh\nsrun {words}\nfinish\n"
    )
    environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_PARTITION": "low"}
    streams = {"stdout": subprocess.PIPE, "stderr": log or subprocess.PIPE}
    return subprocess.run(["bash", "-c", body], env=environment, **streams, text=True, timeout=60)


def calls(fake: Path) -> list[str]:
    return [line for line in (fake / "log").read_text().splitlines() if not line.startswith("scontrol show")]


def test_a_taken_port_is_tried_again_three_times_with_another(fake: Path, run_dir: Path) -> None:
    begin = 'echo "export MASTER_PORT=$$"'
    taken = 'echo "{\\"state\\": \\"port_taken\\"}" >"$SENET_STATUS_FILE"'
    done = run_batch_sh(fake, run_dir, begin, taken, "echo failed; exit 1")
    assert done.returncode == 1
    assert [call.partition(":")[0] for call in calls(fake)] == ["srun 10.0.0.1"] * 3 + ["end"]
    assert len(set(calls(fake))) == 4  # a port each


def test_an_end_is_one_end_and_a_requeue_one_requeue(fake: Path, run_dir: Path) -> None:
    begun = 'echo "{\\"state\\": \\"stopped\\"}" >"$SENET_STATUS_FILE"; exit 85'
    done = run_batch_sh(fake, run_dir, "true", begun, "echo requeue", sleep='[ "$1" != infinity ] || exit 9')
    assert done.returncode == 9  # the script is replaced by what waits for its end by SLURM
    assert calls(fake) == ["srun 10.0.0.1:", "end", "scontrol requeue 7"]


LOST = 'echo "NodeName=n1 NodeAddr=10.0.0.1 State=ALLOCATED"; echo "NodeName=n2 State=MIXED+NOT_RESPONDING Owner=N/A"'


@pytest.mark.parametrize(
    ("state", "nodes", "killed"),
    [
        ("failed", LOST, True),
        ("running", LOST, False),
        ("failed", LOST.replace("+NOT_RESPONDING", ""), False),
        ("failed", LOST.replace("+NOT_RESPONDING", "+CLOUD+POWER_DOWN"), False),
    ],
)
def test_srun_is_not_waited_for_where_it_waits_for_a_lost_host(
    fake: Path, run_dir: Path, state: str, nodes: str, killed: bool
) -> None:
    seconds, sleep = 60 if killed else 3, shutil.which("sleep", path="/usr/bin:/bin")
    begun = f"""echo '{{"state": "{state}"}}' >"$SENET_STATUS_FILE"; exec {sleep} {seconds}"""
    began = time.monotonic()
    run_batch_sh(fake, run_dir, "true", begun, f'echo "lost: $5" >>{fake}/log; echo requeue', nodes=nodes)
    assert (time.monotonic() - began < seconds) == killed
    lost, ended = ("n2" if "NOT" in nodes else ""), (["scancel 7.3"] if killed else [])
    assert calls(fake) == ["srun 10.0.0.1:", *ended, "end", f"lost: {lost}", "scontrol requeue 7"]


def test_a_failure_is_heard_of_also_where_a_rank_has_written_over_it(fake: Path, run_dir: Path) -> None:
    begun = (
        """echo '{"state": "running"}' >"$SENET_STATUS_FILE"; echo '{"state": "failed"}' """
        """>"${SENET_STATUS_FILE%.json}.end.json"; exec """ + f"{shutil.which('sleep', path='/usr/bin:/bin')} 60"
    )
    run_batch_sh(fake, run_dir, "true", begun, "echo requeue", nodes=LOST)
    assert calls(fake) == ["srun 10.0.0.1:", "scancel 7.3", "end", "scontrol requeue 7"]


def test_a_host_that_does_not_answer_once_or_twice_is_not_lost(fake: Path, run_dir: Path) -> None:
    lost = f"echo x >>{fake}/asked; [ $(($(grep -c x {fake}/asked) % 3)) = 0 ] || {{ {LOST}; }}"
    begun = """echo '{"state": "failed"}' >"$SENET_STATUS_FILE"; exec %s 2"""
    began = time.monotonic()
    run_batch_sh(fake, run_dir, "true", begun % shutil.which("sleep", path="/usr/bin:/bin"), "echo failed", nodes=lost)
    assert time.monotonic() - began > 2


def test_a_preemption_that_is_announced_between_launches_is_a_requeue(fake: Path, run_dir: Path) -> None:
    taken = "echo JobId=7 Restarts=0 PreemptTime=1795694432"
    end = '[ -e "$SENET_STATUS_FILE" ] && echo failed || echo requeue'
    run_batch_sh(fake, run_dir, "true", "exit 1", end, job=taken)
    assert calls(fake) == ["end", "scontrol requeue 7"]


def test_a_preemption_that_is_announced_while_srun_begins_is_told_to_the_ranks(fake: Path, run_dir: Path) -> None:
    late = f"echo JobId=7 Restarts=0 PreemptTime=$([ -e {fake}/begun ] && echo 1795694432 || echo None)"
    real = shutil.which("sleep", path="/usr/bin:/bin")
    begun = f"""touch {fake}/begun; echo '{{"state": "running"}}' >"$SENET_STATUS_FILE"; exec {real} 1"""
    waits = f"until [ -e {fake}/begun ]; do {real} 0.01; done"  # the first look comes when srun has begun
    run_batch_sh(fake, run_dir, "true", begun, "echo requeue", job=late, sleep=waits)
    assert calls(fake) == ["srun 10.0.0.1:", "scancel --signal=USR2 7", "end", "scontrol requeue 7"]


def test_a_failure_is_a_launch_with_the_same_words_in_the_same_job(fake: Path, run_dir: Path) -> None:
    """Each launch has its own name and port, and reads no outcome of another."""
    begin = 'echo "export MASTER_PORT=$SENET_LAUNCH"'
    begun = f"""echo "$SENET_START" >>{fake}/log; echo '{{"state": "failed"}}' >"$SENET_STATUS_FILE"; exit 1"""
    end = '[ "$SENET_LAUNCH" -lt 2 ] && echo relaunch || { echo failed; exit 1; }'
    done = run_batch_sh(fake, run_dir, begin, begun, end, words="--output '/a b' python -m x")
    assert done.returncode == 1
    launches = [(f"srun 10.0.0.1:{n} --output /a b python -m x", f"7.0.{n}", "end") for n in range(3)]
    assert calls(fake) == [call for launch in launches for call in launch]
    assert sorted(path.name for path in (run_dir / "slurm").iterdir()) == [f"7.0.{n}.status.json" for n in range(3)]


def test_what_srun_has_said_of_a_launch_is_not_taken_for_that_of_another(fake: Path, run_dir: Path) -> None:
    """Also where rank 0 has ended in the middle of a line, has written what is no text, or srun is not even called."""
    begun = 'echo "{\\"state\\": \\"running\\"}" >"$SENET_STATUS_FILE"; printf "\\0step 5" >&2; '
    ended = 'case $SENET_LAUNCH in 1) ;; *) for n in 1 0; do echo "srun: error: n$n: task $n: Killed" >&2; done ;; esac'
    end = f'echo "ended: $7" >>{fake}/log; [ "$SENET_LAUNCH" -lt 3 ] && echo relaunch || {{ echo failed; exit 1; }}'
    begin = '[ "$SENET_LAUNCH" -lt 3 ]'
    with (run_dir / "log").open("a") as log:
        log.write("srun: error: n1: task 0: Exited with exit code 85\n")  # of an earlier start
        log.flush()
        run_batch_sh(fake, run_dir, begin, begun + ended, end, log=log)
    said = [call for call in calls(fake) if call.startswith("ended: ")]
    killed = "ended: srun: error: n1: task 1: Killed"
    assert said == [killed, "ended: ", killed, "ended: "]
    for first in ("slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT now ***", "srun: error: Node failure on n2"):
        (fake / "log").unlink()
        with (run_dir / "log").open("a") as log:  # the tasks that follow are victims
            victims = f'echo "{first}" >&2; echo "srun: error: n1: task 0: Killed" >&2'
            run_batch_sh(fake, run_dir, "true", begun + victims, "echo failed; " + end, log=log)
        [call] = [call for call in calls(fake) if call.startswith("ended: ")]
        assert call.removeprefix("ended: ") in first
        assert parse_ended(call.removeprefix("ended: ")) == {}
    (fake / "log").unlink()
    with (run_dir / "log").open("a") as log:
        run_batch_sh(fake, run_dir, "exit 1", "", "echo failed; " + end, log=log)
    assert [call for call in calls(fake) if call.startswith("ended: ")] == ["ended: "]


def test_a_job_that_is_no_longer_ours_launches_nothing_again(fake: Path, run_dir: Path) -> None:
    replaced = f"if [ -e {fake}/away ]; then echo JobId=7 Restarts=1; else echo JobId=7 Restarts=0 Batch=1; fi"
    begun = f"""touch {fake}/away; echo '{{"state": "failed"}}' >"$SENET_STATUS_FILE"; exit 1"""
    done = run_batch_sh(fake, run_dir, "true", begun, "echo relaunch", job=replaced)
    assert (done.returncode, calls(fake)) == (1, ["srun 10.0.0.1:"])


def test_a_launch_on_fewer_hosts_begins_on_one_of_them(
    fake: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_GPUS", "8")  # of all hosts together
    nodes = 'case $4 in n2*) echo "NodeName=n2 NodeAddr=10.0.0.2 State=ALLOCATED" ;; *) ' + LOST + " ;; esac"
    begun = f"""echo "GPUs: $SLURM_GPUS" >>{fake}/log; echo '{{"state": "failed"}}' >"$SENET_STATUS_FILE"; exit 1"""
    end = f'echo "lost: $5; hosts: $6" >>{fake}/log; [ "$SENET_LAUNCH" = 0 ] && echo relaunch n2 n3 || echo cancel'
    sleep = '[ "$1" != infinity ] || exit 9'
    run_batch_sh(fake, run_dir, "true", begun, end, nodes=nodes, sleep=sleep, words="python")
    on = "--overlap --nodes=2 --ntasks=4 --nodelist=n2,n3"
    assert calls(fake) == [
        *("srun 10.0.0.1: python", "GPUs: 8", "end", "lost: n2; hosts: n1", "n2"),
        *(f"srun 10.0.0.2: {on} python", "GPUs: ", "end", "lost: ; hosts: n2,n3", "scancel 7"),
    ]


def test_a_host_that_slurm_has_taken_from_the_job_is_lost_also_when_it_answers_again(fake: Path, run_dir: Path) -> None:
    begun = """echo '{"state": "failed"}' >"$SENET_STATUS_FILE"; exit 1"""
    job = "echo JobId=7 Restarts=0 NodeList=n1 BatchHost=n1"
    run_batch_sh(fake, run_dir, "true", begun, f'echo "lost: $5" >>{fake}/log; echo failed; exit 1', job=job)
    assert calls(fake) == ["srun 10.0.0.1:", "end", "lost: n2"]


def test_an_end_is_seen_at_once(fake: Path, run_dir: Path) -> None:
    """With a few seconds of grace it cannot wait for the next poll."""
    begun = """echo '{"state": "stopped"}' >"$SENET_STATUS_FILE"; exit 85"""
    sleep = f'[ "$1" != 5 ] || exec {shutil.which("sleep", path="/usr/bin:/bin")} 60'
    for _ in range(20):
        began = time.monotonic()
        run_batch_sh(fake, run_dir, "true", begun, "echo requeue", sleep=sleep)
        assert time.monotonic() - began < 60


def test_an_older_start_that_comes_back_does_nothing(fake: Path, run_dir: Path) -> None:
    """Cut off while its ranks ran, or before they had begun: the newer start has the same job and step numbers."""
    replaced = f"if [ -e {fake}/away ]; then echo JobId=7 Restarts=1; else echo JobId=7 Restarts=0 Batch=1; fi"
    for begun in ("""echo '{"state": "running"}' >"$SENET_STATUS_FILE";""", ""):
        for verdict in ("echo requeue", "echo cancel", "echo failed; exit 1"):
            (fake / "away").unlink(missing_ok=True)
            done = run_batch_sh(fake, run_dir, "true", f"touch {fake}/away; {begun} exit 1", verdict, job=replaced)
            assert done.returncode == 1
            assert "start 7.0.0 has been replaced by a newer one" in done.stderr
            assert calls(fake) == ["srun 10.0.0.1:"]
            (fake / "log").unlink()
            (run_dir / "slurm" / "7.0.0.status.json").unlink(missing_ok=True)


def test_a_controller_that_is_away_for_minutes_ends_no_job(fake: Path, run_dir: Path) -> None:
    away = f"echo x >>{fake}/asked; [ $(grep -c x {fake}/asked) -gt 5 ] || exit 1; echo JobId=7 Restarts=0 Batch=1"
    begun = """echo '{"state": "stopped"}' >"$SENET_STATUS_FILE"; rm "$0.asked"; exit 85"""
    begun = begun.replace("$0.asked", f"{fake}/asked")
    install(fake, "rm", f'exec {shutil.which("rm", path="/usr/bin:/bin")} "$@"')
    seen = """case $4 in *Restarts=0*) echo requeue ;; *) echo failed; exit 1 ;; esac"""
    run_batch_sh(fake, run_dir, "true", begun, seen, job=away)
    assert calls(fake) == ["srun 10.0.0.1:", "end", "scontrol requeue 7"]


def test_a_python_that_cannot_be_read_for_minutes_ends_no_job(fake: Path, run_dir: Path) -> None:
    away = f"echo x >>{fake}/asked; [ $(grep -c x {fake}/asked) -gt 3 ] || exit"
    begun = """echo '{"state": "stopped"}' >"$SENET_STATUS_FILE"; exit 85"""
    # not readable; not there; a page of it cannot be read; one of its modules cannot be read
    for code in (126, 127, 135, 1):
        done = run_batch_sh(fake, run_dir, "true", begun, f"{away} {code}; echo requeue")
        assert calls(fake) == ["srun 10.0.0.1:", *["end"] * 4, "scontrol requeue 7"]
        assert f"Python ended with exit code {code}, and did not say what to do at the end" in done.stderr
        for name in ("log", "asked"):
            (fake / name).unlink()
    done = run_batch_sh(fake, run_dir, "true", begun, "exit 126")
    assert done.returncode == 126


def test_a_start_that_must_not_begin_calls_no_srun(fake: Path, run_dir: Path) -> None:
    done = run_batch_sh(fake, run_dir, "exit 1", "true", "echo failed; exit 1")
    assert (done.returncode, calls(fake)) == (1, ["end"])


# --- a batch script that is lost with its host ---


@pytest.mark.parametrize(
    ("srun", "restarts", "state", "requeued"),
    [
        ("255.255.255.255", 0, "MIXED+NOT_RESPONDING", True),
        ("255.255.255.255", 0, "DOWN*", True),
        ("255.255.255.255", 0, "IDLE+CLOUD+POWER_DOWN", False),
        ("255.255.255.255", 0, "MIXED", False),  # only this host is cut off
        ("255.255.255.255", 1, "DOWN*", False),  # a newer start runs
        ("127.0.0.1", 0, "DOWN*", False),
    ],
)
def test_a_job_is_requeued_by_a_rank_that_is_left_where_its_batch_script_is_lost(
    fake: Path, monkeypatch: pytest.MonkeyPatch, srun: str, restarts: int, state: str, requeued: bool
) -> None:
    job = f"JobId=7 Restarts={restarts} BatchHost=n1 NumNodes=2"
    answer = f'job) echo "{job}" ;; node) [ "$4" = n1 ] && echo "NodeName=n1 State={state} Owner=N/A" ;;'
    install(fake, "scontrol", f'case "$1 $2" in "requeue 7") touch {fake}/requeued ;; *) case $2 in {answer} esac esac')
    monkeypatch.setenv("SLURM_SRUN_COMM_HOST", srun)
    monkeypatch.setenv("SLURM_SRUN_COMM_PORT", "9")
    monkeypatch.setattr(guard, "_POLL_S", 0.01)
    monkeypatch.setattr(guard, "_LIMIT_S", 60.0 if requeued else 1.0)
    guard.requeue_if_alone("7", 1, StopFlag())
    assert (fake / "requeued").exists() == requeued


def test_a_host_that_reaches_neither_the_batch_script_nor_slurm_waits_for_neither(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(fake, "scontrol", f"echo asked >>{fake}/asked; exit 1")
    monkeypatch.setenv("SLURM_SRUN_COMM_HOST", "255.255.255.255")
    monkeypatch.setenv("SLURM_SRUN_COMM_PORT", "9")
    guard.requeue_if_alone("7", 1, StopFlag())
    assert (fake / "asked").read_text() == "asked\n"


def test_a_rank_that_srun_ends_waits_for_no_host(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(fake, "scontrol", f"touch {fake}/asked")
    monkeypatch.setenv("SLURM_SRUN_COMM_HOST", "255.255.255.255")
    monkeypatch.setenv("SLURM_SRUN_COMM_PORT", "9")
    stop = StopFlag()
    stop.signal_name = "SIGTERM"
    guard.requeue_if_alone("7", 2, stop)
    assert not (fake / "asked").exists()


# --- preflight ---


def found(*overrides: str, run_dir: Path) -> str:
    config = load_config(tiny(f"run_dir={run_dir}", *overrides))
    findings = preflight.preflight(config, run_dir)
    return "\n".join(f"{'refused' if finding.refuse else 'warning'}: {finding.text}" for finding in findings)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["slurm.nodes=3"], "refused: train.global_batch_size=64 cannot be split over 3 ranks"),
        (
            ["train.shards=4", "slurm.nodes=3"],
            "refused: train.shards=4 cannot be dealt to 3 ranks; use 2 ranks; slurm.nodes=2 "
            "slurm.ranks_per_node=1 fits",
        ),
        (["train.shards=8", "slurm.nodes=2", "slurm.gpus_per_node=6"], "; slurm.nodes=2 slurm.gpus_per_node=4 fits"),
        (["train.shards=8", "slurm.nodes=4", "slurm.ranks_per_node=4"], "; slurm.nodes=2 slurm.ranks_per_node=4 fits"),
        (["slurm.gpus_per_node=2", "slurm.ranks_per_node=4"], "refused: slurm.ranks_per_node=4 is more than the 2"),
        (["slurm.gpus_per_node=4", "slurm.ranks_per_node=2"], "warning: slurm.ranks_per_node=2, but 4 GPUs per node"),
        (
            ["slurm.gpus_per_node=4", "train.device=cpu"],
            "warning: 4 GPU(s) per node are asked for, but train.device=cpu",
        ),
        (["train.device=cuda"], "refused: train.device=cuda, but slurm.gpus_per_node=0"),
        (["slurm.sbatch.gres=gpu:4", "slurm.ranks_per_node=1"], "warning: slurm.ranks_per_node=1, but 4 GPUs per node"),
        (["slurm.gpus_per_node=a100:4"], "warning: slurm.cpus_per_task=0: each rank gets the site's default"),
        (["slurm.gpus_per_node=2", "slurm.sbatch.gpu_bind=closest"], "warning: slurm.sbatch.gpu_bind=closest: where"),
        (["slurm.time=5m"], "warning: slurm.time=5m: of 300 s"),
        (["slurm.time=2m"], "refused: slurm.signal_lead_s=120 is not less than slurm.time=2m"),
        (["slurm.cluster=local", "slurm.nodes=2"], "refused: slurm.nodes=2 with slurm.cluster=local"),
        (["slurm.cluster=local", "slurm.setup=[x]"], "refused: slurm.setup with slurm.cluster=local"),
        (
            ["data.source=imagefolder", "data.folder=/nowhere"],
            "warning: data.folder=/nowhere: no such folder; expected data.folder/train/<class>/<image> and "
            "data.folder/test/<class>/<image>; the job will fail unless its nodes see them",
        ),
        ([], "looks local to this machine"),
        ([], "warning: scontrol does not answer here"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_preflight_names_value_and_remedy(run_dir: Path, overrides: list[str], expected: str) -> None:
    assert expected in found(*overrides, run_dir=run_dir)


@pytest.mark.usefixtures("fake")
def test_a_folder_of_images_is_looked_for_with_both_its_splits(run_dir: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    options = ("data.source=imagefolder", f"data.folder={photos}")
    for made, missing in ((".", "train"), ("train", "test")):
        (photos / made).mkdir(parents=True)
        assert f"warning: {photos / missing}: no such folder; " in found(*options, run_dir=run_dir)
    (photos / "val").mkdir()
    assert "no such folder" not in found(*options, run_dir=run_dir)
    options = (*options, f"data.root={tmp_path}", "data.store=encoded")
    shutil.rmtree(photos)
    assert "no such folder" in found(*options, run_dir=run_dir)
    store = encoded_folder(load_config(tiny(*options)).data)
    store.mkdir(parents=True)
    write_json(store / "meta.json", {})
    assert "no such folder" not in found(*options, run_dir=run_dir)  # a start looks at no files
    assert "no such folder" in found(*options, "data.store=pixels", run_dir=run_dir)
    options = ("data.source=table", f"data.table={photos / 'labels.csv'}")
    assert f"warning: data.table={photos / 'labels.csv'}: no such file; " in found(*options, run_dir=run_dir)


@pytest.mark.parametrize(
    ("options", "gpus", "ranks"),
    [
        ("", 0, 1),
        ("slurm.gpus_per_node=4", 4, 4),
        ("slurm.gpus_per_node=a100:4", 4, 4),
        ("slurm.gpus_per_node=a100:2,v100:1", 3, 3),
        ("slurm.sbatch.gres=gpu:4", 4, 4),
        ("slurm.sbatch.gres=gpu:a100:4(S:0-1),shard:2", 4, 4),
        ("slurm.sbatch.gres=gpu slurm.ranks_per_node=1", 1, 1),
        ("slurm.sbatch.gres=shard:4", 0, 1),
        ("slurm.sbatch.gpus=a100:8 slurm.nodes=2", 4, 4),
        ("slurm.sbatch.gpus_per_task=1 slurm.ranks_per_node=4", 4, 4),
        ("slurm.sbatch.tres-per-task=cpu:8,gres/gpu:a100:1 slurm.ranks_per_node=2", 2, 2),
    ],
)
def test_gpus_are_counted_however_they_are_asked_for(options: str, gpus: int, ranks: int) -> None:
    slurm = load_config(tiny(*options.split())).slurm
    assert (gpus_per_node(slurm), ranks_per_node(slurm)) == (gpus, ranks)


@pytest.mark.parametrize("wrong", ["a100", "4x", "-1", "a100:", ":4"])
def test_a_number_of_gpus_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"slurm.gpus_per_node={wrong}: write how many"):
        gpus_per_node(load_config(tiny(f"slurm.gpus_per_node={wrong}")).slurm)


def test_a_type_of_gpu_reaches_sbatch(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("slurm: {gpus_per_node: 4}\n")
    assert "#SBATCH --gpus-per-node=4\n" in script(str(tmp_path / "site.yaml"))
    text = script("slurm.gpus_per_node=a100:4")
    assert "#SBATCH --gpus-per-node=a100:4\n" in text
    assert "#SBATCH --ntasks-per-node=4\n" in text
    assert "gpu-bind" not in text


def test_tasks_that_ask_for_a_gpu_each_see_those_of_the_others() -> None:
    asked = ("slurm.sbatch.gpus_per_task=1", "slurm.ranks_per_node=4", "slurm.nodes=2")
    text = script(*asked)
    assert "#SBATCH --gpu-bind=none\n" in text
    assert "#SBATCH --ntasks=8\n" in text
    assert "#SBATCH --gpu-bind=single:1\n" in script(*asked, "slurm.sbatch.gpu_bind=single:1")
    assert "gpus" not in script()


@pytest.mark.usefixtures("fake")
def test_a_gpu_asked_for_by_gres_is_no_contradiction(run_dir: Path) -> None:
    assert "refused" not in found("train.device=cuda", "slurm.sbatch.gres=gpu:1", run_dir=run_dir)


@pytest.mark.usefixtures("fake")
def test_the_lead_is_held_against_what_the_last_run_needed(run_dir: Path) -> None:
    write_json(run_dir / "status.json", {"images_per_s": 3.2, "save_s": 30.0})
    assert "needed 75 s to stop" in found(run_dir=run_dir)  # two steps of 20 s, a save of 30, 5 to leave
    assert "to stop" not in found("slurm.signal_lead_s=150", run_dir=run_dir)


SITE = """\
case "$*" in
"show config") echo "KillWait                = 30 sec"; echo "PreemptType             = preempt/partition_prio" ;;
"--all show partition --oneliner")
    echo "PartitionName=cpu Default=YES GraceTime=10 MaxTime=1-00:00:00 PreemptMode=REQUEUE"
    echo "PartitionName=gpu Default=NO GraceTime=0 MaxTime=UNLIMITED PreemptMode=CANCEL" ;;
esac"""


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["slurm.partition=gpus"], "refused: slurm.partition=gpus: gpus does not exist; this cluster has cpu, gpu"),
        (["slurm.partition=gpu,long,x"], "refused: slurm.partition=gpu,long,x: long, x does not exist"),
        (["slurm.partition=gpu,cpu", "slurm.time=2d"], "refused: slurm.time=2d is more than MaxTime=1-00:00:00 of"),
        (["slurm.time=2d"], "refused: slurm.time=2d is more than MaxTime=1-00:00:00 of partition cpu"),
        (["slurm.partition=cpu,gpu"], "warning: partition gpu has PreemptMode=CANCEL"),
        (["slurm.account=us"], "refused: slurm.account=us is not among the accounts that you may use: physics"),
    ],
)
def test_preflight_asks_the_site(fake: Path, run_dir: Path, overrides: list[str], expected: str) -> None:
    install(fake, "scontrol", SITE)
    user = pwd.getpwuid(os.getuid()).pw_name
    install(fake, "sacctmgr", f'case "$*" in *user={user}*) echo physics ;; *) echo physics; echo us ;; esac')
    assert expected in found(*overrides, run_dir=run_dir)


def test_a_list_of_partitions_is_one(fake: Path, run_dir: Path) -> None:
    install(fake, "scontrol", SITE)
    assert "refused" not in found("slurm.partition=gpu,cpu", run_dir=run_dir)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("echo sbatch: Job 7 to start at >&2", ""),
        (
            "echo allocation failure: Invalid qos specification >&2; exit 1",
            "refused: sbatch refuses the job: Invalid qos",
        ),
        (
            "echo allocation failure: Requested node configuration is not available >&2; exit 1",
            "warning: sbatch --test-only: Requested node configuration is not available; either no node has",
        ),
        (
            "grep -q '^#SBATCH --qos=long' || exit 0; echo no long >&2; exit 1",
            "refused: sbatch refuses the job: no long",
        ),
    ],
)
def test_preflight_has_slurm_check_the_script(fake: Path, run_dir: Path, answer: str, expected: str) -> None:
    install(fake, "scontrol", SITE)
    install(fake, "sbatch", f'[ "$*" = --test-only ] || exit 1; {answer}')
    said = found("slurm.qos=long", run_dir=run_dir)
    assert expected in said if expected else "sbatch" not in said


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("slurm.mem=64", "refused: slurm.mem=64 is 64 MB to SLURM; say which unit is meant: 64G or 64M"),
        ("slurm.sbatch.mem_per_cpu=4", "refused: slurm.sbatch.mem_per_cpu=4 is 4 MB to SLURM"),
        ("slurm.mem=64GiB", "refused: slurm.mem=64GiB is no size"),
        ("slurm.mem=6.5G", "refused: slurm.mem=6.5G is no size"),
        ("slurm.mem=64G", ""),
        ("slurm.mem=64mb", ""),
        ("slurm.mem=0", ""),  # all that the node has
    ],
)
@pytest.mark.usefixtures("fake")
def test_memory_has_a_unit(run_dir: Path, option: str, expected: str) -> None:
    said = found(option, run_dir=run_dir)
    assert expected in said if expected else "slurm.mem" not in said


def test_what_was_typed_wins_over_sbatchs_variables_and_the_rest_is_named(
    fake: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(fake, "scontrol", SITE)
    for name, value in {
        "PARTITION": "gpu",
        "TIMELIMIT": "1",
        "NO_REQUEUE": "1",
        "SIGNAL": "B:USR1@5",
        "OUTPUT": "/x",
        "ARRAY_INX": "0-9",
        "WAIT": "1",
        "CLUSTERS": "another",
        "MEM_PER_CPU": "1",
        "NO_KILL": "1",
        "RESERVATION": "maint",
    }.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "9")
    left = sbatch.sbatch_environment(script("slurm.partition=cpu", "slurm.mem=1G"))
    assert [name for name in left if name.startswith(("SBATCH_", "SLURM_"))] == ["SBATCH_RESERVATION"]
    assert left["PATH"] == os.environ["PATH"]
    left = sbatch.sbatch_environment(script())
    assert {name for name in left if name.startswith("SBATCH_")} == {
        f"SBATCH_{name}" for name in ("PARTITION", "MEM_PER_CPU", "RESERVATION")
    }
    said = found(run_dir=run_dir)
    assert "warning: SBATCH_RESERVATION=maint in the environment applies to this job" in said
    assert "partition gpu has PreemptMode=CANCEL" in said  # the one in which it will run
    assert "TIMELIMIT" not in said


def test_a_short_grace_is_held_against_what_the_last_run_needed(fake: Path, run_dir: Path) -> None:
    install(fake, "scontrol", SITE)
    assert "at a preemption" not in found(run_dir=run_dir)
    write_json(run_dir / "status.json", {"images_per_s": 64, "save_s": 3.0})
    assert "partition cpu gives 10 s at a preemption (GraceTime=10, KillWait=30), a stop may take 20 s" in found(
        run_dir=run_dir
    )


@pytest.mark.usefixtures("fake")
def test_a_directory_that_another_host_may_hold_is_refused_or_warned_of_at_once(run_dir: Path) -> None:
    Lease.acquire(run_dir).close()
    held = read_json(run_dir / "owner.json") | {"released": False, "host": "elsewhere"}
    write_json(run_dir / "owner.json", held)
    assert f"refused: run_dir={run_dir} is owned by a run that is alive (process" in found(run_dir=run_dir)
    write_json(run_dir / "owner.json", held | {"heartbeat": time.time() + 86_400})  # a clock that is wrong
    said = found(run_dir=run_dir)
    assert "refused" not in said.replace("the job is refused", "")
    assert "if it is still alive when the job starts" in said


def test_a_directory_whose_job_has_ended_is_free_though_it_was_not_released(fake: Path, run_dir: Path) -> None:
    Lease.acquire(run_dir).close()
    owner = read_json(run_dir / "owner.json") | {"released": False, "host": "elsewhere", "job": "7"}
    write_json(run_dir / "owner.json", owner)
    write_json(run_dir / "slurm" / "job.json", {"job": "7", "cluster": "slurm"})
    install(fake, "squeue", UNKNOWN)
    install(fake, "sacct", "exit 1")  # a site without accounting: nobody knows how the job ended
    assert "is owned by a run that is alive (job 7" in found(run_dir=run_dir)
    install(fake, "squeue", "echo '7|FAILED|NonZeroExitCode|0|'")
    assert "alive" not in found(run_dir=run_dir)


@pytest.mark.usefixtures("fake")
def test_a_link_where_the_program_writes_is_refused_at_submission(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "best.pt").symlink_to(tmp_path)
    assert "refused" not in found(run_dir=run_dir)
    (run_dir / "checkpoints").rmdir()
    (run_dir / "checkpoints").symlink_to(tmp_path)
    assert f"refused: {run_dir / 'checkpoints'} is a symbolic link" in found(run_dir=run_dir)


def test_a_directory_with_a_job_in_the_queue_is_refused(fake: Path, run_dir: Path) -> None:
    write_json(run_dir / "slurm" / "job.json", {"job": "7", "cluster": "slurm"})
    install(fake, "squeue", "echo '7|PENDING|Priority|0|'")
    assert f"refused: run_dir={run_dir} belongs to job 7, which is PENDING" in found(run_dir=run_dir)
    install(fake, "squeue", UNKNOWN)  # it has left the queue
    assert "refused" not in found(run_dir=run_dir)


def test_a_directory_of_whose_job_slurm_says_nothing_is_refused(
    fake: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(run_dir / "slurm" / "job.json", {"job": "7", "cluster": "slurm"})
    install(fake, "squeue", DOWN)
    expected = f"refused: run_dir={run_dir}: whether job 7 still waits or runs is not known (squeue does not answer: "
    assert expected + "slurm_load_jobs error: Unable to contact slurm controller)" in found(run_dir=run_dir)
    install(fake, "squeue", "exec sleep 30")
    monkeypatch.setattr(cluster, "_TIMEOUT_S", 0.3)
    assert "is not known (squeue does not answer within 0.3 s); try again" in found(run_dir=run_dir)


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ({"squeue": "echo '7|RUNNING|None|2|'"}, cluster.JobState("RUNNING", "", 2)),
        ({"squeue": "echo '7|PENDING|Priority|0|'"}, cluster.JobState("PENDING", "Priority")),
        ({"squeue": UNKNOWN, "sacct": "echo '7|CANCELLED by 1000'"}, cluster.JobState("CANCELLED")),
        ({"squeue": UNKNOWN, "sacct": "echo disabled >&2; exit 1"}, cluster.JobState()),
        ({}, cluster.JobState()),
    ],
)
def test_whichever_command_the_site_has_tells_the_state(
    fake: Path, commands: dict[str, str], expected: cluster.JobState
) -> None:
    for name, text in commands.items():
        install(fake, name, text)
    assert cluster.job_states(["7"]) == {"7": expected}


def test_many_jobs_are_one_question_whatever_the_person_has_in_the_environment(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SLURM_CLUSTERS", "another")
    install(
        fake,
        "squeue",
        f'echo "$*" >>{fake}/log; echo "7|PENDING|$SQUEUE_STATES$SLURM_CLUSTERS|0|"; echo "8|RUNNING||0|"',
    )
    install(fake, "sacct", f'echo "sacct $*" >>{fake}/log; echo "9|COMPLETED"')
    found = cluster.job_states(["7", "8", "9"])
    assert [state.word for state in found.values()] == ["PENDING", "RUNNING", "COMPLETED"]
    assert found["7"].reason == ""
    squeue, sacct = (fake / "log").read_text().splitlines()
    assert "--jobs=7,8,9" in squeue
    assert "--jobs=9" in sacct


def status_lines(folder: Path, *names: str) -> list[str]:
    done = subprocess.run([*SUBMIT, "status", *names], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [*done.stderr.splitlines(), *done.stdout.splitlines()]


def test_a_slurm_that_does_not_answer_is_asked_once_for_all_runs(fake: Path, tmp_path: Path) -> None:
    install(fake, "squeue", f"echo asked >>{fake}/log; {DOWN}")
    for job, state in (("7", "running"), ("8", "finished"), ("9", "running")):
        folder = tmp_path / "runs" / job
        Lease.acquire(folder).close()
        (folder / "slurm").mkdir()
        write_json(folder / "slurm" / "job.json", {"job": job, "cluster": "slurm"})
        write_json(folder / "status.json", {"job": job, "state": state, "heartbeat": time.time(), "step": 3})
    owner = read_json(tmp_path / "runs" / "7" / "owner.json")
    write_json(tmp_path / "runs" / "7" / "owner.json", owner | {"released": False})
    said, _, *rows = status_lines(tmp_path)
    assert "squeue does not answer: slurm_load_jobs error: Unable to contact" in said
    assert [row.split()[2] for row in rows] == ["training", "finished", "submitted"]
    assert (fake / "log").read_text() == "asked\n"


def test_status_counts_restarts_and_tells_of_the_last_one(fake: Path, tmp_path: Path, run_dir: Path) -> None:
    install(fake, "squeue", "echo '7|RUNNING|None|2|'")
    write_json(run_dir / "slurm" / "job.json", {"job": "7", "cluster": "slurm"})
    failed = {"job": "7", "job_restarts": 2, "state": "failed", "reason": "why", "heartbeat": time.time()}
    write_json(run_dir / "status.json", failed)
    for number in range(2):
        assert batch.end(Launch(run_dir, "7", 2, number), RUNNING, failed | {"step": number}) == "relaunch"

    def row() -> list[str]:
        return status_lines(tmp_path, str(run_dir))[1].split(maxsplit=9)[2:]

    assert row() == ["starting", "-", "-", "-", "-", "2", "2", "last restart: why"]
    told = last_restart(run_dir, "7") | {"lost_s": 13.6}
    write_json(run_dir / "status.json", failed | {"state": "running", "reason": "", "restart": told})
    assert row() == ["training", "-", "-", "-", "-", "2", "2", "last restart, 14 s lost: why"]
    write_json(run_dir / "slurm" / "job.json", {"job": "8", "cluster": "slurm"})  # another one, which has not begun
    assert row()[-2] == "0"
    assert row()[-1].split(maxsplit=1) == ["0", "SLURM does not know job 8"]


def test_what_slurm_does_not_say_is_no_reason_not_to_stop(fake: Path, run_dir: Path) -> None:
    write_json(run_dir / "slurm" / "job.json", {"job": "7", "cluster": "slurm"})
    install(fake, "squeue", DOWN)
    done = subprocess.run([*SUBMIT, "stop", str(run_dir)], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"slurm: job 7 of run_dir={run_dir} was not stopped, try again: squeue does not answer" in done.stderr
    install(fake, "squeue", "echo '7|RUNNING|None|0|'")
    install(fake, "scancel", "echo no such luck >&2; exit 1")
    done = subprocess.run([*SUBMIT, "stop", str(run_dir)], capture_output=True, text=True)
    assert "no such luck" in done.stderr
    assert not starts.stop_file(run_dir, "7").exists()  # else the next preemption would end the job


# --- the code that was submitted ---


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository: tracked, edited, deleted, untracked and ignored files."""
    folder = tmp_path / "checkout"
    (folder / "senet").mkdir(parents=True)
    for name in ("senet/a.py", "senet/gone.py", "run.sh"):
        (folder / name).write_text(name)
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("run.sh")
    (folder / ".gitignore").write_text("runs/\n")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    (folder / "senet/a.py").write_text("edited")
    (folder / "senet/gone.py").unlink()
    (folder / "mine.py").write_text("untracked")
    (folder / "runs/x/slurm").mkdir(parents=True)
    (folder / "runs/x/big").write_text("ignored")
    monkeypatch.setattr(snapshot, "REPOSITORY", folder)
    monkeypatch.setattr(commit_module, "REPOSITORY", folder)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_snapshot_has_the_files_as_they_are_and_not_the_ignored_ones(checkout: Path) -> None:
    run_dir = checkout / "runs/x"
    copy = snapshot.take_snapshot(run_dir / "slurm", without=run_dir)
    got = content(copy)
    assert len(got.pop(".commit").strip().rstrip("+")) == 40
    assert got == {
        ".gitignore": "runs/\n",
        "senet/a.py": "edited",
        "mine.py": "untracked",
        "run.sh": "run.sh",
        "link": "run.sh",
    }
    assert os.access(copy / "run.sh", os.X_OK)
    assert (copy / "link").is_symlink()
    assert snapshot.take_snapshot(run_dir / "slurm", without=run_dir) == copy
    (checkout / "senet/a.py").write_text("edited again")
    assert snapshot.take_snapshot(run_dir / "slurm", without=run_dir) != copy
    assert content(copy)["senet/a.py"] == "edited"


def test_a_run_directory_that_is_not_ignored_is_left_out(checkout: Path) -> None:
    run_dir = checkout / "out"
    (run_dir / "slurm").mkdir(parents=True)
    (run_dir / "checkpoint").write_text("x")
    assert not [name for name in content(snapshot.take_snapshot(run_dir / "slurm", without=run_dir)) if "out" in name]


def test_without_git_it_is_a_plain_copy(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    for name in ("data/images", "senet/data/code"):
        (checkout / name).parent.mkdir()
        (checkout / name).write_text(name)
    run_dir = checkout / "runs/x"
    got = content(snapshot.take_snapshot(run_dir / "slurm", without=run_dir))
    assert got.pop(".commit") == "unknown\n"
    assert sorted(got) == ["link", "mine.py", "run.sh", "senet/a.py", "senet/data/code"]


def test_what_is_too_large_to_be_code_is_refused_by_name(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_BYTES", 1000)
    (checkout / "weights.pt").write_bytes(bytes(2000))
    with pytest.raises(ConfigError, match=r"weights\.pt"):
        snapshot.take_snapshot(checkout / "runs/x/slurm", without=checkout / "runs/x")


def test_what_is_pickled_is_plain_and_found_by_name(tmp_path: Path) -> None:
    job = Job(run_dir="/a", config="/a/c.yaml", code="/a/code", max_requeues=3)
    submitit.core.utils.DelayedSubmission(job).dump(tmp_path / "job.pkl")
    names = set()
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops((tmp_path / "job.pkl").read_bytes()):
        if opcode.name == "STACK_GLOBAL":
            names.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    assert names == {"submitit.core.utils.DelayedSubmission", "slurm.job.Job"}


def test_in_a_task_our_handlers_stand_and_those_of_submitit_are_never_set(tmp_path: Path) -> None:
    submitit.core.utils.DelayedSubmission(Job(run_dir="/a", config="c", code="/a", max_requeues=3)).dump(
        tmp_path / "job.pkl"
    )
    text = (
        "import signal, submitit; from submitit.core.utils import DelayedSubmission;"
        "delayed = DelayedSubmission.load('job.pkl'); environment = submitit.JobEnvironment();"
        "environment._handle_signals(environment.paths, delayed);"  # as submitit.core.submission.process_job does
        "print(*(signal.getsignal(n).__qualname__ for n in (signal.SIGTERM, signal.SIGUSR2)));"
        "print(signal.getsignal(signal.SIGCONT) == signal.SIG_DFL);"
        "delayed.function.stop.hold(); signal.raise_signal(signal.SIGUSR2); print(delayed.function.stop.signal_name)"
    )
    environment = os.environ | {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": str(tmp_path), "SLURM_JOB_ID": "7"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["StopFlag._handle", "StopFlag._handle", "True", "SIGUSR2"], done.stderr


def test_the_last_start_that_the_local_executor_gives_says_so(tmp_path: Path) -> None:
    job = Job(run_dir=str(tmp_path), config="c", code=str(tmp_path), max_requeues=100)
    (tmp_path / "slurm").mkdir()
    codes = [job._end_of_local_start("7", 85) for _ in range(6)]
    assert codes == [144] * 5 + [85]
    assert "6 times at most; submit again" in read_json(tmp_path / "status.json")["reason"]


@pytest.mark.parametrize("stops", [True, False])
def test_a_stop_that_came_before_the_ranks_is_seen_by_them(tmp_path: Path, stops: bool) -> None:
    (tmp_path / "slurm").mkdir()
    if stops:
        starts.stop_file(tmp_path, "7").touch()
    text = (
        "import sys; from slurm.job import Job;"
        f"Job(run_dir={str(tmp_path)!r}, config='nowhere.yaml', code={str(REPOSITORY)!r}, max_requeues=0)()"
    )
    environment = os.environ | {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=REPOSITORY, env=environment, capture_output=True, timeout=180
    )
    assert done.returncode == (STOPPED_EXIT_CODE if stops else REFUSED_EXIT_CODE), done.stderr


def test_a_job_that_finds_another_senet_is_refused(tmp_path: Path) -> None:
    text = (
        "import sys; from slurm.job import Job;"
        f"Job(run_dir={str(tmp_path)!r}, config='c', code={str(tmp_path)!r}, max_requeues=0)()"
    )
    environment = os.environ | {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "7",
        "SENET_STATUS_FILE": str(tmp_path / "status"),
    }
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 2
    assert f"the job was submitted with {tmp_path}" in done.stderr
    assert read_json(tmp_path / "status")["state"] == "refused"


# --- the commands ---


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["optim.lrr=1"], "did you mean 'optim.lr'"),
        (["slurm.partitoin=x"], "did you mean 'slurm.partition'"),
        (["slurm.time=5400"], "slurm.time='5400': write 90m"),
        (["status", "nowhere"], "nowhere: no such folder"),
        (["status"], "no run in runs/"),
        (["stop"], "stop takes one run directory, one sweep, or one job"),
        (["stop", "."], ". is neither a run directory nor a sweep"),
        (["statsu"], "did you mean 'status'?"),
        (["cifar10"], "did you mean 'configs/cifar10.yaml'?"),
        (["status.yaml"], "status.yaml: no such file"),
        (["--help", "dat"], "did you mean 'data'?"),
        (["slurm.gpus_per_node=1", "slurm.ranks_per_node=2"], "two ranks cannot share a GPU"),
        (["run_dir=/proc/x"], "run_dir=/proc/x cannot be created"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(tmp_path: Path, args: list[str], expected: str) -> None:
    done = subprocess.run([*SUBMIT, *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("slurm: warning: ")]
    assert len(lines) == 1
    assert expected in lines[0]


def test_a_refused_submission_leaves_nothing(fake: Path, tmp_path: Path) -> None:
    install(fake, "sbatch", "echo sbatch: error: no >&2; exit 1")
    (tmp_path / "old" / "run").mkdir(parents=True)
    for name in ("new/run", "old/run"):
        command = [*SUBMIT, *tiny(f"run_dir={name}", "slurm.snapshot=false")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert "sbatch refused the job" in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "old"]
    assert list((tmp_path / "old" / "run").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        "sbatch: error: fetch_config: DNS SRV lookup failed\nsbatch: fatal: Could not establish a configuration source",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
    ],
)
def test_a_submission_that_reaches_no_controller_says_where_to_submit(words: str, fake: Path, tmp_path: Path) -> None:
    install(fake, "sbatch", f"echo '{words}' >&2; exit 1")
    command = [*SUBMIT, *tiny("run_dir=run", "slurm.snapshot=false")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("slurm: no SLURM controller answers here, so nothing was submitted (")
    assert words.rpartition("sbatch: ")[2] in last
    assert "use a login node of the cluster, or slurm.cluster=local" in last
    assert not (tmp_path / "run").exists()


def test_without_slurm_a_submission_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [*SUBMIT, *tiny("run_dir=run")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": "/bin/x"},
    )
    assert done.returncode == 2
    assert "slurm.cluster=local" in done.stderr.splitlines()[-1]


def test_only_the_command_line_decides_what_is_trained_where_no_file_is_named(tmp_path: Path) -> None:
    inherited = os.environ | {"SENET_COMMAND": "./launch.sh"}  # as in a job that launch.sh submitted
    for flags, name in (([], "cifar10"), (["--quickstart"], "quickstart")):
        done = subprocess.run(
            [*SUBMIT, *flags, "--dry-run"], cwd=tmp_path, env=inherited, capture_output=True, text=True
        )
        assert f"#SBATCH --job-name={name}\n" in done.stdout, done.stderr


def test_ctrl_c_ends_a_command_without_a_traceback(fake: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", {"job": "7", "cluster": "slurm"})
    (tmp_path / "slurm").mkdir()
    (tmp_path / "job.json").rename(tmp_path / "slurm" / "job.json")
    install(fake, "squeue", f"touch {fake}/asked; exec sleep 60")
    command = subprocess.Popen(
        [*SUBMIT, "status", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    wait_until((fake / "asked").exists)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=180)
    assert (command.returncode, said) == (130, "")


@pytest.mark.parametrize(
    ("job", "ranks", "other"),
    [
        (["slurm.nodes=2"], (2, 1), ["slurm.nodes=1", "slurm.ranks_per_node=1"]),
        (["slurm.nodes=2", "slurm.gpus_per_node=4"], (8, 4), ["slurm.nodes=1", "slurm.ranks_per_node=4"]),
        (["slurm.gpus_per_node=4"], (4, 2), ["slurm.nodes=1", "slurm.ranks_per_node=2"]),
        ([], (1, 2), ["slurm.nodes=2", "slurm.ranks_per_node=1"]),
    ],
)
def test_a_drill_tries_another_number_of_nodes_or_of_ranks_on_one(
    job: list[str], ranks: tuple[int, int], other: list[str]
) -> None:
    config = load_config(tiny("train.shards=8", *job))
    assert drill.usual_ranks(config) == ranks
    assert drill.job_of(config.slurm, ranks[1]) == other
    assert drill.usual_ranks(load_config(tiny(*job))) == ranks[:1]


def test_help_has_the_options_of_a_job() -> None:
    done = subprocess.run([*SUBMIT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for part in ("status [RUN_DIR ...]", "slurm.signal_lead_s* = 120", "slurm.snapshot* = true"):
        assert part in done.stdout
    done = subprocess.run([*SUBMIT, "--help", "log"], capture_output=True, text=True)
    assert done.stdout.startswith("log: ")
