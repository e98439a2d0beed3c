"""Files of images as they are, packed into few: opened.

A store is a folder ``<data.root>/stores/<source>-<digest>.encoded``. The digest is of where the images are, not of what
is there: a start lists no folder, and adding images makes no other store. In it:

- ``*.pack``: the bytes of images, one after the other. Each is written by one process, and never changed afterwards.
- ``*.rows.npy``, ``*.keys.npy``: the index, an element of ``ROW`` for each image, of training first, and their keys.
- ``meta.json``, replaced in one step: which of these files count, their sizes or sha256; class names, counts, a
  fingerprint of the content, what was left out, where the images are, when the store was built.

Files that do not count any more may still be read by trainings that were started before; see ``packing``.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from senet.config.options import DataConfig
from senet.data.sources.index import SPLITS
from senet.errors import ConfigError
from senet.rundir.files import fsync_directory, may_pass, patiently, read_json, write_json

FORMAT = 1  # all formats up to this one can be read
ROW = np.dtype(
    [
        ("label", "<i4"),
        ("pack", "<i4"),  # its number in meta.json
        ("offset", "<i8"),
        ("size", "<i8"),
        ("mtime_ns", "<i8"),  # of the file from which it was read
        ("key_end", "<i8"),  # in the file of the keys; it begins where the one before ends
        ("digest", "u1", 16),  # blake2b of the bytes
    ]
)
ANEW = "./launch.sh data prepare CONFIG packs what is missing"
_PATIENCE_S = 60.0  # less than distributed.step_timeout_s: the rank that waits reports the reason first
_MOST_OPEN = 64  # packs of a store; each addition makes one, and a process may open about a thousand files
_META = {"counts", "classes", "fingerprint", "sha256", "packs", "built"}


class Pictures:
    """The images of one split, as the bytes of their files. Any number of threads may read at once."""

    def __init__(self, rows: np.ndarray, keys: np.ndarray, first_key: int, packs: Packs) -> None:
        """``keys``: the bytes of the keys of all splits, of which this one's begin at ``first_key``."""
        self.labels = rows["label"].astype(np.int64)
        """int64 [N]."""
        self._rows, self._keys, self._first_key, self._packs = rows, keys, first_key, packs

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int, *, patience_s: float = _PATIENCE_S) -> bytes:
        """As they were packed. It costs about a twentieth of decoding them to know that.

        Args:
            patience_s: how long a file system is waited for that does not answer.

        Raises:
            OSError: they cannot be read, are not all there, or are not those that were packed.
        """
        found = self._rows[row]
        place = int(found["pack"]), int(found["offset"]), int(found["size"])
        content = patiently(partial(self._packs.read, *place), limit_s=patience_s)
        if digest_of(content) != self.digest(row):
            raise OSError(f"in {self._packs.paths[place[0]]}: its digest is not the one in the index")
        return content

    def name(self, row: int) -> str:
        """The path of the image in its source, for messages."""
        start = self._rows[row - 1]["key_end"] if row else self._first_key
        return os.fsdecode(self._keys[start : self._rows[row]["key_end"]].tobytes())

    def pack(self, row: int) -> str:
        """The name of the file that its bytes are in."""
        return self._packs.paths[int(self._rows[row]["pack"])].name

    def digest(self, row: int) -> bytes:
        """``digest_of`` the bytes that were packed."""
        return bytes(self._rows[row]["digest"])


class EncodedStore(NamedTuple):
    """Both splits, class names, a fingerprint of the content, and where they lie."""

    train: Pictures
    test: Pictures
    classes: tuple[str, ...]
    fingerprint: str
    folder: Path


class Pack:
    """The file ``path`` of images, open as long as this object is."""

    def __init__(self, path: Path) -> None:
        """OSError: it cannot be opened."""
        self.path, self._file = path, -1
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._file).st_size

    def read(self, offset: int, size: int) -> bytes:
        try:
            content = os.pread(self._file, size, offset)
        except OSError as error:
            if not may_pass(error):
                raise
            with self.path.open("rb") as anew:  # one that was open while a server was away may stay stale
                content = os.pread(anew.fileno(), size, offset)
        if len(content) < size:
            raise OSError(f"{self.path}: {len(content):,} of {size:,} bytes are there from {offset:,} on")
        return content

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


