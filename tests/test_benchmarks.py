"""The benchmarks' arithmetic, and that each of them can be started. What they measure is no test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from results import Row

from benchmarks import common
from tests.harness import REPOSITORY

FILES = [path for path in sorted((REPOSITORY / "benchmarks").glob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_benchmark_answers_help_with_its_first_sentence(path: Path) -> None:
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, check=True)
    first_line = path.read_text().splitlines()[0].strip('"')
    assert first_line.split()[0] in done.stdout
    assert "usage: " in done.stdout


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(
    "command",
    [
        "step_parts.py --rank --pairs=1 --steps=1 configs/tiny.yaml model.name=resnet20",
        "checkpoint.py --rank --pairs=1 configs/tiny.yaml checkpoint.every_steps=1 model.name=resnet20",
        "parts.py --json configs/tiny.yaml model.name=benchmarks.networks:linear",
        "loops.py bare --model=benchmarks.networks:linear --batch=16 --steps=2",
    ],
)
def test_what_a_benchmark_starts_ends_with_its_times(command: str, tmp_path: Path) -> None:
    file, *words = command.split()
    store = common.lay_store(tmp_path, 64, 16)
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    options = [*store, "train.global_batch_size=8", "train.epochs=1", "data.image_size=32", f"run_dir={tmp_path}/run"]
    given = [f"--data-root={tmp_path}"] if file == "loops.py" else options
    done = subprocess.run(
        [sys.executable, f"benchmarks/{file}", *words, *given],
        cwd=REPOSITORY, env=os.environ | alone, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    times = json.loads(done.stdout.splitlines()[-1])
    assert times


@pytest.mark.ranks
def test_a_killed_stub_is_named_by_the_other_and_votes_take_time() -> None:
    code = "import json, votes; print(json.dumps(votes.measure(2, steps=2, step_s=0.01)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY / "benchmarks", capture_output=True, text=True, check=True
    )
    by_every, seconds, named = json.loads(done.stdout.splitlines()[-1])
    assert (list(by_every), len(seconds), named) == (["1"], 1, 1)


def test_a_spread_is_the_median_and_both_ends() -> None:
    assert common.spread([3.0, 1.0, 2.25, 8.0]) == "2.62 (1.00 to 8.00)"
    assert common.spread([7.0], digits=0) == "7 (7 to 7)"


def test_ratios_are_taken_pair_by_pair() -> None:
    assert common.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        common.ratios([1.0, 2.0], [1.0])


def test_speed_is_the_median_over_the_updates_after_the_first() -> None:
    rows = [{"kind": "train", "step": step, "images_per_s": speed} for step, speed in enumerate((1, 2, 30, 50, 40), 1)]
    assert common.images_per_s([*rows, {"kind": "epoch", "step": 5, "images_per_s": 7}], skip=2) == 40


def test_a_measurement_is_kept_with_its_command_and_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Row] = []
    monkeypatch.setattr(common.results, "append", kept.append)
    monkeypatch.setattr(
        sys, "argv", ["x.py", "--pairs=3", "--note", "a note", "model.name=se_resnet20", "data.root=/d"]
    )
    common.record("x.py", "what", [3.0, 1.0, 2.254], "x", target=">= 2", note="a note")
    [row] = kept
    assert (row.value, row.low, row.high, row.n, row.of) == (2.25, 1, 3, 3, "pairs")
    assert row.command == "benchmarks/x.py model.name=se_resnet20"
    assert (row.target, row.note, row.torch) == (">= 2", "a note", torch.__version__)
    assert row.cores > 0
    assert row.cpu


@pytest.mark.parametrize(
    ("of_git", "kept"), [("0123456789ab+", "012345678+"), ("0123456789ab", "012345678"), ("unknown", "unknown")]
)
def test_a_changed_checkout_is_recorded_as_one(of_git: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Row] = []
    monkeypatch.setattr(common.results, "append", rows.append)
    monkeypatch.setattr("senet.rundir.commit.commit", lambda: of_git)
    common.record("x.py", "what", [1.0], "x")
    assert rows[0].commit == kept


def test_one_number_of_several_repetitions_has_no_range(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Row] = []
    monkeypatch.setattr(common.results, "append", kept.append)
    common.record("x.py", "what", [1190.4], "ms", n=3, digits=0, parts={"forward": 355.3})
    assert (kept[0].measured, kept[0].n, kept[0].parts) == ("1,190 ms", 3, {"forward": 355.3})
