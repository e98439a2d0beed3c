"""Images decoded once to uint8, in one memory-mapped file per split.

A store is a folder ``<data.root>/stores/<key>`` with ``train.images.npy`` uint8 [N, H, W, 3], ``train.labels.npy``
int64 [N], the same for ``test``, and ``meta.json`` (format, class names, what was left out, sha256 of each file). All
ranks of a node map the same files, so the pixels are in memory once. A folder ``*.decoded`` holds the pixels of images
that were refused for those that cannot be read, until these are repaired.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from senet.config.options import DataConfig
from senet.data.sources.arrays import Source
from senet.data.sources.choice import open_files, open_source
from senet.data.sources.index import SPLITS, Files, some
from senet.data.sources.pictures import Unreadable, fit_image
from senet.distributed.devices import cores
from senet.errors import ConfigError
from senet.rundir.files import fsync_directory, read_json, remedy, write_json
from senet.rundir.locks import StillHeld, lock, own_folder

FORMAT = 1  # all formats up to this one can be read
_BLOCK = 128  # images per decoding task, at most
_PATIENCE_S = 60.0  # for another process that holds the lock and no longer renews it
log = logging.getLogger(__name__)


class PixelStore(NamedTuple):
    """Images uint8 [N, H, W, 3] and labels int64 [N] of each split, class names, a fingerprint of the content, and
    where they lie."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: tuple[str, ...]
    fingerprint: str
    folder: Path


def pixel_folder(config: DataConfig, *, build: bool) -> Path:
    """The store, built first where it is missing: one process of the node builds, the others wait. No collective.

    Args:
        build: False: nothing is downloaded or written, and a missing store is an error.

    Raises:
        ConfigError: no data, no network, an unreadable image; names the file and the remedy.
    """
    files = open_files(config)
    store = Path(config.root) / "stores" / _key(config, files)
    if not (store / "meta.json").exists():  # checked before the lock, so that a complete store may be read-only
        if not build:
            raise ConfigError(
                f"data.source={config.source}: no decoded images in {store.absolute()}; name the data.root= that the "
                f"training had (data.root={config.root}, seen from another folder), or any to have them decoded there"
            )
        try:
            _build_once(config, files, store)
        except OSError as error:
            raise ConfigError(f"data.root={config.root}: {error}; {remedy(error)}") from None
    return store


def _key(config: DataConfig, files: Files | None) -> str:
    name = f"{config.source}-{_scaled_to(config)}"
    return name if files is None else f"{name}-{files.identity()[:16]}"


def map_pixels(store: Path, *, verify: bool) -> PixelStore:
    """ConfigError: it is damaged."""
    meta = read_json(store / "meta.json")
    if not {"sha256", "classes"} <= meta.keys():
        raise ConfigError(f"{store / 'meta.json'} is damaged; delete {store} to have it built again")
    if (found := meta.get("format", 1)) not in range(1, FORMAT + 1):
        raise ConfigError(
            f"{store} has format {found}, this version reads 1 to {FORMAT}; use the version that wrote it, or name "
            f"another data.root"
        )
    if verify and (left_out := meta.get("left_out")):
        log.info("images were decoded without some of what is there: %s", left_out)
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
                raise ConfigError(f"{path} is damaged ({error}); delete {store} to have it built again") from None
        images, labels = arrays
        fits = images.dtype == np.uint8 and images.ndim == 4 and labels.shape == images.shape[:1]
        if not (fits and labels.dtype == np.int64 and 0 <= labels.min() <= labels.max() < len(meta["classes"])):
            found = f"{labels.size} {labels.dtype} labels from {labels.min()} to {labels.max()}"
            raise ConfigError(
                f"{store / split}.labels.npy: {found} for {len(images)} {images.dtype} images of "
                f"{len(meta['classes'])} classes; delete {store} to have it built again"
            )
        splits[split] = (images, labels)
    return PixelStore(splits["train"], splits["test"], tuple(meta["classes"]), fingerprint_of(meta), store)


def fingerprint_of(meta: Mapping[str, Any]) -> str:
    """Of the content of a store, by its ``meta.json``."""
    return hashlib.sha256("".join(sorted(meta["sha256"].values())).encode()).hexdigest()


def _build_once(config: DataConfig, files: Files | None, store: Path) -> None:
    """Build, unless another process has. Where several build at once, the first to finish wins; all use its store."""
    store.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(Path(f"{store}.lock"), patience_s=_PATIENCE_S))
        except StillHeld as held:
            log.warning("%s; decoding here as well", held)
        if (store / "meta.json").exists():
            return
        if store.exists() and any(store.iterdir()):
            raise ConfigError(f"{store} is not complete; delete it to have it built again")
        with own_folder(store.parent, store.name) as own:
            _build(config, files, own)
            try:
                (own / "new").rename(store)
            except OSError:
                if not (store / "meta.json").exists():
                    raise
        fsync_directory(store.parent)


