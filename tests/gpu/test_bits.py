"""Two runs have the same bits, and so has one that was killed or stopped and resumed."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from senet.distributed.preemption import StopFlag
from senet.errors import STOPPED_EXIT_CODE
from senet.training.run import run
from senet.training.trainer import Observer, Trainer
from tests.conftest import Once, Train
from tests.gpu.conftest import HERE, MARKS, SENET18, SMALLER
from tests.harness import (
    checkpoints,
    differing,
    payload,
    rows,
    started,
    status,
    tiny,
    tiny_config,
    train_command,
    wait_until,
    without_clock,
)

pytestmark = MARKS
KINDS = {
    "off": ["train.amp=off"],
    "bf16": ["train.amp=bf16"],
    "fp16": ["train.amp=fp16", "train.clip_norm=1"],
    "adamw": ["train.amp=bf16", "optim.name=adamw", "optim.lr=0.001"],
    "muon": ["train.amp=bf16", "optim.name=muon", *SMALLER],
    "shards": ["train.amp=bf16", "train.shards=4", "train.accumulate=2"],
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def sha256(tree: Any) -> str:
    """Of all tensors in a payload."""
    found = hashlib.sha256()
    parts = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    for part in parts:
        found.update(sha256(part).encode())
    if isinstance(tree, torch.Tensor):
        found.update(tree.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.fixture
def unbroken(train_here: Train, once: Once) -> Callable[[str], dict[str, Any]]:
    """The end of a run of this kind that nothing disturbs, trained once for all tests."""

    def reference(kind: str) -> dict[str, Any]:
        made = once(f"unbroken-{kind}", lambda run_dir: train_here(run_dir, HERE, *SENET18, *KINDS[kind]))
        return without_clock(payload(made))

    return reference


@each_kind
def test_two_runs_have_one_sha256(
    kind: str, train_here: Train, unbroken: Callable[[str], dict[str, Any]], tmp_path: Path,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    train_here(tmp_path, HERE, *SENET18, *KINDS[kind])
    found = without_clock(payload(tmp_path))
    assert differing(unbroken(kind), found) == []
    assert sha256(found) == sha256(unbroken(kind))
    say(sha256(found)[:16])


def train_and_die(options: Sequence[str], run_dir: Path) -> None:
    """In a process of its own: SIGKILL at update 12, once the checkpoint of update 10 is there."""

    def observe(trainer: Trainer) -> Observer:
        def observer() -> None:
            if trainer.state.step == 12:
                wait_until(lambda: any("000000010" in path.name for path in checkpoints(run_dir)))
                os.kill(os.getpid(), signal.SIGKILL)

        return observer

    run(tiny_config(*options), tiny(*options), StopFlag(), observe=observe)


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["bf16", "fp16", "adamw", "muon"])
def test_a_run_killed_within_an_epoch_ends_with_the_bits_of_an_unbroken_one(
    kind: str, train_here: Train, unbroken: Callable[[str], dict[str, Any]], data_root: Path, tmp_path: Path
) -> None:
    options = [HERE, *SENET18, *KINDS[kind]]
    place = [f"data.root={data_root}", f"run_dir={tmp_path}"]
    process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=([*options, *place], tmp_path))
    process.start()
    process.join(120)
    process.kill()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name[:14] for path in checkpoints(tmp_path)][-1] == "step_000000010"
    train_here(tmp_path, *options)
    assert differing(unbroken(kind), without_clock(payload(tmp_path))) == []


@pytest.mark.ranks
def test_sigterm_saves_and_the_same_command_goes_on(train_here: Train, data_root: Path, tmp_path: Path) -> None:
    options = (HERE, "train.amp=bf16", "model.name=tests.networks:slow_senet")
    words = tiny(*options, f"data.root={data_root}", f"run_dir={tmp_path / 'run'}")
    with started(train_command(0, words), tmp_path / "log") as process:
        wait_until(lambda: len(rows(tmp_path / "run")) >= 3, what="six updates")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == STOPPED_EXIT_CODE, (tmp_path / "log").read_text()
    stopped = status(tmp_path / "run")
    assert (stopped["state"], stopped["reason"]) == ("stopped", "SIGTERM")
    assert payload(tmp_path / "run")["state"]["step"] == stopped["step"] < 44
    train_here(tmp_path / "run", *options)
    train_here(tmp_path / "whole", *options)
    whole, resumed = (without_clock(payload(tmp_path / name)) for name in ("whole", "run"))
    assert differing(whole, resumed) == []
