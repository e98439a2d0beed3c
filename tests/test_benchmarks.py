"""The benchmarks' arithmetic, and that each of them can be started. What they measure is no test."""

from __future__ import annotations

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
    common.record("x.py", "what", [3.0, 1.0, 2.254], "x", wanted=">= 2", note="a note")
    [row] = kept
    assert (row.value, row.low, row.high, row.n, row.of) == (2.25, 1, 3, 3, "pairs")
    assert row.command == "benchmarks/x.py model.name=se_resnet20"
    assert (row.wanted, row.note, row.torch) == (">= 2", "a note", torch.__version__)
    assert row.cores > 0
    assert row.cpu


def test_one_number_of_several_repetitions_has_no_range(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Row] = []
    monkeypatch.setattr(common.results, "append", kept.append)
    common.record("x.py", "what", [1190.4], "ms", n=3, digits=0, parts={"forward": 355.3})
    assert (kept[0].measured, kept[0].n, kept[0].parts) == ("1,190 ms", 3, {"forward": 355.3})
