"""train.shards on real ranks: the same bits on 1, 2, 4 and 8 of them, also when their number changes in mid-epoch.

``SOAK=1`` tries all networks, precisions and optimizers with each other (20 minutes on 2 cores).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from senet.compat import add_
from senet.data.samplers import ShardSampler
from senet.distributed import tree
from senet.errors import RunError
from senet.training import feed, sharded
from senet.training.run import run
from senet.training.seeds import seed_everything
from tests.conftest import Once
from tests.faults.networks import BackwardRaises
from tests.harness import (
    CLOCKS,
    StopAt,
    checkpoints,
    differing,
    free_port,
    named,
    payload,
    rows,
    run_ranks,
    started,
    tiny,
    tiny_config,
    train,
    train_command,
    wait_until,
    without_clock,
)
from tests.soak import SOAK
from tests.test_data import write_store

pytestmark = pytest.mark.ranks

WORLDS = (1, 2, 4, 8)
NETWORKS = ("senet18", "se_resnet20", "tests.networks:attention")
PRECISIONS = ("off", "bf16", "fp16")
OPTIMIZERS = ("sgd", "muon", "adamw")
ALL_ON = (
    "train.shards=8",
    "train.accumulate=2",
    "train.global_batch_size=32",
    "train.clip_norm=1",
    "train.label_smoothing=0.1",
    "train.ema_decay=0.9",
    "train.eval_batch_size=8",
    "train.desync_check_every=5",
    "train.epochs=2",
    "augment.cutout=4",
    "schedule.plateau=true",
    "schedule.plateau_patience=0",
    "optim.lr=0.01",
    "log.every_steps=1",
    "checkpoint.every_steps=7",
)
"""20 updates of whatever has state; with ``few_images``, the last chunk of the evaluation is not full."""


@pytest.fixture(scope="module")
def few_images(data_root: Path, once: Once) -> Path:
    """``data.root`` with 320 training and 37 test images."""

    def write(root: Path) -> None:
        shutil.copytree(data_root / "stores/digits-16", root / "stores/digits-16")
        write_store(root / "stores/digits-16", {"train": 320, "test": 37})

    return once("few_images", write)


def _train(folder: str, root: str, cases: dict[str, Sequence[str]], ports: list[int]) -> None:
    """Each case in a run directory of its name, one after another in this process."""
    world_size = int(os.environ["WORLD_SIZE"])
    for (name, options), port in zip(cases.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        here = [*ALL_ON, *options, f"run_dir={folder}/{world_size}/{name}", f"data.root={root}"]
        with pytest.MonkeyPatch.context() as patch:
            if name in MUTATIONS:
                patch.setattr(*MUTATIONS[name])
            run(tiny_config(*here, world_size=world_size), tiny(*here), StopAt(10**6))


def _one_by_one(self: tree.TreeSum, tensors: list[Tensor]) -> None:
    if self._sums:
        add_(self._sums[0][1], tensors)
    else:
        self._sums.append((1, tensors))


def _seeded_by_rank(seed: int, step: int, _shard: int) -> None:
    seed_everything(seed, step, int(os.environ["RANK"]))


MUTATIONS: dict[str, tuple[Any, str, Any]] = {
    "shards of a rank added one by one": (tree.TreeSum, "add", _one_by_one),
    "ranks added by an all-reduce": (tree.RankSum, "_add_up", lambda _self, flat: dist.all_reduce(flat)),
    "random numbers of the rank": (sharded, "seed_everything", _seeded_by_rank),
    "statistics of the last shard": (sharded.Buffers, "take_kept", lambda _: None),
    "evaluation dealt by image": (feed, "ChunkSampler", ShardSampler),
}
"""What makes the bits depend on the number of ranks: (module or class, name, in its place)."""


def _train_on(
    worlds: Sequence[int], cases: dict[str, Sequence[str]], root: Path, tmp_path: Path, timeout_s: float = 400
) -> None:
    for world_size in worlds:
        ports = [free_port() for _ in cases]
        run_ranks(world_size, _train, str(tmp_path), str(root), cases, ports, tmp_path=tmp_path, timeout_s=timeout_s)


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    found = [*rows(run_dir), *rows(run_dir, "epoch")]
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in found]


def differences(one: Path, other: Path) -> list[str]:
    """Names of tensors and counters that are not the same in the last checkpoints, and steps whose rows are not."""
    names = differing(*(without_clock(payload(run_dir)) for run_dir in (one, other)))
    pairs = itertools.zip_longest(_rows(one), _rows(other), fillvalue={})
    return names + [f"row of step {row.get('step')}" for row, another in pairs if row != another]


def _cells() -> dict[str, Sequence[str]]:
    """By name. In the short form each network, precision and optimizer once, with SENet18's shape only."""
    found = {}
    for i, j, k in itertools.product(range(3), repeat=3):
        chosen = i == j == k if not SOAK else i == (j + k) % 3  # then all combinations; of SENet18 itself three
        network = "tests.networks:tiny_senet" if i == 0 and not (SOAK and chosen) else NETWORKS[i]
        if SOAK or chosen:
            cell = f"model.name={network}", f"train.amp={PRECISIONS[j]}", f"optim.name={OPTIMIZERS[k]}"
            found["-".join(option.rpartition("=")[2].rpartition(":")[2] for option in cell)] = cell
    return found


