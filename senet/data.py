"""Images decoded once to uint8 in one memory-mapped file per split; the resumable sampler; the exact split for tests.

A store is a folder ``<data.root>/stores/<key>`` with ``train.images.npy`` uint8 [N, H, W, 3], ``train.labels.npy``
int64 [N], the same for ``test``, and ``meta.json`` (class names, sha256 of each file). All ranks of a node map
the same files, so the pixels are in memory once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

from senet.config import ConfigError, DataConfig
from senet.files import fsync_directory, read_json, write_json
from senet.repro import mix
from senet.sources import SOURCES, SPLITS, image_paths

Batch = tuple[Tensor, Tensor, Tensor]  # images uint8 [N, H, W, 3], labels int64 [N], sample indices int64 [N]
_BLOCK = 512  # images per decoding task


class Split(Dataset[Batch]):
    """One split of a store, read in whole batches by index."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray | None = None) -> None:
        """``rows``: the images and labels that belong to it, all unless given."""
        self.images, self.rows = np.asarray(images), rows  # indexing an np.memmap, a subclass, takes four times as long
        self.labels = torch.from_numpy(np.array(labels if rows is None else labels[rows]))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> Batch:
        rows = indices.numpy() if self.rows is None else self.rows[indices.numpy()]
        return torch.from_numpy(self.images[rows]), self.labels[indices], indices


class ResidentSplit(Split):
    """A split whose images and labels are on a device, indexed by tensors on that device.

    Of a batch only its indices are copied there; the driver stages so few bytes (up to 64 KiB), and the host goes on.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.images, self.rows, self.labels = split.images, split.rows, split.labels
        self._images = torch.empty((len(split), *split.images.shape[1:]), dtype=torch.uint8, device=device)
        for block in torch.arange(len(split)).split(_BLOCK):  # no second copy on the host
            self._images[block[0] : block[-1] + 1] = split[block][0].to(device)
        self._labels = split.labels.to(device)

    def __getitem__(self, indices: Tensor) -> Batch:
        return self._images[indices], self._labels[indices], indices


@dataclass(frozen=True)
class ImageData:
    """Both splits, the class names in label order, and a fingerprint of the content (sha256)."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str


