"""Where the time of a run went, by hand arithmetic; tests/faults/test_hours.py has real runs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from senet.rundir.hours import Hours, hours_of, in_words, of_all, read_hours, together
from senet.rundir.phases import Phases, stamp

STEPS = 22  # in an epoch of the small run


def start(began: float, resumed_from: int = 0, kept: float = 0.0, **facts: Any) -> dict[str, Any]:
    """A row of starts.jsonl; ``kept``: seconds of training in the checkpoint."""
    return {"began": began, "resumed_from": resumed_from, "kept": {"training": kept}, "job": "", **facts}


def end(state: str, done: int, **spent: float) -> dict[str, Any]:
    """The last status of a start."""
    return {"state": state, "done": done, "spent": spent}


def seconds(hours: Hours) -> dict[str, float]:
    """The parts that are not 0."""
    return {part: found for part, found in hours.parts.items() if found}


def test_after_a_kill_the_time_until_the_next_start_is_lost_and_what_no_checkpoint_holds_is_done_twice() -> None:
    killed = end("running", 70, starting=10, training=60, waiting=5, saving=2)
    starts = [start(1000), start(1100, resumed_from=50, kept=45, after=killed)]
    found = hours_of(starts, end("finished", 100, starting=10, training=50, evaluating=3))
    assert seconds(found) == {
        "starting": 20,
        "training": 45 + 50,
        "again": 15 + 5,  # the seconds of waiting, too, since the checkpoint has none
        "saving": 2,
        "evaluating": 3,
        "lost": 1100 - 1077,
    }
    assert found.steps_again == 20
    assert found.wall_s == 1163 - 1000
    assert found.effective == (95 + 2 + 3) / 163


def test_a_checkpoint_knows_of_work_after_the_last_heartbeat_before_a_kill() -> None:
    killed = end("running", 40, starting=10, training=40)
    found = hours_of([start(1000), start(1060, 45, 44, after=killed)], end("finished", 50, training=5))
    assert seconds(found) == {"starting": 10, "training": 49, "lost": 1060 - 1054}
    found = hours_of([start(1000), start(1052, 45, 44, after=killed)], end("finished", 50, training=5))
    assert found.wall_s == 1057 - 1000


def test_a_job_waits_from_its_submission_and_from_each_requeue() -> None:
    job = {"job": "7", "submitted": 900.0}
    stopped = end("stopped", 50, starting=10, training=40)
    starts = [start(1000, **job), start(1200, 50, 40, after=stopped, **job)]
    found = hours_of(starts, end("finished", 60, starting=10, training=10))
    assert seconds(found) == {"queued": 100 + 150, "starting": 20, "training": 50}


def test_a_stopped_run_that_nobody_starts_again_is_not_running_and_that_counts_for_nothing() -> None:
    stopped = end("stopped", 50, training=50)
    later = {"job": "8", "submitted": 5000.0, "after": stopped}
    found = hours_of([start(1000, job="7"), start(5010, 50, 50, **later)], end("finished", 60, training=50))
    assert seconds(found) == {"training": 100, "not_running": 5000 - 1050, "queued": 10}
    assert found.effective == 100 / 110


def test_a_failure_after_which_the_same_launcher_goes_on_is_lost_time_and_one_that_ends_it_is_not() -> None:
    failed = end("failed", 50, training=50)
    last = end("finished", 60, training=1)
    for job, part in (("launch.sh 1", "lost"), ("launch.sh 2", "not_running")):
        starts = [start(1000, job="launch.sh 1"), start(1060, 50, 50, job=job, after=failed)]
        assert seconds(hours_of(starts, last)) == {"training": 51, part: 10}


def test_clocks_of_hosts_that_do_not_agree_make_no_time_negative() -> None:
    stopped = end("stopped", 50, training=100)
    found = hours_of([start(1000), start(800, 50, 100, after=stopped)], end("finished", 60, training=20))
    assert seconds(found) == {"training": 120}
    assert found.cut_s == 300


def test_a_start_that_finds_the_run_finished_adds_nothing() -> None:
    finished = end("finished", 50, training=50)
    found = hours_of([start(1000), start(9000, 50, 50, after=finished)], end("finished", 50, starting=4, saving=1))
    assert seconds(found) == {"training": 50}
    extended = hours_of([start(1000), start(9000, 50, 50, after=finished)], end("finished", 90, training=40))
    assert seconds(extended) == {"training": 90, "not_running": 9000 - 1050}


def test_starts_of_older_versions_are_left_out(tmp_path: Path) -> None:
    old = {"resumed_from": 0, "time": "2025-01-01T00:00:00+00:00"}
    after = {"state": "stopped", "step": 50}
    assert seconds(hours_of([old, start(1000, 50, after=after)], end("running", 60, training=5))) == {"training": 5}
    (tmp_path / "starts.jsonl").write_text(json.dumps(old))
    assert read_hours(tmp_path) is None


def test_several_runs_add_up() -> None:
    one, other = (hours_of([start(1000, submitted=990)], end("finished", 10, training=each)) for each in (40, 50))
    assert seconds(together([one, other])) == {"queued": 20, "training": 90}
    assert together([one, other]).effective == 90 / 110
    assert in_words(one.facts()) == "50.0 s: training 80%, in SLURM's queue 20%; effective 80%"


def test_a_process_is_in_one_phase_at_any_time_and_their_sum_is_its_age() -> None:
    earliest = time.monotonic()
    phases = Phases(stamp())
    latest = time.monotonic()
    time.sleep(0.1)
    phases.enter("training")
    for _ in phases.waiting(_batches(4, 0.1)):
        time.sleep(0.05)
    with phases.during("saving"), phases.during("evaluating"):
        time.sleep(0.2)
    shortest = time.monotonic() - latest
    spent = phases.spent()
    assert shortest - 0.02 <= sum(spent.values()) <= time.monotonic() - earliest + 0.02  # by clocks with ticks
    assert spent["starting"] >= 0.1
    assert spent["waiting"] >= 0.4
    assert spent["training"] >= 0.2
    assert spent["evaluating"] >= 0.2 > spent["saving"]
    assert phases.work({"training": 100})["training"] >= 100.2


def test_of_a_launcher_on_another_host_only_the_time_of_day_is_taken() -> None:
    assert sum(Phases(f"{time.time() + 300} 5.0 another-boot").spent().values()) < 1
    wall, since, boot = stamp(process_start=True).split()
    assert Phases(f"{wall} {since} {boot}").spent()["starting"] > 0.1  # python has imported torch


def _batches(count: int, wait_s: float) -> Any:
    for number in range(count):
        time.sleep(wait_s)
        yield number


def test_of_a_sweep_the_time_of_all_cells_is_shown(tmp_path: Path) -> None:
    for name, training in (("a", 40), ("b", 50)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "starts.jsonl").write_text(json.dumps(start(1000, submitted=990)))
        (tmp_path / name / "status.json").write_text(json.dumps(end("finished", 10, training=training)))
    (tmp_path / "not begun").mkdir()
    text = "1 min 50 s: training 82%, in SLURM's queue 18%; effective 82%"
    assert of_all(tmp_path.iterdir()) == text
    assert of_all([tmp_path / "not begun"]) == ""
