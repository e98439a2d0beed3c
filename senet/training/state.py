"""The counters that cannot be computed from (configuration, step)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from senet.training.schedule import Plateau


@dataclass
class TrainState:
    """The trainer's own part of a checkpoint. Sums are integers (see ``metrics.Tally``), so no order of adding
    them, no number of ranks and no restart changes them."""

    step: int = 0
    """Updates done."""
    epochs_done: int = 0
    """Epochs trained and evaluated; while an epoch is being evaluated it is one less than step says."""
    epoch_sums: list[int] = field(default_factory=list)
    """Of this epoch so far, over all ranks."""
    logged_sums: list[int] = field(default_factory=list)
    """The part of ``epoch_sums`` that metrics.jsonl has rows of."""
    skipped_steps: int = 0
    """Updates that fp16's scaler left out because a gradient overflowed."""
    train_s: float = 0.0
    """Seconds spent training, evaluation left out."""
    logged_s: float = 0.0
    """The part of ``train_s`` that metrics.jsonl has rows of."""
    epoch_s: float = 0.0
    """The part of ``train_s`` that went into this epoch."""
    best_top1: float = -1.0
    """Best test accuracy so far, of the weights that counted then, in percent."""
    best_epoch: int = 0
    """The epoch (1 is the first) it was reached in."""
    last_result: dict[str, Any] = field(default_factory=dict)
    """The row of the last finished epoch."""
    plateau: Plateau = field(default_factory=Plateau)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, content: dict[str, Any]) -> TrainState:
        """Fields that a younger version wrote and this one does not know are ignored; missing ones have defaults."""
        known = {f.name for f in fields(cls)} - {"plateau"}
        state = cls(**{key: value for key, value in content.items() if key in known})
        state.plateau = Plateau(**content["plateau"])
        return state
