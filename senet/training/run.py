"""The wiring: read downwards, it is the flow of the data."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchinfo
from torch import Tensor, nn
from torch.amp import GradScaler, autocast
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from senet.config.load import changed_options, to_flat, to_yaml
from senet.config.options import NETWORKS, Config
from senet.data.augment import Preprocess
from senet.data.samplers import ImageData, ResumableSampler, keep_on_device, open_data
from senet.distributed.agreement import Agreement
from senet.distributed.devices import set_threads
from senet.distributed.environment import read_place
from senet.distributed.groups import (
    broadcast_bytes,
    leave_together,
    process_groups,
    replicate,
    sync_batch_norms,
    wait_for_all,
)
from senet.distributed.meeting import meet, must_be_equal, options_of
from senet.distributed.preemption import StopFlag
from senet.distributed.ranks import Ranks
from senet.distributed.watchdog import Watchdog
from senet.errors import FAILED_EXIT_CODE, STOPPED_EXIT_CODE, ConfigError, RunError
from senet.models.weights import lay_out, whiten_first_layer
from senet.models.zoo import build_model, refuse_other_images, trains_on_one_image
from senet.rundir.checkpoint import Checkpoint, unpickle
from senet.rundir.files import read_json, read_rows
from senet.rundir.history import judged
from senet.rundir.lease import Lease
from senet.rundir.owner import nothing_left_if_refused
from senet.rundir.saving import CheckpointManager
from senet.training.optim import WeightAverage, build_ema, build_optimizer
from senet.training.resume import check_fits, choose_checkpoint, identity, rate_jump, steps_per_epoch, warn_of_changes
from senet.training.scores import Progress
from senet.training.seeds import provenance, seed_everything, set_deterministic
from senet.training.state import TrainState
from senet.training.trainer import Summary, Trainer
from senet.training.writer import Writer

_LAST_WORDS = ("state", "reason", "step", "job", "job_restarts", "heartbeat")  # of a start, kept by the next
log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """What exists before the ranks meet; lease and checkpoint on rank 0 only."""

    data: ImageData
    model: nn.Module
    sampler: ResumableSampler
    lease: Lease | None
    checkpoints: CheckpointManager
    checkpoint: Checkpoint | None


def run(config: Config, argv: Sequence[str], stop: StopFlag) -> Summary:
    """Train to the end of the schedule or to an agreed stop, and report. Call on every rank.

    Raises:
        ConfigError: a user's mistake; before any process group is made, but for what only a running network shows.
        RunError: why the run cannot go on.
    """
    _log_to_stderr(visible=True)
    set_deterministic(config.train.deterministic)
    run_dir, limit_s = Path(config.run_dir), config.distributed.start_timeout_s
    with ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(read_place(), limit_s, end=partial(stop.leave, FAILED_EXIT_CODE)))
        ranks = Ranks.from_environment(config.train)
        _log_to_stderr(visible=ranks.is_main)
        threads = set_threads(config.train.threads_per_rank, ranks.local_world_size)
        amp = _choose_amp(config.train.amp, ranks.device)
        facts = {"world_size": ranks.world_size, "threads_per_rank": threads, "amp": amp, "device": ranks.device.type}
        if ranks.device.type == "cuda" and ranks.world_size > 1:
            facts["nccl_algo"] = os.environ.get("NCCL_ALGO", "")
            log.info("NCCL_ALGO=%s: the order in which gradients are added up", facts["nccl_algo"])
        store, (data, model, sampler, lease, checkpoints, checkpoint) = meet(
            ranks,
            watchdog,
            must_be_equal(ranks, {**options_of(config), "precision": amp}),
            lambda: _prepare(config, ranks, run_dir, stack, stop, watchdog),
            lambda prepared: {
                "fingerprint of the images": prepared.data.fingerprint,
                "updates per epoch": steps_per_epoch(config, prepared.data),
            },
        )
        group = stack.enter_context(process_groups(ranks, store, config.distributed, watchdog))
        watchdog.phase("running the network for the first time")
        model, ema, replicas, mixed = _to_device(config, ranks, model, amp, len(data.classes))
        data = keep_on_device(data, config.data.resident, ranks.device)
        content = broadcast_bytes(checkpoint.content if checkpoint else None, group)
        saved = unpickle(content) if content else None
        checkpoint = replace(checkpoint, content=b"") if checkpoint else None
        del content  # while it is restored there is one copy, in saved
        state = TrainState.from_state_dict(saved["state"]) if saved else TrainState()
        watchdog.phase("the first update")
        _begin(stop, group)
        writer = _take_up(config, facts | provenance(argv), model, data, lease, state, checkpoint)
        stack.callback(writer.close)
        trainer = Trainer(
            config=config,
            ranks=ranks,
            data=data,
            preprocess=_preprocess(config, ranks.device),
            model=replicas,
            raw_model=model,
            ema=ema,
            optimizer=build_optimizer(model, config.optim, fused=amp != "fp16"),
            scaler=GradScaler(ranks.device.type, enabled=amp == "fp16"),
            autocast=mixed,
            sampler=sampler,
            checkpoints=checkpoints,
            manifest=identity(config, data) | {"facts": facts},
            agreement=Agreement(group, every=1 if amp == "fp16" else None),  # its scaler waits for the device each step
            group=group,
            stop=stop,
            watchdog=watchdog,
            lease=lease,
            writer=writer,
            progress=Progress(ranks.is_main),
            state=state,
        )
        if saved:
            trainer.restore(saved)
        else:
            writer.graph(model, _dummy(config, ranks.device))
        if checkpoint:
            warn_of_changes(checkpoint, facts)
            trainer.progress.say(f"resumed from {checkpoint.path} at step {state.step}")
        del saved  # as much memory as the run needs for its state
        trained = state.epochs_done < config.train.epochs
        summary = trainer.fit()
        if trained and summary.state == "finished":
            scores = {key: value for key, value in summary.result.items() if key.endswith(("loss", "top1"))}
            chosen = {key for key, *_ in changed_options(to_flat(Config()), config)}
            writer.final(to_flat(config), scores, first=chosen)
        if lease:
            reason = (stop.signal_name or "another rank was asked to stop") if summary.state == "stopped" else ""
            lease.update(state=summary.state, step=summary.step, reason=reason, result=summary.result)
        trainer.progress.say(_last_words(summary, trainer, run_dir))
        leave_together(group)  # published: now the first exit may end the others
    return summary


def _begin(stop: StopFlag, group: ProcessGroup) -> None:
    """From here on a stop is agreed on and costs a save; a rank that was told before has left at once."""
    stop.hold()
    try:
        wait_for_all(group)
    except RuntimeError:
        if stop:  # this rank was told too, a moment too late for that
            stop.leave(STOPPED_EXIT_CODE, stop.signal_name)
        raise


def _prepare(
    config: Config, ranks: Ranks, run_dir: Path, stack: ExitStack, stop: StopFlag, watchdog: Watchdog
) -> Prepared:
    """Everything that can be refused, before the ranks meet."""
    lease, checkpoint = None, None
    checkpoints = CheckpointManager(None, keep=1, generation=0, resumed_from={})
    if ranks.is_main:
        stack.enter_context(nothing_left_if_refused(run_dir))
        watching = partial(watchdog.phase, "watching whether the last holder of run_dir lives", alone=True)
        lease = stack.enter_context(Lease.acquire(run_dir, watching))  # each look is progress
        watchdog.phase("preparing data and network", alone=True)
        stop.before_leaving(partial(_give_up, lease))
        checkpoints = CheckpointManager(
            run_dir / "checkpoints",
            keep=config.checkpoint.keep,
            generation=lease.generation,
            resumed_from=lease.resumed_from,
            is_held=lease.is_held,
        )
        stack.callback(checkpoints.close)
        checkpoint = choose_checkpoint(config, checkpoints)
    data = open_data(config.data, local_rank=ranks.local_rank)
    sampler = ResumableSampler(
        data.train,
        global_batch_size=config.train.global_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.seed,
    )
    seed_everything(config.seed)
    init_from = config.model.init_from if checkpoint is None else ""
    model = build_model(
        config.model.name,
        num_classes=len(data.classes),
        reduction=config.model.reduction,
        small_stem=config.model.small_stem,
        init_from=init_from,
    )
    if config.model.whiten:
        count = min(len(data.train), max(1, 1000 * 32**2 // config.data.image_size**2))  # some 100 MB of patches
        some = data.train[torch.linspace(0, len(data.train) - 1, count).long()][0]  # of all classes
        whiten_first_layer(model, _preprocess(config, torch.device("cpu")).test(some))
    if checkpoint is not None:
        check_fits(config, checkpoint, data, model)
    _check_images(config, ranks, model)
    return Prepared(data, model, sampler, lease, checkpoints, checkpoint)


def _check_images(config: Config, ranks: Ranks, model: nn.Module) -> None:
    """What a network cannot be given: images of this size, or one at a time."""
    if config.model.name not in NETWORKS:
        for size in {config.data.image_size, *([config.augment.small_size] if config.augment.small_epochs else [])}:
            refuse_other_images(model, config.model.name, size)
    parts = ranks.world_size * config.train.accumulate
    if config.train.global_batch_size > parts or (config.train.sync_bn and ranks.world_size > 1):
        return
    size = config.augment.small_size if config.augment.small_epochs else config.data.image_size
    if not trains_on_one_image(model, size):
        raise ConfigError(
            f"train.global_batch_size={config.train.global_batch_size} is one image per rank and micro-batch, and "
            f"{config.model.name} has a norm over a single value of it; use {2 * parts} or more"
        )


def _take_up(
    config: Config,
    facts: Mapping[str, Any],
    model: nn.Module,
    data: ImageData,
    lease: Lease | None,
    state: TrainState,
    checkpoint: Checkpoint | None,
) -> Writer:
    """From here on the run directory says that this start goes on from that state."""
    if lease is None:
        return Writer(None, resumed_step=0, epochs_done=0, tensorboard=False)
    try:
        before = read_json(lease.run_dir / "status.json")  # the last start's, which this one's takes the place of
        lease.start(state.step)
        changed = changed_options(checkpoint.manifest["config"], config) if checkpoint else []
        lr = rate_jump(config, checkpoint, state) if checkpoint and changed else []
        of_start = {"changed": {key: [was, now] for key, was, now in changed}, "lr": lr} | dict(facts)
        _record(config, of_start, model, data, lease, before)
        return Writer(
            lease.run_dir,
            resumed_step=state.step,
            epochs_done=state.epochs_done,
            tensorboard=config.log.tensorboard,
            is_held=lease.is_held,
        )
    except OSError as error:
        raise RunError(f"run_dir={lease.run_dir} cannot be written: {error}") from error


def _give_up(lease: Lease, _code: int, reason: str) -> None:
    lease.update(state="failed", reason=reason)  # published only where it has begun
    lease.close()


def _choose_amp(wanted: str, device: torch.device) -> str:
    """auto: bf16 where it is native; fp16 on a CPU is allowed, to try it."""
    if wanted == "fp16" and device.type == "cpu":
        log.warning("train.amp=fp16 on a CPU is slow; bf16 or off is faster")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "off"
    features = torch.cpu.get_capabilities()
    return "bf16" if features.get("avx512_bf16") or features.get("bf16") else "off"  # x86, Arm


def _to_device(
    config: Config, ranks: Ranks, model: nn.Module, amp: str, num_classes: int
) -> tuple[nn.Module, WeightAverage | None, DistributedDataParallel, Callable[[], AbstractContextManager[None]]]:
    """The network on its device, its average, its replica among the ranks, and the precision both run in."""
    model.to(ranks.device)
    lay_out(model, channels_last=config.train.channels_last)
    if config.train.sync_bn:
        model = sync_batch_norms(model)
    ema = build_ema(model, config.train.ema_decay)  # a network that has run may hold what cannot be copied
    mixed: Callable[[], AbstractContextManager[None]] = partial(
        autocast, ranks.device.type, dtype=torch.float16 if amp == "fp16" else torch.bfloat16, enabled=amp != "off"
    )
    compiled = torch.compile(model) if config.train.compile else model
    assert isinstance(compiled, nn.Module)
    with mixed():
        replicas = replicate(
            compiled,
            ranks,
            dummy_NCHW=_micro_batch(config, ranks) if config.train.compile else _dummy(config, ranks.device),
            num_classes=num_classes,
            comm_hook=config.train.comm_hook,
        )
    return model, ema, replicas, mixed


def _dummy(config: Config, device: torch.device) -> Tensor:
    """Two black images, for whatever has to see the network run."""
    return torch.zeros(2, 3, config.data.image_size, config.data.image_size, device=device)


def _micro_batch(config: Config, ranks: Ranks) -> Tensor:
    """Black images in the number and layout of training: whatever differs is compiled again, and for any number."""
    count, size = config.train.global_batch_size // (ranks.world_size * config.train.accumulate), config.data.image_size
    images_NHWC = torch.zeros(count, size, size, 3, dtype=torch.uint8, device=ranks.device)
    return _preprocess(config, ranks.device).test(images_NHWC)


def _preprocess(config: Config, device: torch.device) -> Preprocess:
    return Preprocess(
        config.augment,
        mean=config.data.mean,
        std=config.data.std,
        seed=config.seed,
        device=device,
        channels_last=config.train.channels_last,
    )


def _record(
    config: Config,
    facts: Mapping[str, Any],
    model: nn.Module,
    data: ImageData,
    lease: Lease,
    before: Mapping[str, Any],
) -> None:
    """config.yaml (resolved), starts.jsonl (each start: from where, what changed, how the last ended), model.txt."""
    lease.write("config.yaml", to_yaml(config).encode())
    start = {
        "generation": lease.generation,
        "resumed_from": lease.resumed_from[lease.generation],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "after": {key: value for key, value in before.items() if key in _LAST_WORDS},
    }
    rows = [*read_rows(lease.run_dir / "starts.jsonl"), start | dict(facts)]
    lease.write("starts.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    dummy_NCHW = _dummy(config, next(model.parameters()).device)
    try:
        summary = str(torchinfo.summary(model, input_data=dummy_NCHW, depth=3, verbose=0, mode="eval"))
    except Exception as error:  # it cannot look into every network; training does not need it
        summary = f"{model}\n\nno summary: {error}"
    lease.write("model.txt", f"{summary}\n".encode())
    log.info(
        "%s: %s parameters; %s training, %s test images, %s classes; %s rank(s) on %s, %s thread(s) each, amp %s; %s",
        config.model.name,
        f"{sum(p.numel() for p in model.parameters()):,}",
        f"{len(data.train):,}",
        f"{len(data.test):,}",
        len(data.classes),
        facts["world_size"],
        facts["device"],
        facts["threads_per_rank"],
        facts["amp"],
        lease.run_dir,
    )


def _last_words(summary: Summary, trainer: Trainer, run_dir: Path) -> str:
    if summary.state == "stopped":
        return f"stopped at step {summary.step} of {trainer.total_steps}; the same command goes on from there"
    row = summary.result
    which = judged(row)
    images = f"{len(trainer.data.test):,} {'held-out' if trainer.config.data.holdout else 'test'} images"
    weights = ""
    if "ema_top1" in row:
        both = {"ema": f"averaged weights {row['ema_top1']:.2f} %", "test": f"raw weights {row['test_top1']:.2f} %"}
        weights = f"{both.pop(which)}, {both.popitem()[1]}; "
    return (
        f"finished: {row[f'{which}_top1']:.2f} % top-1 ({weights}{images}), best "
        f"{row['best_top1']:.2f} % after epoch {row['best_epoch']}; {row['train_s']:.0f} s of training; see {run_dir}"
    )


def _log_to_stderr(*, visible: bool) -> None:
    """Warnings and facts of rank 0 on stderr, one line each."""
    logging.basicConfig(
        format="%(levelname)s: %(message)s",
        stream=sys.stderr,
        level=logging.INFO if visible else logging.ERROR,
        force=True,
    )
