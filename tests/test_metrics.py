"""Sums and rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from senet.metrics import Scores, Tally, Writer
from tests.harness import rows

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


def test_rows_past_the_resumed_step_are_cut(tmp_path: Path) -> None:
    writer = Writer(tmp_path, resumed_step=0, epochs_done=0, tensorboard=False)
    for step in range(1, 9):
        writer.write("train", step, loss=1.0)
        if step % 4 == 0:
            writer.write("epoch", step, epoch=step // 4)
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a kill in the middle of a row
    writer = Writer(tmp_path, resumed_step=4, epochs_done=0, tensorboard=False)  # stopped in the first evaluation
    writer.write("train", 5, loss=2.0)
    writer.close()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2)]
    assert rows(tmp_path, "epoch") == []
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_tensorboard_shows_losses_in_one_chart_no_counters_and_first_the_options_that_are_not_defaults(
    tmp_path: Path,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, parse_experiment_plugin_data

    writer = Writer(tmp_path, resumed_step=0, epochs_done=0, tensorboard=True)
    writer.write("train", 2, train_loss=2.5, train_s=1.0)
    losses = {"train_loss": 2.0, "test_loss": 1.5, "ema_loss": 1.0}
    writer.write("epoch", 4, epoch=1, **losses, epoch_s=2.0, best_top1=90.0, best_epoch=1, weights="raw")
    options = {"a": [1], "b": 0.1, "c": "x", "d": True}
    writer.final(options, {"test_loss": 1.5}, first={"b", "d"})
    writer.close()
    seen = {}
    for folder in ("train", "train_epoch", "test", "ema", ""):
        events = EventAccumulator(str(tmp_path / "tensorboard" / folder))
        events.Reload()
        scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        seen[folder] = {tag: [(event.step, event.value) for event in scalars[tag]] for tag in scalars}
    assert [seen.pop(name) for name in ("train", "train_epoch", "test", "ema")] == [
        {"loss": [(step, loss)]} for step, loss in ((2, 2.5), (4, 2.0), (4, 1.5), (4, 1.0))
    ]
    assert seen[""].keys() == {"train/train_s", "epoch/epoch_s", "epoch/best_top1", "final/test_loss"}
    columns = parse_experiment_plugin_data(events.SummaryMetadata(EXPERIMENT_TAG).plugin_data.content).hparam_infos
    assert {column.name: column.differs for column in columns} == {"a": False, "b": True, "c": False, "d": True}


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = Writer(None, resumed_step=0, epochs_done=0, tensorboard=True)
    writer.write("train", 1, loss=1.0)
    writer.sync()
    writer.close()
    assert list(tmp_path.iterdir()) == []
