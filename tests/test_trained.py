"""A finished checkpoint is all that its use needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from senet.config import ConfigError
from senet.data import ImageData
from senet.trained import load_trained
from tests.conftest import Train
from tests.harness import checkpoints, rows

TINY = "tests.networks:tiny_senet"


def test_the_best_averaged_weights_score_what_the_run_wrote_down(
    train_here: Train, digits: ImageData, tmp_path: Path
) -> None:
    train_here(tmp_path, "train.amp=off", "train.epochs=3", "checkpoint.keep=1")
    trained = load_trained(tmp_path, model_name=TINY, device="cpu")
    logits_NK = trained.logits(torch.tensor(digits.test.images))
    hits = int((logits_NK.argmax(1) == digits.test.labels).sum())
    best = max(rows(tmp_path, "epoch"), key=lambda row: row["ema_top1"])
    assert trained.manifest["epochs_done"] == best["epoch"]
    assert 100 * hits / len(digits.test) == best["ema_top1"]
    assert (trained.classes, trained.image_size) == (digits.classes, 16)


def test_a_file_does_not_choose_which_code_is_run(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path, "train.epochs=1")
    for path in (tmp_path, checkpoints(tmp_path)[-1]):
        with pytest.raises(ConfigError, match=f"say --model {TINY}"):
            load_trained(path)
    with pytest.raises(ConfigError, match="say --model"):
        load_trained(tmp_path, model_name="tests.networks:no_norm")


def test_what_holds_no_checkpoint_is_named(train_here: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoints in"):
        load_trained(tmp_path)
    with pytest.raises(ConfigError, match=r"nothing\.pt"):
        load_trained(tmp_path / "nothing.pt")
    train_here(tmp_path / "run", "train.epochs=1")
    path = checkpoints(tmp_path / "run")[-1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="do not match the sha256"):
        load_trained(path, model_name=TINY)