@pytest.mark.slow
@pytest.mark.timeout(7200 if SOAK else 600)
def test_one_two_four_and_eight_ranks_end_with_the_same_bits(few_images: Path, tmp_path: Path) -> None:
    cases = _cells()
    _train_on(WORLDS, cases, few_images, tmp_path, timeout_s=4000)
    for name in cases:
        first, *others = (tmp_path / str(world_size) / name for world_size in WORLDS)
        assert payload(first)["state"]["step"] == 20, name
        assert [row["step"] for row in rows(first)] == list(range(1, 21)), name
        for other in others:
            assert differences(first, other) == [], other


UNUSUAL = (
    "partly_bfloat16_partly_frozen",
    "replaces_its_buffer",
    "with_frozen_norm",
    "restless",
    "begins_different_on_each_rank",
    "wide",  # several buckets of gradients
)


SKIPS = (
    "train.amp=fp16",
    "train.epochs=5",
    "optim.lr=1e-12",  # nothing is learned: an epoch may be worse than the one before
    "schedule.name=constant",
    "schedule.plateau_factor=0.5",
    "schedule.plateau_min_lr=0",
)


@pytest.fixture(scope="module")
def on_one_and_four(few_images: Path, once: Once) -> Path:
    """Run directories ``1/NAME`` and ``4/NAME`` of mutations and of unusual networks."""
    network = "model.name=tests.networks:"
    brief = ("train.epochs=1", "train.amp=off")
    cases: dict[str, Sequence[str]] = dict.fromkeys(("sound", *MUTATIONS), (f"{network}norm_and_dropout", *brief))
    cases |= {name: (f"{network}{name}", *brief) for name in UNUSUAL}
    close = (f"{network}no_norm", *brief, "train.clip_norm=0")
    cases |= {f"shards={count}": (*close, f"train.shards={count}") for count in (0, 4)}
    cases |= {"skips": (f"{network}loud", *SKIPS)}
    return once("on_one_and_four", lambda folder: _train_on((1, 4), cases, few_images, folder))


@pytest.mark.parametrize("name", ["sound", *UNUSUAL])
def test_unusual_networks_have_the_same_bits_on_one_and_four_ranks(name: str, on_one_and_four: Path) -> None:
    assert payload(on_one_and_four / "4" / name)["state"]["step"] == 10
    assert differences(on_one_and_four / "1" / name, on_one_and_four / "4" / name) == []


def test_updates_that_are_skipped_and_a_rate_that_is_lowered_are_the_same_too(on_one_and_four: Path) -> None:
    state = payload(on_one_and_four / "4/skips")["state"]
    assert 0 < state["skipped_steps"] < state["step"] == 50
    assert state["plateau"]["factor"] < 1
    assert differences(on_one_and_four / "1/skips", on_one_and_four / "4/skips") == []


@pytest.mark.parametrize(
    ("mutation", "differs", "same"),
    [
        ("shards of a rank added one by one", r"\.model\.0\.weight", r"nothing"),
        ("ranks added by an all-reduce", r"\.model\.0\.weight", r"nothing"),
        ("random numbers of the rank", r"\.model\.0\.weight", r"nothing"),
        ("statistics of the last shard", r"\.model\.1\.running_mean", r"\.model\.0\.weight"),
        ("evaluation dealt by image", r"row of step 10", r"\.model\..*"),
    ],
)
def test_the_comparison_notices_what_depends_on_the_rank(
    mutation: str, differs: str, same: str, on_one_and_four: Path
) -> None:
    found = differences(on_one_and_four / "1" / mutation, on_one_and_four / "4" / mutation)
    assert any(re.fullmatch(differs, name) for name in found), found
    assert not any(re.fullmatch(same, name) for name in found), found


