"""A run that ends when the held-out images show no more improvement; the norm of gradients and memory in the rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from senet.config.options import TrainConfig
from senet.distributed.devices import memory_gb
from senet.errors import ConfigError
from senet.training import trainer
from senet.training.state import TrainState
from tests.conftest import Train
from tests.harness import StopAt, checkpoints, differing, payload, rows, status, tiny_config, without_clock

OPTIONS = ("model.name=tests.networks:no_norm", "train.amp=off", "data.holdout=100", "train.epochs=9")
LOW = (*OPTIONS, "optim.lr=1e-9", "train.ema_decay=0")  # learns nothing: no epoch is better than the first


def ends_after(top1: list[float], patience: int, epochs: int = 100) -> int:
    state, train = TrainState(), TrainConfig(patience=patience, epochs=epochs)
    for each in top1:
        if state.is_over(train):
            break
        state.epochs_done += 1
        state.judge(each, 1.0 / state.epochs_done)
    return state.epochs_done


@pytest.mark.parametrize(
    ("patience", "epochs", "expected"), [(0, 100, 8), (1, 100, 3), (2, 100, 6), (3, 100, 7), (4, 100, 8), (2, 4, 4)]
)
def test_patience_counts_epochs_since_the_best(patience: int, epochs: int, expected: int) -> None:
    assert ends_after([50, 60, 60, 70, 69, 70, 70, 75], patience, epochs) == expected


def test_the_test_images_do_not_end_a_run() -> None:
    with pytest.raises(ConfigError, match=r"train\.patience=3 without data\.holdout .*e\.g\. data\.holdout=5000"):
        tiny_config("train.patience=3")


def test_a_run_without_improvement_finishes_and_says_why(
    train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = train_here(tmp_path, *LOW, "train.patience=2")
    assert (summary.state, len(rows(tmp_path, "epoch"))) == ("finished", 3)
    reason = "no better accuracy on the held-out images in 2 epochs after epoch 1"
    assert (status(tmp_path)["state"], status(tmp_path)["reason"]) == ("finished", reason)
    assert f"finished early, {reason}: " in capsys.readouterr().out
    before = checkpoints(tmp_path), (tmp_path / "metrics.jsonl").read_bytes()
    assert train_here(tmp_path, *LOW, "train.patience=2") == summary
    assert (checkpoints(tmp_path), (tmp_path / "metrics.jsonl").read_bytes()) == before
    more = "resume.allow_changes=true"
    with pytest.raises(ConfigError, match=r"train\.patience: 2 -> 4"):
        train_here(tmp_path, *LOW, "train.patience=4")
    train_here(tmp_path, *LOW, "train.patience=4", more)
    assert len(rows(tmp_path, "epoch")) == 5
    assert train_here(tmp_path, *LOW, more).reason == ""
    assert len(rows(tmp_path, "epoch")) == 9


@pytest.mark.parametrize("stop", [5, 21, 22, 24, 63, 64, 66])
def test_a_stop_anywhere_does_not_change_the_last_epoch(stop: int, train_here: Train, tmp_path: Path) -> None:
    """21 updates an epoch, with 5 evaluations' votes between: stops in epochs, evaluations and around the last one."""
    train_here(tmp_path / "whole", *LOW, "train.patience=2")
    train_here(tmp_path / "parts", *LOW, "train.patience=2", stop=StopAt(stop))
    train_here(tmp_path / "parts", *LOW, "train.patience=2")
    whole, parts = (without_clock(payload(tmp_path / name)) for name in ("whole", "parts"))
    assert differing(whole, parts) == []
    assert whole["state"]["epochs_done"] == 3


def test_an_improvement_at_any_time_goes_on(train_here: Train, tmp_path: Path) -> None:
    """The run is that without patience, up to its end."""
    options = (*OPTIONS, "train.epochs=4", "train.ema_decay=0")
    train_here(tmp_path / "with", *options, "train.patience=3")
    train_here(tmp_path / "without", *options)
    best = [row["best_epoch"] for row in rows(tmp_path / "without", "epoch")]
    assert best[0] < best[-1]
    assert differing(payload(tmp_path / "with")["model"], payload(tmp_path / "without")["model"]) == []


@pytest.mark.parametrize(
    ("amp", "options"),
    [
        ("off", ""),
        ("off", "train.clip_norm=0.01"),
        ("off", "train.shards=4"),
        ("off", "train.accumulate=2"),
        ("fp16", ""),
    ],
)
def test_the_norm_in_a_row_is_that_of_the_gradients_of_its_last_update(
    amp: str, options: str, train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they are clipped, without the scale of fp16."""
    found: list[float] = []
    original = trainer.Trainer._clip

    def noting(self: Any) -> None:
        gradients = [p.grad.flatten().double() for p in self.learner.network.parameters() if p.grad is not None]
        found.append(float(torch.cat(gradients).norm()) / self.learner.scaler.get_scale())
        original(self)

    monkeypatch.setattr(trainer.Trainer, "_clip", noting)
    given = ("model.name=tests.networks:no_norm", "train.epochs=1", f"train.amp={amp}", "log.every_steps=3")
    train_here(tmp_path, *given, *options.split())
    logged = {row["step"]: row.get("grad_norm") for row in rows(tmp_path)}
    assert list(logged) == list(range(3, 23, 3))
    expected = {step: found[step - 1] for step in logged}
    assert logged == pytest.approx({s: e if math.isfinite(e) else None for s, e in expected.items()}, rel=1e-4)
    assert any(value is not None for value in logged.values())


def test_the_norm_changes_no_bit_and_is_taken_for_rows_alone(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    original = trainer.Learner.gradient_norm
    monkeypatch.setattr(trainer.Learner, "gradient_norm", lambda self: taken.append(1) or original(self))
    for every in (1, 10, 1000):
        train_here(tmp_path / str(every), "train.epochs=1", f"log.every_steps={every}")
    assert len(taken) == 22 + 2
    one, *others = (payload(tmp_path / str(every))["model"] for every in (1, 10, 1000))
    assert [differing(one, other) for other in others] == [[], []]


def test_memory_is_that_of_this_process() -> None:
    before = memory_gb(torch.device("cpu"))["memory_gb"]
    held = nn.Linear(1, 1), torch.ones(100_000_000)  # 0.4 GB
    assert memory_gb(torch.device("cpu"))["memory_gb"] - before == pytest.approx(0.4, abs=0.05)
    del held
