"""``follow``: files that grow, are replaced, or are away for a while; and runs, to their end."""

from __future__ import annotations

import errno
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from senet import REPOSITORY
from senet.errors import ConfigError
from senet.follow import Rows, Tail
from senet.rundir.files import replace_file, write_json
from slurm import cluster, follow
from slurm.follow import Followed
from tests.harness import rows, started, tiny, wait_until

LAUNCH = str(REPOSITORY / "launch.sh")
PACED = "model.name=tests.faults.networks:paced"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_line_is_shown_once_and_whole(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log")
    assert tail.lines() == []
    append(tail.path, "one\ntw")
    assert tail.lines() == ["one"]
    append(tail.path, "o\nbar 1\rbar 2\nthr")
    assert tail.lines() == ["two", "bar 2"]
    assert tail.lines() == []
    assert tail.lines(last=True) == ["thr"]
    assert tail.lines(last=True) == []


def test_at_the_end_no_line_of_a_fast_log_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("senet.follow._MOST", 10)
    tail = Tail(tmp_path / "log")
    append(tail.path, "".join(f"line {number}\n" for number in range(9)) + "half")
    assert tail.lines() == ["line 0"]
    assert tail.lines(last=True) == [*(f"line {number}" for number in range(1, 9)), "half"]


def test_it_begins_with_the_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"{number}\n" for number in range(50_000)))
    tail = Tail(tmp_path / "log", 2)
    assert tail.lines() == ["49998", "49999"]
    append(tail.path, "a\nb\nc\n")
    assert tail.lines() == ["a", "b", "c"]


def test_a_file_that_is_replaced_or_cut_is_read_from_its_beginning(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log")
    append(tail.path, "one\nhalf")
    assert tail.lines() == ["one"]
    replace_file(tail.path, b"another, and longer than before\n")
    assert tail.lines() == ["another, and longer than before"]
    assert tail.was_replaced
    tail.path.write_text("cut\n")
    assert tail.lines() == ["cut"]
    tail.path.unlink()
    assert tail.lines() == []
    append(tail.path, "again\n")
    assert tail.lines()[-1] == "again"


def test_a_file_system_that_does_not_answer_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tail = Tail(tmp_path / "log")
    append(tail.path, "one\n")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.ESTALE, "stale")))
        assert tail.lines() == []
        patch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EACCES, "denied")))
        with pytest.raises(OSError, match="denied"):
            tail.lines()
    assert tail.lines() == ["one"]


def start(generation: int, resumed_from: int, **after: Any) -> str:
    return json.dumps({"generation": generation, "resumed_from": resumed_from, "after": after}) + "\n"


def train_rows(*steps: int) -> str:
    return "".join(json.dumps({"kind": "train", "step": step, "train_loss": 1.23456}) + "\n" for step in steps)


