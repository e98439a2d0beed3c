"""Trainings on photographs with all random changes on: the same bits on any number of ranks and decoding threads, and
after a kill."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from senet.data.augment import Preprocess
from senet.training.run import run
from tests.conftest import Once
from tests.harness import (
    StopAt,
    checkpoints,
    free_port,
    rows,
    run_ranks,
    started,
    tiny,
    tiny_config,
    train_command,
    wait_until,
)
from tests.photographs import write_photographs
from tests.test_shards_ranks import differences

pytestmark = pytest.mark.ranks

UPDATES = 2 * 12
ALL_ON = (
    "data.source=imagefolder",
    "data.store=encoded",
    "data.image_size=32",
    "data.center_crop=0.875",
    "augment.crop_padding=0",
    "augment.crop_area=[0.1,1]",
    "augment.color_jitter=[0.4,0.4,0.4,0.1]",
    "augment.trivial=true",
    "augment.cutout=0",
    "augment.erase=0.5",
    "augment.mixup=0.2",
    "augment.cutmix=1",
    "augment.small_epochs=1",
    "augment.small_size=24",
    "train.shards=4",
    "train.global_batch_size=16",
    "train.epochs=2",
    "train.eval_batch_size=8",
    "train.amp=off",
    "optim.lr=0.01",
    "log.every_steps=1",
    "checkpoint.every_steps=5",
)
RANKS_AND_THREADS = ((1, 1), (2, 2), (4, 8))


@pytest.fixture(scope="module")
def photographs(once: Once) -> Path:
    """``data.folder`` with 203 training and 37 test pictures."""
    return once("photographs", lambda folder: write_photographs(folder, {"train": 203, "test": 37}))


def options(photographs: Path, root: Path, run_dir: Path, threads: int) -> list[str]:
    places = (f"data.folder={photographs}", f"data.root={root}", f"run_dir={run_dir}")
    return [*ALL_ON, *places, f"data.decode_threads={threads}"]


def _train(given: list[str], port: int) -> list[str]:
    """Train, with one digest for each shard that the network was given."""
    os.environ["MASTER_PORT"] = str(port)
    digests = []
    plain = Preprocess.train

    def noted(self: Preprocess, *args: torch.Tensor) -> torch.Tensor:
        changed = plain(self, *args)  # type: ignore[arg-type]
        images = changed[0] if isinstance(changed, tuple) else changed
        digests.append(hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest())
        return changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Preprocess, "train", noted)
        run(tiny_config(*given, world_size=int(os.environ["WORLD_SIZE"])), tiny(*given), StopAt(10**6))
    return digests


def shards_in_order(of_ranks: Sequence[list[str]]) -> list[str]:
    """The digests of all ranks, by update and shard."""
    updates = [
        [digests[step * len(digests) // UPDATES : (step + 1) * len(digests) // UPDATES] for digests in of_ranks]
        for step in range(UPDATES)
    ]
    return [digest for update in updates for of_rank in update for digest in of_rank]


@pytest.fixture(scope="module")
def trained(photographs: Path, once: Once) -> Path:
    """Run directories ``1``, ``2``, ``4`` by their numbers of ranks, and ``<ranks>.pixels``: digests of the shards."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for ranks, threads in RANKS_AND_THREADS:
            given = options(photographs, folder / "data", folder / str(ranks), threads)
            of_ranks = run_ranks(ranks, _train, given, free_port(), tmp_path=folder)
            (folder / f"{ranks}.pixels").write_text("\n".join(shards_in_order(of_ranks)))

    return once("trained_on_photographs", make)


def test_one_two_and_four_ranks_with_other_numbers_of_threads_see_the_same_pixels(trained: Path) -> None:
    first, *others = ((trained / f"{ranks}.pixels").read_text().split() for ranks, _ in RANKS_AND_THREADS)
    assert len(first) == len(set(first)) == 4 * UPDATES
    assert all(other == first for other in others)


def test_one_two_and_four_ranks_end_with_the_same_bits(trained: Path) -> None:
    first, *others = (trained / str(ranks) for ranks, _ in RANKS_AND_THREADS)
    assert [row["step"] for row in rows(first)] == list(range(1, UPDATES + 1))
    for other in others:
        assert differences(first, other) == []


def test_a_training_killed_in_mid_epoch_goes_on_to_the_same_bits(
    trained: Path, photographs: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = train_command(2, tiny(*options(photographs, trained / "data", run_dir, 3)))
    for goal in (7, 17):  # in the small epoch, and in the other one
        with started(command, tmp_path / "log") as process:
            wait_until(
                lambda goal=goal: (len(rows(run_dir)) >= goal and checkpoints(run_dir)) or process.poll() is not None,
                what=lambda: (tmp_path / "log").read_text(),
            )
        assert process.returncode != 0, (tmp_path / "log").read_text()
        assert checkpoints(run_dir)
    with started(command, tmp_path / "log") as process:
        assert process.wait(240) == 0, (tmp_path / "log").read_text()
    assert "resumed from" in (tmp_path / "log").read_text()
    assert differences(trained / "1", run_dir) == []
