"""What a run leaves in its run directory: at its start, while it trains, at its end."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchinfo
from torch import Tensor, nn

from senet.config.load import changed_options, to_flat, to_yaml
from senet.config.options import Config
from senet.data.samplers import ImageData
from senet.errors import RunError
from senet.rundir.checkpoint import Checkpoint
from senet.rundir.commit import commit
from senet.rundir.files import read_json, read_rows
from senet.rundir.hours import hours_of, in_words
from senet.rundir.lease import Lease
from senet.rundir.phases import SUBMITTED_VARIABLE, Phases
from senet.rundir.restarts import JOB_VARIABLE, last_restart
from senet.rundir.saving import CheckpointManager
from senet.training.feed import two_black_images
from senet.training.progress import Progress
from senet.training.resume import rate_jump
from senet.training.rows import result_line
from senet.training.state import Summary, TrainState
from senet.training.writer import Writer
from senet.views.points import complete_through

# of status.json, kept by the next
_END_OF_A_START = ("state", "reason", "step", "job", "job_restarts", "heartbeat", "spent", "done")
_END_S, _STOP_S = 120.0, 10.0  # how long the end of a run, and a stop, wait for the views
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """Where a run is written. Rank 0 writes; on the other ranks the same calls do nothing."""

    lease: Lease | None
    """The right to write in the run directory, and status.json. None on the other ranks."""
    writer: Writer
    checkpoints: CheckpointManager
    progress: Progress
    manifest: Mapping[str, Any]
    """What is the same in the manifests of all checkpoints of this start."""

    def tell(self, **facts: Any) -> None:
        """To status.json, with the next heartbeat."""
        if self.lease is not None:
            self.lease.update(**facts)

    def save(self, payload: Mapping[str, Any], facts: Mapping[str, Any], *, wait: bool) -> None:
        """A checkpoint, once the rows so far are on the disk; see ``CheckpointManager.save``."""
        manifest = {**self.manifest, **facts}
        covered = partial(self.writer.covered, complete_through(manifest))
        self.checkpoints.save(payload, manifest, first=self.writer.sync, then=covered, wait=wait)
        self.tell(save_s=round(self.checkpoints.write_s, 3))  # of the last one that was finished

    def end(self, config: Config, summary: Summary, *, trained: bool, signal: str, tested: int) -> None:
        """Publish how the run ended.

        Args:
            trained: in this start; otherwise it had finished before.
            signal: the one that stopped this rank; empty where only another rank was asked to stop.
            tested: number of images that it was evaluated on.
        """
        stopped = summary.state == "stopped"
        if trained and not stopped:
            self._add_to_table_of_runs(config, summary.result)
        reason = (signal or "another rank was asked to stop") if stopped else summary.reason
        self.tell(state=summary.state, step=summary.step, reason=reason, result=summary.result)
        if stopped:
            total = self.manifest["steps_per_epoch"] * config.train.epochs
            line = f"stopped at step {summary.step} of {total}; the same command goes on from there"
        else:
            images = f"{tested:,} {'held-out' if config.data.holdout else 'test'} images"
            early = f" early, {summary.reason}" if summary.reason else ""
            result = result_line(summary.result, images, len(self.manifest["classes"]))
            line = f"finished{early}: {result}; see {Path(config.run_dir)}"
        if self.lease is not None:
            self.progress.say(f"time: {in_words(self.lease.measure()['hours'])}")
        self.progress.say(line)
        if not stopped:
            self.writer.covered(summary.step)
        # the other ranks wait meanwhile, up to the limit with which their group was made, start_timeout_s
        most_s = min(_END_S, config.distributed.start_timeout_s / 2, config.distributed.eval_timeout_s / 2)
        self.writer.end_views(finished=not stopped, within_s=min(_STOP_S, most_s) if stopped else most_s)

    def time_restart(self, state: TrainState) -> list[Callable[[], None]]:
        """After a failure, what to call after each update. At the first beyond the step that the failed launch had
        reached, status.json gets the failure with ``lost_s``, the seconds since then.
        """
        job = os.environ.get(JOB_VARIABLE, "")
        failed = last_restart(self.lease.run_dir, job) if self.lease is not None else {}
        reached = failed.get("step") or 0
        if not failed or state.step > reached:
            return []

        def look() -> None:
            if state.step == reached + 1:
                self.tell(restart=failed | {"lost_s": round(time.time() - failed["time"], 1)})

        return [look]

    def _add_to_table_of_runs(self, config: Config, result: Mapping[str, Any]) -> None:
        """TensorBoard's table: the final scores and the options, first those that are not the default."""
        scores = {key: value for key, value in result.items() if key.endswith(("loss", "top1"))}
        chosen = {key for key, *_ in changed_options(to_flat(Config()), config)}
        self.writer.final(to_flat(config), scores, first=chosen)


