"""``why``: from evidence to a cause. Of runs that really end: ``tests/faults/test_why.py``, ``test_slurm_why.py``."""

from __future__ import annotations

import errno
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from senet import REPOSITORY
from senet.command import BUS_ERROR
from senet.errors import ConfigError, Kind
from senet.rundir.files import read_json, write_json
from senet.rundir.restarts import LAUNCH_FILE, SILENT, note_end
from senet.torchrun import OUT_OF_MEMORY
from senet.why.causes import CAUSES, name_of
from senet.why.evidence import Evidence, Fact, Job, gather
from senet.why.judge import judge
from slurm import follow, logs, runs, why

RUN = Path("runs/x")
STATUS = {"generation": 1, "step": 120, "reason": "", "job": "", "heartbeat": 1e9}
OWNER = {"generation": 1, "pid": 7, "host": "n1", "heartbeat": 1e9}
ENDED = Evidence(RUN, STATUS | {"state": "running"}, OWNER | {"released": True}, silent_s=400)
ALIVE = replace(ENDED, alive=True, silent_s=2)
JOB = Job("7", last_end={"file": "slurm/7.0.0.status.json"}, facts=[Fact("SLURM", "JobState=...")])
OF_JOB = STATUS | {"job": "7", "job_restarts": 0}


def failed(reason: str, known: Evidence = ENDED, kind: str = "", **more: Any) -> Evidence:
    return replace(known, status={**known.status, "state": "failed", "reason": reason, "kind": kind}, **more)


def of_job(job: Job, known: Evidence = ENDED, **status: Any) -> Evidence:
    return replace(known, job=job, status=OF_JOB | status)


WAITING = replace(JOB, word="PENDING", active=True, waiting=True, reason="Resources")
OUT_OF_MEMORY_WORDS = f"rank 0 on n1 ended by SIGKILL ({OUT_OF_MEMORY} went from 0 to 1), without a word"
AGAIN = replace(WAITING, was_started=True, restarts=1)
SAVED = {"state": "stopped", "reason": "SIGTERM", "step": 120, "ended": True}
OOM = Fact("slurm/7_1_log.out:9", "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks")
REFUSED = {"state": "refused", "reason": "not started: x", "kind": "nodes are unfit"}
KILLED = f"rank 1 on n2 {SILENT}: its process has ended"


def ended(word: str, **more: Any) -> Job:
    return replace(JOB, word=word, was_started=True, **more)


