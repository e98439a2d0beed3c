"""NCCL with one rank and with two, SyncBatchNorm, shards, and how GPUs are counted and given out."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from senet.distributed.devices import count_gpus
from senet.training.trainer import Observer, Trainer
from tests.conftest import Train
from tests.gpu.conftest import DEVICE, HERE, MARKS, ON_GPU
from tests.harness import differing, payload, rows, tiny, train, without_clock

pytestmark = MARKS
EPOCH = ("train.epochs=1", HERE, "train.amp=off", "log.every_steps=1", "train.desync_check_every=1")
two_gpus = pytest.mark.gpu(2)


def test_one_rank_has_a_group_on_its_device(train_here: Train, tmp_path: Path) -> None:
    found = {}

    def observe(trainer: Trainer) -> Observer:
        found["backend"], found["group"] = dist.get_backend(), dist.get_backend(trainer.peers.group)
        found["devices"] = {p.device.type for p in trainer.learner.network.parameters()}
        return lambda: None

    train_here(tmp_path, *EPOCH, observe=observe)
    assert found == {"backend": "nccl" if ON_GPU else "gloo", "group": "gloo", "devices": {DEVICE}}


@pytest.mark.gpu(only=True)
def test_of_one_rank_sync_batch_norm_is_batch_norm(train_here: Train, tmp_path: Path) -> None:
    for sync in ("true", "false"):
        train_here(tmp_path / sync, *EPOCH, f"train.sync_bn={sync}")
    synced, plain = (without_clock(payload(tmp_path / sync)) for sync in ("true", "false"))
    assert differing(synced, plain) == []


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_two_runs_of_the_same_shards_have_the_same_bits(shards: int, train_here: Train, tmp_path: Path) -> None:
    for name in ("one", "other"):
        train_here(tmp_path / name, *EPOCH, f"train.shards={shards}")
    one, other = (without_clock(payload(tmp_path / name)) for name in ("one", "other"))
    assert differing(one, other) == []


def train_two(run_dir: Path, data_root: Path, *options: str) -> None:
    done = train(2, *tiny(*EPOCH, f"data.root={data_root}", f"run_dir={run_dir}", *options))
    assert done.returncode == 0, done.stderr


@pytest.mark.ranks
@two_gpus
def test_two_ranks_of_the_same_shards_have_the_bits_of_one(train_here: Train, data_root: Path, tmp_path: Path) -> None:
    train_here(tmp_path / "one", *EPOCH, "train.shards=4")
    train_two(tmp_path / "two", data_root, "train.shards=4")
    one, two = (without_clock(payload(tmp_path / name)) for name in ("one", "two"))
    assert differing(one, two) == []


def both_losses(train_here: Train, data_root: Path, tmp_path: Path, *options: str) -> tuple[list[float], list[float]]:
    """Of each update by one rank, and by two."""
    train_here(tmp_path / "one", *EPOCH, *options)
    train_two(tmp_path / "two", data_root, *options)
    one, two = ([row["train_loss"] for row in rows(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == len(two) == 22
    return one, two


@pytest.mark.ranks
@two_gpus
def test_two_ranks_have_the_losses_of_one(train_here: Train, data_root: Path, tmp_path: Path) -> None:
    one, two = both_losses(train_here, data_root, tmp_path, "model.name=tests.networks:no_norm")
    assert two == pytest.approx(one, abs=5e-4, rel=0)


@pytest.mark.ranks
@pytest.mark.gpu(2, only=True)
def test_two_ranks_with_sync_batch_norm_have_the_losses_of_one(
    train_here: Train, data_root: Path, tmp_path: Path
) -> None:
    one, two = both_losses(train_here, data_root, tmp_path, "train.sync_bn=true")
    assert two[:2] == pytest.approx(one[:2], abs=5e-4, rel=0)  # 0.001 without; later ones drift apart


@pytest.mark.ranks
@pytest.mark.gpu(only=True)
def test_two_ranks_on_one_gpu_are_refused(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0])
    done = train(2, *tiny(*EPOCH, f"data.root={data_root}", f"run_dir={tmp_path}"))
    assert done.stderr.count("train_ddp: ") == 1, done.stderr
    assert f"ranks 0, 1 on {socket.gethostname()} have the same GPU (" in done.stderr
    assert "exitcode  : 2" in done.stderr


def test_the_driver_counts_as_many_gpus_as_torch() -> None:
    assert count_gpus() == torch.cuda.device_count()