def test_without_a_log_the_rows_are_shown_and_after_a_restart_those_that_are_new(tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl").write_text(start(1, 0))
    (tmp_path / "metrics.jsonl").write_text(train_rows(10, 20, 30))
    shown = Rows(tmp_path, 2)
    assert shown.lines() == ["start 1 from step 0", "step 20  train_loss 1.235", "step 30  train_loss 1.235"]
    replace_file(tmp_path / "starts.jsonl", (start(1, 0) + start(2, 20, state="failed", reason="boom")).encode())
    replace_file(tmp_path / "metrics.jsonl", train_rows(10, 20).encode())
    append(tmp_path / "metrics.jsonl", train_rows(30, 40) + '{"kind": "tr')
    assert shown.lines() == [
        "start 2 from step 20, after: failed boom",
        "step 30  train_loss 1.235",
        "step 40  train_loss 1.235",
    ]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    write_json(tmp_path / "run" / "slurm" / "job.json", {"job": "7", "cluster": "slurm", "submitted": 0.0})
    return tmp_path / "run"


def test_each_line_has_its_rank_and_host_and_those_of_a_new_job_follow(job: Path) -> None:
    run = Followed(job, "", 10)
    append(job / "slurm" / "7_1_log.out", "slurm: rank 1 on n2 begins\nhello\n")
    append(job / "slurm" / "70_1_log.out", "of another\n")
    assert list(run.lines())[1:] == [(1, "rank 1 on n2", "hello")]
    append(job / "slurm" / "7_0_log.out", "before it knows\n")  # a file that comes later
    append(job / "slurm" / "7_1_log.out", "slurm: rank 1 on n1 begins\n")  # requeued
    assert [name for _, name, _ in run.lines()] == ["rank 0", "rank 1 on n1"]
    write_json(job / "slurm" / "job.json", {"job": "8", "cluster": "slurm", "submitted": 0.0})
    append(job / "slurm" / "8_0_log.out", "".join(f"{number}\n" for number in range(30)))
    assert len(list(run.lines())) == 30


def test_what_it_waits_for_is_said_once(job: Path) -> None:
    run = Followed(job, "", 10)
    waits = {"7": cluster.JobState("PENDING", "Priority")}
    assert run.ask(waits) == "job 7 waits: Priority"
    assert run.ask(waits) == ""
    assert run.ask({"7": cluster.JobState("PENDING", "Resources")}) == "job 7 waits: Resources"
    assert run.ask({"7": cluster.JobState("RUNNING")}) == ""
    assert not run.is_over
    assert run.ask({"7": cluster.JobState("COMPLETED")}) == ""
    assert run.is_over


def test_the_rank_is_coloured_on_a_terminal_alone_and_no_line_controls_it(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append(job / "slurm" / "7_1_log.out", "slurm: rank 1 on n2 begins\nred \033[31m\n")
    follow._show(Followed(job, "", 1), True)
    assert capsys.readouterr().out == "\033[33mrank 1 on n2\033[0m  red ?[31m\n"
    follow._show(Followed(job, "", 1, "cell"), False)
    assert capsys.readouterr().out == "cell rank 1 on n2  red ?[31m\n"


@pytest.mark.ranks
@pytest.mark.slow
def test_a_run_on_this_machine_is_followed_to_its_end_with_its_exit_code(data_root: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = tiny(PACED, f"data.root={data_root}", f"run_dir={run_dir}", "log.every_steps=2", "train.epochs=2000")
    with started([LAUNCH, *options], tmp_path / "train", NPROC="1") as training:
        wait_until(lambda: rows(run_dir), what=(tmp_path / "train").read_text())
        with (
            started([LAUNCH, "follow", str(run_dir)], tmp_path / "follow") as follows,
            started([LAUNCH, "follow", str(run_dir)], tmp_path / "left") as left,
        ):
            wait_until(lambda: all((tmp_path / name).read_text().count("\nstep ") > 3 for name in ("follow", "left")))
            left.send_signal(signal.SIGINT)
            assert left.wait(180) == 130
            assert training.poll() is None
            training.send_signal(signal.SIGTERM)
            assert training.wait(180) == 85
            assert follows.wait(180) == 85
    said = (tmp_path / "follow").read_text().splitlines()
    assert said[-1].startswith(f"follow: {run_dir}: stopped: stopped by SIGTERM at step ")
    steps = [int(line.split()[1]) for line in said if line.startswith("step ")]
    assert steps == list(range(steps[0], steps[-1] + 2, 2))
    assert steps[-1] == rows(run_dir)[-1]["step"]


def test_fewer_than_no_lines_are_refused() -> None:
    with pytest.raises(ConfigError, match="--lines -3: use 0 or more"):
        follow.main([".", "--lines", "-3"])


def test_of_a_folder_each_line_has_its_run_and_a_later_one_is_found(tmp_path: Path) -> None:
    runs: list[Followed] = []
    for name in ("a", "b"):
        (tmp_path / "sweep" / name).mkdir(parents=True)
        write_json(tmp_path / "sweep" / name / "status.json", {})
        follow._find(str(tmp_path / "sweep"), runs, 10)
        follow._find(str(tmp_path / "sweep"), runs, 10)
    assert [(run.run_dir.name, run.label) for run in runs] == [("a", "a"), ("b", "b")]
    (tmp_path / "sweep" / "logs").mkdir()
    append(tmp_path / "sweep" / "logs" / "a.log", "what its terminal would show\n")
    assert list(runs[0].lines()) == [(0, "", "what its terminal would show")]
    alone: list[Followed] = []
    follow._find(str(tmp_path / "sweep" / "a"), alone, 10)
    assert [run.label for run in alone] == [""]


def test_a_run_without_a_job_is_over_once_nothing_has_lived_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Followed(tmp_path, "", 10)
    run.ask({})
    assert not run.is_over
    monkeypatch.setattr(run, "alive_at", time.monotonic() - 60)
    run.ask({})
    assert run.is_over
    assert not list(tmp_path.iterdir())


def test_a_sweep_that_has_finished_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(_seconds: float) -> None:
        raise TimeoutError("it waits")

    monkeypatch.setattr("slurm.follow.time.sleep", sleep)
    write_json(tmp_path / "sweep.json", {"cells": {"a": {}, "b": {}}})
    for cell in ("a", "b"):
        (tmp_path / cell).mkdir()
        write_json(tmp_path / cell / "status.json", {"state": "finished", "step": 4})
        if cell == "a":  # the other may still begin
            with pytest.raises(TimeoutError):
                follow.follow(str(tmp_path), 10, colours=False)
    assert follow.follow(str(tmp_path), 10, colours=False) == 0
