"""What runs inside a training under drill: fewer images, traces of what is trained, the kill, the stop."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from senet.config.options import Config, DataConfig
from senet.data.samplers import ImageData, open_data
from senet.data.splits import Split
from senet.distributed.agreement import StopRequested
from senet.distributed.groups import broadcast_bytes, wait_for_all
from senet.drill.digests import sums, trained, unsaved
from senet.drill.layers import LayerTrace
from senet.drill.plan import Plan
from senet.errors import ConfigError, RunError
from senet.training.trainer import Trainer

_PATIENCE_S = 600


def hooks(config: Config, plan_file: str) -> dict[str, Any]:
    """The arguments of ``senet.training.run.run`` by which a training is put under drill."""
    plan = Plan.read(Path(plan_file))
    return {"open_images": partial(open_some, config, plan), "observe": partial(Probe, plan)}


def open_some(config: Config, plan: Plan, data: DataConfig, *, local_rank: int) -> ImageData:
    """As many images as the epochs of the drill need, from all over the splits.

    Raises:
        ConfigError: they do not suffice for all its updates.
    """
    found = open_data(data, local_rank=local_rank)
    batch, epochs = config.train.global_batch_size, config.train.epochs
    if batch <= len(found.train) and (most := len(found.train) // batch * epochs) < plan.steps:
        raise ConfigError(
            f"drill.steps={plan.steps} is more than the {most} updates of train.epochs={epochs} with "
            f"{len(found.train)} training images; use a smaller drill.steps, or more epochs"
        )
    train = _some_of(found.train, plan.epoch_steps * batch)
    return ImageData(train, _some_of(found.test, plan.tested), found.classes, found.fingerprint)


def _some_of(split: Split, count: int) -> Split:
    if count >= len(split):
        return split
    return split.part(np.linspace(0, len(split) - 1, count).astype(np.int64))


class Probe:
    """The observer of one start: called when all is restored, and after each update."""

    def __init__(self, plan: Plan, trainer: Trainer) -> None:
        self._plan, self._trainer = plan, trainer
        ranks, group = trainer.peers.ranks, trainer.peers.group
        folder = Path(plan.folder)
        earlier = len(list(folder.glob("start-*.jsonl"))) if ranks.is_main else 0
        sent = broadcast_bytes(str(earlier + 1).encode() if ranks.is_main else None, group)
        assert sent is not None
        start = int(sent.read())
        self._kill_after = plan.kills[start - 1] if start <= len(plan.kills) else None
        self._told: dict[str, str] = {}
        self._trace = folder / f"start-{start}.jsonl" if ranks.is_main else None
        self._layers = None
        if plan.layers and not trainer.config.train.compile:  # it would compile again, with what looks at its layers
            self._layers = LayerTrace(
                trainer.learner.network, folder / f"layers-{start}-{ranks.rank}.jsonl", ranks.rank
            )
        self._write(restored=True)

    def __call__(self) -> None:
        step = self._trainer.state.step
        if self._layers is not None:
            self._layers.end_of_update(step)
        self._write(restored=False)
        if step == self._kill_after:
            self._trainer.record.checkpoints.finish()  # else it might go on from none at all
            wait_for_all(self._trainer.peers.group)
            self._end()
        if step == self._plan.steps and step < self._trainer.total_steps:
            raise StopRequested

    def _end(self) -> None:
        """Here the start ends as planned. Waiting for no other rank, no collective can be late."""
        if not self._plan.waits:
            os.kill(os.getpid(), signal.SIGKILL)
        began = time.monotonic()
        while not self._trainer.peers.stop:
            if time.monotonic() - began > _PATIENCE_S:
                raise RunError(f"nobody has stopped this start of a drill within {_PATIENCE_S} s")
            time.sleep(0.1)
        raise StopRequested

    def _write(self, *, restored: bool) -> None:
        """A row of this moment, on rank 0. Sync point: once per update."""
        if self._trace is None:
            return
        trainer = self._trainer
        tensors = sums(trained(trainer.learner))
        others = unsaved(trainer.learner, trainer.feed.data.train)
        row = {"step": trainer.state.step, "restored": restored, "tensors": tensors, "others": self._changed(others)}
        if restored:
            row |= {"epoch_steps": trainer.steps_per_epoch, "ranks": trainer.peers.ranks.world_size}
            row |= {"threads": torch.get_num_threads(), "amp": trainer.record.manifest["facts"]["amp"]}
        with self._trace.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _changed(self, others: Mapping[str, str]) -> dict[str, str]:
        """Most never change: they are written once."""
        changed = {name: text for name, text in others.items() if self._told.get(name) != text}
        changed |= {name: "missing" for name in self._told if name not in others and self._told[name] != "missing"}
        self._told |= changed
        return changed
