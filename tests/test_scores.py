"""Sums and rows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from senet.training.rows import epoch_line, result_line
from senet.training.scores import Scores, Tally

CPU = torch.device("cpu")


def test_scores_are_those_of_a_loop() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(37, 10), torch.randint(0, 10, (37,))
    tally = Tally(CPU)
    for part in (slice(0, 16), slice(16, 37)):
        tally.add(F.cross_entropy(logits[part], labels[part]), logits[part], labels[part])
    scores = Scores.from_sums(tally.take().tolist(), 10)
    ranks = [(row > row[label]).sum().item() for row, label in zip(logits, labels, strict=True)]
    assert scores.num_images == 37
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-6)
    assert scores.top1 == pytest.approx(100 * sum(r < 1 for r in ranks) / 37)
    assert scores.top5 == pytest.approx(100 * sum(r < 5 for r in ranks) / 37)


def test_sums_do_not_depend_on_their_order() -> None:
    torch.manual_seed(1)
    batches = [(torch.rand(()) * 5, torch.randn(12, 10), torch.randint(0, 10, (12,))) for _ in range(50)]
    one = Tally(CPU)
    for batch in batches:
        one.add(*batch)
    halves = [Tally(CPU), Tally(CPU)]
    for index, batch in enumerate(reversed(batches)):
        halves[index % 2].add(*batch)
    assert torch.equal(one.take(), halves[0].take() + halves[1].take())
    assert not one.take().any()


def test_a_loss_that_is_not_finite_is_not_hidden() -> None:
    tally = Tally(CPU)
    for loss in (1.0, math.nan, 2.0, math.inf):
        tally.add(torch.tensor(loss), torch.randn(8, 10), torch.zeros(8, dtype=torch.long))
    scores = Scores.from_sums(tally.take().tolist(), 10)
    assert math.isnan(scores.loss)
    assert scores.num_images == 32


def test_five_classes_have_no_top5() -> None:
    tally = Tally(CPU)
    tally.add(torch.tensor(1.0), torch.randn(4, 5), torch.zeros(4, dtype=torch.long))
    scores = Scores.from_sums(tally.take().tolist(), 5)
    assert scores.top5 is None
    assert "test_top5" not in scores.row("test")


def test_with_many_classes_the_lines_of_a_training_have_the_top5_accuracy_where_a_row_has_it() -> None:
    row = {"epoch": 2, "train_loss": 1.0, "train_top1": 50.0, "train_top5": 75.0, "test_loss": 2.0, "test_top1": 60.0}
    row |= {"test_top5": 80.0, "ema_loss": 1.5, "ema_top1": 70.0, "ema_top5": 90.0, "lr": 0.1, "images_per_s": 10.0}
    row |= {"epoch_s": 5.0, "train_s": 9.0, "weights": "averaged", "best_top1": 70.0, "best_epoch": 2}
    few = "epoch 2/3  train 1.0000 50.00 %  test 2.0000 60.00 %, ema 1.5000 70.00 %  lr 0.1  10 images/s  5 s"
    many = few.replace("60.00 %", "60.00 %, 80.00 % top-5").replace("70.00 %", "70.00 %, 90.00 % top-5")
    assert (epoch_line(row, 3, 20), epoch_line(row, 3, 21)) == (few, many)
    assert result_line(row, "9 test images", 21).startswith("70.00 % top-1, 90.00 % top-5 (averaged weights 70.00 %, ")
    assert result_line(row, "9 test images", 20).startswith("70.00 % top-1 (averaged weights 70.00 %, raw")
    older = {key: value for key, value in row.items() if "top5" not in key}
    assert epoch_line(older, 3, 1000) == few
