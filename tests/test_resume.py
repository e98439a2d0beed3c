"""Real ranks: what they share out and add up; their number may change. Kills and signals are in tests/faults."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from senet.data.augment import Preprocess
from senet.data.samplers import ResumableSampler, open_data
from senet.training import learner
from senet.training.run import run
from senet.training.state import Summary
from senet.training.trainer import Trainer
from tests.harness import (
    StopAt,
    checkpoints,
    differing,
    free_port,
    payload,
    rows,
    run_ranks,
    status,
    tiny,
    tiny_config,
    train,
)
from tests.test_data import write_store

pytestmark = pytest.mark.ranks


def test_bad_input_under_torchrun_prints_one_line_in_all(data_root: Path, tmp_path: Path) -> None:
    for option in (
        "train.global_batch_size=63",
        "data.folder=/nowhere data.source=imagefolder",
        "resume.mode=no.pt",
        "model.name=tests.networks:of_width model.args.widths=3",  # raises a TypeError
        "train.label_smoothing=0 train.loss=tests.functions:mean_loss",
    ):
        done = train(2, *tiny(f"data.root={data_root}", f"run_dir={tmp_path}", *option.split()))
        assert done.returncode != 0
        assert done.stderr.count("train_ddp: ") == 1, done.stderr
        assert "exitcode  : 2" in done.stderr
        assert "Traceback" not in done.stderr.split("torch/distributed/elastic")[0]
    assert not (tmp_path / "checkpoints").exists() or checkpoints(tmp_path) == []


def _recorded_run(run_dir: str, root: str, stop_after: int, options: list[str]) -> dict[str, Any]:
    """Train; what this rank consumed: per step the sample indices, and the hash of each sample's pixels."""
    seen: dict[str, Any] = {}
    original_step, original_pixels = Trainer.train_step, Preprocess.train

    def step(self: Trainer, images: Tensor, labels: Tensor, indices: Tensor, epoch: int) -> None:
        seen[str(self.state.step)] = {"indices": indices.tolist()}
        original_step(self, images, labels, indices, epoch)

    def pixels(self: Preprocess, *given: Any) -> Tensor:
        out = original_pixels(self, *given)
        hashes = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in out.contiguous()]
        seen[max(seen, key=int)]["pixels"] = hashes
        return out

    Trainer.train_step, Preprocess.train = step, pixels  # type: ignore[method-assign]
    options = [*options, f"run_dir={run_dir}", f"data.root={root}"]
    world_size = int(os.environ["WORLD_SIZE"])
    run(tiny_config(*options, world_size=world_size), tiny(*options), StopAt(stop_after))
    return seen


def _weights(folder: str, root: str, ports: list[int]) -> dict[str, dict[str, Tensor]]:
    """Train a network of several gradient buckets, unbroken and in two parts, with and without the dummy step."""
    run_once = learner.run_once
    options = ["model.name=tests.networks:wide", "train.epochs=1", "train.amp=off", "checkpoint.every_steps=1000"]
    for dummy in ("with", "without"):
        if dummy == "without":
            learner.run_once = lambda *_, **__: None
        for name, stop_after in (("whole", 12), ("parts", 4), ("parts", 7)):  # each stops a step later
            os.environ["MASTER_PORT"] = str(ports.pop())
            here = [*options, f"run_dir={folder}/{name}-{dummy}", f"data.root={root}"]
            run(tiny_config(*here, world_size=int(os.environ["WORLD_SIZE"])), tiny(*here), StopAt(stop_after))
    learner.run_once = run_once
    return {path.name: dict(payload(path)["model"]) for path in Path(folder).iterdir()}


def test_a_dummy_step_gives_a_resumed_run_the_buckets_of_an_unbroken_one(data_root: Path, tmp_path: Path) -> None:
    ports = [free_port() for _ in range(6)]
    found, *_ = run_ranks(4, _weights, f"{tmp_path}/runs", str(data_root), ports, tmp_path=tmp_path)
    assert {status(path)["step"] for path in (tmp_path / "runs").iterdir()} == {13}
    assert differing(found["whole-with"], found["parts-with"]) == []
    # without it this comparison would notice, so it is able to
    assert differing(found["whole-without"], found["parts-without"]) != []


