"""Where the bytes of each image are, and what it shows. No image is opened for that."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "test")


class Place(NamedTuple):
    """The bytes of one image: ``size`` of a file, from ``offset`` on."""

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """OSError: they cannot be read, or are not all there."""
        with self.file.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(f"{len(content):,} of its {self.size:,} bytes are there")
        return content


class Tally:
    """Things of several kinds: of each kind how many there are, and the first."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, name: str, count: int = 1) -> None:
        before, first = self._found.get(kind, (0, name))
        self._found[kind] = (before + count, first)

    def merge(self, other: Tally) -> None:
        for kind, (count, first) in other._found.items():
            self.add(kind, first, count)

    def __bool__(self) -> bool:
        return bool(self._found)

    def __str__(self) -> str:
        """``hidden: 3, the first train/cat/.DS_Store; broken link: train/cat/b.jpg``"""
        parts = (
            f"{kind}: {first}" if count == 1 else f"{kind}: {count:,}, the first {first}"
            for kind, (count, first) in self._found.items()
        )
        return "; ".join(parts)


@dataclass
class Index:
    """The images of one split, in a fixed order.

    About 90 bytes for an image, and its key: a million images take some 150 MB while they are listed.
    """

    root: str
    keys: list[str] = field(default_factory=list)
    """The path of each image from ``root``; in a shard, that of the shard and then the name in it. Unique."""
    classes: list[str] = field(default_factory=list)
    """Names of classes in the order in which they were found."""
    labels: array[int] = field(default_factory=lambda: array("l"))
    """Into ``classes``."""
    sizes: array[int] = field(default_factory=lambda: array("q"))
    times: array[int] = field(default_factory=lambda: array("q"))
    """When the file of the image was changed, in nanoseconds."""
    shards: list[str] = field(default_factory=list)
    """The files that hold images, where these have no files of their own; paths from ``root``."""
    shard_of: array[int] = field(default_factory=lambda: array("l"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    left_out: Tally = field(default_factory=Tally)
    """What is in the same place and is no image of the split."""
    _numbers: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, key: str, name: str, size: int, time_ns: int) -> None:
        """An image of the class ``name``."""
        if (label := self._numbers.get(name)) is None:
            label = self._numbers[name] = len(self.classes)
            self.classes.append(name)
        self.keys.append(key)
        self.labels.append(label)
        self.sizes.append(size)
        self.times.append(time_ns)

    def place(self, row: int) -> Place:
        """Where the bytes of an image are."""
        in_shard = bool(self.shards)
        file = self.shards[self.shard_of[row]] if in_shard else self.keys[row]
        return Place(Path(self.root, file), self.offsets[row] if in_shard else 0, self.sizes[row])

    def paths(self) -> list[str]:
        """The keys, each with ``root`` before it."""
        return [os.path.join(self.root, key) for key in self.keys]  # noqa: PTH118 # a Path takes ten times as long

    def facts(self, row: int) -> str:
        """What tells whether this image has changed: its key, its size, and when its file was changed."""
        return f"{self.keys[row]}\0{self.sizes[row]}\0{self.times[row]}\0"


@dataclass(frozen=True)
class Files:
    """A source of images that are files, or in files."""

    where: Path
    """What the options name."""
    identity: Callable[[], str]
    """A digest that tells whether anything has changed: names, sizes, times, labels."""
    index: Callable[[str], Index]
    """Of ``train`` or ``test``. Raises ConfigError."""
    in_order: Callable[[Sequence[str]], list[str]] = sorted
    """Puts the names of the classes into the order of the labels."""


def by_number(names: Sequence[str]) -> list[str]:
    """Sorted; as numbers where all of them are: 9 before 10."""
    are_numbers = all(len(name) < 20 and name.isascii() and name.isdigit() and str(int(name)) == name for name in names)
    return sorted(names, key=int) if are_numbers else sorted(names)


def some(names: Sequence[str], most: int = 10) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
