"""The measurements of benchmarks/results.jsonl, and that the page and the plot say what they say."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib
import pytest
import results

from senet.report.figures import to_svg
from tests.harness import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
ROWS = results.read()
ROW = replace(ROWS[0], benchmark="ring.py", what="speed", value=0.99, low=0.9, high=1.04, unit="x", target=">= 1")
SLOWER, FASTER, OTHER, AMX = "AMD EPYC", "AMD EPYC 26/2", "AMD EPYC 25/17", "Intel Xeon"
ON_THE_PAGE = [
    ("| a bare loop", SLOWER, "trainer over a bare loop"),
    ("|", FASTER, "trainer over a bare loop"),
    ("|", OTHER, "trainer over a bare loop"),
    ("| the usual script", SLOWER, "trainer over the usual script"),
    ("|", FASTER, "trainer over the usual script"),
    ("|", OTHER, "trainer over the usual script"),
    ("| Lightning", SLOWER, "trainer over Lightning"),
    ("|", FASTER, "trainer over Lightning"),
    ("|", OTHER, "trainer over Lightning"),
    ("| Accelerate", SLOWER, "trainer over Accelerate"),
    ("|", FASTER, "trainer over Accelerate"),
    ("|", OTHER, "trainer over Accelerate"),
    ("global batch 128", SLOWER, "2 ranks over 1, global batch 128"),
    ("|", FASTER, "2 ranks over 1, global batch 128"),
    ("|", OTHER, "2 ranks over 1, global batch 128"),
    ("global batch 512", SLOWER, "2 ranks over 1, global batch 512"),
    ("|", FASTER, "2 ranks over 1, global batch 512"),
    ("to the first step", SLOWER, "fresh start of senet18 beyond the imports"),
    ("resumed", SLOWER, "resumed start of senet18 beyond the imports"),
    ("--help", SLOWER, "train_ddp.py --help"),
    ("one linear layer", OTHER, "batch 128, augmentation off"),
    ("with augmentation", OTHER, "batch 128, augmentation on"),
    ("training waits", SLOWER, "training waits for a save"),
    ("torch.save", SLOWER, "training waits for torch.save"),
    ("a vote on stopping", OTHER, "2 ranks, a vote every 1 step"),
    ("with 2 ranks", OTHER, "16 ranks, a vote every 1 step"),
    ("with 16", OTHER, "64 ranks, a vote every 1 step"),
    ("the exchange", OTHER, "train.shards=2 over 0, 2 ranks, batch 128"),
    ("`train.shards=2`", OTHER, "train.shards=2 over 0, 1 rank, batch 128"),
    ("|", OTHER, "train.shards=2 over 0, 1 rank, batch 128, train.amp=off"),
    ("`train.shards=4`", OTHER, "train.shards=4 over 0, 1 rank, batch 128"),
    ("missed |", OTHER, "train.shards=4 over 0, 1 rank, batch 128, train.amp=off"),
    ("`train.shards=8`", OTHER, "train.shards=8 over 0, 1 rank, batch 128"),
    ("missed |", OTHER, "train.shards=8 over 0, 1 rank, batch 128, train.amp=off"),
    ("`train.channels_last`", AMX, "bf16, channels_last over fp32, contiguous"),
    ("without them", FASTER, "trainer over Lightning, train.ema_decay=0"),
    ("and", FASTER, "trainer over Accelerate, train.ema_decay=0"),
]
"""Of docs/performance.md, by number: words that stand between it and the one before, and which row it is."""
REMEDY = "run .venv/bin/python benchmarks/results.py"


def test_the_page_is_what_the_measurements_make() -> None:
    assert (FOLDER / "RESULTS.md").read_text() == results.page(ROWS), REMEDY


def test_the_plot_in_the_file_is_of_these_measurements() -> None:
    assert (FOLDER / "results.svg").read_text().splitlines()[-1] == results.fingerprint(ROWS), REMEDY


def test_the_plot_has_the_same_bytes_each_time() -> None:
    made = to_svg(results.plot(ROWS))
    assert to_svg(results.plot(ROWS)) == made
    assert len(made) < 200_000
    tracked = (FOLDER / "results.svg").read_bytes()
    if f"Matplotlib v{matplotlib.__version__}," in tracked.decode():
        assert tracked.startswith(made), REMEDY


def test_each_ratio_has_a_marker_in_the_plot() -> None:
    figure = results.plot(ROWS)
    drawn = [bar[0].get_xdata()[0] for axes in figure.axes for bar in axes.containers]
    assert sorted(drawn) == sorted(row.value for row in results.latest(ROWS) if row.unit == "x")


def test_each_measurement_has_what_a_reader_needs() -> None:
    for row in ROWS:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row.date), row
        assert (row.low is None) == (row.high is None), row
        assert row.low is None or row.high is None or row.low <= row.value <= row.high, row
        assert row.n >= 1, row
        assert all((row.command, row.what, row.unit, row.of, row.cpu, row.torch, row.python)), row
        assert row.target is None or re.fullmatch(r"[<>]= [\d.]+", row.target), row
        assert len(row.what) <= 60, row  # a cell of a table
        assert len(row.note or "") <= 80, row
        assert "|" not in f"{row.what}{row.note}", row


def test_each_benchmark_is_a_file_or_a_command_that_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for benchmark in {row.benchmark for row in ROWS} - {"by hand"}:
        kind, _, target = benchmark.rpartition(" ")
        if kind == "make":
            assert target in targets
        else:
            assert any((folder / benchmark).is_file() for folder in (FOLDER, REPOSITORY)), benchmark


def test_each_median_with_a_range_on_the_page_of_performance_is_that_of_its_row() -> None:
    page = (REPOSITORY / "docs" / "performance.md").read_text()
    parts = re.split(r"([\d.,]+ \([\d.,]+ to [\d.,]+\))", page)
    assert len(parts) // 2 == len(ON_THE_PAGE), "a number came, or went: ON_THE_PAGE has them in their order"
    for before, said, (words, cpu, what) in zip(parts[::2], parts[1::2], ON_THE_PAGE, strict=False):
        measured = [row.measured for row in ROWS if (row.cpu, row.what) == (cpu, what)]
        assert words in " ".join(before.split()), said
        assert said in {re.sub(r"\).*", ")", each) for each in measured}, what


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    row = replace(ROW, amx=False, note="", parts={"forward": 1.5}, images_per_s=[106, 107])
    results.append(row, tmp_path / "rows.jsonl")
    assert results.read(tmp_path / "rows.jsonl") == [replace(row, note=None)]


def test_the_machine_of_a_row_begins_with_its_gpu() -> None:
    assert replace(ROW, gpu="A100", cores=8, cpu="AMD EPYC", amx=False).machine == "A100, 8 x AMD EPYC"


@pytest.mark.parametrize("change", [{"unit": None}, {"speed": 3}])
def test_a_row_without_a_field_or_with_an_unknown_one_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    fields = {name: value for name, value in (asdict(ROW) | change).items() if value is not None}
    (tmp_path / "rows.jsonl").write_text(json.dumps(fields))
    with pytest.raises(TypeError, match=next(iter(change))):
        results.read(tmp_path / "rows.jsonl")


def test_a_median_that_misses_its_target_is_called_missed() -> None:
    assert "| 0.99 (0.90 to 1.04) | >= 1 | **missed** |" in results.page([ROW])
    assert "| 1.00 (0.90 to 1.04) | >= 1 | met |" in results.page([replace(ROW, value=1.0)])
    assert not replace(ROW, target="<= 0.9").met


def test_only_the_last_of_equal_measurements_is_plotted_and_judged() -> None:
    again = replace(ROW, date="2026-11-26", value=1.01)
    other = replace(ROW, cpu="another")
    assert results.latest([ROW, other, again]) == [again, other]
    assert results.page([ROW, again]).count("0.99 (") == 1  # in the list of all, where nothing is left out
