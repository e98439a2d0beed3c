"""A loss and changes of images of one's own; weights of classes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from senet import REPOSITORY
from senet.config.options import TrainConfig
from senet.data.augment import Preprocess
from senet.data.balance import class_weights
from senet.data.samplers import ImageData
from senet.data.splits import Split
from senet.errors import ConfigError
from senet.training.losses import build_loss
from tests import functions
from tests.conftest import Train
from tests.documents import blocks
from tests.harness import (
    StopAt,
    differing,
    payload,
    rows,
    tiny_config,
    train_on_ranks,
    without_clock,
)

LIGHT = ("model.name=tests.networks:no_norm", "train.amp=off")
OWN = (
    "train.loss=tests.functions:random_loss",
    "train.label_smoothing=0",
    "augment.extra=tests.functions:contrast",
    "train.class_balance=1",
    "train.class_weights.3=2",
    "data.balance=0.5",
)
"""All that a pure function of (seed, epoch, sample) decides; it would differ if it depended on the rank."""


def weights_of(labels: list[int], balance: float = 0.0, **options: Any) -> list[float] | None:
    split = Split(torch.zeros(len(labels), 1, 1, 3, dtype=torch.uint8).numpy(), torch.tensor(labels).numpy())
    found = class_weights(TrainConfig(**options), ImageData(split, split, ("cat", "dog", "rare"), ""), balance)
    return None if found is None else found.tolist()


def test_weights_of_classes_are_those_by_hand() -> None:
    labels = [0] * 6 + [1] * 3  # and none of the third
    assert weights_of(labels) is None
    # n / (classes that are there * n of the class), scikit-learn's "balanced"
    assert weights_of(labels, class_balance=1.0) == pytest.approx([9 / 12, 9 / 6, 4.5])
    root = [6**-0.5, 3**-0.5]
    assert weights_of(labels, class_balance=0.5)[:2] == pytest.approx(  # type: ignore[index]
        [each * 9 / (6 * root[0] + 3 * root[1]) for each in root]
    )
    by_draws = weights_of(labels, balance=1.0, class_weights={"dog": 4.0})  # 5 and 4 of 9
    assert by_draws == pytest.approx([each * 9 / (5 * 1 + 4 * 4) for each in (1, 4, 1)])
    assert weights_of(labels, class_weights={"dog": 4.0}) == pytest.approx([1 / 2, 2, 1 / 2])
    assert weights_of(labels, class_weights={"dog": 4.0}, class_balance=1.0) == pytest.approx([0.3, 2.4, 1.8])
    with pytest.raises(ConfigError, match=r"train\.class_weights\.dgo: no class of the data; did you mean 'dog'\?"):
        weights_of(labels, class_weights={"dgo": 1.0})


@pytest.mark.parametrize("parts", [1, 3])
def test_a_weighted_loss_is_the_one_by_hand_in_parts_or_at_once(parts: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(12, 3, generator=generator), torch.arange(12) % 3
    weights, keys = torch.tensor([0.5, 1.0, 2.0]), torch.zeros(12, dtype=torch.int64)
    config = TrainConfig(label_smoothing=0.2)
    losses = [F.cross_entropy(logits[i : i + 1], targets[i : i + 1], label_smoothing=0.2) for i in range(12)]
    expected = sum(weights[targets[i]] * losses[i] for i in range(12)) / 12
    loss = build_loss(config, weights, "sum")
    pieces = zip(*(each.chunk(parts) for each in (logits, targets, keys)), strict=True)
    torch.testing.assert_close(sum(loss(*piece) for piece in pieces) / 12, expected)
    torch.testing.assert_close(build_loss(config, weights, "mean")(logits, targets, keys), expected)


@pytest.mark.parametrize("shards", [0, 4])
def test_the_cross_entropy_as_a_loss_of_ones_own_trains_alike(shards: int, train_here: Train, tmp_path: Path) -> None:
    options = (*LIGHT, "train.epochs=1", "train.label_smoothing=0", f"train.shards={shards}")
    train_here(tmp_path / "built in", *options)
    train_here(tmp_path / "own", *options, "train.loss=tests.functions:cross_entropies")
    ours, theirs = (payload(tmp_path / name)["model"] for name in ("own", "built in"))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_equal_weights_are_no_weights(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path / "none", *LIGHT, "train.epochs=1")
    train_here(tmp_path / "equal", *LIGHT, "train.epochs=1", "train.class_weights={'0': 1}")
    ours, theirs = (payload(tmp_path / name)["model"] for name in ("none", "equal"))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_a_loss_below_zero_is_told_as_it_is(train_here: Train, tmp_path: Path) -> None:
    train_here(
        tmp_path, *LIGHT, "train.epochs=1", "train.label_smoothing=0", "train.loss=tests.functions:margin"
    )  # fmt: skip
    [row] = rows(tmp_path, "epoch")
    assert -100 < row["train_loss"] < -95
    assert 0 < row["test_loss"] < 5  # the cross entropy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("train.loss=tests.functions:mean_loss", r"returned \(\) for 64 images; have it return the loss of each"),
        ("train.loss=tests.functions:without_keys", "keys"),
        ("train.loss=tests.functions:nothing", "tests.functions has no function nothing"),
        ("train.loss=focal", r"train\.loss='focal' is no package\.module:function; e\.g\. train\.loss=mine:NAME"),
        ("train.loss=tests.functions:divides", r"=\S+ failed: ZeroDivisionError: .*, at tests/functions\.py:\d+ div"),
        ("augment.extra=tests.functions:of_no_image", r"=\S+ failed: TypeError: .*, at tests/functions\.py:\d+ of_no_"),
        ("augment.extra=tests.functions:of_other_shape", r"augment\.extra=\S+ returned \(\(64, 1, 16, 16\)"),
        ("augment.extra=tests.functions:as_double", "torch.float64"),
        ("augment.extra=tests.functions:cross_entropies", "images"),
        ("train.class_weights.cat=2", "train.class_weights.cat: no class of the data; the classes are 0, 1, 2"),
        ("train.class_weights.1=0", r"train\.class_weights\.1=0\.0 is out of range: it must be > 0"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    options: str, message: str, train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senet.training.run.process_groups", None)  # it is refused before
    with pytest.raises(ConfigError, match=message):
        train_here(tmp_path / "run", *LIGHT, "train.label_smoothing=0", options)


def test_label_smoothing_is_not_dropped_in_silence() -> None:
    with pytest.raises(ConfigError, match=r"train\.label_smoothing=0\.1 is of the cross entropy, not of train\.loss="):
        tiny_config("train.loss=tests.functions:cross_entropies")


@pytest.mark.parametrize("channels_last", [True, False])
def test_changes_of_ones_own_come_last_and_keep_the_memory_layout(channels_last: bool) -> None:
    config = tiny_config("augment.extra=tests.functions:contrast").augment
    images = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "seed": 3, "device": torch.device("cpu")}
    given["channels_last"] = channels_last
    indices = torch.arange(6)
    plain = Preprocess(config, **given)
    keys = plain.keys(indices, 2)
    for function in (functions.contrast, functions.same):
        changed = Preprocess(config, **given, extra=function).train(images, indices, 2)
        assert torch.equal(changed, function(plain.train(images, indices, 2), keys))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert changed.is_contiguous(memory_format=layout)
    assert not torch.equal(*(Preprocess(config, **given, extra=functions.contrast).train(images, indices, epoch)
                             for epoch in (0, 1)))  # fmt: skip


@pytest.mark.parametrize("options", ["", "train.shards=4"])
def test_all_of_ones_own_is_resumed_bit_for_bit(options: str, train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path / "whole", *OWN, *options.split())
    for stop in (StopAt(7), StopAt(18), StopAt(10**6)):
        train_here(tmp_path / "parts", *OWN, *options.split(), stop=stop)
    assert differing(without_clock(payload(tmp_path / "whole")), without_clock(payload(tmp_path / "parts"))) == []
    assert math.isfinite(rows(tmp_path / "whole", "epoch")[-1]["train_loss"])


@pytest.mark.ranks
@pytest.mark.slow
def test_all_of_ones_own_has_the_same_bits_on_one_two_and_four_ranks(data_root: Path, tmp_path: Path) -> None:
    train_on_ranks((1, 2, 4), data_root, tmp_path, *OWN, "train.shards=4")
    first, *others = (without_clock(payload(tmp_path / ranks)) for ranks in ("1", "2", "4"))
    assert [differing(first, other) for other in others] == [[], []]


def test_the_focal_loss_of_the_page_is_the_one_by_hand() -> None:
    [code] = [each.text for each in blocks(REPOSITORY / "docs/change-it.md") if "def focal" in each.text]
    mine: dict[str, Any] = {}
    exec(code, mine)
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    losses = mine["focal"](logits=logits, targets=torch.tensor([0, 0]), keys=torch.zeros(2, dtype=torch.int64))
    assert losses.tolist() == pytest.approx([(1 / 4) ** 2 * math.log(4 / 3), (3 / 4) ** 2 * math.log(4)])