def test_four_shards_on_four_ranks_are_close_to_four_ranks_without_shards(on_one_and_four: Path) -> None:
    without, shards = (payload(on_one_and_four / "4" / f"shards={count}") for count in (0, 4))
    for name, value in shards["model"].items():
        torch.testing.assert_close(value, without["model"][name], rtol=1e-4, atol=1e-5)
    losses = [[row["train_loss"] for row in rows(on_one_and_four / "4" / f"shards={count}")] for count in (0, 4)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def _error(options: list[str]) -> str:
    try:
        run(tiny_config(*options, world_size=int(os.environ["WORLD_SIZE"])), tiny(*options), StopAt(10**6))
    except RunError as error:
        return str(error)
    return ""


def test_a_loss_of_one_shard_that_is_not_finite_ends_all_ranks(data_root: Path, tmp_path: Path) -> None:
    network = "model.name=tests.faults.networks:not_a_number"  # from the 12th forward pass of rank 1 on
    options = [network, "train.shards=8", "checkpoint.every_steps=1", f"run_dir={tmp_path}", f"data.root={data_root}"]
    for said in run_ranks(2, _error, options, tmp_path=tmp_path):
        assert said.startswith("the loss of step 3 is not finite on 1 of 2 ranks")
    assert [int(path.name[5:14]) for path in checkpoints(tmp_path)] == [1, 2]


def _said_of_a_bug(options: list[str]) -> str:
    try:
        return _error(options)
    except ValueError as error:
        return str(error)


def test_a_bug_in_the_backward_pass_of_one_rank_ends_both_with_its_own_words(data_root: Path, tmp_path: Path) -> None:
    network = "model.name=tests.faults.networks:backward_raises"  # in the 12th forward pass of rank 1, a last shard
    options = [network, "train.shards=4", f"run_dir={tmp_path}/run", f"data.root={data_root}"]
    of_0, of_1 = run_ranks(2, _said_of_a_bug, options, tmp_path=tmp_path)
    assert of_1 == "a bug in a backward pass"
    line = BackwardRaises.raises.__code__.co_firstlineno + 2
    assert of_0 == f"{named(1)} failed: ValueError: a bug in a backward pass, at faults/networks.py:{line} raises"


def _lost_in_the_exchange(how: signal.Signals, folder: str, options: list[str]) -> str:
    """Rank 2 sends itself a signal between its backward pass and its answer to rank 3; what this rank says of it."""
    if os.environ["RANK"] == "2":
        exchange, calls = tree._exchange, itertools.count()

        def die(*args: Any) -> None:
            if next(calls) == 9:
                (Path(folder) / "pid").write_text(str(os.getpid()))
                os.kill(os.getpid(), how)
            exchange(*args)

        tree._exchange = die  # type: ignore[assignment]
    said = _error(options)
    (Path(folder) / f"said-{os.environ['RANK']}").write_text(said)
    if os.environ["RANK"] == "3":  # which does not need it any more
        wait_until(lambda: len(list(Path(folder).glob("said-*"))) == 3)
        with suppress(ProcessLookupError):
            os.kill(int((Path(folder) / "pid").read_text()), signal.SIGKILL)
    return said


STATES = {signal.SIGKILL: "its process has ended", signal.SIGSTOP: "stopped by a signal (state T)"}


@pytest.mark.parametrize("how", STATES)
def test_a_rank_that_is_lost_in_the_exchange_is_named(how: signal.Signals, data_root: Path, tmp_path: Path) -> None:
    options = ["train.shards=4", "distributed.step_timeout_s=15", f"run_dir={tmp_path}/run", f"data.root={data_root}"]
    with pytest.raises(FileNotFoundError):  # rank 2 leaves no result
        run_ranks(4, _lost_in_the_exchange, how, str(tmp_path), options, tmp_path=tmp_path)
    for rank in (0, 1, 3):
        said = (tmp_path / f"said-{rank}").read_text()
        assert said.startswith(f"{named(2)} did not answer any more: {STATES[how]}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_two_four_and_one_rank_in_one_epoch_end_with_the_bits_of_four(data_root: Path, tmp_path: Path) -> None:
    """Each change by SIGKILL of all processes at once."""
    options = ("train.shards=8", "train.epochs=1", "log.every_steps=1", "checkpoint.every_steps=2")
    options += ("model.name=tests.faults.networks:paced", "train.accumulate=2", "train.clip_norm=1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = train(4, *tiny(*options, f"data.root={data_root}", f"run_dir={whole}"))
    assert done.returncode == 0, done.stderr
    args = tiny(*options, f"data.root={data_root}", f"run_dir={parts}")
    for ranks, moment in ((8, 5), (2, 10), (4, 15)):
        with started(train_command(ranks, args), tmp_path / f"log{ranks}") as process:
            wait_until(
                lambda at=moment, p=process: p.poll() is not None or [r for r in rows(parts) if r["step"] >= at], 400
            )
        assert process.returncode == -signal.SIGKILL, (tmp_path / f"log{ranks}").read_text()
        assert len(rows(parts)) < 22
    done = train(1, *args)
    assert done.returncode == 0, done.stderr
    assert "world_size was" not in done.stderr
    assert "the run goes on, but not bit for bit" not in done.stderr
    assert [row["step"] for row in rows(parts)] == list(range(1, 23))
    assert differences(whole, parts) == []
    refused = train(0, *args, "train.shards=4")
    assert refused.returncode == 2
    assert "train.shards: 8 -> 4" in refused.stderr


@pytest.mark.slow
def test_a_compiled_network_has_the_same_bits_on_one_and_two_ranks(few_images: Path, tmp_path: Path) -> None:
    options = ("model.name=tests.networks:norm_and_dropout", "train.compile=true", "train.amp=off", "train.epochs=1")
    _train_on((1, 2), {"compiled": options}, few_images, tmp_path)
    assert differences(tmp_path / "1/compiled", tmp_path / "2/compiled") == []