def publish_start(
    config: Config,
    facts: Mapping[str, Any],
    network: nn.Module,
    data: ImageData,
    lease: Lease | None,
    state: TrainState,
    checkpoint: Checkpoint | None,
    phases: Phases,
) -> Writer:
    """From here on the run directory says that this start goes on from ``state``; before, it told of the last start.

    Raises:
        RunError: the run directory cannot be written.
    """
    if lease is None:
        return Writer(None, resumed_step=0, epochs_done=0, to=())
    try:
        _write_start(config, facts, lease, state, checkpoint, phases)
        lease.write(
            "model.txt", f"{_layers(network, two_black_images(config, next(network.parameters()).device))}\n".encode()
        )
        writer = Writer(
            lease.run_dir,
            resumed_step=state.step,
            epochs_done=state.epochs_done,
            to=config.log.to,
            is_held=lease.is_held,
        )
    except OSError as error:
        raise RunError(f"run_dir={lease.run_dir} cannot be written: {error}") from error
    log.info(
        "%s: %s parameters; %s training, %s test images, %s classes; %s rank(s) on %s, %s thread(s) each, amp %s; %s",
        config.model.name,
        f"{sum(p.numel() for p in network.parameters()):,}",
        f"{len(data.train):,}",
        f"{len(data.test):,}",
        len(data.classes),
        facts["world_size"],
        facts["device"],
        facts["threads_per_rank"],
        facts["amp"],
        lease.run_dir,
    )
    return writer


def _write_start(
    config: Config,
    facts: Mapping[str, Any],
    lease: Lease,
    state: TrainState,
    checkpoint: Checkpoint | None,
    phases: Phases,
) -> None:
    """config.yaml: all options. starts.jsonl: each start, with what it goes on from, what changed, and how the start
    before it ended."""
    last = read_json(lease.run_dir / "status.json")  # before lease.start replaces it
    lease.update(**{key: last[key] for key in ("restart",) if key in last})
    changed = changed_options(checkpoint.manifest["config"], config) if checkpoint else []
    start = {
        "generation": lease.generation,
        "resumed_from": state.step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "began": phases.began,
        "kept": {key: round(seconds, 3) for key, seconds in state.spent.items()},
        "after": {key: value for key, value in last.items() if key in _END_OF_A_START},
        "changed": {key: [was, now] for key, was, now in changed},
        "lr": rate_jump(config, checkpoint, state) if checkpoint and changed else [],
    }
    start |= {"submitted": float(os.environ[SUBMITTED_VARIABLE])} if SUBMITTED_VARIABLE in os.environ else {}
    rows = [*read_rows(lease.run_dir / "starts.jsonl"), start | {"job": os.environ.get(JOB_VARIABLE, "")} | dict(facts)]
    lease.measure = partial(_measured, rows, state, phases)
    lease.start(state.step)
    lease.write("config.yaml", to_yaml(config).encode())
    lease.write("starts.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def _measured(starts: Sequence[Mapping[str, Any]], state: TrainState, phases: Phases) -> dict[str, Any]:
    """For status.json: what this start has spent and done, and where the time of the whole run went."""
    spent = {phase: round(seconds, 3) for phase, seconds in phases.spent().items()}
    return {"spent": spent, "done": state.step, "hours": hours_of(starts, {"spent": spent, "done": state.step}).facts()}


def _layers(network: nn.Module, images_NCHW: Tensor) -> str:
    """A table of the network's layers."""
    try:
        return str(torchinfo.summary(network, input_data=images_NCHW, depth=3, verbose=0, mode="eval"))
    except Exception as error:  # it cannot look into every network; training does not need it
        return f"{network}\n\nno summary: {error}"


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """Command line, host, versions, git commit (with ``+`` where the checkout was changed)."""
    return {
        "argv": [sys.argv[0], *argv],
        "host": platform.node(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "numpy": np.__version__,
        "commit": commit(),
    }
