"""Which checkpoint a start goes on from, and whether it fits this run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from senet.config.images import kept_as, stored_as
from senet.config.load import changed_options, to_flat
from senet.config.options import Config, ScheduleConfig
from senet.data.samplers import ImageData, ResumableSampler
from senet.errors import ConfigError
from senet.rundir.checkpoint import FORMAT, Checkpoint, CheckpointError, published_files, read_checkpoint, unpickle
from senet.rundir.files import read_json
from senet.rundir.owner import refuse_folder
from senet.rundir.saving import CheckpointManager
from senet.training.schedule import lr_at
from senet.training.state import TrainState

log = logging.getLogger(__name__)


def choose_checkpoint(config: Config, checkpoints: CheckpointManager) -> Checkpoint | None:
    """The checkpoint to resume from, by ``resume.mode``; None to begin anew. On rank 0."""
    mode = config.resume.mode
    try:
        own = checkpoints.newest()
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    if mode == "never" and own is not None:
        raise ConfigError(
            f"resume.mode=never, but {checkpoints.directory} holds checkpoints up to step {own.step}; use "
            f"resume.mode=auto to go on, or another run_dir"
        )
    if mode in ("auto", "never"):
        return own
    if own is not None and not Path(mode).is_file():
        return own  # the same command again; the file that it began from was deleted meanwhile
    named = read_named(mode)
    if own is None or own.step < named.step:
        return named
    if named.path.resolve().parent == own.path.resolve().parent and named.step < own.step:
        raise ConfigError(
            f"resume.mode={mode} is older than {own.path.name} beside it; use resume.mode=auto to go on, "
            f"or another run_dir to branch off"
        )
    return own


def read_named(name: str) -> Checkpoint:
    """A checkpoint that the user named; ConfigError where it is missing or damaged."""
    if Path(name).is_dir():
        some = next(
            iter([*published_files(Path(name, "checkpoints")), *published_files(Path(name))]), "a step_*.pt file"
        )
        raise ConfigError(f"resume.mode={name} is a folder; name one of its checkpoints, e.g. {some}")
    if not Path(name).is_file():
        raise ConfigError(f"resume.mode={name}: no such file; use auto, never, or the path of a checkpoint")
    try:
        return read_checkpoint(Path(name))
    except CheckpointError as error:
        raise ConfigError(f"resume.mode={name}: {error}") from None


def check_store(config: Config, checkpoint: Checkpoint | None) -> None:
    """ConfigError where the images of the run that goes on are kept as another kind, before any are packed or decoded;
    and what ``refuse_folder`` refuses.

    Args:
        checkpoint: that of ``choose_checkpoint``. None on other ranks, which look at the newest manifest, unverified,
            so that none of them builds while rank 0 refuses.
    """
    if checkpoint is not None:
        path, saved = checkpoint.path, checkpoint.manifest["config"]
    else:
        refuse_folder(Path(config.run_dir))  # as rank 0 has done
        newest = next(iter(published_files(Path(config.run_dir, "checkpoints"))), None)
        if newest is None or config.resume.mode != "auto":
            return
        path, saved = newest, read_json(newest.with_suffix(".json")).get("config")
    if config.resume.allow_changes or not isinstance(saved, dict):
        return
    if (was := kept_as(saved)) != (now := stored_as(config.data)):
        raise ConfigError(
            f"{path} was trained with data.store={was}, and data.store={config.data.store} is {now} here, which "
            f"changes the numbers; set data.store={was}, or choose another run_dir"
        )


def identity(config: Config, data: ImageData, sampler: ResumableSampler, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint belongs to: compared before it is resumed from, needed to use it afterwards."""
    return {
        "format": FORMAT,
        "classes": list(data.classes),
        "data": data.fingerprint,
        "steps_per_epoch": sampler.batches_per_epoch,
        "config": to_flat(config),
        "facts": dict(facts),
    }


def check_fits(config: Config, checkpoint: Checkpoint, data: ImageData, steps_per_epoch: int, model: nn.Module) -> None:
    """Whether this run can go on from a checkpoint.

    Raises:
        ConfigError: it is of another network or other classes; or options that change the numbers are different, and
            resume.allow_changes does not allow it, or nothing could.
    """
    saved = checkpoint.manifest
    _must_be_equal(checkpoint, "model.name", saved["config"]["model.name"], config.model.name, weights_fit=False)
    _check_classes(checkpoint, data)
    if checkpoint.step > config.train.epochs * saved["steps_per_epoch"]:
        done = checkpoint.step / saved["steps_per_epoch"]
        raise ConfigError(
            f"{checkpoint.path} has {done:.4g} epochs done, more than train.epochs={config.train.epochs}; ask for "
            f"train.epochs={math.ceil(done)} or more, or choose another run_dir"
        )
    changes = _check_changes(config, checkpoint, data)
    # these cannot change in the middle of a run, allowed or not
    _must_be_equal(checkpoint, "updates per epoch", saved["steps_per_epoch"], steps_per_epoch)
    now = to_flat(config)
    # these decide the optimizer's groups
    for key in ("optim.name", "optim.decay_norms_and_biases", "model.whiten", "optim.freeze", "optim.lr_scale"):
        was, here = (each.get(key, to_flat(Config())[key]) for each in (saved["config"], now))
        if key == "optim.lr_scale":  # the factors may change
            was, here = sorted(was), sorted(here)
        _must_be_equal(checkpoint, key, was, here, weights_fit=key != "model.whiten")
    _check_parameters(checkpoint, model)
    if changes:
        log.warning("resumed with other options: %s", changes)


