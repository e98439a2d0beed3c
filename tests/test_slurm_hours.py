"""One job on a real SLURM cluster with all that costs time: its parts are found and sum to the time that passed, and
somebody is told once that it is over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from senet.rundir.files import read_rows
from senet.rundir.hours import PARTS, read_hours
from tests.cluster import Cluster, missing_packages
from tests.faults.interpose import missing_compiler, slow
from tests.faults.runs import newest_step
from tests.harness import rows, status, wait_until
from tests.soak import soak
from tests.submitted import Run

DATA_WAIT_S, DISK_WAIT_S = 0.1, 2.2
EPOCH, EPOCHS = 1437 // 16, 4  # updates; each epoch is much longer than it takes to write a checkpoint
STEPS = EPOCH * EPOCHS
MISSING = missing_packages() or missing_compiler()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(MISSING), reason=MISSING), pytest.mark.timeout(900)]


@soak  # tests/faults/test_hours.py does it without a cluster
def test_two_kills_a_preemption_slow_data_and_a_slow_disk_are_found_in_the_parts_of_a_job(
    cluster: Cluster, tmp_path: Path, data_root: Path
) -> None:
    """Each batch waits for its data, each fsync of a checkpoint for the disk: two for each checkpoint, one after each
    epoch. Training waits for those of the preemption and of the end alone."""
    run, told = Run(cluster, tmp_path / "run", data_root), tmp_path / "told.jsonl"
    environment = slow("fsync", run.run_dir / "checkpoints", DISK_WAIT_S) | {"DATA_WAIT_S": str(DATA_WAIT_S)}
    run.submit(
        "model.name=tests.faults.networks:slow_data",
        "train.global_batch_size=16",
        f"train.epochs={EPOCHS}",
        "checkpoint.every_steps=1000",
        "log.every_steps=1",
        f"notify=cat >> {told}",
        *(f"slurm.environment.{name}={value}" for name, value in environment.items()),
    )
    submitted = json.loads((run.run_dir / "slurm/job.json").read_text())["submitted"]
    twice = sum(
        _after_checkpoint(run, step, lambda: [rank.kill() for rank in run.ranks()]) for step in (EPOCH, 2 * EPOCH)
    )
    _after_checkpoint(run, 3 * EPOCH, lambda: cluster.preempt(1))
    run.wait_for("COMPLETED")

    starts, end = list(read_rows(run.run_dir / "starts.jsonl")), status(run.run_dir)
    gaps_s = [later["began"] - later["after"]["heartbeat"] for later in starts[1:]]
    found = read_hours(run.run_dir)
    assert found is not None
    assert found.wall_s == pytest.approx(end["heartbeat"] - submitted, abs=1)
    assert found.wall_s == pytest.approx(sum(found.facts()["parts_s"][part] for part in PARTS), abs=0.01)
    assert found.parts["waiting"] == pytest.approx(STEPS * DATA_WAIT_S, rel=0.05)
    assert found.parts["saving"] == pytest.approx(4 * DISK_WAIT_S, rel=0.05)
    assert found.parts["lost"] == pytest.approx(gaps_s[0] + gaps_s[1], rel=0.05)
    assert found.parts["queued"] == pytest.approx(starts[0]["began"] - submitted + gaps_s[2], rel=0.05)
    assert found.parts["not_running"] == 0
    assert found.steps_again == twice > 0
    assert found.parts["again"] >= twice * DATA_WAIT_S
    assert [row["step"] for row in rows(run.run_dir) if row["kind"] == "train"] == list(range(1, STEPS + 1))
    [words] = read_rows(told)  # the preemption and the kills were nobody's to act on
    assert words["state"] == "finished"
    assert words["where"]["job"] == run.job


def _after_checkpoint(run: Run, step: int, act: Callable[[], object]) -> int:
    """Act when this checkpoint is long on the disk, just after a heartbeat, since what is done between the last one
    and a kill is not known. Returns how many updates are not in the checkpoint."""

    def later() -> int:
        found = run.read("status.json")
        done = int(found.get("done", 0)) - step
        return done if done >= EPOCH // 2 and found.get("state") == "running" else 0

    count = int(wait_until(later, 180, lambda: f"steps after {step}: {run.logs()}"))
    assert newest_step(run.run_dir) == step
    act()
    return count
