"""A network that was trained on a GPU, in the commands; and the drill."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from senet import REPOSITORY, evaluate, export, predict
from senet.data.samplers import ImageData
from senet.inference.formats import SUFFIXES
from tests.conftest import Once, Train
from tests.gpu.conftest import DEVICE, HERE, MARKS
from tests.harness import tiny

pytestmark = MARKS
TINY = ("--model", "tests.networks:tiny_senet")
NEEDS = {"safetensors": "safetensors", "onnx": "onnxruntime", "torch_export": "torch"}


@pytest.fixture
def trained(train_here: Train, once: Once) -> str:
    """The small run, trained once for this file."""
    return str(once("trained-here", lambda run_dir: train_here(run_dir, HERE, "train.amp=bf16", "optim.lr=0.3")))


def test_evaluate_has_the_scores_of_a_cpu(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    reports = []
    for device in (DEVICE, "cpu"):
        assert evaluate.main([trained, *TINY, "--device", device, "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    here, there = reports
    assert here["loss"] == pytest.approx(there["loss"], abs=0.005)  # TF32
    assert here["top1"] == pytest.approx(there["top1"], abs=1)


def test_predict_has_the_probabilities_of_a_cpu(
    trained: str, digits: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(20):
        Image.fromarray(np.array(digits.test.images[index])).save(tmp_path / f"{index:02}.png")
    found = []
    for device in (DEVICE, "cpu"):
        assert predict.main([trained, str(tmp_path), *TINY, "--device", device, "--json"]) == 0
        found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for here, there in zip(*found, strict=True):
        assert here["predictions"][0]["probability"] == pytest.approx(there["predictions"][0]["probability"], abs=0.01)


@pytest.mark.parametrize("kind", NEEDS)
def test_what_was_trained_here_is_exported(
    kind: str, trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not find_spec(NEEDS[kind]):
        pytest.skip(f"{NEEDS[kind]} is not installed")
    assert export.main([trained, *TINY, "--format", kind, "--output", str(tmp_path / f"file{SUFFIXES[kind]}")]) == 0
    assert "differ by at most" in capsys.readouterr().out


@pytest.mark.ranks
def test_the_drill_finds_the_same_bits(data_root: Path, tmp_path: Path) -> None:
    words = tiny(HERE, "train.amp=bf16", "train.epochs=3", f"data.root={data_root}", f"run_dir={tmp_path / 'drill'}")
    command = [sys.executable, "-m", "senet.drill", *words, "drill.steps=8", "drill.ranks=1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "same: " in done.stdout
