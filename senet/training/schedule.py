"""The learning rate as a pure function of the step. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from senet.config.options import ScheduleConfig

PLATEAU_THRESHOLD = 1e-4  # relative, as in torch.optim.lr_scheduler.ReduceLROnPlateau


def lr_at(step: int, schedule: ScheduleConfig, *, lr: float, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of update ``step`` (0 is the first), without the plateau's factor.

    Warm-up rises as (step + 1) / warm-up steps. Then, with t counting from its end and T steps left in all:
    cosine is (1 + cos(pi t / T)) / 2 (Loshchilov & Hutter, SGDR, 2017, eq. 5, one cycle); onecycle rises as
    (t + 1) / p up to p = peak_at * T, then falls as (T - t) / (T - p).
    """
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    t, total = step - warmup_steps, epochs * steps_per_epoch - warmup_steps
    if schedule.name == "cosine":
        return lr * (1 + math.cos(math.pi * t / total)) / 2
    if schedule.name == "onecycle":
        peak = max(1, round(schedule.peak_at * total))
        return lr * ((t + 1) / peak if t < peak else (total - t) / (total - peak))
    if schedule.name == "multistep":
        return lr * schedule.gamma ** sum(step >= epoch * steps_per_epoch for epoch in schedule.milestones)
    return lr


@dataclass
class Plateau:
    """The state of ReduceLROnPlateau: a factor on top of any schedule. Changes once per epoch."""

    factor: float = 1.0
    best: float = math.inf
    bad_epochs: int = 0

    def update(self, loss: float, schedule: ScheduleConfig, lr: float) -> None:
        """Count an epoch with this training loss. After more than ``plateau_patience`` bad ones, lower the factor."""
        if loss < self.best * (1 - PLATEAU_THRESHOLD):
            self.best, self.bad_epochs = loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > schedule.plateau_patience:
            floor = min(1.0, schedule.plateau_min_lr / lr) if lr else 1.0
            self.factor = max(self.factor * schedule.plateau_factor, floor)
            self.bad_epochs = 0
