"""The check before a start without a cluster: what follows from its findings, and the nodes that a run avoids."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from senet.config.load import load_config
from senet.errors import ConfigError
from senet.rundir.files import read_json, write_json
from senet.rundir.lease import Lease
from slurm import batch, check, control, nodes, preflight, sbatch
from slurm.check_rank import torchruns_variables
from slurm.job import Job
from slurm.nodes import Excluded, Verdict
from slurm.starts import Launch, launch_variables
from tests.harness import tiny
from tests.test_slurm import PREEMPTED, RUNNING, SUBMIT, calls, fake, install, run_batch_sh, run_dir  # noqa: F401


def wrong(host: str, of: str = "arithmetic", text: str = "1 of 4096 products differs") -> dict[str, Any]:
    return {"host": host, "rank": None, "kind": "wrong", "check": of, "text": text}


SLOW = {"host": "n2", "rank": 1, "kind": "slow", "check": "arithmetic", "text": "0.48 of the median"}
N2 = Excluded("n2", ("arithmetic",), "arithmetic: 1 of 4096 products differs", "7", 1.0)
OF_ANOTHER_JOB = replace(N2, job="6")
N3 = Excluded("n3", ("clock",), "clock: 300 s behind", "7", 1.0)


def judged(
    *findings: dict[str, Any],
    on: str = "n1 n2",
    avoided: tuple[Excluded, ...] = (),
    available: int = 8,
    left: int = 9,
    complete: bool = True,
) -> Verdict:
    report = {"complete": complete, "findings": findings}
    return nodes.judge(report, on.split(), avoided, job="7", available=available, requeues_left=left)


def test_slow_and_late_nodes_are_no_reason_not_to_start() -> None:
    late = SLOW | {"kind": "late", "check": "start"}
    assert judged() == judged(SLOW) == judged(late, late | {"host": "n1"}, late | {"host": ""}) == Verdict()


def test_of_a_check_that_was_not_completed_only_what_was_measured_counts() -> None:
    assert judged(wrong("n2", "start", "rank 1 did not come"), complete=False) == Verdict()
    found = judged(wrong("n2", "start", "rank 1 did not come"), wrong("n2"), complete=False).exclude
    assert [each.checks for each in found] == [("arithmetic",)]


def test_a_name_that_is_not_found_is_no_reason_where_the_collectives_have_worked() -> None:
    assert judged(wrong("n2", "names", "no address of n1")) == Verdict()


def test_what_is_of_no_host_ends_a_job_only_if_it_is_a_folder() -> None:
    assert judged(wrong("", "all-reduce", "rank 0 did not end the all-reduce")) == Verdict()
    assert judged(wrong("", "files", "run_dir=/x: read-only")).refusal == "files: run_dir=/x: read-only"


@pytest.mark.parametrize(("on", "available"), [("n1 n2", 3), ("n2", 2), ("n2 n1 n3 n4", 100)])
def test_a_node_with_a_wrong_result_is_excluded_with_what_was_wrong(on: str, available: int) -> None:
    [excluded] = judged(wrong("n2"), SLOW, wrong("n2", "clock", "300 s behind"), on=on, available=available).exclude
    assert (excluded.node, excluded.checks, excluded.job) == ("n2", ("arithmetic", "clock"), "7")
    assert excluded.finding == "arithmetic: 1 of 4096 products differs; clock: 300 s behind"


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (
            judged(wrong("n1", "files", "read-only"), wrong("n2", "files", "read-only")),
            "all nodes have the same fault (files), which is none of a single node: n1: files: read-only; n2: files: r",
        ),
        # a job of one node, whose node before had the same
        (judged(wrong("n1"), on="n1", avoided=(N2,)), "all nodes have the same fault (arithmetic), which"),
        # as many as the partition has, but each with a fault of its own
        (
            judged(wrong("n1"), wrong("n2", "clock", "late"), available=2),
            "of the 2 nodes of the partition more than one in 4 would be excluded: n1: arithmetic: 1 of 4096 products "
            "differs; n2: clock: late",
        ),
        # with those of earlier starts
        (
            judged(wrong("n1"), avoided=(N3,), available=7),
            "of the 7 nodes of the partition more than one in 4 would be excluded: n3: clock: 300 s behind; n1: arith",
        ),
        (judged(wrong("n2"), available=2), "without these nodes the partition has 1, and slurm.nodes=2 are asked for"),
        (
            judged(wrong("n2"), avoided=(N2, N2)),
            "SLURM gives the job n2 again and again, which was excluded: n2: arithmetic: 1 of",
        ),
        (judged(wrong("n2"), left=0), "slurm.max_requeues is used up, and nodes are unfit: n2: arithmetic: 1 of"),
    ],
)
def test_what_is_no_fault_of_single_nodes_ends_the_job_with_all_names(verdict: Verdict, expected: str) -> None:
    assert verdict.exclude == ()
    assert verdict.refusal.startswith(expected)


def test_one_in_four_may_be_excluded_over_the_whole_run() -> None:
    assert len(judged(wrong("n1"), avoided=(N3,), available=8).exclude) == 1
    assert judged(wrong("n1"), avoided=(N3, N2), available=11, on="n1 n4").refusal
    for before in (OF_ANOTHER_JOB, N2):  # the same one again: SLURM did not take the exclusion
        assert judged(wrong("n2"), avoided=(before,), available=4, on="n2 n4").exclude
        assert judged(wrong("n2"), avoided=(before,), available=4, on="n2").exclude


@pytest.mark.usefixtures("run_dir")
def test_a_submission_avoids_what_was_found_until_it_is_cleared(
    run_dir: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "exclude" not in batch_script(run_dir)
    nodes.avoid(run_dir, [N2])
    nodes.avoid(run_dir, [N3, N2])
    assert [each.node for each in nodes.avoided_by(run_dir)] == ["n2", "n3"]
    assert "#SBATCH --exclude=n2,n3\n" in batch_script(run_dir)
    assert "#SBATCH --exclude=n7,n2,n3\n" in batch_script(run_dir, "slurm.sbatch.exclude=n7")
    write_json(run_dir / "slurm" / "job.json", {"job": "7", "cluster": "local", "submitted": 0.0})
    control.status([str(run_dir)])
    said = capsys.readouterr().out
    assert f"{run_dir}: n3 is avoided since 1970-01-01" in said
    assert f"(job 7: clock: 300 s behind); {control.typed('slurm')} clear {run_dir} ends that" in said
    config = load_config(tiny(f"run_dir={run_dir}"))
    assert [each for each in preflight.preflight(config, run_dir) if each.text.startswith("n2 is avoided since")]

    control.clear([str(run_dir)])
    assert "n2 is avoided no more; it was because of arithmetic: 1 of 4096" in capsys.readouterr().out
    assert nodes.avoided_by(run_dir) == []
    assert "exclude=n7\n" in batch_script(run_dir, "slurm.sbatch.exclude=n7")
    control.clear([str(run_dir)])
    assert "none was avoided" in capsys.readouterr().out
    (run_dir / "slurm" / "job.json").rename(run_dir / "status.json")
    with pytest.raises(ConfigError, match="nothing was submitted from there"):
        control.clear([str(run_dir)])


def batch_script(run_dir: Path, *options: str) -> str:  # noqa: F811
    config = load_config(tiny(f"run_dir={run_dir}", *options))
    return sbatch.make_slurm_executor(config, run_dir, Path("/code")).text()


def test_sbatch_that_does_not_know_a_node_is_answered_with_what_may_help(run_dir: Path, fake: Path) -> None:  # noqa: F811
    install(fake, "sbatch", "echo 'sbatch: error: Invalid node name specified' >&2; exit 1")
    config = load_config(tiny(f"run_dir={run_dir}"))
    for excluded, hint in (([], False), ([N2], True)):
        nodes.avoid(run_dir, excluded)
        with pytest.raises(ConfigError, match="Invalid node name specified") as refused:
            sbatch.send(Job("", "", "", 0), config, run_dir, run_dir)
        assert ("slurm clear RUN_DIR" in str(refused.value).replace(control.typed("slurm"), "slurm")) == hint


def test_a_doctor_that_reaches_no_controller_says_where_to_submit(fake: Path, tmp_path: Path) -> None:  # noqa: F811
    words = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    install(fake, "sbatch", f"echo '{words}' >&2; exit 1")
    done = subprocess.run([*SUBMIT, "doctor", *tiny("run_dir=run")], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("slurm: no SLURM controller answers here, so nothing was submitted (")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_the_number_of_restarts_of_launch_sh_is_said_to_be_none_of_a_job(tmp_path: Path) -> None:
    command = [*SUBMIT, "--dry-run", *tiny("run_dir=run")]
    for count, expected in (("7", "a job has slurm.max_restarts=7\n"), ("0", "")):
        env = os.environ | {"RESTARTS": count}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.stderr.endswith(expected)
        assert bool(done.stderr) == bool(expected)


def test_a_job_without_the_check_does_not_know_it(run_dir: Path) -> None:  # noqa: F811
    assert "check_ranks" not in batch_script(run_dir, "slurm.check=false")
    [line] = [line for line in batch_script(run_dir, "slurm.python=x run").splitlines() if "check_ranks" in line]
    assert " x run -m slurm.check_rank " in line
    assert " --max-seconds 15 " in line


# --- after the check ---


@pytest.fixture
def start(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """The run directory of a start that has been checked."""
    for name, value in {
        **launch_variables(load_config(tiny("slurm.max_requeues=5", "slurm.max_restarts=0")), run_dir),
        "SENET_LAUNCH": "0",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "7",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    return run_dir


def after(
    run_dir: Path,  # noqa: F811
    *findings: dict[str, Any],
    names: str = "n1 n2",
    job: str = RUNNING,
    counts: str = "3/9/1/13\n",
    before: str = "",
) -> dict[str, str]:
    file = nodes.check_file(run_dir, "7", 0)
    write_json(file, {"seconds": 3.0, "complete": True, "findings": findings, "checks": {}})
    return check.judge(0, names.split(), job, counts, before.split())


def test_a_slow_node_is_said_in_the_log_and_in_the_status(
    start: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "n2 was slow: arithmetic: 0.48 of the median"
    assert after(start, SLOW) == {"SENET_WARNINGS": text}
    assert f"slurm: {text}\n" in capsys.readouterr().err
    monkeypatch.setenv("SENET_WARNINGS", text)
    with Lease.acquire(start) as lease:
        lease.start(0)
    assert read_json(start / "status.json")["warnings"] == [text]
    monkeypatch.setenv("SENET_WARNINGS", "")
    with Lease.acquire(start) as lease:
        lease.start(0)
    assert "warnings" not in read_json(start / "status.json")


def test_a_wrong_node_is_kept_and_the_job_starts_again(start: Path) -> None:
    assert after(start, wrong("n2")) == {"unfit": "yes", "excluded": "n2"}
    assert read_json(start / "slurm" / "7.0.0.status.json")["state"] == "stopped"
    assert read_json(start / "slurm" / "7.0.0.status.json")["kind"] == "node excluded"
    assert read_json(start / "status.json")["kind"] == "node excluded"
    assert batch.end(Launch.from_environment(), RUNNING, read_json(start / "slurm" / "7.0.0.status.json")) == "requeue"
    reason = read_json(start / "status.json")["reason"]
    assert reason == "starts again without what the check found: n2: arithmetic: 1 of 4096 products differs"
    assert [each.node for each in nodes.avoided_by(start)] == ["n2"]
    assert after(start, wrong("n3", "clock"), names="n3", before="n2 n7")["excluded"] == "n2,n3,n7"


def test_nodes_that_are_down_or_excluded_by_the_user_do_not_count(start: Path) -> None:
    six = " ".join(f"n{number}" for number in range(6))
    assert after(start, wrong("n2"), names=six, counts="6/1/93/100\n")["excluded"] == "n2"
    nodes.forget(start)
    assert after(start, wrong("n2"), names=six, counts="6/1/93/100\n", before="n9") == {"unfit": "yes"}
    reason = read_json(start / "slurm" / "7.0.0.status.json")["reason"]
    assert "without these nodes the partition has 5, and slurm.nodes=6 are asked for: n2: arithmetic" in reason


def test_a_job_that_is_preempted_while_its_nodes_are_looked_at_is_not_started(start: Path) -> None:
    assert after(start, wrong("n2"), job=PREEMPTED) == {"unfit": "yes"}
    outcome = read_json(start / "slurm" / "7.0.0.status.json")
    assert (outcome["state"], outcome["kind"]) == ("stopped", "preempted")
    assert batch.end(Launch.from_environment(), PREEMPTED, outcome) == "requeue"
    assert nodes.avoided_by(start) == []  # its ranks may have been told to end


def test_a_refusal_is_the_end_of_the_job_with_its_reason(start: Path) -> None:
    assert after(start, wrong("n1"), wrong("n2")) == {"unfit": "yes"}
    outcome = read_json(start / "slurm" / "7.0.0.status.json")
    assert (outcome["state"], outcome["kind"]) == ("refused", "nodes are unfit")
    assert batch.end(Launch.from_environment(), RUNNING, outcome).startswith(
        "not started: all nodes have the same fault"
    )
    assert nodes.avoided_by(start) == []


def test_a_fault_that_a_job_of_one_node_meets_again_is_no_fault_of_the_nodes_before(start: Path) -> None:
    nodes.avoid(start, [replace(N3, job="5")])
    assert after(start, wrong("n2"), names="n2")["excluded"] == "n2,n3"
    assert after(start, wrong("n1"), names="n1") == {"unfit": "yes"}
    assert [each.node for each in nodes.avoided_by(start)] == ["n3"]


@pytest.mark.parametrize(("code", "expected"), [(1, "exit code 1"), (124, "it was not done in time")])
def test_a_check_without_a_result_is_one_line(
    start: Path, code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.judge(code, ["n1"], RUNNING, "", []) == {"SENET_WARNINGS": ""}
    [line] = capsys.readouterr().err.splitlines()
    assert f"did not come to its end ({expected}; see {start}/slurm/7.0.check.log)" in line


def test_where_slurm_does_not_tell_the_size_of_the_partition_one_node_may_be_excluded(start: Path) -> None:
    write_json(nodes.check_file(start, "7", 0), {"complete": True, "findings": [wrong("n2")]})
    assert check.judge(0, ["n1", "n2"], RUNNING, "", [])["excluded"] == "n2"


def test_the_reason_of_a_failure_ends_with_what_the_check_found_of_the_host_it_names(
    start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after(start, SLOW)
    for reason, known in (("rank 1 on n2 did not answer", True), ("rank 1 on n21 did not answer", False)):
        write_json(start / "slurm" / "7.0.0.status.json", {"state": "failed", "reason": reason})
        assert batch.main(["end", RUNNING, "", "n1 n2"]) == 1
        expected = "; before the start n2 was slow: arithmetic: 0.48 of the median" if known else ""
        assert read_json(start / "status.json")["reason"] == reason + expected
    capsys.readouterr()


def test_a_task_becomes_a_rank() -> None:
    task = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_NUM_NODES": "2"}
    expected = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert torchruns_variables(task) == expected


# --- batch.sh ---

CHECK = 'check_ranks() { echo "check $MASTER_PORT $SENET_HOSTS" >>"$LOG"; }'
BEGUN = """echo '{"state": "stopped"}' >"$SENET_STATUS_FILE"; exit 85"""


def run_checked(fake: Path, run_dir: Path, judged: str, **more: str) -> subprocess.CompletedProcess[str]:  # noqa: F811
    """A start with a check, after which Python says ``judged``."""
    more = {"setup": f"LOG={fake}/log\n{CHECK}"} | more
    extra = f"port) echo 5 ;; judge) echo judge $4 $5 >>{fake}/log; {judged} ;;"
    return run_batch_sh(fake, run_dir, "true", BEGUN, "echo requeue", decide=extra, **more)


def test_the_check_comes_once_before_the_ranks(fake: Path, run_dir: Path) -> None:  # noqa: F811
    run_checked(fake, run_dir, "true")
    assert calls(fake) == ["check 5 n1,n2", "judge 0 n1 n2", "srun 10.0.0.1:", "end", "scontrol requeue 7"]


@pytest.mark.parametrize("judged", ["exit 1", "exec kill -SEGV $$"])
def test_a_check_that_fails_and_cannot_be_judged_stops_nothing(
    fake: Path,  # noqa: F811
    run_dir: Path,  # noqa: F811
    judged: str,
) -> None:
    run_checked(fake, run_dir, judged, setup="check_ranks() { return 1; }")
    assert calls(fake) == ["judge 1 n1 n2", "srun 10.0.0.1:", "end", "scontrol requeue 7"]


def test_an_unfit_node_is_excluded_once_the_job_waits(fake: Path, run_dir: Path) -> None:  # noqa: F811
    run_checked(fake, run_dir, "echo export unfit=yes; echo export excluded=n2,n3")
    update = "scontrol update JobId=7 ExcNodeList=n2,n3"
    assert calls(fake) == ["check 5 n1,n2", "judge 0 n1 n2", "end", "scontrol requeue 7", update]


def test_the_signal_that_follows_a_requeue_does_not_come_before_the_exclusion(fake: Path, run_dir: Path) -> None:  # noqa: F811
    """SLURM signals the script and its children as soon as the job is requeued."""
    done = run_checked(fake, run_dir, "echo export unfit=yes excluded=n2", requeue="kill -TERM $PPID; kill -TERM $$")
    assert calls(fake)[-2:] == ["scontrol requeue 7", "scontrol update JobId=7 ExcNodeList=n2"]
    assert done.returncode == 1
