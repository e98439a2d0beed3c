"""The benchmarks' arithmetic, and that each of them can be started. What they measure is no test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


def test_a_row_has_as_many_cells_as_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(common, "REPOSITORY", tmp_path)
    common.record("x.py", "what", "1.00 (1.00 to 1.00)", "1 pair", "a note")
    row = (tmp_path / "benchmarks" / "RESULTS.md").read_text()
    head = next(line for line in (REPOSITORY / "benchmarks" / "RESULTS.md").read_text().splitlines() if "|" in line)
    assert row.count("|") == head.count("|")
    assert row.startswith("| x.py | what; a note | 1.00 (1.00 to 1.00) | 1 pair |")
