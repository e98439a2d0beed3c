"""The benchmarks' arithmetic, and that each of them can be started. What they measure is no test."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import loops
import pytest
import time_to_accuracy
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
        "loops.py bare --model=benchmarks.networks:linear --batch=16 --steps=2 --amp=fp16",
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


@pytest.mark.parametrize("amp", ["off", "bf16"])  # fp16 skips its first updates
def test_the_bare_loop_updates_the_weights_like_a_loop_by_hand(amp: str, tmp_path: Path) -> None:
    task = loops.Task("benchmarks.networks:linear", 16, str(tmp_path), steps=3, amp=amp)
    by_hand = copy.deepcopy(task.model)
    torch.manual_seed(0)
    images, labels = next(task.batches())
    torch.manual_seed(0)
    loops.bare(task)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(by_hand(images), labels).backward()
        optimizer.step()
    for ours, theirs in zip(task.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 if amp == "off" else 2e-3)


def test_a_batch_of_more_images_than_the_loops_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--batch=1438: the digits are 1437 images"):
        loops.Task("benchmarks.networks:linear", 1438, str(tmp_path), 1)


def test_a_gpu_is_compared_with_a_bare_loop_and_with_its_peak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With numbers in place of the runs: 4,800 and more images/s of the trainer, 3,200 of the loop."""
    rows: list[Row] = []
    speeds = {"train.compile=true": 9600, "train.deterministic=false": 7200}

    def train(_run_dir: Path, *options: str) -> list[dict[str, object]]:
        [speed] = [speeds[word] for word in options if word in speeds] or [4800]
        return [{"kind": "train", "step": 4, "images_per_s": speed}]

    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--model=resnet20", "--images=64", "--cases=off:16,bf16:16", "--pairs=2"]
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(gpu, "train", train)
    monkeypatch.setattr(gpu, "measured", lambda *_: {"step_s": [9.0, 0.005, 0.005]})
    monkeypatch.setattr("results.append", rows.append)
    gpu.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--device=cpu"])
    gpu.main()  # a try, which is no measurement
    found = {row.what: row.value for row in rows}
    assert found["trainer over a bare loop, tf32, batch 16, resnet20"] == 1.5
    assert found["of the peak, bf16, batch 16, resnet20"] == pytest.approx(100 * 4800 * 0.245e-3 / 312, abs=0.05)
    assert len(rows) == 6
    assert {row.gpu for row in rows} == {"NVIDIA A100-SXM4-80GB"}
    assert "2: tf32, batch 16: 4800 and 3200; bf16, batch 16: 4800 and 3200 images/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "amp", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "off", 378),
        ("NVIDIA A100-SXM4-80GB", "fp16", 312),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA H200 NVL", "bf16", 836),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA RTX A1000", "bf16", None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name(name: str, amp: str, peak: float | None) -> None:
    assert gpu.peak_tflops(name, amp) == peak


@pytest.mark.parametrize(("device", "found"), [("cuda", "A100"), ("cpu", None)])
def test_a_row_on_accuracy_names_the_gpu_that_trained(device: str, found: str | None, tmp_path: Path) -> None:
    starts = [{"device": "cpu", "processor": "old"}, {"device": device, "processor": "A100"}]
    (tmp_path / "starts.jsonl").write_text("".join(f"{json.dumps(start)}\n" for start in starts))
    assert time_to_accuracy.gpu_of(tmp_path) == found


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
