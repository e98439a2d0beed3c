"""Where the time of a step goes on each rank: data, forward, backward, exposed communication, optimizer.

    .venv/bin/python benchmarks/step_parts.py [--pairs 10] [--ranks 1,2,4] [--note TEXT]

The parts of the trainer on SENet18 by configs/cifar10.yaml, put together as in training, on random 32x32 images,
with global batches of 128 and 512; the cores are shared among the ranks. Steps come in blocks, alternately with DDP's
all-reduce and under ``no_sync``; all ranks meet before the forward pass of each step, and the first step of a block is
left out, as DDP sends BatchNorm's statistics one step late. Forward and backward are those under ``no_sync``; exposed
communication is what both take longer with the all-reduce, block by block, so what is hidden behind the backward pass
is not in it, and the wait for a slower rank is. Each number is the median over the blocks. Not in the step: reading the
loss, logging, the votes to stop. One rank by itself reduces nothing: what is exposed there is noise. Prints a table
with a row for each rank and appends a row to results.jsonl per number of ranks and batch, of the means over the ranks.
Options of the trainer may follow (model.name=..., for a try). Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from common import arguments, lay_store, record, torchrun
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from senet.command import leave
from senet.config.load import load_config
from senet.data.samplers import open_data
from senet.distributed.devices import set_threads
from senet.distributed.environment import read_place
from senet.distributed.groups import process_groups
from senet.distributed.meeting import meet
from senet.distributed.ranks import Ranks
from senet.distributed.watchdog import Watchdog
from senet.models.zoo import build_model
from senet.training.feed import Feed, build_sampler
from senet.training.learner import Learner

GLOBAL_BATCHES = (128, 512)
PARTS = ("data", "forward", "backward", "exposed", "optimizer")
Batch = tuple[Tensor, Tensor]  # images float32 [N, 3, H, W], labels int64 [N]
Seconds = dict[str, float]


class Step:
    """One update of this rank, taken apart."""

    def __init__(
        self,
        network: nn.Module,
        batches: Iterator[Batch],
        update: Callable[[], None],
        autocast: Callable[[], AbstractContextManager[None]],
        label_smoothing: float,
    ) -> None:
        self._network, self._batches, self._update = network, batches, update
        self._autocast, self._label_smoothing = autocast, label_smoothing

    def timed(self, *, synced: bool) -> Seconds:
        """Do it; seconds of each part."""
        times = [time.perf_counter()]
        images_NCHW, labels_N = next(self._batches)
        times.append(time.perf_counter())
        dist.barrier()
        times.append(time.perf_counter())
        apart = isinstance(self._network, DistributedDataParallel) and not synced
        with self._network.no_sync() if apart else nullcontext():
            with self._autocast():
                logits_NK = self._network(images_NCHW)
            loss = F.cross_entropy(logits_NK.float(), labels_N, label_smoothing=self._label_smoothing)
            times.append(time.perf_counter())
            loss.backward()
        times.append(time.perf_counter())
        self._update()
        times.append(time.perf_counter())
        data, _, forward, backward, optimizer = (b - a for a, b in pairwise(times))
        return {"data": data, "forward": forward, "backward": backward, "optimizer": optimizer}

    def block(self, steps: int, *, synced: bool) -> Seconds:
        """The means over ``steps`` steps, one before them left out."""
        self.timed(synced=synced)
        found = [self.timed(synced=synced) for _ in range(steps)]
        return {part: statistics.fmean(each[part] for each in found) for part in found[0]}


def measure(step: Step, *, pairs: int, steps: int) -> Seconds:
    """Medians over pairs of blocks."""
    found = []
    for number in range(pairs):
        order = (True, False) if number % 2 else (False, True)
        blocks = {synced: step.block(steps, synced=synced) for synced in order}
        alone, together = blocks[False], blocks[True]
        exposed = together["forward"] + together["backward"] - alone["forward"] - alone["backward"]
        found.append(alone | {"exposed": exposed})
    return {part: statistics.median(each[part] for each in found) for part in PARTS}


def _give_up(reason: str) -> None:
    print(reason, file=sys.stderr)
    leave(1)


def be_a_rank(options: list[str], *, pairs: int, steps: int) -> None:
    """Measure; rank 0 prints the seconds of each part on every rank."""
    config = load_config(options)
    ranks = Ranks.from_environment(config.train)
    set_threads(config.train.threads_per_rank, ranks.local_world_size)
    with ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(read_place(), config.distributed.start_timeout_s, end=_give_up))
        store, data = meet(ranks, watchdog, {}, lambda: open_data(config.data, local_rank=ranks.local_rank))
        stack.enter_context(process_groups(ranks, store, config.distributed, watchdog))
        watchdog.close()
        torch.manual_seed(config.seed)
        network = build_model(config.model.name, num_classes=len(data.classes), reduction=config.model.reduction)
        learner = Learner.build(config, ranks, network, config.train.amp, len(data.classes))
        feed = Feed.build(config, ranks, data, build_sampler(config, data, ranks))

        def batches() -> Iterator[Batch]:
            for epoch in range(sys.maxsize):
                for images_NHWC, labels_N, indices_N in feed.train(epoch, 0):
                    yield feed.preprocess.train(images_NHWC, indices_N, epoch), labels_N

        def update() -> None:
            learner.optimizer.step()
            learner.optimizer.zero_grad()
            if learner.average is not None:
                learner.average.update_parameters(learner.network)

        learner.train()
        network = learner.replicas or learner.running
        step = Step(network, batches(), update, learner.autocast, config.train.label_smoothing)
        mine = measure(step, pairs=pairs, steps=steps)
        everyones: list[Seconds] = [{} for _ in range(ranks.world_size)]
        dist.all_gather_object(everyones, mine)
        if ranks.is_main:
            print(json.dumps(everyones), flush=True)
        dist.barrier()


def show(ranks: int, batch: int, found: list[Seconds]) -> dict[str, float]:
    """A line per rank; returns the means over the ranks in milliseconds."""
    for rank, seconds in enumerate(found):
        shown = "".join(f"{1000 * seconds[part]:11.1f}" for part in PARTS)
        print(f"{ranks:5} {batch:6} {rank:5}{shown}{1000 * sum(seconds.values()):11.1f}", flush=True)
    return {part: round(1000 * statistics.fmean(seconds[part] for seconds in found), 1) for part in PARTS}


def main() -> None:
    """Start the ranks, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("options", nargs="*", help="key=value, on top of configs/cifar10.yaml")
    parser.add_argument("--steps", type=int, default=2, help="that count in a block")
    parser.add_argument("--ranks", default="1,2,4", help="numbers of ranks")
    parser.add_argument("--batches", default=",".join(map(str, GLOBAL_BATCHES)), help="global batches")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)  # this process is one
    args = parser.parse_intermixed_args()
    if args.rank:
        return be_a_rank(args.options, pairs=args.pairs, steps=args.steps)
    head = "".join(f"{part:>11}" for part in (*PARTS, "step"))
    print(f"{'ranks':>5} {'batch':>6} {'rank':>5}{head}   (milliseconds)")
    with tempfile.TemporaryDirectory() as data_root:
        stored = lay_store(Path(data_root), 2048)
        for batch in map(int, args.batches.split(",")):
            for ranks in map(int, args.ranks.split(",")):
                options = [
                    "configs/cifar10.yaml",
                    "train.amp=bf16",
                    *args.options,
                    *stored,
                    f"train.global_batch_size={batch}",
                ]
                counts = [f"--pairs={args.pairs}", f"--steps={args.steps}"]
                parts = show(ranks, batch, torchrun("step_parts.py", *counts, "--rank", *options, ranks=ranks))
                what = ", ".join([f"a step, {ranks} rank{'s' * (ranks > 1)}, global batch {batch}", *args.options])
                whole, n = [sum(parts.values())], args.pairs
                record("step_parts.py", what, whole, "ms", n=n, digits=0, parts=parts, note=args.note)
    return None


if __name__ == "__main__":
    main()
