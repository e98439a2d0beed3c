"""The counters that cannot be computed from (configuration, step), and how a run ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from senet.config.options import TrainConfig
from senet.training.schedule import Plateau


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    state: Literal["finished", "stopped"]
    step: int
    result: dict[str, Any]
    """The row of the last finished epoch."""
    reason: str = ""
    """Why it finished before its last epoch."""


@dataclass
class TrainState:
    """The trainer's own part of a checkpoint. Sums are integers (see ``scores.Tally``): the order of adding, the number
    of ranks and restarts do not change them."""

    step: int = 0
    """Updates done."""
    epochs_done: int = 0
    """Epochs trained and evaluated. While an epoch is evaluated, it does not count yet."""
    epoch_sums: list[int] = field(default_factory=list)
    """Of this epoch so far, over all ranks."""
    logged_sums: list[int] = field(default_factory=list)
    """The part of ``epoch_sums`` that has rows in metrics.jsonl."""
    skipped_steps: int = 0
    """Updates that fp16's scaler left out because a gradient overflowed."""
    train_s: float = 0.0
    """Seconds spent training, without evaluation."""
    logged_s: float = 0.0
    """The part of ``train_s`` that has rows in metrics.jsonl."""
    epoch_s: float = 0.0
    """The part of ``train_s`` that was spent in this epoch."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds in each phase of work (``rundir.phases.WORK``), over all starts, up to the last checkpoint."""
    best_top1: float = -1.0
    """Best test accuracy so far, in percent, of the weights that were the result at that time."""
    best_epoch: int = 0
    """The epoch with ``best_top1``, of several the one with the lowest test loss; 1 is the first."""
    best_loss: float = math.inf
    """Of ``best_epoch``."""
    best_since: int = 0
    """The first epoch with ``best_top1``."""
    last_result: dict[str, Any] = field(default_factory=dict)
    """The row of the last finished epoch."""
    plateau: Plateau = field(default_factory=Plateau)

    def count(self, sums: Sequence[int], seconds: float) -> None:
        """Add what all ranks have counted, and the seconds that it took, since the last call."""
        self.epoch_sums = [a + b for a, b in zip(self.epoch_sums or [0] * len(sums), sums, strict=True)]
        self.logged_sums = self.logged_sums or [0] * len(sums)
        self.train_s += seconds
        self.epoch_s += seconds

    def take_interval(self) -> tuple[list[int], float]:
        """Sums and seconds since the last row of metrics.jsonl. The next interval begins here."""
        sums = [now - then for now, then in zip(self.epoch_sums, self.logged_sums, strict=True)]
        seconds = self.train_s - self.logged_s
        self.logged_sums, self.logged_s = list(self.epoch_sums), self.train_s
        return sums, seconds

    def judge(self, top1: float, loss: float) -> bool:
        """Whether the epoch that was just counted in ``epochs_done`` is the best so far. With few test images many have
        equal accuracies."""
        loss = math.inf if math.isnan(loss) else loss
        if top1 > self.best_top1:
            self.best_since = self.epochs_done
        elif top1 < self.best_top1 or not loss < self.best_loss:
            return False
        self.best_top1, self.best_epoch, self.best_loss = top1, self.epochs_done, loss
        return True

    def is_over(self, train: TrainConfig) -> bool:
        """Whether nothing is left to train."""
        return self.epochs_done >= train.epochs or bool(self.impatience(train))

    def impatience(self, train: TrainConfig) -> str:
        """Why the run ends before its last epoch; empty: it does not."""
        in_vain = self.epochs_done - self.best_since
        if not 0 < train.patience <= in_vain or self.epochs_done >= train.epochs:
            return ""
        return f"no better accuracy on the held-out images in {in_vain} epochs after epoch {self.best_since}"

    def begin_epoch(self, last_result: dict[str, Any]) -> None:
        """Keep the row of the epoch before, and count from zero again."""
        self.last_result = last_result
        self.epoch_sums, self.logged_sums = [], []
        self.epoch_s, self.logged_s = 0.0, self.train_s

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, content: dict[str, Any]) -> TrainState:
        """Unknown fields, of another version, are ignored. Missing ones get their defaults; what is the best so far
        stays that of an older version until an epoch is more accurate."""
        content = {"best_since": content.get("best_epoch", 0), "best_loss": -math.inf} | content
        known = {f.name for f in fields(cls)} - {"plateau"}
        state = cls(**{key: value for key, value in content.items() if key in known})
        state.plateau = Plateau(**content["plateau"])
        return state