def _check_classes(checkpoint: Checkpoint, data: ImageData) -> None:
    saved = checkpoint.manifest["classes"]
    if saved != list(data.classes):
        gone, new = sorted({*saved} - {*data.classes}), sorted({*data.classes} - {*saved})
        raise ConfigError(
            f"{checkpoint.path} was trained on {len(saved)} classes, the data has {len(data.classes)}: without "
            f"{', '.join(gone) or 'none'}, with new {', '.join(new) or 'none'}; restore the data, or choose another "
            f"run_dir (with model.init_from={checkpoint.path} to begin from its weights)"
        )


def _check_changes(config: Config, checkpoint: Checkpoint, data: ImageData) -> str:
    """What is different and changes the numbers, as a text; ConfigError unless it is allowed."""
    saved = checkpoint.manifest
    changed = changed_options(saved["config"], config)
    held, held_now = (each.partition("+")[2][:12] for each in (saved["data"], data.fingerprint))
    if not data.same_images(saved["data"]):
        changed.append(("the content of the images", saved["data"][:12], data.fingerprint[:12]))
    elif held and held_now and held != held_now:  # one is missing where data.holdout differs, or in old checkpoints
        changed.append(("the choice of the images held out", held, held_now))
    text = ", ".join(f"{key}: {was} -> {now}" for key, was, now in changed)
    if changed and not config.resume.allow_changes:
        raise ConfigError(
            f"{checkpoint.path} was trained with other options ({text}), which changes the numbers; undo that, choose "
            f"another run_dir, or set resume.allow_changes=true"
        )
    return text


def _check_parameters(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Whether the weights fit: the code of a network may have been edited."""
    try:
        payload = unpickle(checkpoint.content)
    except CheckpointError as error:
        raise ConfigError(f"{checkpoint.path}: {error}") from None
    shapes, saved_shapes = (
        {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
        for state in (model.state_dict(), payload["model"])
    )
    for name in sorted(shapes.keys() | saved_shapes.keys()):
        _must_be_equal(checkpoint, f"shape of {name}", saved_shapes.get(name), shapes.get(name), weights_fit=False)
    for was, now in zip(saved_shapes, shapes, strict=True):  # the optimizer knows parameters by their order
        _must_be_equal(checkpoint, "order of layers", was, now)
    trained = sum(len(group["params"]) for group in payload["optimizer"]["param_groups"])
    trained_now = sum(parameter.requires_grad for parameter in model.parameters())
    _must_be_equal(checkpoint, "number of trained parameters", trained, trained_now)


def _must_be_equal(checkpoint: Checkpoint, name: str, was: Any, now: Any, *, weights_fit: bool = True) -> None:
    """ConfigError where ``was`` is not ``now``. ``weights_fit``: model.init_from could load the weights."""
    if was != now:
        begin = f" (with model.init_from={checkpoint.path} to begin from its weights)" if weights_fit else ""
        raise ConfigError(
            f"{checkpoint.path} has {name}={was}, this command gives {now}; undo the change, or choose another "
            f"run_dir{begin}"
        )


def rate_jump(config: Config, checkpoint: Checkpoint, state: TrainState) -> list[float]:
    """The learning rates of the last and of the next update, where changed options change the latter. Else empty.
    Logged, too."""
    saved: dict[str, Any] = checkpoint.manifest["config"]
    per_epoch = checkpoint.manifest["steps_per_epoch"]
    options: dict[str, Any] = {
        each.name: saved.get(f"schedule.{each.name}", each.default) for each in fields(ScheduleConfig)
    }

    def rate(step: int, schedule: ScheduleConfig, lr: float, epochs: int) -> float:
        step = max(0, min(step, epochs * per_epoch - 1))  # the schedule is defined for these
        return state.plateau.factor * lr_at(step, schedule, lr=lr, steps_per_epoch=per_epoch, epochs=epochs)

    earlier = (ScheduleConfig(**options), saved["optim.lr"], saved["train.epochs"])
    before, planned = rate(state.step - 1, *earlier), rate(state.step, *earlier)
    after = rate(state.step, config.schedule, config.optim.lr, config.train.epochs)
    if after == planned or state.is_over(config.train):
        return []
    log.warning("the learning rate goes from %.4g (update %d) to %.4g", before, state.step, after)
    return [before, after]


def warn_of_changes(config: Config, checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
    """Log what is different in the facts that the bits of a run depend on besides its options."""
    saved = checkpoint.manifest["facts"]
    for key, now in facts.items():
        if key not in saved or (key == "world_size" and config.train.shards):  # of an older version, or of no matter
            continue
        if saved[key] != now:
            log.warning("%s was %s, now %s: the run goes on, but not bit for bit", key, saved[key], now)
