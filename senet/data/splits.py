"""Splits, read in whole batches by index: from decoded images, from a device, or decoded when they are read."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from senet.data.decoding import Crops, Task, decode_ahead, part_tasks, whole_tasks
from senet.data.stores.encoded import Pictures

Batch = tuple[Tensor, Tensor, Tensor]  # images uint8 [N, H, W, 3], labels int64 [N], sample indices int64 [N]
_BLOCK = 512  # images copied to a device at once


class Split(Dataset[Batch]):
    """One split of a store, read in whole batches by index."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray | None = None) -> None:
        """``rows``: indices of its images and labels; None: all of them."""
        self.images, self.rows = np.asarray(images), rows  # indexing an np.memmap, a subclass, takes four times as long
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
            self._pixels = torch.from_numpy(self.images)
        self.labels = torch.from_numpy(np.array(labels if rows is None else labels[rows]))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> Batch:
        rows = indices if self.rows is None else torch.from_numpy(self.rows[indices.numpy()])
        return self._pixels.index_select(0, rows), self.labels[indices], indices

    def part(self, chosen: np.ndarray) -> Self:
        """These of its images, int64."""
        part = copy.copy(self)  # of a class of its own, with what that holds
        part.rows = chosen if self.rows is None else self.rows[chosen]
        part.labels = self.labels[chosen]
        return part


class PictureSplit(Split):
    """A split of an encoded store, decoded whenever it is read."""

    def __init__(self, pictures: Pictures, *, size: int, center_crop: float, threads: int) -> None:
        """Images of ``size`` pixels, decoded in so many threads; for ``center_crop`` see ``fit_image``."""
        self.pictures, self.rows, self.labels = pictures, None, torch.from_numpy(pictures.labels)
        self._size, self._center_crop, self._threads = size, center_crop, threads

    def __getitem__(self, indices: Tensor) -> Batch:
        [batch] = self.batches([indices])
        return batch

    def name(self, index: int) -> str:
        """The path of an image in its source."""
        return self.pictures.name(index if self.rows is None else int(self.rows[index]))

    def batches(self, sampler: Iterable[Tensor], crops: Crops | None = None, *, pin: bool = False) -> Generator[Batch]:
        """The images of each tensor of a sampler, decoded ahead: as in evaluation, or cut. Close it where it is not
        used up.

        Args:
            pin: in memory from which a GPU copies by itself.

        Raises:
            RunError: an image cannot be decoded.
        """

        def orders() -> Generator[tuple[tuple[Tensor, Tensor], list[Task]]]:
            for numbers in sampler:
                indices = numbers % len(self)  # a sampler that repeats images counts on
                rows = indices.tolist() if self.rows is None else self.rows[indices.numpy()].tolist()
                if crops is None:
                    tasks = whole_tasks(self.pictures, rows, self._size, self._center_crop)
                else:
                    tasks = part_tasks(self.pictures, rows, numbers, crops, self._center_crop)
                yield (self.labels[indices], numbers), tasks

        size = self._size if crops is None else crops.size
        with closing(decode_ahead(orders(), size, self._threads, pin=pin)) as decoded:
            for (labels, numbers), images in decoded:
                yield (images, labels.pin_memory(), numbers.pin_memory()) if pin else (images, labels, numbers)


class ResidentSplit(Split):
    """A split whose images and labels are on a device, indexed by tensors on that device.

    Only the indices of a batch are copied to it, and without blocking the host: the driver buffers up to 64 KiB.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.images, self.rows, self.labels = split.images, split.rows, split.labels
        self._images = torch.empty((len(split), *split.images.shape[1:]), dtype=torch.uint8, device=device)
        for block in torch.arange(len(split)).split(_BLOCK):  # no second copy on the host
            self._images[block[0] : block[-1] + 1] = split[block][0].to(device)
        self._labels = split.labels.to(device)

    def __getitem__(self, indices: Tensor) -> Batch:
        return self._images[indices], self._labels[indices], indices


def upload_ahead(batches: Iterable[Batch], device: torch.device) -> Generator[Batch]:
    """Yield pinned batches on a GPU; each is copied, by a stream of its own, while the one before is computed."""
    side, begun = torch.cuda.Stream(device), deque[tuple[Batch, torch.cuda.Event]]()
    for images, labels, numbers in batches:
        with torch.cuda.stream(side):  # torch keeps pinned memory until its copy is done
            images, labels, numbers = (each.to(device, non_blocking=True) for each in (images, labels, numbers))
            begun.append(((images, labels, numbers), side.record_event()))
        if len(begun) > 1:
            yield _arrived(*begun.popleft(), device)
    while begun:
        yield _arrived(*begun.popleft(), device)


def _arrived(copies: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    """To be used by the present stream, which waits for the copy; the host does not."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for tensor in copies:
        tensor.record_stream(stream)  # else the side stream might have its memory while the present one still reads
    return copies