def _build(config: DataConfig, files: Files | None, own: Path) -> None:
    """Decode everything into ``own/new``; if some files are no images, keep the pixels of the others for next time."""
    source = open_source(config, files)
    new, before = own / "new", own / "before"
    new.mkdir()
    if files is not None:
        with suppress(FileNotFoundError):
            _kept(config, files, own.parent).rename(before)
    unreadable = {}
    for split, labels in source.labels.items():
        image = _reuse(before, split, source, config)
        np.save(new / f"{split}.labels.npy", np.asarray(labels, dtype=np.int64))
        unreadable[split] = _decode(new / f"{split}.images.npy", len(labels), image, config, split)
    for path in new.glob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if files is not None and any(unreadable.values()):
        _keep(new, _kept(config, files, own.parent), source, unreadable)
        errors = [*unreadable["train"].values(), *unreadable["test"].values()]
        raise ConfigError(
            f"{files.where}: {len(errors):,} of {sum(map(len, source.labels.values())):,} files cannot be read as "
            f"images: {some(errors)}; repair or remove them (the decoded images are kept in "
            f"{_kept(config, files, own.parent)})"
        )
    write_meta(new, source.classes, source.left_out, str(files.where.resolve()) if files else "")


def write_meta(store: Path, classes: Sequence[str], left_out: str = "", source: str = "") -> None:
    """Make a store of a folder that holds its arrays. ``source``: the folder or table of the images."""
    hashes = {path.name: _sha256(path) for path in sorted(store.glob("*.npy"))}
    meta = {"format": FORMAT, "classes": list(classes), "left_out": left_out, "source": source, "sha256": hashes}
    write_json(store / "meta.json", meta, durable=True)


def _kept(config: DataConfig, files: Files, stores: Path) -> Path:
    """Where the pixels of files are kept until those that are unreadable are repaired."""
    digest = hashlib.sha256(os.fsencode(files.where.resolve())).hexdigest()[:16]
    return stores / f"{config.source}-{_scaled_to(config)}-{digest}.decoded"


def _scaled_to(config: DataConfig) -> str:
    """``224``, or ``224-0.875`` where not the whole central square is shown."""
    return f"{config.image_size}" + (f"-{config.center_crop:g}" if config.center_crop != 1 else "")


def _keep(new: Path, kept: Path, source: Source, unreadable: Mapping[str, Collection[int]]) -> None:
    for split, labels in source.labels.items():
        facts = source.facts[split]
        decoded = [None if row in unreadable[split] else facts(row) for row in range(len(labels))]
        write_json(new / f"{split}.json", {"decoded": decoded})
    rmtree(kept, ignore_errors=True)  # from another process that was refused at the same time
    new.rename(kept)


def _reuse(before: Path, split: str, source: Source, config: DataConfig) -> Callable[[int], np.ndarray]:
    """The pixels of an image of a split: from ``before`` if it holds them, else decoded."""
    rows = {fact: row for row, fact in enumerate(read_json(before / f"{split}.json").get("decoded", [])) if fact}
    pixels = np.load(before / f"{split}.images.npy", mmap_mode="r", allow_pickle=False) if rows else None

    def image(index: int) -> np.ndarray:
        if pixels is not None and (row := rows.get(source.facts[split](index))) is not None:
            return np.asarray(pixels[row])
        return fit_image(source.image[split](index), config.image_size, config.center_crop)

    return image


def _decode(
    path: Path, count: int, image: Callable[[int], np.ndarray], config: DataConfig, split: str
) -> dict[int, str]:
    """Decode a split into the file ``path``. Returns index -> error of the images that cannot be read."""
    shape = (count, config.image_size, config.image_size, 3)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:  # a full disk is an error here; later, in the mapped file, it would be a SIGBUS
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    unreadable: dict[int, str] = {}

    def decode(block: range) -> int:
        for index in block:
            try:
                out[index] = image(index)
            except Unreadable as error:
                unreadable[index] = str(error)
        return len(block)

    threads = config.decode_threads or cores()
    size = min(_BLOCK, 1 + count // (16 * threads))  # small enough to keep all threads busy, and the bar moving
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=count, desc=f"decoding {split}", unit="image", disable=None) as bar,
    ):
        for done in pool.map(decode, blocks):
            bar.update(done)
    out.flush()
    return dict(sorted(unreadable.items()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