CASES = {
    "finished": replace(ENDED, status=STATUS | {"state": "finished", "result": {"best_top1": 99.0}}),
    "running": ALIVE,
    "starting": replace(ALIVE, owner=OWNER | {"generation": 2}),
    "in the queue": of_job(WAITING),
    "held": of_job(replace(WAITING, reason="JobHeldUser")),
    "preempted": of_job(replace(AGAIN, last_end=SAVED | {"slurm": "preempted"})),
    "time limit": of_job(replace(AGAIN, last_end=SAVED | {"slurm": "time limit"})),
    "requeued": of_job(replace(AGAIN, last_end=SAVED | {"slurm": ""})),
    "node excluded": of_job(replace(AGAIN, last_end=SAVED | {"kind": "node excluded"})),
    "node lost": of_job(replace(AGAIN, last_end={"state": "running"})),
    "waits for a lock": replace(
        ALIVE, owner=OWNER | {"generation": 2}, lines=[Fact("x", "INFO: waiting for process 7 on n1, which holds /x")]
    ),
    "waits for a rank": replace(ALIVE, processes={0: "S", 1: "T"}),
    "does not move": replace(ALIVE, still_s=300, pace_s=5),
    "suspended": of_job(replace(JOB, word="SUSPENDED", active=True)),
    "stopped": replace(ENDED, status=STATUS | {"state": "stopped", "reason": "SIGINT"}),
    "cancelled": of_job(ended("CANCELLED"), state="stopped", reason="SIGTERM"),
    "killed": ENDED,
    "time limit was hit": of_job(ended("TIMEOUT"), state="running"),
    "out of memory of the host": failed(KILLED, lines=[OOM]),
    "out of memory of a GPU": failed("rank 1 on n2 failed: OutOfMemoryError: CUDA out of memory. Tried to"),
    "loss is not finite": failed("a weight is not finite after step 41; nothing", kind="loss is not finite"),
    "ranks differ": failed("conv1.weight is not the same on all ranks (no majority)", kind="ranks differ"),
    "disk is full": failed(f"no checkpoint could be written: [Errno 28] {os.strerror(errno.ENOSPC)}: 'x'"),
    "file system": failed(f"x cannot be read: {os.strerror(errno.ESTALE)}"),
    "rank was killed": failed(KILLED),
    "rank hangs": failed("the ranks waited too long for each other: x", kind="rank hangs"),
    "connection lost": failed("rank 0 on n1 failed: DistBackendError: NCCL error in: x, ncclRemoteError: A call"),
    "crash on a GPU": failed("AcceleratorError: CUDA error: device-side assert triggered, at a.py:1"),
    "GPU failed": failed("rank 0 on n1 failed: AcceleratorError: CUDA error: unspecified launch failure, at a.py:1 f"),
    "start does not get on": failed("the start made no progress for x s: rank 1: x", kind="start does not get on"),
    "port is taken": failed("MASTER_PORT=5000 is in use on host n1", kind="port is taken"),
    "refused": replace(ENDED, launch={"state": "refused", "reason": "optim.lr: 0.1 -> 0.2"}),
    "bug, twice": failed("failed twice at step 40: rank 0 on n1 failed: ValueError: boom, at own.py:41 forward"),
    "crash": failed("rank 0 on n1 failed: ValueError: boom, at own.py:41 forward"),
    "nodes are unfit": of_job(replace(ended("FAILED"), last_end=REFUSED)),
    "requeues are used up": failed("3 starts in a row ended without a new checkpoint", kind="requeues are used up"),
    "restarts are used up": failed("slurm.max_restarts=3 is used up: a rank ended and reported no reason"),
    "taken over": failed("run_dir=x was taken over by another start", kind="taken over"),
    "failed": failed("a rank ended and reported no reason: see the logs"),
    "unknown": replace(ENDED, status={}),
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_known_by_its_evidence(cause: str) -> None:
    verdict = judge(CASES[cause])
    assert verdict.cause == cause
    assert verdict.text
    assert verdict.remedy
    assert verdict.is_healthy == (cause in ("finished", "running", "starting"))
    assert verdict.evidence


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        (f"slurm.max_restarts=1 is used up: {KILLED}", "rank was killed"),
        (f"rank 0 on n1 ended by SIGBUS ({BUS_ERROR}), without a word", "file system"),
        (OUT_OF_MEMORY_WORDS, "out of memory of the host"),
        ("rank 0 on n1 ended by SIGKILL, without a word", "rank was killed"),
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory", "out of memory of the host"),
        ("rank 0 on n1 failed: PermissionError: [Errno 13] Permission denied: '/x', at my/net.py:3 f", "crash"),
        ("PermissionError: [Errno 13] Permission denied: '/x', at rundir/files.py:3 f", "file system"),
        ("run_dir=/x cannot be written: [Errno 13] Permission denied: '/x'", "file system"),
        ("rank 0 on n1 failed: RuntimeError: CUDA error: an illegal memory access was encountered", "crash on a GPU"),
    ],
)  # fmt: skip
def test_the_words_of_a_failure_name_its_cause(reason: str, cause: str) -> None:
    assert name_of(reason) == cause


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("failed twice at step 40: the loss of step 41 is not finite on 1 of 2 ranks", "loss is not finite"),
        ("conv1.weight of rank 1 on n2 is not that of the other ranks; nothing was saved", "ranks differ"),
        (f"rank 1 on n2 {SILENT}: stopped by a signal (state T)", "rank hangs"),
        ("no answer from n2; the job starts again when SLURM gives it up (SlurmdTimeout)", "node lost"),
        ("slurm.max_requeues=3 is used up; submit again to go on", "requeues are used up"),
    ],
)  # fmt: skip
def test_what_the_project_itself_finds_is_known_by_its_words_in_a_log(reason: str, cause: str) -> None:
    assert name_of(reason) == cause


def test_the_kind_of_a_failure_is_its_cause_whatever_its_words_are() -> None:
    assert name_of("MASTER_PORT=5 is in use: OSError: x", "port is taken") == "port is taken"
    assert name_of("failed twice before the first update: x", "start does not get on") == "start does not get on"
    assert name_of("RESTARTS=3 is used up: no answer from n2", "taken over") == "taken over"
    assert set(get_args(Kind)) - {""} < CAUSES.keys()


