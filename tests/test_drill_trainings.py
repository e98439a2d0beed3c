"""``launch.sh drill`` on real trainings: planted defects are found and named, and nothing else is."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

import train_ddp
from senet.command import leave
from senet.config.load import load_config
from senet.distributed.preemption import StopFlag
from senet.drill.plan import PLAN_VARIABLE, take_options
from senet.drill.starts import carry_out
from senet.drill.trials import Trials, Verdict, drill
from slurm.batch import free_port
from tests.harness import tiny

Drill = Callable[..., Verdict]


def _rank(rank: int, ranks: int, port: int, argv: Sequence[str], plan_file: Path, log: Path) -> None:
    place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", PLAN_VARIABLE: str(plan_file), "OMP_NUM_THREADS": "1"}
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    leave(train_ddp.main(list(argv), StopFlag.install()))


def forked(argv: Sequence[str], plan_file: Path, ranks: int, log: Path) -> int:
    """A start whose processes need not import torch, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["senet.training.run", "senet.drill.probe", "torchvision", "tests.planted"])
    port = free_port()
    processes = [context.Process(target=_rank, args=(rank, ranks, port, argv, plan_file, log)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return processes[0].exitcode or 0


@pytest.fixture
def drill_here(data_root: Path, tmp_path: Path) -> Drill:
    def here(network: str, *options: str, ranks: Sequence[int] = (1,)) -> Verdict:
        argv = tiny(f"model.name={network}", f"data.root={data_root}", "train.epochs=3", *options)
        size, words = take_options([*argv, f"drill.ranks={','.join(map(str, ranks))}", "drill.steps=8"])
        trials = Trials(words, load_config(words), size, tmp_path, partial(carry_out, start=forked), print)
        return drill(trials, ranks)

    return here


PLANTED = {
    "noisy_images": ["not deterministic", "the images that the network is given differ first"],
    "images_of_a_generator": ["not saved", "the training images.draws: Random in state"],
    "counter_in_an_attribute": ["not saved", "defect.updates: 2 in the unbroken run, 0 after the resume"],
    "unsaved_buffer": ["not saved", "defect.mean (a buffer with persistent=False): (16,) float32"],
    "unsaved_average": ["not saved", "average of features.0.weight: not as it was"],
    "dropout_of_a_generator": ["not saved", "defect.draws: Random in state"],
    "order_of_threads": ["not deterministic", "the output of defect (_Threads) differs first, from the same input"],
    "optimizer_outside_state": ["not saved", "the optimizer.steps: 2 in the unbroken run, 0 after the resume"],
    "time_of_day": ["not deterministic", "the output of defect (_Clock) differs first"],
    "counts_calls_out_of_sight": ["not saved", "unknown which"],
}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_is_found_and_its_cause_named(defect: str, drill_here: Drill) -> None:
    verdict = drill_here(f"tests.planted:{defect}")
    text = "\n".join(verdict.lines)
    print(text)
    assert not verdict.same
    for expected in PLANTED[defect]:
        assert expected in text


@pytest.mark.ranks
@pytest.mark.slow
def test_a_layer_that_looks_at_the_rank_is_named(drill_here: Drill) -> None:
    verdict = drill_here("tests.planted:looks_at_the_rank", "train.shards=4", ranks=(2, 1))
    text = "\n".join(verdict.lines)
    assert not verdict.same
    assert "(ranks-1)" in text
    assert "it depends on the rank: 2 and 1 rank(s) differ" in text
    assert "the output of defect (_ByRank) differs first, from the same input, in update 1" in text


@pytest.mark.ranks
@pytest.mark.slow
def test_with_shards_all_numbers_of_ranks_give_the_same_bits(drill_here: Drill) -> None:
    verdict = drill_here("tests.planted:attention_and_dropout", "train.shards=4", "train.accumulate=2", ranks=(4, 1, 2))
    assert verdict.same, "\n".join(verdict.lines)
    assert "10 starts on 4, 1, 2 rank(s)" in verdict.lines[2]


SOUND = {
    "tests.planted:attention_and_dropout": [],
    "tests.planted:dropout_of_python": [],
    "tests.planted:extra_state_and_a_cache": [],
    "senet18": [],
    "preact_resnet18": [],
    "resnet18": ["model.small_stem=true"],
    "resnext50_32x4d": ["model.small_stem=true"],
    "googlenet": [],
    "inception_v3": ["data.image_size=75"],
    "resnet20": [],
    "se_resnet20": [],
}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("network", SOUND)
def test_there_is_no_false_alarm(network: str, drill_here: Drill) -> None:
    small = ["train.global_batch_size=8", "train.eval_batch_size=16"]
    verdict = drill_here(network, *SOUND[network], *small)
    assert verdict.same, "\n".join(verdict.lines)
    assert verdict.lines[0].startswith("same: all ")
