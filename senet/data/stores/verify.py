"""A store read to its last byte: is each digest the one that was written, can each image be decoded?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from senet.data.sources.pictures import read_image, reason_of
from senet.data.stores.encoded import Pictures, open_encoded
from senet.data.stores.reading import ahead
from senet.distributed.devices import cores
from senet.errors import ConfigError
from senet.rundir.files import read_json

T = TypeVar("T")


class Verified(NamedTuple):
    """What was read, and what is wrong with it, by name and with the reason."""

    read: str
    """How many of what."""
    damaged: list[str]
    """What is there is not what was written."""
    to_remove: list[Path]
    """What holds that, and can be built again without the rest."""
    undecodable: list[str]
    """What was written is no image."""


class _Odd(NamedTuple):
    """An image or a file."""

    text: str
    place: Path | None
    """What holds it and is damaged; None: it is as it was written."""


def verify_store(store: Path, threads: int = 0, *, copied: Collection[str] | None = None) -> Verified:
    """Read all of a store, of either kind.

    Args:
        copied: of a copy, these of its files alone, and no image is decoded.

    Raises:
        ConfigError: it cannot be opened; names the file and the remedy.
    """
    threads = threads or cores()
    kind = _encoded if "packs" in read_json(store / "meta.json") else _pixels
    return kind(store, threads, copied)


def _pixels(store: Path, threads: int, copied: Collection[str] | None) -> Verified:
    hashes = read_json(store / "meta.json").get("sha256")
    if not hashes:
        raise ConfigError(f"{store / 'meta.json'} is damaged; delete {store} to have it built again")

    def check(name: str) -> _Odd | None:
        try:
            with (store / name).open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == hashes[name]
        except OSError as error:
            return _Odd(f"{store / name} ({error.strerror})", store)
        return None if same else _Odd(f"{store / name} (its hash is not the one in meta.json)", store)

    names = sorted(name for name in hashes if copied is None or name in copied)
    return _verified(f"{len(names)} files", _each(check, names, len(names), threads, "file"))


def _encoded(store: Path, threads: int, copied: Collection[str] | None) -> Verified:
    opened = open_encoded(store)

    def check(at: tuple[Pictures, int]) -> _Odd | None:
        pictures, row = at
        name, pack = pictures.name(row), store / pictures.pack(row)
        try:
            content = pictures.read(row, patience_s=0)
        except OSError as error:
            return _Odd(f"{name} ({error})", pack)
        if copied is not None:
            return None
        try:
            read_image(BytesIO(content))
        except Exception as error:  # each decoder raises its own
            return _Odd(f"{name} ({reason_of(error)})", None)
        return None

    count = len(opened.train) + len(opened.test)
    images = ((pictures, row) for pictures in (opened.train, opened.test) for row in range(len(pictures)))
    if copied is not None:
        images = ((pictures, row) for pictures, row in images if pictures.pack(row) in copied)
    return _verified(f"{count:,} images", _each(check, images, count, threads, "image"))


def _each(
    check: Callable[[T], _Odd | None], things: Iterable[T], count: int, threads: int, unit: str
) -> Iterator[_Odd]:
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=count, desc="verifying", unit=unit, disable=None) as bar,
    ):
        for odd in ahead(pool, check, things, 4 * threads):
            bar.update()
            if odd is not None:
                yield odd


def _verified(read: str, odd: Iterable[_Odd]) -> Verified:
    found = list(odd)
    damaged = [each for each in found if each.place]
    places = list(dict.fromkeys(each.place for each in damaged if each.place))
    return Verified(read, [each.text for each in damaged], places, [each.text for each in found if not each.place])
