"""Learning rates against hand arithmetic and torch's plateau."""

from __future__ import annotations

import pytest
import torch

from senet.config.options import ScheduleConfig
from senet.training.schedule import Plateau, lr_at


def rates(schedule: ScheduleConfig, epochs: int, lr: float = 1.0, steps_per_epoch: int = 2) -> list[float]:
    return [
        lr_at(step, schedule, lr=lr, steps_per_epoch=steps_per_epoch, epochs=epochs)
        for step in range(epochs * steps_per_epoch)
    ]


def test_constant_with_warm_up() -> None:
    schedule = ScheduleConfig(name="constant", warmup_epochs=2)
    assert rates(schedule, 3, lr=0.4) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_multistep_changes_at_the_end_of_its_epochs() -> None:
    schedule = ScheduleConfig(name="multistep", milestones=(1, 3), gamma=0.1)
    assert rates(schedule, 4) == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_is_the_one_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    expected = []
    for _ in range(10):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert rates(ScheduleConfig(name="cosine"), 5, lr=0.3) == pytest.approx(expected)


def test_onecycle_rises_to_its_peak_and_falls_towards_zero() -> None:
    assert rates(ScheduleConfig(name="onecycle", peak_at=0.4), 5) == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    )


def test_plateau_is_the_one_of_torch() -> None:
    losses = [1.0, 0.9, 0.95, 0.91, 0.899999, 0.9, 0.9, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.4, 0.4]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=1, min_lr=1e-3)
    schedule = ScheduleConfig(name="constant", plateau=True, plateau_factor=0.3, plateau_min_lr=1e-3)
    plateau = Plateau()
    for loss in losses:
        reference.step(loss)
        plateau.update(loss, schedule, lr=0.1)
        assert 0.1 * plateau.factor == pytest.approx(optimizer.param_groups[0]["lr"]), loss
    assert 0.1 * plateau.factor == pytest.approx(1e-3)  # the floor was reached
