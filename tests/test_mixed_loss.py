"""The loss of mixed images, and trainings with all random changes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from senet.config.options import AugmentConfig, Config, TrainConfig
from senet.config.shares import check_split, most_ranks
from senet.errors import ConfigError
from senet.training.losses import build_loss
from tests.conftest import Train
from tests.harness import (
    StopAt,
    differing,
    payload,
    rows,
    tiny_config,
    train_on_ranks,
    without_clock,
)

EVERYTHING = (
    "model.name=tests.networks:no_norm", "train.amp=off", "augment.trivial=true", "augment.erase=0.5",
    "augment.color_jitter=[0.4,0.4,0.4,0.1]", "augment.mixup=0.2", "augment.cutmix=1",
    "augment.small_size=16", "data.image_size=32", "augment.small_epochs=1",
)  # fmt: skip


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, targets, keys, shares of eight images; and the targets with those of the neighbours, [8, 5]."""
    logits = 3 * torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 2, 4, 3, 1, 0])
    return logits, targets, torch.arange(8), torch.tensor([0.5, 0.5, 0.7, 0.7, 0.9, 0.9, 1.0, 1.0])


def soft_targets(targets: Tensor, shares: Tensor) -> Tensor:
    own, other = (F.one_hot(each, 5).float() for each in (targets, targets[torch.arange(8) ^ 1]))
    return shares[:, None] * own + (1 - shares[:, None]) * other


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_images_is_the_cross_entropy_with_mixed_targets(smoothing: float) -> None:
    logits, targets, keys, shares = batch()
    soft = soft_targets(targets, shares) * (1 - smoothing) + smoothing / 5
    expected = -(soft * logits.log_softmax(1)).sum(1)
    config = TrainConfig(label_smoothing=smoothing)
    torch.testing.assert_close(build_loss(config, None, "sum")(logits, targets, keys, shares), expected.sum())
    torch.testing.assert_close(build_loss(config, None, "mean")(logits, targets, keys, shares), expected.mean())
    alone = build_loss(config, None, "mean")(logits, targets, keys)
    assert torch.equal(alone, F.cross_entropy(logits, targets, label_smoothing=smoothing))


def test_each_target_of_a_mixed_image_has_the_weight_of_its_class() -> None:
    logits, targets, keys, shares = batch()
    weights = torch.tensor([1.0, 2.0, 0.5, 4.0, 1.5])
    expected = -(soft_targets(targets, shares) * weights * logits.log_softmax(1)).sum()
    loss = build_loss(TrainConfig(label_smoothing=0), weights, "sum")
    torch.testing.assert_close(loss(logits, targets, keys, shares), expected)


def test_a_loss_of_ones_own_is_called_for_both_targets() -> None:
    logits, targets, keys, shares = batch()
    own = build_loss(TrainConfig(label_smoothing=0, loss="tests.functions:cross_entropies"), None, "mean")
    plain = build_loss(TrainConfig(label_smoothing=0), None, "mean")
    torch.testing.assert_close(own(logits, targets, keys, shares), plain(logits, targets, keys, shares))


@pytest.mark.parametrize(
    ("options", "world_size", "message"),
    [
        (
            "augment.mixup=0.2 train.global_batch_size=63",
            1,
            "1 rank x 1 micro-batch in pairs of images, which augment.mixup=0.2 mixes; use a multiple of 2, e.g. 64",
        ),
        (
            "augment.mixup=0.2 augment.cutmix=1 train.global_batch_size=60 train.accumulate=3",
            4,
            "in pairs of images, which augment.mixup=0.2 and augment.cutmix=1.0 mix; use a multiple of 24, e.g. 48",
        ),
        (
            "augment.cutmix=1 train.global_batch_size=40 train.shards=8",
            2,
            "train.shards=8 x 1 micro-batch in pairs of images, which augment.cutmix=1.0 mixes; use a multiple of 16",
        ),
        ("augment.color_jitter=[0,0,0,0.6]", 1, "a change of hue by 0.6 is more than half a turn; use at most 0.5"),
    ],
)
def test_what_cannot_be_mixed_or_changed_is_refused(options: str, world_size: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(*options.split(), world_size=world_size)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("batch_size", "mixup", "expected"), [(64, 0.2, 8), (12, 0.2, 6), (12, 0, 6), (8, 0.2, 4)])
def test_as_many_ranks_are_taken_as_have_whole_pairs(batch_size: int, mixup: float, expected: int) -> None:
    config = Config(train=TrainConfig(global_batch_size=batch_size), augment=AugmentConfig(mixup=mixup))
    assert most_ranks(config, 8) == expected
    check_split(config, expected)


@pytest.mark.parametrize("options", ["train.accumulate=2", "train.shards=4"])
def test_a_training_with_all_changes_is_resumed_bit_for_bit(options: str, train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path / "whole", *EVERYTHING, options)
    for stop in (StopAt(7), StopAt(28), StopAt(10**6)):
        train_here(tmp_path / "parts", *EVERYTHING, options, stop=stop)
    assert differing(without_clock(payload(tmp_path / "whole")), without_clock(payload(tmp_path / "parts"))) == []
    assert math.isfinite(rows(tmp_path / "whole", "epoch")[-1]["train_loss"])


@pytest.mark.ranks
@pytest.mark.slow
def test_a_training_with_all_changes_has_the_same_bits_on_one_two_and_four_ranks(
    data_root: Path, tmp_path: Path
) -> None:
    train_on_ranks((1, 2, 4), data_root, tmp_path, *EVERYTHING, "train.shards=4")
    first, *others = (without_clock(payload(tmp_path / ranks)) for ranks in ("1", "2", "4"))
    assert [differing(first, other) for other in others] == [[], []]
