"""What is prepared for GPUs can be started: without one all of it is skipped, and a CPU can stand in for some."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.harness import REPOSITORY

pytestmark = pytest.mark.slow
A_FEW = "(losses and bf16 and channels_last) or (updates and adamw) or (waits and sgd) or no_comment"


def run_kit(*words: str, **env: str) -> str:
    """What pytest says of ``tests/gpu``; the tests must not fail."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", "-rs", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | env
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_without_a_gpu_all_is_skipped_and_one_line_says_why() -> None:
    said = run_kit(CUDA_VISIBLE_DEVICES="")
    [line] = re.findall(r"^SKIPPED.*", said, re.MULTILINE)
    count = re.search(r"^=+ (\d+) skipped in ", said, re.MULTILINE)
    assert count
    assert f"[{count[1]}]" in line
    assert "no GPU is visible to torch; GPU_TESTS_DEVICE=cpu tries" in line


def test_a_cpu_can_be_tried_in_a_gpus_place() -> None:
    said = run_kit("-k", A_FEW, GPU_TESTS_DEVICE="cpu")
    assert re.search(r"^=+ 4 passed, \d+ deselected in ", said, re.MULTILINE)