class Packs:
    """The packs of a store, by number. Of many, those that were read last are open, and those that threads read now."""

    def __init__(self, store: Path, sizes: Mapping[str, int]) -> None:
        """Name -> bytes. ConfigError: one cannot be opened, or has less."""
        self.paths = [store / name for name in sizes]
        self._opened = lru_cache(_MOST_OPEN)(Pack)  # what it forgets is closed when no thread reads it any more
        for path, size in zip(self.paths, sizes.values(), strict=True):
            try:
                found = self._opened(path).size
            except OSError as error:
                raise ConfigError(f"{path} cannot be read ({error.strerror}); {ANEW}") from None
            if found < size:
                raise ConfigError(f"{path} is damaged ({found:,} of {size:,} bytes are there); {ANEW}")

    def read(self, number: int, offset: int, size: int) -> bytes:
        """OSError: it cannot be opened or read, or ends before."""
        return self._opened(self.paths[number]).read(offset, size)


def encoded_folder(config: DataConfig) -> Path:
    """Where the store of these images is, or would be."""
    places = [str(Path(name).resolve()) if name else "" for name in (config.folder, config.table)]
    facts = json.dumps([config.source, *places, config.splits, config.columns], sort_keys=True)
    return Path(config.root) / "stores" / f"{config.source}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.encoded"


def open_encoded(store: Path, *, verify: bool = True) -> EncodedStore:
    """Open a store that was built. It costs the same for any number of bytes in the packs.

    Args:
        verify: check the index against its sha256; for one process of a node.

    Raises:
        ConfigError: it is damaged, or of a newer version; names the file and the remedy.
    """
    meta = read_meta(store)
    rows, keys = read_index(store, meta, verify=verify)
    packs = Packs(store, meta["packs"])
    count = meta["counts"]["train"]
    first_key = int(rows[count - 1]["key_end"])
    return EncodedStore(
        Pictures(rows[:count], keys, 0, packs),
        Pictures(rows[count:], keys, first_key, packs),
        tuple(meta["classes"]),
        meta["fingerprint"],
        store,
    )


def read_meta(store: Path) -> dict[str, Any]:
    """ConfigError: damaged, or of a newer version."""
    meta = read_json(store / "meta.json")
    if (found := meta.get("format", FORMAT)) not in range(1, FORMAT + 1):
        raise ConfigError(
            f"{store} has format {found}, this version reads 1 to {FORMAT}; use the version that wrote it, or name "
            f"another data.root"
        )
    if not meta.keys() >= _META:
        raise ConfigError(f"{store / 'meta.json'} is damaged; delete {store} to have it built again")
    return meta


def read_index(store: Path, meta: Mapping[str, Any], *, verify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Elements of ``ROW`` for all images, and the bytes of their keys; both mapped. ConfigError: damaged."""
    arrays = []
    for name, expected in meta["sha256"].items():
        path = store / name
        try:
            if verify:
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                        raise ValueError("its hash is not the one in meta.json")
            arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is damaged ({error}); delete {store} to have it built again") from None
    rows, keys = arrays
    counts, classes, packs = meta["counts"], meta["classes"], meta["packs"]
    whole = rows.dtype == ROW and len(rows) == sum(counts[split] for split in SPLITS) and all(counts.values())
    for name, many in (("label", len(classes)), ("pack", len(packs))):
        if not (whole and 0 <= rows[name].min() <= rows[name].max() < many):
            found = f"{name}s from {rows[name].min()} to {rows[name].max()}" if whole else f"{len(rows)} {rows.dtype}"
            raise ConfigError(
                f"{store}: {found} for {counts} images of {len(classes)} classes in {len(packs)} packs; delete it to "
                f"have it built again"
            )
    return np.asarray(rows), np.asarray(keys)


def write_encoded(store: Path, facts: Mapping[str, Any], rows: np.ndarray, keys: np.ndarray) -> None:
    """Make a store of packs. ``facts``: classes, counts, packs and what else ``meta.json`` is to hold."""
    token, hashes = secrets.token_hex(8), {}
    try:
        for name, values in (("rows", rows), ("keys", keys)):
            path = store / f"{token}.{name}.npy"
            with path.open("xb") as file:
                np.save(file, values)
                file.flush()
                os.fsync(file.fileno())
            with path.open("rb") as file:
                hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        fsync_directory(store)
    except BaseException:
        for path in store.glob(f"{token}.*"):  # a full disk would be fuller after each try
            path.unlink(missing_ok=True)
        raise
    meta = {"format": FORMAT, **facts, "fingerprint": fingerprint_of(facts, rows), "sha256": hashes}
    meta["built"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    write_json(store / "meta.json", meta, durable=True)


def fingerprint_of(facts: Mapping[str, Any], rows: np.ndarray) -> str:
    """Of class names, counts, labels and digests in order, not of how they lie in packs."""
    content = hashlib.sha256(json.dumps([facts["classes"], facts["counts"]]).encode())
    content.update(rows["label"].astype("<i8").tobytes())
    content.update(rows["digest"].tobytes())
    return content.hexdigest()


def digest_of(content: bytes) -> bytes:
    """Of 128 bits."""
    return hashlib.blake2b(content, digest_size=16).digest()
