"""Everything that can be refused, done by each rank before the ranks meet."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from senet.config.options import NETWORKS, Config, DataConfig
from senet.data.balance import class_weights
from senet.data.samplers import ImageData, ResumableSampler
from senet.data.stores.uses import note_run
from senet.distributed.preemption import StopFlag
from senet.distributed.ranks import Ranks
from senet.distributed.watchdog import Watchdog
from senet.errors import ConfigError
from senet.models.parts import freeze, scaled
from senet.models.weights import whiten_first_layer
from senet.models.zoo import (
    build_model,
    overrun_convolution,
    refuse_other_images,
    refuse_unknown,
    trains_on_one_image,
)
from senet.rundir.checkpoint import Checkpoint
from senet.rundir.lease import Lease
from senet.rundir.owner import nothing_left_if_refused
from senet.rundir.saving import CheckpointManager
from senet.training.feed import build_preprocess, build_sampler, load_extra
from senet.training.losses import load_loss, try_own
from senet.training.precision import begun_with
from senet.training.resume import check_fits, check_store, choose_checkpoint
from senet.training.seeds import seed_everything
from senet.views.services import check_installed


class OpenImages(Protocol):
    """How the images are opened; ``open_data`` is one."""

    def __call__(self, config: DataConfig, *, local_rank: int) -> ImageData: ...


class Prepared(NamedTuple):
    """What exists before the ranks meet. Lease, checkpoint, begun: on rank 0 only."""

    data: ImageData
    network: nn.Module
    sampler: ResumableSampler
    lease: Lease | None
    checkpoints: CheckpointManager
    checkpoint: Checkpoint | None
    begun: Mapping[str, Any] | None
    """Facts of the start whose precision is kept."""

    def facts(self) -> dict[str, Any]:
        """What must be equal on all ranks."""
        return {
            "fingerprint of the images": self.data.fingerprint,
            "updates per epoch": self.sampler.batches_per_epoch,
        }


def prepare(
    config: Config, ranks: Ranks, stack: ExitStack, stop: StopFlag, watchdog: Watchdog, open_images: OpenImages
) -> Prepared:
    """Run directory, data and network.

    Raises:
        ConfigError: a user's mistake.
    """
    lease, checkpoint = None, None
    checkpoints = CheckpointManager(None, keep=1, generation=0, resumed_from={})
    if ranks.is_main:
        lease, checkpoints = _own_run_dir(config, stack, stop, watchdog)
        checkpoint = choose_checkpoint(config, checkpoints)
    check_store(config, checkpoint)
    seed_everything(config.seed)  # a user's code may draw
    refuse_unknown(config.model.name, config.model.args)
    if config.train.loss:
        load_loss(config.train.loss)
    if config.augment.extra:
        load_extra(config.augment.extra)
    _check_parts(config)
    if ranks.is_main:
        check_installed(config.log.to)
    data = open_images(config.data, local_rank=ranks.local_rank)
    sampler = build_sampler(config, data, ranks)
    class_weights(config.train, data)  # names of classes
    if config.train.loss or config.augment.extra:
        try_own(config, ranks, len(data.classes))
    network = _build_network(config, data, reads_weights=ranks.is_main and checkpoint is None)
    if checkpoint is not None:
        check_fits(config, checkpoint, data, sampler.batches_per_epoch, network)
    _check_layout(config, ranks, network)
    _check_images(config, ranks, network)
    if ranks.is_main and data.store is not None:  # nothing refuses the run any more
        note_run(data.store, Path(config.run_dir))
    begun = begun_with(config, checkpoint, lease)
    return Prepared(data, network, sampler, lease, checkpoints, checkpoint, begun)


def _own_run_dir(
    config: Config, stack: ExitStack, stop: StopFlag, watchdog: Watchdog
) -> tuple[Lease, CheckpointManager]:
    run_dir = Path(config.run_dir)
    stack.enter_context(nothing_left_if_refused(run_dir))
    watching = partial(watchdog.phase, "watching whether the last holder of run_dir is alive", alone=True)
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
    return lease, checkpoints


def _give_up(lease: Lease, _code: int, reason: str) -> None:
    """The process is ended from outside its main thread."""
    # published only if lease.start was called
    lease.update(state="failed", reason=reason, kind="start does not get on")
    lease.close()


def _build_network(config: Config, data: ImageData, *, reads_weights: bool) -> nn.Module:
    """``reads_weights``: those of model.init_from, where a run begins; rank 0 does, and the others have them of it."""
    seed_everything(config.seed)
    network = build_model(
        config.model.name,
        num_classes=len(data.classes),
        reduction=config.model.reduction,
        small_stem=config.model.small_stem,
        arguments=config.model.args,
        init_from=config.model.init_from if reads_weights else "",
    )
    if config.model.whiten:
        count = min(len(data.train), max(1, 1000 * 32**2 // config.data.image_size**2))  # about 100 MB of patches
        some = data.train[torch.linspace(0, len(data.train) - 1, count).long()][0]  # of all classes
        whiten_first_layer(network, build_preprocess(config, torch.device("cpu")).test(some))
    _freeze(network, config)
    return network


def _freeze(network: nn.Module, config: Config) -> None:
    """What ``optim.freeze`` names; ConfigError where it or ``optim.lr_scale`` names what the network does not have."""
    freeze(network, config.optim.freeze)
    scaled(network, config.optim.lr_scale)


def _check_parts(config: Config) -> None:
    """The same before images are decoded, where the network is one of the project's: a function of somebody's own may
    take long, or not run without memory."""
    if config.model.name in NETWORKS and (config.optim.freeze or config.optim.lr_scale):
        with torch.device("meta"):
            network = build_model(config.model.name, num_classes=10, small_stem=config.model.small_stem)
        _freeze(network, config)


def _check_layout(config: Config, ranks: Ranks, network: nn.Module) -> None:
    """ConfigError where torch computes wrong gradients, crashes or hangs on some CPUs: the run may go on on another."""
    if ranks.device.type == "cpu" and config.train.channels_last and (found := overrun_convolution(network)):
        raise ConfigError(
            f"train.channels_last=true: {found} of {config.model.name}: on some CPUs torch computes wrong "
            f"gradients of a 1x1 convolution with a stride and fewer than 8 channels, or crashes (oneDNN's issue "
            f"6035); train.channels_last=false (resume.allow_changes=true if it has begun)"
        )


def _check_images(config: Config, ranks: Ranks, network: nn.Module) -> None:
    """ConfigError where the network cannot take images of this size, or one at a time where it will get one."""
    small = [config.augment.small_size] if config.augment.small_epochs else []
    if config.model.name not in NETWORKS:
        for size in {config.data.image_size, *small}:
            refuse_other_images(network, config.model.name, size)
    parts = (config.train.shards or ranks.world_size) * config.train.accumulate
    if config.train.global_batch_size > parts or (config.train.sync_bn and ranks.world_size > 1):
        return
    part = "shard" if config.train.shards else "rank"
    if not trains_on_one_image(network, *(small or [config.data.image_size])):
        raise ConfigError(
            f"train.global_batch_size={config.train.global_batch_size} is one image per {part} and micro-batch, and "
            f"{config.model.name} has a norm over a single value of it; use {2 * parts} or more"
        )
