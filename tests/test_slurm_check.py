"""The check before a start on a real SLURM cluster, with a doctor whose findings are planned."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from senet import REPOSITORY
from senet.errors import FAILED_EXIT_CODE, INTERRUPTED_EXIT_CODE, REFUSED_EXIT_CODE
from senet.rundir.files import read_json
from tests.cluster import Cluster
from tests.harness import started, status, tiny, wait_until
from tests.soak import soak
from tests.submitted import SLOW, Run
from tests.test_slurm_cluster import no_orphans, pytestmark  # noqa: F401

IN_PLACE_OF_THE_DOCTOR = """\
import senet

senet.__path__.insert(0, {folder!r})
"""
DOCTOR = """\
import json, os, pathlib, sys, time

plan = json.loads(pathlib.Path(__file__).with_name("plan.json").read_text())
arguments = sys.argv[1:]
assert arguments[0].endswith(".yaml") and arguments[1:3] == ["--max-seconds", "15"], arguments
hosts = os.environ["SENET_HOSTS"].split(",")
rank, each = int(os.environ["RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
assert hosts[rank // each] == os.environ["SLURMD_NODENAME"], hosts
time.sleep(plan["sleep_s"])
assert not plan["crash"]
findings = [each for each in plan["findings"] if each["host"] in ["", *hosts]]
if rank == 0:
    report = {"seconds": 1.0, "complete": True, "findings": findings, "checks": {}}
    pathlib.Path(arguments[arguments.index("--out") + 1]).write_text(json.dumps(report))
    print("the table")
sys.exit(any(each["kind"] == "wrong" for each in findings))
"""
SHORT = "train.epochs=1"


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path, data_root: Path) -> Run:
    return Run(cluster, tmp_path / "run", data_root, check=True)


def plan(run: Run, *findings: dict[str, Any], crash: bool = False, sleep_s: float = 0.0) -> None:
    """What the doctor finds from now on, on those of these hosts that it sees."""
    folder = run.run_dir.parent / "in place"
    (folder / "doctor").mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(IN_PLACE_OF_THE_DOCTOR.format(folder=str(folder)))
    (folder / "doctor" / "__init__.py").touch()
    (folder / "doctor" / "__main__.py").write_text(DOCTOR)
    text = json.dumps({"findings": findings, "crash": crash, "sleep_s": sleep_s})
    (folder / "doctor" / "plan.json").write_text(text)
    run.env["PYTHONPATH"] = str(folder)


def finding(host: str, check: str = "arithmetic", kind: str = "wrong") -> dict[str, Any]:
    return {"host": host, "rank": None, "kind": kind, "check": check, "text": f"what {check} found"}


def test_a_wrong_node_is_excluded_and_avoided_until_it_is_cleared(run: Run) -> None:
    plan(run, finding("n1"))
    run.submit(SHORT, "slurm.nodes=1")  # SLURM takes n1 first
    found = run.wait_for("COMPLETED")
    assert (found["Restarts"], found["NodeList"], found["ExcNodeList"]) == ("1", "n2", "n1")
    assert status(run.run_dir)["state"] == "finished"
    assert run.log().count("slurm: n1 was wrong: arithmetic: what arithmetic found") == 1
    where = "n1 is avoided since "
    assert where in run.tool("status", str(run.run_dir)).stdout

    run.submit(SHORT, "slurm.nodes=1", "slurm.sbatch.exclude=n1")
    found = run.wait_for("COMPLETED")
    assert (found["Restarts"], found["NodeList"], found["ExcNodeList"]) == ("0", "n2", "n1")
    shown = run.tool("--dry-run", *tiny("slurm.time=20m", *run.options)).stdout
    assert where in shown
    assert "#SBATCH --exclude=n1\n" in shown

    assert "n1 is avoided no more" in run.tool("clear", str(run.run_dir)).stdout
    plan(run)
    run.submit(SHORT, "slurm.nodes=1")
    found = run.wait_for("COMPLETED")
    assert (found["NodeList"], found["ExcNodeList"]) == ("n1", "(null)")


@pytest.mark.parametrize(("number", "why"), [(2, "all nodes have the same fault"), (1, "more than one in 4")])
def test_where_both_nodes_are_wrong_the_job_fails_with_both_names(run: Run, number: int, why: str) -> None:
    plan(run, finding("n1"), finding("n2", "clock"), *([finding("n1", "clock")] if number == 2 else []))
    run.submit(SHORT, f"slurm.nodes={number}")
    assert run.wait_for("FAILED")["Restarts"] == str(2 - number)
    reason = status(run.run_dir)["reason"]
    assert why in reason
    assert "n1: arithmetic: what arithmetic found" in reason
    assert "n2: clock: what clock found" in reason
    assert not (run.run_dir / "metrics.jsonl").exists()
    assert reason in run.tool("status", str(run.run_dir)).stdout


def test_a_slow_node_is_named_and_the_training_starts(run: Run) -> None:
    plan(run, finding("n2", kind="slow"))
    run.submit("train.epochs=3000", SLOW, "slurm.max_restarts=0")
    run.wait_for_steps(5, 0)
    said = "n2 was slow: arithmetic: what arithmetic found"
    assert status(run.run_dir)["warnings"] == [said]
    assert f"{run.run_dir}: {said}\n" in run.tool("status", str(run.run_dir)).stdout
    assert read_json(run.run_dir / "slurm" / f"{run.job}.0.check.json")["findings"][0]["host"] == "n2"
    run.ranks()[1].kill()
    run.wait_for("FAILED")
    assert f"; before the start {said}" in status(run.run_dir)["reason"]


def test_a_check_that_crashes_stops_no_training(run: Run) -> None:
    plan(run, crash=True)
    run.submit(SHORT)
    assert run.wait_for("COMPLETED")["Restarts"] == "0"
    assert "slurm: the check before the start did not come to its end (exit code 1; see " in run.log()
    assert "AssertionError" in (run.run_dir / "slurm" / f"{run.job}.0.check.log").read_text()


@soak
def test_a_check_that_hangs_stops_no_training(run: Run) -> None:
    plan(run, sleep_s=3600)
    run.submit(SHORT)
    assert run.wait_for("COMPLETED")["Restarts"] == "0"
    assert "slurm: the check before the start did not come to its end (it was not done in time; see " in run.log()


# --- slurm doctor ---


def words(run: Run, *options: str) -> list[str]:
    return ["doctor", *tiny("slurm.nodes=2", *run.options, *options)]


def test_the_doctor_of_a_job_prints_its_table_and_leaves_nothing(run: Run) -> None:
    for findings, code in (((), 0), ((finding("n2"),), FAILED_EXIT_CODE)):
        plan(run, *findings)
        done = run.tool(*words(run), timeout_s=120)
        assert (done.returncode, done.stdout) == (code, "the table\n"), done.stderr
        assert re.match(r"slurm: job \d+: ", done.stderr)
    done = run.tool(*words(run, "--json"), timeout_s=120)
    assert json.loads(done.stdout)["findings"] == [finding("n2")]
    assert [path.name for path in run.run_dir.parent.iterdir()] == ["in place"]


def test_the_doctor_says_why_it_has_no_result(run: Run) -> None:
    plan(run, crash=True)
    done = run.tool(*words(run), timeout_s=120)
    assert done.returncode == FAILED_EXIT_CODE
    assert "ended without a result; its last line: AssertionError" in done.stderr
    for option, expected in (("slurm.partition=nope", "invalid partition"), ("slurm.cluster=local", "has no nodes")):
        done = run.tool(*words(run, option))
        assert (done.returncode, done.stderr.count("\n")) == (REFUSED_EXIT_CODE, 1)
        assert expected in done.stderr


def test_ctrl_c_cancels_the_job_of_the_doctor(run: Run, tmp_path: Path) -> None:
    plan(run)
    command = [sys.executable, str(REPOSITORY / "slurm" / "submit.py"), *words(run, "slurm.sbatch.hold=true")]
    log = tmp_path / "log"
    with started(command, log, **run.env) as process:
        wait_until(lambda: "pending (JobHeldUser)" in log.read_text(), 120, log.read_text)
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == INTERRUPTED_EXIT_CODE
    assert "is cancelled" in log.read_text()
    assert "Traceback" not in log.read_text()
