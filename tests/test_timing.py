"""What counts as training time, wherever a run is stopped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from senet.training.trainer import Trainer
from tests.conftest import Train
from tests.harness import StopAt, payload, rows

STEPS = 22  # in an epoch of the small run


class Clock:
    """Stands still but in a step, which takes a second, and in an evaluation, which takes a hundred."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("senet.distributed.timing.time", SimpleNamespace(perf_counter=lambda: self.now_s))
        for name, seconds in (("train_step", 1.0), ("evaluate", 100.0)):
            monkeypatch.setattr(Trainer, name, self._taking(seconds, getattr(Trainer, name)))

    def _taking(self, seconds: float, method: Any) -> Any:
        def timed(*args: Any) -> Any:
            self.now_s += seconds
            return method(*args)

        return timed


@pytest.mark.parametrize("stop", [12, STEPS - 1, STEPS, STEPS + 2])
def test_a_stop_at_any_step_or_in_the_evaluation_loses_no_time_and_adds_none(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    Clock(monkeypatch)
    options = ("model.name=tests.networks:no_norm", "train.epochs=1", "log.every_steps=15")
    options += ("train.eval_batch_size=100",)  # four batches: it can be left
    assert train_here(tmp_path, *options, stop=StopAt(stop)).step == min(stop + 1, STEPS)
    stopped = payload(tmp_path)["state"]
    assert stopped["epoch_s"] == stopped["train_s"] == stopped["step"]
    monkeypatch.setattr(Trainer, "finish_epoch", _killed)
    with pytest.raises(KeyboardInterrupt):  # killed in the evaluation
        train_here(tmp_path, *options)
    monkeypatch.undo()
    Clock(monkeypatch)
    train_here(tmp_path, *options)
    train_here(tmp_path, *options)  # a finished run, asked once more
    found = [(row["epoch_s"], row["train_s"], row["images_per_s"]) for row in rows(tmp_path, "epoch")]
    assert found == [(STEPS, STEPS, 64.0)]
    assert [row["images_per_s"] for row in rows(tmp_path)] == [64.0]


def _killed(_: Trainer) -> None:
    raise KeyboardInterrupt
