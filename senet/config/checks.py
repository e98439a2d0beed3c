"""Ranges, and which options go together. Each refusal names the value, the rule and the remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from senet.config.images import check_crops, check_source
from senet.config.options import (
    KEYS,
    NETWORKS,
    TORCHVISION_RESNETS,
    Config,
    ModelConfig,
    TrainConfig,
    flat_values,
    options,
    range_text,
)
from senet.errors import ConfigError, did_you_mean


def check_ranges(config: Config) -> None:
    flat = flat_values(config)
    for key, spec in options():
        rule = range_text(spec).lstrip(", ")
        for value in flat[key] if isinstance(flat[key], list) else [flat[key]]:
            if isinstance(value, str) and not value.replace("\t", " ").isprintable():
                raise ConfigError(f"{key}={value!r} has characters that cannot be printed; leave them out")
            if isinstance(value, bool | str | dict):
                continue
            low, high, above = (spec.metadata.get(name) for name in ("low", "high", "above"))
            fits = (
                (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
            )
            if not (fits and math.isfinite(value)):
                raise ConfigError(f"{key}={flat[key]} is out of range: it must be {rule or 'finite'}")


def check_together(config: Config) -> None:
    if config.optim.name == "sgd" and config.optim.nesterov and config.optim.momentum == 0:
        raise ConfigError("optim.nesterov=true needs optim.momentum > 0; set optim.nesterov=false")
    if config.schedule.name == "multistep" and not config.schedule.milestones:
        raise ConfigError("schedule.name=multistep needs schedule.milestones, e.g. schedule.milestones=[10,20]")
    if list(config.schedule.milestones) != sorted(set(config.schedule.milestones)):
        raise ConfigError(f"schedule.milestones={list(config.schedule.milestones)} must rise, each epoch once")
    if config.schedule.warmup_epochs >= config.train.epochs:
        raise ConfigError(
            f"schedule.warmup_epochs={config.schedule.warmup_epochs} must be below train.epochs={config.train.epochs}"
        )
    _check_changes(config)
    if config.train.patience and not config.data.holdout:
        raise ConfigError(
            f"train.patience={config.train.patience} without data.holdout would choose the last epoch by the test "
            f"images; hold some of the training images out, e.g. data.holdout=5000"
        )
    if config.optim.bias_lr and config.optim.decay_norms_and_biases:
        raise ConfigError(
            f"optim.bias_lr={config.optim.bias_lr} is for norms and biases that do not decay; set "
            f"optim.decay_norms_and_biases=false"
        )
    if config.model.whiten and config.model.init_from:
        raise ConfigError(
            f"model.whiten=true would replace the first layer of model.init_from={config.model.init_from}; "
            f"set model.whiten=false"
        )
    check_source(config.data)
    check_crops(config.data, config.augment)
    if not config.data.root:
        raise ConfigError("data.root= is empty; name a folder, e.g. data.root=data")
    if config.train.sync_bn and config.train.device == "cpu":
        raise ConfigError("train.sync_bn=true needs CUDA, but train.device=cpu; set train.sync_bn=false")
    if config.train.shards:
        _check_with_shards(config.train)
    _check_mapping("model.args", config.model.args, r"[A-Za-z_]\w*", (bool, int, float, str, list, dict, type(None)))
    _check_factors("optim.lr_scale", config.optim.lr_scale, "; to leave it as it is: optim.freeze=[{}]")
    _check_factors("train.class_weights", config.train.class_weights)
    if config.train.loss and config.train.label_smoothing:
        raise ConfigError(
            f"train.label_smoothing={config.train.label_smoothing} is of the cross entropy, not of "
            f"train.loss={config.train.loss}; set train.label_smoothing=0"
        )
    _check_beside(config)
    _check_model(config.model, config.data.image_size)


def _check_beside(config: Config) -> None:
    """What is no part of the training."""
    if config.log.profile_at == 1:
        raise ConfigError("log.profile_at=1: the update before the first one that is profiled warms up; use 2 or more")
    check_notify(config.notify)
    _check_keys(config)
    _check_mapping("slurm.environment", config.slurm.environment, r"[A-Za-z_]\w*", (str,))
    _check_mapping("slurm.sbatch", config.slurm.sbatch, r"[a-z][a-z0-9_-]*", (str, int, float))


def _check_keys(config: Config) -> None:
    """ConfigError where options would carry a key into files."""
    if (name := config.notify.removeprefix("env:")) != config.notify and name in config.slurm.environment:
        raise ConfigError(f"notify=env:{name}: slurm.environment.{name} is written into files; export {name} instead")
    for name in sorted(KEYS & config.slurm.environment.keys()):
        raise ConfigError(f"slurm.environment.{name} would be written into files of the run; export {name} instead")


def is_address(notify: str) -> bool:
    """Or else a command, which may hold an address."""
    return bool(re.match(r"[A-Za-z][\w+.-]*://", notify))


def check_notify(text: str, *, secret: bool = False) -> None:
    """ConfigError for an address that may not be used. ``secret``: it is in no file, so it may hold a key."""
    shown = "the address that notify names" if secret else f"notify={text}"
    if text.startswith("env:") and not secret:
        if not re.fullmatch(r"env:[A-Za-z_]\w*", text):
            raise ConfigError(f"{shown}: write env: and the name of a variable, e.g. env:NOTIFY")
        return
    if not is_address(text):
        return
    here = re.match(r"http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)", text)
    if not (here or re.match(r"https://[^/\s]+", text)):
        raise ConfigError(f"{shown} is no https address; others send in the clear what anybody can read")
    _, _, rest = text.partition("://")
    keys = [part for part in rest.split("/")[1:] if len(part) >= 16 and re.search(r"\d", part)]
    if not secret and (keys or re.search("[@?#]", rest)):
        raise ConfigError(
            "notify= is an address that seems to hold a key, which would be written into files of the run; put it into "
            "a variable and name that: notify=env:NOTIFY"
        )


def _check_with_shards(train: TrainConfig) -> None:
    """ConfigError for what would depend on the number of ranks."""
    given = f"train.shards={train.shards}"
    if train.sync_bn:
        raise ConfigError(f"train.sync_bn=true makes statistics of all ranks, {given} of each shard; leave one out")
    if train.comm_hook != "none":
        raise ConfigError(
            f"train.comm_hook={train.comm_hook} is for gradients between ranks, and {given} has the same "
            f"bits without ranks; set train.comm_hook=none"
        )
    if not train.deterministic:
        raise ConfigError(f"{given} promises equal bits, which train.deterministic=false does not; leave one out")


def _check_changes(config: Config) -> None:
    if config.augment.small_epochs:
        _check_small(config)
    if (hue := config.augment.color_jitter[3]) > 0.5:
        raise ConfigError(
            f"augment.color_jitter={list(config.augment.color_jitter)}: a change of hue by {hue} is more than half a "
            f"turn; use at most 0.5"
        )


def _check_small(config: Config) -> None:
    small, size = config.augment, config.data.image_size
    if small.small_size >= size:
        raise ConfigError(f"augment.small_size={small.small_size} must be below data.image_size={size}")
    if small.small_epochs >= config.train.epochs:
        raise ConfigError(f"augment.small_epochs={small.small_epochs} must be below train.epochs={config.train.epochs}")
    if config.train.compile:
        raise ConfigError("augment.small_epochs with train.compile=true would not resume bit for bit; choose one")
    if config.model.name.removeprefix("se_") == "inception_v3" and small.small_size < 75:
        raise ConfigError(f"augment.small_size={small.small_size}: {config.model.name} needs 75 pixels or more")


def _check_factors(option: str, factors: Mapping[str, float], for_zero: str = "") -> None:
    for name, factor in factors.items():
        if not 0 < factor < math.inf:
            remedy = for_zero.format(name) if factor == 0 else ""
            raise ConfigError(f"{option}.{name}={factor} is out of range: it must be > 0 and finite{remedy}")


def _check_model(model: ModelConfig, image_size: int) -> None:
    name, plain_name = model.name, model.name.removeprefix("se_")
    if name.startswith("timm:"):
        _check_timm(name)
    if ":" not in name and name not in NETWORKS:
        hint = did_you_mean(name.lower(), NETWORKS) or "--help model lists them"
        raise ConfigError(f"model.name={name!r} is neither a known network nor package.module:function; {hint}")
    if ":" in name and ("/" in name or name.partition(":")[0].endswith(".py")):
        raise ConfigError(f"model.name={name} names a file; write package.module:function, e.g. my.networks:build")
    if model.args and ":" not in name:
        some, value = next(iter(model.args.items()))
        raise ConfigError(
            f"model.args.{some}={value} is for package.module:function and timm:NAME, not for model.name={name}; its "
            f"options are model.reduction and model.small_stem, where it has them"
        )
    if model.reduction != ModelConfig.reduction and (":" in name or not name.startswith(("senet18", "se_"))):
        raise ConfigError(f"model.reduction={model.reduction} is of senet18 and se_ networks, not of model.name={name}")
    if model.small_stem and plain_name not in TORCHVISION_RESNETS:
        raise ConfigError(
            f"model.small_stem=true is of torchvision's residual networks (resnet18, ...), not of model.name={name}; "
            f"set model.small_stem=false"
        )
    if plain_name == "inception_v3" and image_size < 75:
        raise ConfigError(f"model.name={name} needs images of 75 pixels or more; set data.image_size=75")


def _check_timm(name: str) -> None:
    of_timm, _, tag = name.removeprefix("timm:").partition(".")
    if not re.fullmatch(r"[A-Za-z0-9_]+", of_timm):
        raise ConfigError(f"model.name={name}: write timm:NAME with a name of timm.list_models(), e.g. timm:resnet50d")
    if tag:
        raise ConfigError(
            f"model.name={name} names weights, {tag}; write model.name=timm:{of_timm} model.init_from={name}"
        )


def _check_mapping(name: str, values: Mapping[str, Any], key_rule: str, kinds: tuple[type, ...]) -> None:
    for key, value in values.items():
        if not re.fullmatch(key_rule, key) or not isinstance(value, kinds) or "\n" in str(value):
            raise ConfigError(
                f"{name}.{key}={value!r}: a name that matches {key_rule}, and one line of text or a number"
            )
