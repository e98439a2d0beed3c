"""How the global batch is shared by ranks or shards, and their micro-batches."""

from __future__ import annotations

import math

from senet.config.options import Config, TrainConfig
from senet.errors import ConfigError


def check_split(config: Config, world_size: int) -> None:
    """Raise ConfigError unless the global batch can be shared equally by ranks or shards, and micro-batches, in pairs
    where ``augment.mixup`` or ``augment.cutmix`` mixes them."""
    train = config.train
    parts = _count(world_size, "rank")
    if train.shards:
        _check_shards(train, world_size)
        parts = f"train.shards={train.shards}"
    unit = unit_of(config, train.shards or world_size)
    if train.global_batch_size % unit:
        nearest = max(unit, round(train.global_batch_size / unit) * unit)
        pairs = [f"augment.{name}={value}" for name, value in _mixed(config).items()]
        mix = "mixes" if len(pairs) == 1 else "mix"
        why = f" in pairs of images, which {' and '.join(pairs)} {mix}" if pairs else ""
        raise ConfigError(
            f"train.global_batch_size={train.global_batch_size} cannot be split over {parts} x "
            f"{_count(train.accumulate, 'micro-batch')}{why}; use a multiple of {unit}, e.g. {nearest}"
        )


def unit_of(config: Config, parts: int) -> int:
    """What the global batch must be a multiple of, for so many ranks or shards."""
    return parts * config.train.accumulate * (2 if _mixed(config) else 1)


def most_ranks(config: Config, most: int) -> int:
    """The largest number of ranks, at most this, that can share the global batch."""
    train = config.train
    if train.shards:
        return max(n for n in range(1, most + 1) if train.shards % n == 0)
    fitting = (n for n in range(1, most + 1) if train.global_batch_size % unit_of(config, n) == 0)
    return max(fitting, default=1)


def _mixed(config: Config) -> dict[str, float]:
    """The options that mix pairs of images, where they are on."""
    values = {"mixup": config.augment.mixup, "cutmix": config.augment.cutmix}
    return {name: value for name, value in values.items() if value}


def _check_shards(train: TrainConfig, world_size: int) -> None:
    given = f"train.shards={train.shards}"
    if train.shards & (train.shards - 1):
        near = 2 ** round(math.log2(train.shards))
        raise ConfigError(f"{given} is not a power of two; use e.g. {near}")
    if train.shards % world_size:
        most = 2 ** int(math.log2(min(world_size, train.shards)))
        more = "" if world_size & (world_size - 1) else f", or train.shards={world_size} for a new run"
        raise ConfigError(f"{given} cannot be dealt to {_count(world_size, 'rank')}; use {_count(most, 'rank')}{more}")


def _count(number: int, noun: str) -> str:
    plural = {"rank": "ranks", "micro-batch": "micro-batches"}[noun]
    return f"{number} {noun if number == 1 else plural}"
