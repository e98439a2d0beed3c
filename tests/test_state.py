"""The counters of a training, by hand."""

from __future__ import annotations

import math

import pytest

from senet.config.options import TrainConfig
from senet.training.state import TrainState


def test_an_interval_holds_what_was_counted_since_the_last_one_and_an_epoch_all_of_it() -> None:
    state = TrainState()
    state.count([64, 900, 10, 30], 2.0)
    state.count([64, 700, 20, 40], 1.0)
    assert state.take_interval() == ([128, 1600, 30, 70], 3.0)
    state.count([64, 500, 30, 50], 4.0)
    resumed = TrainState.from_state_dict(state.state_dict())  # a checkpoint between two rows
    assert resumed.take_interval() == ([64, 500, 30, 50], 4.0)
    assert (resumed.epoch_sums, resumed.epoch_s) == ([192, 2100, 60, 120], 7.0)
    resumed.count([64, 400, 0, 0], 1.0)  # after the last row of the epoch
    resumed.begin_epoch({"epoch": 1})
    resumed.count([64, 300, 40, 60], 0.5)
    assert resumed.take_interval() == ([64, 300, 40, 60], 0.5)
    assert (resumed.epoch_s, resumed.train_s, resumed.last_result) == (0.5, 8.5, {"epoch": 1})


def test_of_epochs_with_the_best_accuracy_that_with_the_lowest_loss_is_the_best() -> None:
    state, found = TrainState(), []
    judged = [(50.0, 2.0), (60.0, 1.9), (60.0, 1.9), (60.0, 1.5), (55.0, 1.0), (60.0, math.nan), (61.0, math.nan)]
    judged.append((61.0, 3.0))
    for state.epochs_done, (top1, loss) in enumerate(judged, start=1):
        found.append((state.judge(top1, loss), state.best_epoch, state.best_since))
    assert [is_best for is_best, *_ in found] == [True, True, False, True, False, False, True, True]
    assert [best for _, *best in found] == [[1, 1], [2, 2], [2, 2], [4, 2], [4, 2], [4, 2], [7, 7], [8, 7]]
    assert (state.best_top1, state.best_loss) == (61.0, 3.0)


@pytest.mark.parametrize(("top1", "loss"), [(59.0, 1.0), (60.0, 0.1)])
def test_a_state_of_an_older_version_has_patience_from_its_best_epoch_on(top1: float, loss: float) -> None:
    older = TrainState(epochs_done=9, best_top1=60.0, best_epoch=7, best_since=7).state_dict()
    del older["best_since"], older["best_loss"]
    state, train = TrainState.from_state_dict(older), TrainConfig(patience=3, epochs=20)
    assert not state.is_over(train)
    state.epochs_done += 1
    assert not state.judge(top1, loss)
    assert state.best_epoch == 7
    assert state.impatience(train) == "no better accuracy on the held-out images in 3 epochs after epoch 7"
