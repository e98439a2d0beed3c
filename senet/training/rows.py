"""The rows of metrics.jsonl, and the lines that a person reads of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from senet.rundir.history import judged
from senet.training.scores import Scores
from senet.training.state import TrainState

Row = dict[str, Any]
_FEW_CLASSES = 20  # up to here, five guesses are so many that a person learns little from how often one is right


def interval_row(
    state: TrainState, train: Scores, seconds: float, lr: float, grad_norm: float, memory_gb: Mapping[str, float]
) -> Row:
    """kind "train": one log interval, which took so many seconds; ``lr`` and ``grad_norm`` are those of its last
    update. The latter is left out where fp16's gradients overflowed: JSON has no infinity."""
    norm = {"grad_norm": grad_norm} if math.isfinite(grad_norm) else {}
    row = train.row("train") | {"lr": lr, "images_per_s": train.num_images / seconds, "train_s": state.train_s}
    return {**row, **norm, **memory_gb}


def epoch_row(state: TrainState, train: Scores, results: Mapping[str, Scores], lr: float, weights: str) -> Row:
    """kind "epoch": one epoch, with the scores of each evaluated network ("test": raw weights, "ema": averaged)."""
    row: Row = {"epoch": state.epochs_done, **train.row("train")}
    for name, scores in results.items():
        row |= scores.row(name)
    return row | {
        "lr": lr,
        "images_per_s": train.num_images / state.epoch_s,
        "epoch_s": state.epoch_s,
        "train_s": state.train_s,
        "skipped_steps": state.skipped_steps,
        "weights": weights,
        "best_top1": state.best_top1,
        "best_epoch": state.best_epoch,
    }


def interval_line(row: Row, step: int, total_steps: int) -> str:
    """Of ``interval_row``."""
    return (
        f"step {step}/{total_steps}  loss {row['train_loss']:.4f}  top-1 {row['train_top1']:.2f} %  "
        f"lr {row['lr']:.4g}  {row['images_per_s']:.0f} images/s{_mfu(row)}"
    )


def epoch_line(row: Row, epochs: int, num_classes: int) -> str:
    """Of ``epoch_row``; with more than 20 classes, top-5 of the test images too."""

    def scored(name: str) -> str:
        return f"{row[f'{name}_loss']:.4f} {row[f'{name}_top1']:.2f} %{_top5(row, name, num_classes)}"

    ema = f", ema {scored('ema')}" if "ema_loss" in row else ""
    return (
        f"epoch {row['epoch']}/{epochs}  train {row['train_loss']:.4f} {row['train_top1']:.2f} %  "
        f"test {scored('test')}{ema}  lr {row['lr']:.4g}  "
        f"{row['images_per_s']:.0f} images/s{_mfu(row)}  {row['epoch_s']:.0f} s"
    )


def result_line(row: Row, images: str, num_classes: int) -> str:
    """Of the last ``epoch_row`` of a run; ``images``: how many of which it was evaluated on. Top-5 as there."""
    which = judged(row)
    weights = ""
    if "ema_top1" in row:
        both = {"ema": f"averaged weights {row['ema_top1']:.2f} %", "test": f"raw weights {row['test_top1']:.2f} %"}
        weights = f"{both.pop(which)}, {both.popitem()[1]}; "
    return (
        f"{row[f'{which}_top1']:.2f} % top-1{_top5(row, which, num_classes)} ({weights}{images}), best "
        f"{row['best_top1']:.2f} % after epoch {row['best_epoch']}; {row['train_s']:.0f} s of training"
    )


def _top5(row: Row, name: str, num_classes: int) -> str:
    """Of a row that has it: an older version's may not."""
    return f", {row[f'{name}_top5']:.2f} % top-5" if num_classes > _FEW_CLASSES and f"{name}_top5" in row else ""


def _mfu(row: Row) -> str:
    return f"  MFU {row['mfu']:.1%}" if "mfu" in row else ""