def global_batches(shares: list[dict[str, Any]]) -> dict[int, list[tuple[int, str]]]:
    """Per step the (index, pixels) of all ranks together."""
    return {
        int(step): [
            pair for share in shares for pair in zip(share[step]["indices"], share[step]["pixels"], strict=True)
        ]
        for step in shares[0]
    }


def test_four_then_two_then_one_rank_see_each_sample_of_the_epoch_once(data_root: Path, tmp_path: Path) -> None:
    options = [
        "model.name=tests.networks:no_norm",
        "train.amp=off",
        "train.epochs=1",
        "log.every_steps=1",
        "augment.cutout=4",
    ]
    whole = global_batches(
        run_ranks(1, _recorded_run, f"{tmp_path}/whole", str(data_root), 10**6, options, tmp_path=tmp_path)
    )
    parts: dict[int, list[tuple[int, str]]] = {}
    for ranks, stop_after in ((4, 6), (2, 7), (1, 10**6)):
        found = run_ranks(
            ranks, _recorded_run, f"{tmp_path}/parts", str(data_root), stop_after, options, tmp_path=tmp_path
        )
        assert not parts.keys() & {int(step) for step in found[0]}  # no step is done twice
        parts |= global_batches(found)
    assert sorted(parts) == list(range(22))
    assert parts == whole  # the same global batches, pixel for pixel
    indices = [index for batch in parts.values() for index, _ in batch]
    assert len(indices) == len(set(indices)) == 1437 // 64 * 64
    sampler = ResumableSampler(
        open_data(tiny_config(f"data.root={data_root}").data).train, global_batch_size=64, rank=0, world_size=1, seed=0
    )
    sampler.start_at(0, 0)
    assert indices == torch.cat(list(sampler)).tolist()
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4), one["step"]


def _evaluated(run_dir: str, root: str, options: list[str]) -> dict[str, list[float]]:
    """Evaluate what the newest checkpoint holds."""
    results: dict[str, list[float]] = {}

    def only_evaluate(self: Trainer) -> Summary:
        for name, scores in self.evaluate().items():
            results[name] = [scores.num_images, scores.top1, scores.top5 or 0.0, scores.loss]
        self.record.checkpoints.close()
        return Summary("stopped", self.state.step, {})

    Trainer.fit = only_evaluate  # type: ignore[method-assign]
    options = [*options, f"run_dir={run_dir}", f"data.root={root}"]
    run(tiny_config(*options, world_size=int(os.environ["WORLD_SIZE"])), tiny(*options), StopAt(10**6))
    return results


def test_evaluation_counts_are_the_same_on_one_two_and_three_ranks(data_root: Path, tmp_path: Path) -> None:
    store = tmp_path / "data/stores/digits-16"
    shutil.copytree(data_root / "stores/digits-16", store)
    write_store(store, {"train": 1200, "test": 10_007})
    options = ["train.global_batch_size=60", "train.amp=off", "train.eval_batch_size=250"]
    run_ranks(1, _recorded_run, f"{tmp_path}/run", f"{tmp_path}/data", 10, options, tmp_path=tmp_path)
    assert status(tmp_path / "run")["step"] == 10 + 1
    results = []
    for ranks in (1, 2, 3):
        shutil.copytree(tmp_path / "run", tmp_path / f"run{ranks}")
        shares = run_ranks(ranks, _evaluated, f"{tmp_path}/run{ranks}", f"{tmp_path}/data", options, tmp_path=tmp_path)
        assert all(share == shares[0] for share in shares)
        results.append(shares[0])
    assert results[0]["test"][0] == 10_007
    for name in ("test", "ema"):
        for other in results[1:]:
            assert other[name][:3] == results[0][name][:3]  # counts, exactly
            assert other[name][3] == pytest.approx(results[0][name][3], rel=1e-5)