def test_slurms_word_explains_a_rank_that_left_none() -> None:
    for word, cause in (("OUT_OF_MEMORY", "out of memory of the host"), ("NODE_FAIL", "node lost")):
        assert judge(of_job(ended(word), state="failed", reason=KILLED)).cause == cause
    # but not what has a reason of its own
    bug = "rank 0 on n1 failed: ValueError: boom, at own.py:41 forward"
    assert judge(of_job(ended("NODE_FAIL"), state="failed", reason=bug)).cause == "crash"


@pytest.mark.parametrize(
    ("reason", "cause", "remedy"),
    [
        ("Priority", "in the queue", "fewer nodes"),
        ("Licenses", "in the queue", "a licence is free"),
        ("Dependency", "in the queue", "after the job on which it depends"),
        ("DependencyNeverSatisfied", "held", "scontrol release"),
        ("AssocGrpNodeLimit", "in the queue", "the limit that they share"),
        ("QOSGrpNodeLimit", "in the queue", "the limit that they share"),
        ("QOSMaxNodePerJobLimit", "held", "scontrol release"),
        ("PartitionNodeLimit", "held", "scontrol release"),
        ("ReqNodeNotAvail, Reserved for maintenance", "in the queue", "maintenance"),
        ("JobArrayTaskLimit", "in the queue", "sweep.parallel"),
        ("BeginTime", "in the queue", "starts by itself"),
    ],
)
def test_a_job_is_held_only_where_waiting_does_not_help(reason: str, cause: str, remedy: str) -> None:
    verdict = judge(of_job(replace(WAITING, reason=reason)))
    assert (verdict.cause, remedy in verdict.remedy) == (cause, True)


def test_without_a_checkpoint_no_remedy_goes_on_from_one() -> None:
    for cause, known in CASES.items():
        assert known.checkpoint == ""
        assert "from the newest" not in judge(known).remedy, cause
        assert "is from before" not in judge(known).remedy, cause
    assert judge(CASES["crash"]).remedy.endswith("the same command begins anew: there is no checkpoint yet")
    assert judge(replace(CASES["crash"], checkpoint="step_1.pt")).remedy.endswith("from the newest checkpoint")
    nan = replace(CASES["loss is not finite"], checkpoint="step_1.pt")
    assert judge(nan).remedy.endswith("the checkpoint is from before that step")


def test_a_rank_that_has_given_its_reason_did_not_end_without_a_word() -> None:
    launcher = {"state": "failed", "launcher": "rank 0 on n1 ended by exit code 1, without a word"}
    crash = failed("ValueError: boom, at own.py:41 forward", launch=launcher)
    assert judge(crash).evidence[-1] == Fact("launch.json", "rank 0 on n1 ended by exit code 1")
    assert judge(failed(KILLED, launch=launcher)).evidence[-1].text.endswith(", without a word")


def test_a_run_has_come_as_far_as_its_last_row() -> None:
    assert judge(ALIVE).text == "training, at step 120"
    assert judge(replace(ALIVE, last_step=130)).text == "training, at step 130"
    assert "after step 120:" in judge(ENDED).text
    assert "after step 130:" in judge(replace(ENDED, last_step=130)).text


def test_a_job_that_is_requeued_says_what_ended_its_last_start_and_why_it_waits() -> None:
    due = Fact("slurm/7_0_log.out:4", "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT x DUE TO PREEMPTION ***")
    verdict = judge(replace(of_job(replace(AGAIN, last_end={"state": "running"})), lines=[due]))
    assert verdict.cause == "preempted"
    assert due in verdict.evidence
    assert "waits to start again (SLURM: Resources)" in verdict.text
    held = judge(of_job(replace(AGAIN, last_end=SAVED, reason="JobHoldMaxRequeue")))
    assert held.cause == "held"


def test_a_full_file_system_explains_an_end_without_a_word_and_nothing_else() -> None:
    assert judge(replace(ENDED, is_full=True)).cause == "disk is full"
    assert judge(of_job(ended("FAILED"), replace(ENDED, is_full=True), state="running")).cause == "disk is full"
    assert judge(of_job(ended("TIMEOUT"), replace(ENDED, is_full=True), state="running")).cause == "time limit was hit"
    assert judge(replace(ALIVE, is_full=True)).cause == "running"
    assert judge(replace(CASES["crash"], is_full=True)).cause == "crash"


