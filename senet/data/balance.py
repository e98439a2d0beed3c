"""Classes of unequal size: images drawn as if the classes were more equal, or weights for their losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from senet.config.options import TrainConfig
from senet.data.draws import mix
from senet.data.samplers import ImageData, ResumableSampler
from senet.data.splits import Split
from senet.errors import ConfigError, did_you_mean


class BalancedSampler(ResumableSampler):
    """An epoch of N images has N draws of them; a class of n images has a share of n ** (1 - balance).

    Each image of a class is drawn k or k + 1 times, none k + 2 times; which ones k + 1 times is drawn anew in each
    epoch. The j-th draw of image i has the number i + j N, so that each draw has random changes of its own. A pure
    function of (seed, epoch), as the order without it.
    """

    repeats = True

    def __init__(self, dataset: Split, *, balance: float, **options: Any) -> None:
        super().__init__(dataset, **options)
        counts = [count for count in torch.bincount(dataset.labels).tolist() if count]
        images = torch.argsort(dataset.labels, stable=True).split(counts)
        self._classes = list(zip(images, shares(counts, balance), strict=True))

    def order(self) -> Tensor:
        """Of this epoch."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        numbers = torch.cat([self._draw(images, count, generator) for images, count in self._classes])
        return numbers[torch.randperm(len(numbers), generator=generator)]

    def _draw(self, images: Tensor, count: int, generator: torch.Generator) -> Tensor:
        whole, rest = divmod(count, len(images))
        some = images[torch.randperm(len(images), generator=generator)[:rest]]
        size = len(self.dataset)  # type: ignore[arg-type]
        return torch.cat([*(images + turn * size for turn in range(whole)), some + whole * size])


def shares(counts: list[int], balance: float) -> list[int]:
    """As many draws as there are images, in proportion to ``count ** (1 - balance)``, by largest remainders."""
    powers = [count ** (1 - balance) for count in counts]
    quotas = [round(sum(counts) * power / sum(powers), 6) for power in powers]  # the last bits of a power are libm's
    whole = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda number: whole[number] - quotas[number])
    for number in by_remainder[: sum(counts) - sum(whole)]:
        whole[number] += 1
    return whole


def class_weights(config: TrainConfig, data: ImageData, balance: float = 0.0) -> Tensor | None:
    """What the loss of an image is multiplied by, for each class, float32 [K]: 1 on average over an epoch's images, as
    they are drawn with this ``balance``. None: nothing.

    Raises:
        ConfigError: ``train.class_weights`` names no class of the data.
    """
    if not (config.class_weights or config.class_balance):
        return None
    for name in config.class_weights:
        if name not in data.classes:
            near = did_you_mean(name, data.classes) or f"the classes are {', '.join(data.classes)[:200]}"
            raise ConfigError(f"train.class_weights.{name}: no class of the data; {near}")
    counts = torch.bincount(data.train.labels, minlength=len(data.classes)).double()
    weights = torch.tensor([config.class_weights.get(name, 1.0) for name in data.classes], dtype=torch.float64)
    weights *= counts.clamp(min=1) ** -config.class_balance
    drawn = counts.clone()
    drawn[counts > 0] = torch.tensor(shares([int(each) for each in counts if each], balance), dtype=torch.float64)
    return (weights * drawn.sum() / (weights * drawn).sum()).float()
