"""Real ranks: a killed run ends with the bits of an unbroken one; the number of ranks may change.

``KILLS=10 pytest tests/test_resume.py -k sigkill`` (``make kill-soak``) tries ten random moments for each number.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import senet.run
from senet.augment import Preprocess
from senet.data import ResumableSampler, open_data
from senet.run import run
from senet.trainer import Summary, Trainer
from tests.harness import (
    StopAt,
    checkpoints,
    descendants,
    differing,
    free_port,
    payload,
    rows,
    run_ranks,
    started,
    status,
    survivors,
    tiny,
    tiny_config,
    train,
    train_command,
    wait_until,
    without_clock,
)
from tests.test_data import write_store

pytestmark = pytest.mark.ranks
EVERY = 7
ALL_ON = (
    "train.epochs=5",
    "train.amp=bf16",
    "train.accumulate=2",
    "log.every_steps=1",
    f"checkpoint.every_steps={EVERY}",
)
LAST_STEP = 5 * 22


def last_step(run_dir: Path) -> int:
    found = rows(run_dir)
    return int(found[-1]["step"]) if found else 0


@pytest.fixture(scope="module")
def unbroken(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """``unbroken(ranks)``: what the run that nobody disturbs ends with."""

    @functools.cache
    def train_whole(ranks: int) -> dict[str, Any]:
        run_dir = tmp_path_factory.mktemp(f"whole-{ranks}")
        done = train(ranks, *tiny(*ALL_ON, f"data.root={data_root}", f"run_dir={run_dir}"))
        assert done.returncode == 0, done.stderr
        return without_clock(payload(run_dir))

    return train_whole


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_run_killed_by_sigkill_ends_with_the_bits_of_an_unbroken_one(
    ranks: int, data_root: Path, tmp_path: Path, unbroken: Callable[[int], dict[str, Any]]
) -> None:
    options = tiny(*ALL_ON, f"data.root={data_root}")
    whole = unbroken(ranks)
    kills = int(os.environ.get("KILLS", "1"))
    moments = random.Random(os.environ.get("KILL_SEED", "0") + str(ranks)).sample(
        range(2 * EVERY, LAST_STEP - 2 * EVERY), kills
    )
    for moment in moments:
        run_dir = tmp_path / f"killed-at-{moment}"
        command = train_command(ranks, [*options, f"run_dir={run_dir}"])
        with started(command, tmp_path / "log") as process:
            # between two checkpoints, so that steps are repeated
            wait_until(lambda d=run_dir, m=moment: last_step(d) >= m and last_step(d) % EVERY in range(2, EVERY - 1))
        reached, saved = last_step(run_dir), int(checkpoints(run_dir)[-1].name[5:14])
        assert process.returncode != 0
        assert 0 < saved < reached, "nothing to repeat: the kill came too close to a checkpoint"
        assert reached - saved <= EVERY
        done = train(ranks, *options, f"run_dir={run_dir}")
        assert done.returncode == 0, done.stderr
        assert f"at step {saved}" in done.stdout
        killed = payload(run_dir)
        bad = differing(whole, without_clock(killed))
        assert bad == [], f"{ranks} ranks, killed at step {reached}, resumed from {saved}: {len(bad)} differ, {bad[:5]}"
        assert [row["step"] for row in rows(run_dir)] == list(range(1, LAST_STEP + 1))
        shutil.rmtree(run_dir)


@pytest.mark.parametrize(("ranks", "signals"), [(0, ["SIGINT"]), (2, ["SIGTERM"]), (2, ["SIGUSR2"])])
def test_a_stop_signal_saves_once_and_the_run_goes_on_bit_for_bit(
    ranks: int,
    signals: list[str],
    data_root: Path,
    tmp_path: Path,
    unbroken: Callable[[int], dict[str, Any]],
) -> None:
    options = tiny(*ALL_ON, f"data.root={data_root}", "checkpoint.every_steps=1000")
    run_dir = tmp_path / "stopped"
    with started(train_command(ranks, [*options, f"run_dir={run_dir}"]), tmp_path / "log") as process:
        wait_until(lambda: last_step(run_dir) >= 30)
        for name in signals:
            process.send_signal(getattr(signal, name))
        code = process.wait(60)
    assert code == (85 if ranks == 0 else 1)  # torchrun says 1 for any code of a worker
    found = status(run_dir)
    assert (found["state"], found["reason"]) == ("stopped", signals[0])
    assert [int(path.name[5:14]) for path in checkpoints(run_dir)] == [22, found["step"]]  # the epoch's end, and one
    assert (tmp_path / "log").read_text().count("stopped at step") == 1
    assert 'train_ddp.py", line' not in (tmp_path / "log").read_text()  # no traceback of ours
    assert train(ranks, *options, f"run_dir={run_dir}").returncode == 0
    assert differing(unbroken(max(ranks, 1)), without_clock(payload(run_dir))) == []


def test_a_dead_rank_takes_the_others_down_and_a_dead_launcher_its_workers(data_root: Path, tmp_path: Path) -> None:
    options = tiny(*ALL_ON, f"data.root={data_root}", "train.epochs=2000", f"run_dir={tmp_path}/run")
    with started(train_command(4, options), tmp_path / "log") as process:
        wait_until(lambda: last_step(tmp_path / "run") >= 10)
        ranks = [p for p in descendants(process) if "train_ddp.py" in " ".join(p.cmdline())]
        assert len(ranks) == 4
        ranks[2].kill()
        assert process.wait(30) != 0
        assert survivors(ranks) == []
    found = status(tmp_path / "run")
    assert found["state"] == "failed"
    with started(train_command(4, options), tmp_path / "log") as process:
        wait_until(lambda: status(tmp_path / "run")["generation"] == 2 and last_step(tmp_path / "run") >= 20)
        ranks = [p for p in descendants(process) if "train_ddp.py" in " ".join(p.cmdline())]
        process.kill()
        wait_until(lambda: survivors(ranks) == [], 10, "workers to die with torchrun")


def test_bad_input_under_torchrun_prints_one_line_in_all(data_root: Path, tmp_path: Path) -> None:
    for option in ("train.global_batch_size=63", "data.folder=/nowhere data.source=imagefolder", "resume.mode=no.pt"):
        done = train(2, *tiny(f"data.root={data_root}", f"run_dir={tmp_path}", *option.split()), timeout_s=30)
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

    def pixels(self: Preprocess, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        out = original_pixels(self, images, indices, epoch)
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
    laid = senet.run.replicate
    options = ["model.name=tests.networks:wide", "train.epochs=1", "train.amp=off", "checkpoint.every_steps=1000"]
    for dummy in ("with", "without"):
        if dummy == "without":
            senet.run.replicate = lambda model, *_, **__: DistributedDataParallel(model, gradient_as_bucket_view=True)
        for name, stop_after in (("whole", 12), ("parts", 4), ("parts", 7)):  # each stops a step later
            os.environ["MASTER_PORT"] = str(ports.pop())
            here = [*options, f"run_dir={folder}/{name}-{dummy}", f"data.root={root}"]
            run(tiny_config(*here, world_size=int(os.environ["WORLD_SIZE"])), tiny(*here), StopAt(stop_after))
    senet.run.replicate = laid
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
        self.checkpoints.close()
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