def test_a_launch_that_fails_again_while_its_job_runs_is_a_start() -> None:
    job = replace(JOB, word="RUNNING", active=True, was_started=True)
    assert judge(of_job(job, state="failed", reason=KILLED)).cause == "starting"
    assert judge(of_job(job, ALIVE, state="running")).cause == "running"
    assert judge(of_job(replace(job, restarts=1), state="stopped")).cause == "starting"


def test_a_launch_that_was_refused_since_its_run_directory_may_not_be_read_leaves_no_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "owner.json", {})

    def stat(path: object, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", stat)
    note_end(tmp_path, {"state": "refused"}, "", "")
    monkeypatch.undo()
    assert not (tmp_path / LAUNCH_FILE).exists()


def test_a_kill_of_which_only_the_launcher_knows_is_read_from_its_file(tmp_path: Path) -> None:
    write_json(tmp_path / "status.json", STATUS | {"state": "running"})
    note_end(tmp_path, {"state": "running", "step": 120}, "rank 0 on n1 ended by SIGKILL, without a word", "")
    assert not (tmp_path / LAUNCH_FILE).exists()  # no run directory
    write_json(tmp_path / "owner.json", {"heartbeat": time.time()})
    note_end(tmp_path, {"state": "running", "step": 120}, "rank 0 on n1 ended by SIGKILL, without a word", "")
    assert read_json(tmp_path / LAUNCH_FILE)["state"] == "failed"
    verdict = judge(replace(ENDED, launch=read_json(tmp_path / LAUNCH_FILE)))
    assert (verdict.cause, verdict.evidence[0].where) == ("rank was killed", LAUNCH_FILE)


def test_a_run_that_is_finished_stays_so_when_a_later_command_was_refused() -> None:
    finished = CASES["finished"]
    job = of_job(replace(ended("COMPLETED"), last_end=REFUSED | {"file": "slurm/7.0.0.status.json"}))
    for later, file in ((replace(finished, launch=REFUSED), LAUNCH_FILE), (job, "slurm/7.0.0.status.json")):
        verdict = judge(replace(later, status=later.status | finished.status))
        assert (verdict.cause, verdict.text) == ("finished", judge(finished).text)
        assert Fact(file, f"a later command was refused: {REFUSED['reason']}") in verdict.evidence


def test_an_older_word_of_the_launcher_does_not_count(tmp_path: Path) -> None:
    owner = {"token": "x", "boot": "b", "pid": 1, "pid_started": 1, "job": "", "job_restarts": 0, "generation": 1}
    write_json(tmp_path / "owner.json", owner | {"host": "elsewhere", "heartbeat": time.time()})
    write_json(tmp_path / LAUNCH_FILE, {"time": time.time() - 60, "state": "refused", "reason": "x"})
    assert (gather(tmp_path).launch, gather(tmp_path).alive) == ({}, None)


def test_of_a_log_the_last_start_tells_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    began = "slurm: rank 1 on n2 begins\n"
    early = "srun: error: n1: task 0: Out Of Memory\nINFO: waiting for process 1 on host n1, which holds /x\n"
    text = early + began + "step 1\n" * 40_000 + f"{OOM.text}\n" + "step 2\n" * 9
    (tmp_path / "slurm" / "7_1_log.out").write_text(text)
    (tmp_path / "slurm" / "7_0_log.out").write_text(early)
    (tmp_path / "slurm" / "7_2_log.out").write_text(f"{early}{began}step 1\nstep 2\n{OOM.text}\n")
    (tmp_path / "slurm" / "71_0_log.out").write_text(early)
    found = logs.telling_lines(tmp_path, "7")
    oom_line = text.count("\n") - 9
    assert [fact.where.removeprefix("slurm/7_") for fact in found] == [
        *("0_log.out:1", "0_log.out:2", f"1_log.out:{oom_line}", "2_log.out:6"),
    ]


def test_a_rank_whose_log_has_fewer_launches_has_not_come(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    for rank, launches in ((0, 2), (1, 1), (2, 2)):
        text = f"slurm: rank {rank} on n1 begins\nx\n" * launches
        (tmp_path / "slurm" / f"7_{rank}_log.out").write_text(text)
    assert [fact.text for fact in logs.not_begun(tmp_path, "7")] == ["rank 1 has not begun this launch"]
    assert logs.rank_of(tmp_path / "slurm" / "7_2_log.out") == "rank 2 on n1"


@pytest.mark.parametrize("block", [2, 7, 40, 1000])
def test_of_a_long_log_the_last_launch_is_looked_for_from_its_end(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_TAIL", block)
    log = tmp_path / "log"
    for text, expected in (
        ("", ""),
        ("step 1\n", ""),
        ("slurm: rank 3 on n1 begins\nstep 1\nslurm: rank 3 on n2 begins\nstep 2\nstep 3\n", "rank 3 on n2"),
        ("slurm: rank 3 on n1 begins\nstep 1", "rank 3 on n1"),
        ("slurm: rank 3 on n1 begins\n" + "step\n" * 400, ""),  # 2000 bytes
    ):
        log.write_text(text)
        monkeypatch.setattr(logs, "_MOST", 1000)
        assert logs.rank_of(log) == expected


def test_the_last_launch_is_the_one_with_the_highest_numbers(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    assert why._last_end(tmp_path, "7") == {}
    for name in ("7.9.1", "7.10.0", "71.99.0", "7_1.99.0"):
        write_json(tmp_path / "slurm" / f"{name}.status.json", {"state": name})
    last = why._last_end(tmp_path, "7")
    assert last == {"state": "7.10.0", "start": 10, "file": "slurm/7.10.0.status.json"}


def test_every_cause_has_its_row_on_the_page() -> None:
    page = (REPOSITORY / "docs" / "why.md").read_text()
    assert re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE) == list(CAUSES)


def test_what_is_no_run_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    for word, expected in (("7", "SLURM does not know it"), ("nowhere", "no such folder"), (".", "holds none")):
        with pytest.raises(ConfigError, match=expected):
            runs.runs_of(word)
    for cell in ("b", "a"):
        (tmp_path / "runs" / "rates" / cell).mkdir(parents=True)
        write_json(tmp_path / "runs" / "rates" / cell / "status.json", {})
    assert [path.name for path, _ in runs.runs_of("runs/rates")] == ["a", "b"]
    write_json(tmp_path / "runs" / "rates" / "sweep.json", {"cells": {"a": {}, "b": {}, "c": {}}})
    assert [path.name for path, _ in runs.runs_of("rates")] == ["a", "b"]
    assert why._not_started(Path("runs/rates")) == "runs/rates: 1 cell(s) not started: c"
    (tmp_path / "runs" / "rates" / "a" / "slurm").mkdir()
    write_json(tmp_path / "runs" / "rates" / "a" / "slurm" / "job.json", {"job": "7_1"})
    assert runs.runs_of("7_1") == [(Path("runs/rates/a"), "7_1")]


def test_a_job_of_an_array_is_a_cell_and_the_array_is_all_of_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep, cells = Path("runs/rates"), {}
    for task, cell in enumerate(("a", "b", "c")):
        (sweep / cell / "slurm").mkdir(parents=True)
        write_json(sweep / cell / "slurm" / "job.json", {"job": f"7_{task}", "cluster": "slurm"})
        cells[f"7_{task}"] = sweep / cell
    write_json(sweep / "sweep.json", {"cells": {"a": {}, "b": {}, "c": {}, "d": {}}})
    (sweep / "slurm").mkdir()
    for task in range(3):  # where SLURM begins the log of each
        (sweep / "slurm" / f"7_{task}_0_log.out").touch()
    write_json(sweep / "c" / "slurm" / "job.json", {"job": "8", "cluster": "slurm"})  # submitted again
    (sweep / "c" / "slurm" / "7_2_0_log.out").touch()
    for fields in ({"StdOut": str(tmp_path / sweep / "slurm" / "7_0_0_log.out")}, {}):  # SLURM knows it, and no more
        monkeypatch.setattr("slurm.cluster.job_fields", lambda _, found=fields: found)
        for job, run_dir in cells.items():
            assert [(path.resolve(), of) for path, of in runs.runs_of(job)] == [(run_dir.resolve(), job)]
        assert [(path.name, of) for path, of in runs.runs_of("7")] == [("a", "7_0"), ("b", "7_1"), ("c", "7_2")]
        assert [(path.name, of) for path, of in runs.runs_of("8")] == [("c", "8")]
        with pytest.raises(ConfigError, match=r"job 7_9: .* had it"):
            runs.runs_of("7_9")
    followed: list[follow.Followed] = []
    follow._find("7", followed, 10)
    assert [(run.label, run.job_id) for run in followed] == [("a", "7_0"), ("b", "7_1"), ("c", "7_2")]
