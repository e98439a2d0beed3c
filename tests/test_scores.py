"""Sums and rows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

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
