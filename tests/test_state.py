"""The counters of a training, by hand."""

from __future__ import annotations

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


def test_the_best_epoch_is_the_first_of_equal_ones() -> None:
    state = TrainState()
    found = []
    for state.epochs_done, top1 in enumerate([50.0, 60.0, 60.0, 55.0, 61.0], start=1):
        found.append((state.judge(top1), state.best_epoch, state.best_top1))
    assert found == [(True, 1, 50.0), (True, 2, 60.0), (False, 2, 60.0), (False, 2, 60.0), (True, 5, 61.0)]
