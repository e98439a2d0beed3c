"""Images decoded once to uint8, in one memory-mapped file per split.

A store is a folder ``<data.root>/stores/<key>`` with ``train.images.npy`` uint8 [N, H, W, 3], ``train.labels.npy``
int64 [N], the same for ``test``, and ``meta.json`` (class names, sha256 of each file). All ranks of a node map
the same files, so the pixels are in memory once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from senet.config import ConfigError, DataConfig
from senet.files import fsync_directory, read_json, write_json
from senet.sources import SOURCES, SPLITS, fit_image, image_paths

_BLOCK = 512  # images per decoding task


class Store(NamedTuple):
    """Images uint8 [N, H, W, 3] and labels int64 [N] of each split, class names, a fingerprint of the content."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: tuple[str, ...]
    fingerprint: str


def open_store(config: DataConfig, *, build: bool = True, verify: bool = True) -> Store:
    """Map the store, building it first where it is missing: one process of the node builds, the others wait for it.

    No collective.

    Args:
        build: False: nothing is downloaded or written, and a missing store is an error.
        verify: check the files against their hashes; for one process of a node.

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
    return _map(store, verify=verify)


def _store_key(config: DataConfig) -> str:
    if config.source != "imagefolder":
        return f"{config.source}-{config.image_size}"
    digest = hashlib.sha256()
    for split in SPLITS:
        for path in image_paths(Path(config.folder), split)[0]:
            stat = path.stat()
            digest.update(f"{path.relative_to(config.folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return f"imagefolder-{config.image_size}-{digest.hexdigest()[:16]}"


def _map(store: Path, *, verify: bool) -> Store:
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
        splits[split] = (images, labels)
    fingerprint = hashlib.sha256("".join(sorted(meta["sha256"].values())).encode()).hexdigest()
    return Store(splits["train"], splits["test"], tuple(meta["classes"]), fingerprint)


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
