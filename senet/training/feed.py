"""What a network is given: the batches of both splits, and black images to try it with."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from senet.config.options import Config, TrainConfig
from senet.data.augment import Preprocess
from senet.data.balance import BalancedSampler, class_weights
from senet.data.decoding import Crops
from senet.data.samplers import (
    ChunkSampler,
    ImageData,
    ResumableSampler,
    ShardSampler,
    keep_on_device,
    load_batches,
)
from senet.data.splits import Batch
from senet.distributed.ranks import Ranks
from senet.own import load_function


@dataclass(frozen=True)
class Feed:
    """Images and labels for this rank."""

    config: Config
    data: ImageData
    sampler: ResumableSampler
    preprocess: Preprocess
    ranks: Ranks

    @classmethod
    def build(cls, config: Config, ranks: Ranks, data: ImageData, sampler: ResumableSampler) -> Feed:
        """With both splits on the device, if ``data.resident`` says so."""
        data = keep_on_device(data, config.data.resident, ranks.device)
        return cls(config, data, sampler, build_preprocess(config, ranks.device), ranks)

    @property
    def num_classes(self) -> int:
        return len(self.data.classes)

    def class_weights(self, config: Config) -> Tensor | None:
        """On the device; see ``senet.data.balance.class_weights``."""
        weights_K = class_weights(config.train, self.data, config.data.balance)
        return None if weights_K is None else weights_K.to(self.ranks.device)

    def train(self, epoch: int, first_batch: int) -> Generator[Batch]:
        """This rank's share of the training batches, from one of them to the end of the epoch. Close it where it is not
        used up."""
        self.sampler.start_at(epoch, first_batch)
        augment = self.config.augment
        size = augment.small_size if epoch < augment.small_epochs else self.config.data.image_size
        crops = Crops(size, augment.crop_area, partial(self.preprocess.keys, epoch=epoch))
        return load_batches(self.data.train, self.sampler, self.ranks.device, repeats=self.sampler.repeats, crops=crops)

    def changed(
        self, images_NHWC: Tensor, labels_N: Tensor, indices_N: Tensor, epoch: int, *, parts: int
    ) -> list[tuple[Tensor, ...]]:
        """A batch, or a shard of it, with its random changes, in equal parts: the images for the network, and what its
        loss takes beside logits."""
        keys_N = self.preprocess.keys(indices_N, epoch)
        shares_N = self.preprocess.shares(keys_N, images_NHWC.shape[1])
        whole = [self.preprocess.train(images_NHWC, indices_N, epoch, keys_N), labels_N, keys_N]
        whole += [] if shares_N is None else [shares_N]
        return list(zip(*(tensor.chunk(parts) for tensor in whole), strict=True))

    def test(self, config: TrainConfig) -> tuple[Generator[Batch], int]:
        """This rank's share of the test images, each once, and the number of batches. The last may be empty. Close it
        where it is not used up."""
        deal, batch_size = ChunkSampler if config.shards else ShardSampler, config.eval_batch_size
        sampler = deal(
            len(self.data.test), batch_size=batch_size, rank=self.ranks.rank, world_size=self.ranks.world_size
        )
        return load_batches(self.data.test, sampler, self.ranks.device), len(sampler)

    def to_device(self, *tensors: Tensor) -> list[Tensor]:
        """Asynchronously from pinned memory: the host does not wait."""
        return [tensor.to(self.ranks.device, non_blocking=True) for tensor in tensors]


def build_sampler(config: Config, data: ImageData, ranks: Ranks) -> ResumableSampler:
    """The order of the training images, and this rank's share of them."""
    share: dict[str, int] = {"rank": ranks.rank, "world_size": ranks.world_size, "seed": config.seed}
    share |= {"global_batch_size": config.train.global_batch_size}
    if config.data.balance:
        return BalancedSampler(data.train, balance=config.data.balance, **share)
    return ResumableSampler(data.train, **share)


def build_preprocess(config: Config, device: torch.device) -> Preprocess:
    """From stored images to network input."""
    return Preprocess(
        config.augment,
        mean=config.data.mean,
        std=config.data.std,
        seed=config.seed,
        device=device,
        channels_last=config.train.channels_last,
        extra=load_extra(config.augment.extra) if config.augment.extra else None,
    )


def load_extra(name: str) -> Callable[..., Tensor]:
    """What ``augment.extra`` names; ConfigError where it cannot be called with images and keys."""
    return load_function("augment.extra", name, given=["images", "keys"])


def two_black_images(config: Config, device: torch.device) -> Tensor:
    """The smallest batch that a network with batch norms can be run on."""
    return torch.zeros(2, 3, config.data.image_size, config.data.image_size, device=device)


def images_at_once(config: Config, ranks: Ranks) -> int:
    """How many images a forward pass of the training has."""
    return config.train.global_batch_size // ((config.train.shards or ranks.world_size) * config.train.accumulate)


def black_micro_batch(config: Config, ranks: Ranks) -> Tensor:
    """As many images as training runs at once, in the same memory layout: for another number or layout, torch.compile
    would compile again."""
    size = config.data.image_size
    images_NHWC = torch.zeros(images_at_once(config, ranks), size, size, 3, dtype=torch.uint8, device=ranks.device)
    return build_preprocess(config, ranks.device).test(images_NHWC)
