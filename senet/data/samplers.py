"""A resumable sampler for training, an exact one for tests; both splits opened, read by a sampler; held-out images."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from senet.config.options import DataConfig
from senet.data.decoding import Crops
from senet.data.draws import mix
from senet.data.splits import Batch, PictureSplit, ResidentSplit, Split, upload_ahead
from senet.data.stores.choice import open_store
from senet.data.stores.encoded import Pictures
from senet.distributed.devices import own_cores
from senet.distributed.environment import read_place
from senet.errors import ConfigError


@dataclass(frozen=True)
class ImageData:
    """Both splits, the class names in label order, and a fingerprint: the sha256 of the content and, if images are held
    out, ``+`` and the sha256 of their indices.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    store: Path | None = None
    """Where they are kept; None where they are not."""

    def same_images(self, fingerprint: str) -> bool:
        """Whether these are the images of that fingerprint; which of them are held out does not matter."""
        return self.fingerprint.partition("+")[0] == fingerprint.partition("+")[0]


class ResumableSampler(DistributedSampler[int]):
    """Index tensors of one rank's share of each global batch, from any batch of any epoch on.

    With the global batch B, batch k of epoch e holds positions kB .. kB+B-1 of the epoch's permutation, for any number
    of ranks; rank r of W takes the r-th of W equal slices. The last N mod B samples are dropped, others in each epoch.
    Nothing is stored: the permutation is a pure function of (seed, epoch).
    """

    repeats = False
    """Whether a sample can be drawn more than once in an epoch; see ``balance``."""

    def __init__(self, dataset: Split, *, global_batch_size: int, rank: int, world_size: int, seed: int) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, seed=seed, drop_last=True)
        if global_batch_size > len(dataset):
            raise ConfigError(
                f"train.global_batch_size={global_batch_size} is more than the {len(dataset)} training images; "
                f"use at most {len(dataset)}, and a smaller optim.lr in proportion"
            )
        self.global_batch_size = global_batch_size
        self.batches_per_epoch = len(dataset) // global_batch_size
        self.first_batch = 0

    def start_at(self, epoch: int, batch: int) -> None:
        """Make the next iteration begin at this batch of this epoch."""
        self.set_epoch(epoch)
        self.first_batch = batch

    def __len__(self) -> int:
        return self.batches_per_epoch - self.first_batch

    def order(self) -> Tensor:
        """Of this epoch."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        return torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        permutation = self.order()
        share = self.global_batch_size // self.num_replicas
        for batch in range(self.first_batch, self.batches_per_epoch):
            start = batch * self.global_batch_size + self.rank * share
            yield permutation[start : start + share]


class ShardSampler(torch.utils.data.Sampler[Tensor]):
    """Rank r's images r, r + W, ... in order, none twice; all ranks yield equally many batches, the last may be empty.

    DistributedSampler would pad the shards to one length and so count some images twice.
    """

    def __init__(self, num_images: int, *, batch_size: int, rank: int, world_size: int) -> None:
        self._indices = torch.arange(num_images)[rank::world_size]
        self._batch_size = batch_size
        self._num_batches = -(-num_images // (world_size * batch_size))

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Tensor]:
        for batch in range(self._num_batches):
            yield self._indices[batch * self._batch_size : (batch + 1) * self._batch_size]


class ChunkSampler(torch.utils.data.Sampler[Tensor]):
    """Chunks of consecutive images: chunk k is one batch of rank k mod W, so that no batch depends on the number of
    ranks. All ranks yield equally many batches, the last may be empty."""

    def __init__(self, num_images: int, *, batch_size: int, rank: int, world_size: int) -> None:
        chunks = list(torch.arange(num_images).split(batch_size))
        chunks += [torch.arange(0)] * (-len(chunks) % world_size)
        self._chunks = chunks[rank::world_size]

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._chunks)


def keep_on_device(data: ImageData, wanted: str, device: torch.device) -> ImageData:
    """Move both splits to the device if ``wanted`` (``data.resident``) is ``on``, or ``auto`` and a GPU has room; never
    what is decoded when it is read."""
    if isinstance(data.train, PictureSplit):
        return data
    if wanted == "auto" and device.type == "cuda":
        size = sum(len(split) * split.images[0].nbytes for split in (data.train, data.test))
        fits = size <= torch.cuda.get_device_properties(device).total_memory / 4
        wanted = "on" if fits else "off"
    if wanted != "on":
        return data
    return replace(data, train=ResidentSplit(data.train, device), test=ResidentSplit(data.test, device))


def load_batches(
    split: Split,
    sampler: Iterable[Tensor],
    device: torch.device,
    *,
    repeats: bool = False,
    crops: Crops | None = None,
) -> Generator[Batch]:
    """Yield whole batches, pinned for a GPU. No worker processes: gathering uint8 images in memory is fast, and
    pictures are decoded in threads. Close it where it is not used up.

    Args:
        repeats: a sampler's index i stands for image i modulo their number.
        crops: what is shown of pictures, where they are trained on.
    """
    on_gpu, resident = device.type == "cuda", isinstance(split, ResidentSplit)
    if isinstance(split, PictureSplit):
        with closing(split.batches(sampler, crops, pin=on_gpu)) as batches:
            yield from upload_ahead(batches, device) if on_gpu else batches
        return
    for indices in sampler:
        if resident:
            indices = indices.to(device, non_blocking=True)
        images, labels, _ = split[indices % len(split) if repeats else indices]
        if on_gpu and not resident:
            images, labels, indices = images.pin_memory(), labels.pin_memory(), indices.pin_memory()
        yield images, labels, indices


def open_data(config: DataConfig, *, local_rank: int = 0, build: bool = True) -> ImageData:
    """Open the store, building it first where it is missing; see ``open_store``.

    Raises:
        ConfigError: what ``open_store`` and ``hold_out`` refuse.
    """
    store = open_store(config, build=build, verify=local_rank == 0)
    train, test = _split(store.train, config), _split(store.test, config)
    data = ImageData(train, test, store.classes, store.fingerprint, store.folder)
    return hold_out(data, config.holdout) if config.holdout else data


def _split(stored: Pictures | tuple[np.ndarray, np.ndarray], config: DataConfig) -> Split:
    if not isinstance(stored, Pictures):
        return Split(*stored)
    threads = config.decode_threads or own_cores(read_place().local_world_size)
    return PictureSplit(stored, size=config.image_size, center_crop=config.center_crop, threads=threads)


def hold_out(data: ImageData, count: int) -> ImageData:
    """The data with ``count`` of its training images, stratified by class, in place of the test images.

    Raises:
        ConfigError: more images than there are, or fewer than classes.
    """
    from sklearn.model_selection import train_test_split

    split, rows = data.train, np.arange(len(data.train))
    try:
        trained, held = train_test_split(rows, test_size=count, random_state=0, stratify=split.labels.numpy())
    except ValueError as error:
        raise ConfigError(f"data.holdout={count} of {len(rows)} training images: {error}") from None
    chosen = hashlib.sha256(np.sort(held).astype("<i8").tobytes()).hexdigest()  # another scikit-learn may choose others
    train, test = (split.part(np.sort(part)) for part in (trained, held))
    return replace(data, train=train, test=test, fingerprint=f"{data.fingerprint}+{chosen}")