class ResumableSampler(DistributedSampler[int]):
    """Index tensors of one rank's share of each global batch, from any batch of any epoch on.

    With the global batch B, batch k of epoch e holds positions kB .. kB+B-1 of the epoch's permutation, for any number
    of ranks; rank r of W takes the r-th of W equal slices. The tail of N mod B samples is dropped, another one each
    epoch. Nothing is stored: the permutation is a pure function of (seed, epoch).
    """

    def __init__(self, dataset: Split, *, global_batch_size: int, rank: int, world_size: int, seed: int) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, seed=seed, drop_last=True)
        if global_batch_size > len(dataset):
            raise ConfigError(
                f"train.global_batch_size={global_batch_size} is more than the {len(dataset)} training images; "
                f"use at most {len(dataset)}"
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

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        permutation = torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
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


def keep_on_device(data: ImageData, wanted: str, device: torch.device) -> ImageData:
    """The same with both splits on the device, for ``data.resident``: ``on``, or ``auto`` where they fit."""
    if wanted == "auto" and device.type == "cuda":
        size = sum(len(split) * split.images[0].nbytes for split in (data.train, data.test))
        fits = size <= torch.cuda.get_device_properties(device).total_memory / 4
        wanted = "on" if fits else "off"
    if wanted != "on":
        return data
    return replace(data, train=ResidentSplit(data.train, device), test=ResidentSplit(data.test, device))


def load_batches(split: Split, sampler: Iterable[Tensor], device: torch.device) -> Iterator[Batch]:
    """Whole batches, gathered in this process: uint8 in memory leaves nothing for workers to do. Pinned for a GPU."""
    resident = isinstance(split, ResidentSplit)
    for indices in sampler:
        images, labels, indices = split[indices.to(device, non_blocking=True) if resident else indices]
        if device.type == "cuda" and not resident:
            images, labels, indices = images.pin_memory(), labels.pin_memory(), indices.pin_memory()
        yield images, labels, indices


def open_data(config: DataConfig, *, local_rank: int = 0, build: bool = True) -> ImageData:
    """Map the store, building it first where it is missing: one process of the node builds, the others wait for it.

    No collective. Local rank 0 also checks the files against their hashes.

    Args:
        build: False: nothing is downloaded or written, and a missing store is an error.

    Raises:
        ConfigError: no data, no network, an unreadable image, a damaged store; names the file and the remedy.
    """
    store = Path(config.root) / "stores" / _store_key(config)
    if not build and not (store / "meta.json").exists():
        raise ConfigError(
            f"data.root={config.root} holds no decoded images of {config.source} ({store.name}); "
            f"name a folder with data.root=... to have them decoded there"
        )
    if not (store / "meta.json").exists():  # looked at before the lock, so that a complete store may be read-only
        try:
            store.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{store}.lock"):
                if not (store / "meta.json").exists():
                    _build(config, store)
        except OSError as error:
            raise ConfigError(f"data.root={config.root}: {error}; free some space, or choose another folder") from None
    data = _open_store(store, verify=local_rank == 0)
    return hold_out(data, config.holdout) if config.holdout else data


def hold_out(data: ImageData, count: int) -> ImageData:
    """The same, with ``count`` of its training images in place of the test images, each class by its share.

    Raises:
        ConfigError: more images than there are, or fewer than classes.
    """
    from sklearn.model_selection import train_test_split

    split, rows = data.train, np.arange(len(data.train))
    try:
        trained, held = train_test_split(rows, test_size=count, random_state=0, stratify=split.labels.numpy())
    except ValueError as error:
        raise ConfigError(f"data.holdout={count} of {len(rows)} training images: {error}") from None
    labels = split.labels.numpy()
    parts = [Split(split.images, labels, np.sort(part)) for part in (trained, held)]
    return ImageData(parts[0], parts[1], data.classes, data.fingerprint)


def _store_key(config: DataConfig) -> str:
    if config.source != "imagefolder":
        return f"{config.source}-{config.image_size}"
    digest = hashlib.sha256()
    for split in SPLITS:
        for path in image_paths(Path(config.folder), split)[0]:
            stat = path.stat()
            digest.update(f"{path.relative_to(config.folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return f"imagefolder-{config.image_size}-{digest.hexdigest()[:16]}"


def _open_store(store: Path, *, verify: bool) -> ImageData:
    meta = read_json(store / "meta.json")
    if not {"sha256", "classes"} <= meta.keys():
        raise ConfigError(f"{store / 'meta.json'} is damaged; delete {store} to have it built anew")
    splits = {}
    for split in SPLITS:
        arrays = []
        for name in (f"{split}.images.npy", f"{split}.labels.npy"):
            path = store / name
            try:
                if verify and _sha256(path) != meta["sha256"][name]:
                    raise ValueError("its hash is not the one in meta.json")
                arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError, KeyError) as error:
                raise ConfigError(f"{path} is damaged ({error}); delete {store} to have it built anew") from None
        images, labels = arrays
        fits = images.dtype == np.uint8 and images.ndim == 4 and labels.shape == images.shape[:1]
        if not (fits and labels.dtype == np.int64 and 0 <= labels.min() <= labels.max() < len(meta["classes"])):
            found = f"{labels.size} {labels.dtype} labels from {labels.min()} to {labels.max()}"
            raise ConfigError(
                f"{store / split}.labels.npy: {found} for {len(images)} {images.dtype} images of "
                f"{len(meta['classes'])} classes; delete {store} to have it built anew"
            )
        splits[split] = Split(images, labels)
    fingerprint = hashlib.sha256("".join(sorted(meta["sha256"].values())).encode()).hexdigest()
    return ImageData(splits["train"], splits["test"], tuple(meta["classes"]), fingerprint)


def _build(config: DataConfig, store: Path) -> None:
    """Decode everything into a temporary folder beside the store, then rename it."""
    source = SOURCES[config.source](config)
    temporary = store.with_name(f".{store.name}.tmp")
    if temporary.exists():  # of a build that was killed; the lock is ours
        rmtree(temporary)
    temporary.mkdir(parents=True)
    for split in SPLITS:
        labels = np.asarray(source.labels[split], dtype=np.int64)
        np.save(temporary / f"{split}.labels.npy", labels)
        _decode(temporary / f"{split}.images.npy", len(labels), source.image[split], config, split)
    hashes = {path.name: _sha256(path) for path in sorted(temporary.glob("*.npy"))}
    for name in hashes:
        with (temporary / name).open("rb") as file:
            os.fsync(file.fileno())
    write_json(temporary / "meta.json", {"classes": list(source.classes), "sha256": hashes}, durable=True)
    temporary.rename(store)
    fsync_directory(store.parent)


def _decode(path: Path, count: int, image: Callable[[int], Image.Image], config: DataConfig, split: str) -> None:
    shape = (count, config.image_size, config.image_size, 3)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:  # a full disk is an error here; later, in the mapped file, it would be a SIGBUS
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

    def decode(block: range) -> int:
        for index in block:
            out[index] = fit_image(image(index), config.image_size)
        return len(block)

    blocks = [range(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    with (
        ThreadPoolExecutor(config.decode_threads or os.cpu_count()) as pool,
        tqdm(total=count, desc=f"decoding {split}", unit="image", disable=None) as bar,
    ):
        for done in pool.map(decode, blocks):
            bar.update(done)
    out.flush()


def fit_image(picture: Image.Image, size: int) -> np.ndarray:
    """uint8 [size, size, 3], RGB: scaled and cropped to the centre where it has another size."""
    picture = picture.convert("RGB")
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
