"""Where the time of a run went: waits of known length are found, and all parts sum to the time that passed."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from senet.rundir.files import read_json
from senet.rundir.hours import PARTS, read_hours
from tests.faults.interpose import missing_compiler, slow
from tests.faults.networks import DATA_WAIT_S
from tests.faults.runs import last_step, newest_step, options
from tests.harness import rows, started, status, wait_until

PAUSE_S, DISK_WAIT_S, STEPS, SAVED_EVERY = 4.0, 2.2, 88, 7
pytestmark = pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())


@pytest.mark.ranks
@pytest.mark.slow
def test_two_kills_a_stop_slow_data_and_a_slow_disk_are_found_in_the_parts_of_the_time(
    data_root: Path, tmp_path: Path
) -> None:
    """Each batch of training images waits; in the last start each fsync of a checkpoint, of which there are two, and
    training waits for the last checkpoint alone."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    network = "model.name=tests.faults.networks:slow_data"
    more = ("log.every_steps=1", f"checkpoint.every_steps={SAVED_EVERY}", "train.accumulate=1", "train.epochs=4")
    command = [sys.executable, "-m", "senet.launch", "train", *options(data_root, run_dir, network, *more)]
    ends: list[dict[str, Any]] = []
    began, pauses_s, twice = time.time(), [], 0
    for step, signal in ((10, "kill"), (35, "kill"), (60, "terminate"), (STEPS, "")):
        disk = {} if signal else slow("fsync", run_dir / "checkpoints", DISK_WAIT_S)
        if ends:
            time.sleep(PAUSE_S)
            pauses_s.append(time.time() - ends[-1]["heartbeat"])
        rarely = () if signal else ("checkpoint.every_steps=1000",)
        with started([*command, *rarely], log, NPROC="1", **disk) as process:
            number = len(ends) + 1
            if signal == "kill":  # just after a heartbeat: what is done between the last one and a kill is not known
                wait_until(partial(_has_done, run_dir, number, step), what=f"step {step}")
            if signal == "terminate":
                wait_until(partial(_has_logged, run_dir, number, step), what=f"step {step}")
                process.terminate()
            if signal != "kill":
                assert process.wait(240) == (85 if signal else 0), log.read_text()
        ends.append(status(run_dir))
        if signal == "kill":
            twice += max(0, ends[-1]["done"] - newest_step(run_dir))  # a checkpoint may be younger than the heartbeat
    found = read_hours(run_dir)
    assert found is not None
    assert found.facts() == ends[-1]["hours"]
    assert found.wall_s == pytest.approx(ends[-1]["heartbeat"] - began, abs=5)  # and the start of Python
    assert found.wall_s == pytest.approx(sum(found.facts()["parts_s"][part] for part in PARTS), abs=0.01)
    assert found.steps_again == twice > 0
    # within 5 % on an idle machine; on a busy one each wait lasts longer
    assert 0.99 * STEPS * DATA_WAIT_S < found.parts["waiting"] < 1.25 * STEPS * DATA_WAIT_S
    assert found.parts["lost"] == pytest.approx(sum(pauses_s[:2]), abs=2)
    assert found.parts["not_running"] == pytest.approx(pauses_s[2], abs=2)
    assert 2 * DISK_WAIT_S <= ends[-1]["spent"]["saving"] < 3 * DISK_WAIT_S
    assert found.parts["again"] >= twice * DATA_WAIT_S
    assert [row["step"] for row in rows(run_dir)] == list(range(1, STEPS + 1))


def _has_done(run_dir: Path, start: int, step: int) -> bool:
    """Whether this start has come so far, with updates that are not saved."""
    found = read_json(run_dir / "status.json")
    done = found.get("done", 0)
    return found.get("generation") == start and done >= step and done % SAVED_EVERY > 0


def _has_logged(run_dir: Path, start: int, step: int) -> bool:
    return read_json(run_dir / "status.json").get("generation") == start and last_step(run_dir) >= step
