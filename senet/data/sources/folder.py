"""Class folders: ``<data.folder>/train/<class>/**/<image>``, and the same for the test split."""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import stat
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path

from senet.config.options import DataConfig
from senet.data.sources.index import SPLITS, Files, Index, Tally
from senet.data.sources.pictures import IMAGE_SUFFIXES, NO_IMAGE_SUFFIXES, OTHER_SUFFIXES
from senet.data.sources.splits import TEST_NAMES, data_folder, other_splits, split_names
from senet.errors import ConfigError
from senet.rundir.files import patiently

# what Windows, macOS, Synology and file systems leave in folders
_OF_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found")
_LAYOUT = "expected data.folder/train/<class>/<image> and data.folder/test/<class>/<image>"
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # of a link that leads to nothing


def open_folder(config: DataConfig) -> Files:
    """The images in the class folders of ``data.folder``. Only looks whether both splits are there.

    Raises:
        ConfigError: no such folder, or no folder of a split.
    """
    root = data_folder(config, _LAYOUT)
    there = [name for name in ("train", *TEST_NAMES) if (root / name).is_dir()]
    names = split_names(there, config.splits, root)
    for split in SPLITS:
        if not (root / names[split]).is_dir():
            raise ConfigError(f"{root / names[split]}: no such folder; {_LAYOUT}")
    index = cache(lambda split: _walk(root, names, split, other_splits(there, names)))

    def identity() -> str:
        digest = hashlib.sha256()
        for split in SPLITS:
            of_split = index(split)
            for row in range(len(of_split)):
                digest.update(of_split.facts(row).encode(errors="surrogateescape"))  # file names need not be UTF-8
        return digest.hexdigest()

    return Files(root, identity, index)


def _walk(root: Path, names: Mapping[str, str], split: str, others: list[str]) -> Index:
    """The images of a split, in the order of torchvision's ImageFolder: by class, then by folder, then by name.

    Raises:
        ConfigError: no images; or what looks like some, or like a class, and cannot be used.
    """
    try:
        index, faults, empty = patiently(partial(_read_classes, root, names[split]))
    except OSError as error:
        raise ConfigError(f"data.folder={root} cannot be read: {error}") from None
    for folder in empty:  # of the test images none need be of each class
        (faults if split == "train" else index.left_out).add("class folder without images", folder)
    for other in others if split == "test" else ():
        index.left_out.add("split that is not read", other)
    if not index.keys:
        found = f" ({faults})" if faults else ""
        instead = "".join(f"; data.splits.test={other} reads {root / other}" for other in others if split == "test")
        raise ConfigError(f"{root / names[split]} has no class folders with images{found}{instead}; {_LAYOUT}")
    if faults:
        raise ConfigError(f"{root}: {faults}; mend or remove them, or list the others in a table (data.source=table)")
    return index


def _read_classes(root: Path, name: str) -> tuple[Index, Tally, list[str]]:
    """The images of all classes, what cannot be used, the class folders without images."""
    index, faults, empty = Index(str(root)), Tally(), list[str]()
    top = os.path.realpath(root / name)
    for entry, key, facts in _entries(root, name, index.left_out):
        if facts is None:
            faults.add("broken link", key)
        elif not stat.S_ISDIR(facts.st_mode):
            is_image = entry.lower().endswith((*IMAGE_SUFFIXES, *OTHER_SUFFIXES))
            (faults if is_image else index.left_out).add("outside of class folders", key)
        elif "\udc80" <= max(entry) <= "\udcff":  # how Python represents bytes that are not UTF-8
            raise ConfigError(f"{root / key}: the name of a class must be UTF-8; rename the folder")
        elif _leads_back(target := os.path.realpath(root / key), (top,)):
            index.left_out.add("link to a folder that it lies in", key)
        else:
            before = len(index)
            _read_class(root, key, (top, target), index, faults)
            empty += [key] if len(index) == before else []
    return index, faults, empty


def _read_class(root: Path, top: str, chain: tuple[str, ...], index: Index, faults: Tally) -> None:
    """Add the images of a class. ``chain``: the folder itself, and those in which links were that have led there."""
    name = top.rpartition("/")[2]
    waiting = [(top, chain)]
    while waiting:  # the least of them first: no folder that is found later comes before it
        folder, chain = heapq.heappop(waiting)
        for entry, key, facts in _entries(root, folder, index.left_out):
            if facts is None:
                faults.add("broken link", key)
            elif stat.S_ISREG(facts.st_mode):
                if (suffix := os.path.splitext(entry)[1].lower()) in NO_IMAGE_SUFFIXES:  # noqa: PTH122
                    index.left_out.add("no image", key)
                elif suffix in OTHER_SUFFIXES:
                    faults.add("image in a format that is not read", key)
                else:
                    index.add(key, name, facts.st_size, facts.st_mtime_ns)
            elif not stat.S_ISDIR(facts.st_mode):
                index.left_out.add("no regular file", key)
            elif not (root / key).is_symlink():
                heapq.heappush(waiting, (key, (*chain[:-1], f"{chain[-1]}/{entry}")))
            elif _leads_back(target := os.path.realpath(root / key), chain):
                index.left_out.add("link to a folder that it lies in", key)
            else:
                heapq.heappush(waiting, (key, (*chain, target)))


def _leads_back(target: str, chain: tuple[str, ...]) -> bool:
    """Whether a link leads to one of the folders in which it was found: to follow it would never end."""
    return any(f"{folder}/".startswith(f"{target}/") for folder in chain)


def _entries(root: Path, folder: str, left_out: Tally) -> Iterator[tuple[str, str, os.stat_result | None]]:
    """What lies in a folder, by name, but for hidden files and those of operating systems: name, path from ``root``,
    facts; None for those of a link that leads to nothing."""
    for name in sorted(os.listdir(f"{root}/{folder}")):  # noqa: PTH208
        key = f"{folder}/{name}"
        if name.startswith(".") or name.lower() in _OF_SYSTEMS:
            left_out.add("hidden", key)
        else:
            yield name, key, _facts(f"{root}/{key}")


def _facts(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 # a Path takes ten times as long
    except OSError as error:
        if error.errno in _NOWHERE and os.path.islink(path):  # noqa: PTH114
            return None
        raise
