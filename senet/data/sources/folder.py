"""Class folders: ``<data.folder>/train/<class>/**/<image>``, and the same for the test split."""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import stat
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from senet.config.options import DataConfig
from senet.data.sources.index import SPLITS, Files, Index, Tally
from senet.data.sources.pictures import IMAGE_SUFFIXES, looks_like_an_image
from senet.data.sources.splits import TEST_NAMES, other_splits, split_names
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
    root = Path(config.folder)
    if not root.is_dir():
        here = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(f"data.folder={root}: no such folder{here}; {_LAYOUT}")
    there = [name for name in ("train", *TEST_NAMES) if (root / name).is_dir()]
    names = split_names(there, config.splits, root)
    for split in SPLITS:
        if not (root / names[split]).is_dir():
            raise ConfigError(f"{root / names[split]}: no such folder; {_LAYOUT}")
    others: dict[str, list[str]] = {"train": [], "test": other_splits(there, names)}
    walked = cache(lambda split: _walk(root, names[split], others[split]))

    def identity() -> str:
        digest = hashlib.sha256()
        for split in SPLITS:
            index = walked(split)
            for row in range(len(index)):
                digest.update(index.facts(row).encode(errors="surrogateescape"))  # file names need not be UTF-8
        return digest.hexdigest()

    return Files(root, identity, cache(lambda split: _images(walked(split), names[split])))


def _walk(root: Path, name: str, others: list[str]) -> Index:
    """All files of a split, in the order of torchvision's ImageFolder: by class, then by folder, then by name."""
    try:
        index = patiently(partial(_read_classes, root, name))
    except OSError as error:
        raise ConfigError(f"data.folder={root} cannot be read: {error}") from None
    for other in others:
        index.left_out.add("split that is not read", other)
    if not index.keys:
        instead = "".join(f"; data.splits.test={other} reads {root / other}" for other in others)
        raise ConfigError(f"{root / name} has no class folders with images{instead}; {_LAYOUT}")
    return index


def _read_classes(root: Path, name: str) -> Index:
    index = Index(str(root))
    top = os.path.realpath(root / name)
    for entry, key, facts in _entries(root, name, index.left_out):
        if facts is None:
            index.left_out.add("broken link", key)
        elif not stat.S_ISDIR(facts.st_mode):
            index.left_out.add("outside of class folders", key)
        elif "\udc80" <= max(entry) <= "\udcff":  # how Python represents bytes that are not UTF-8
            raise ConfigError(f"{root / key}: the name of a class must be UTF-8; rename the folder")
        elif _leads_back(target := os.path.realpath(root / key), (top,)):
            index.left_out.add("link to a folder that it lies in", key)
        else:
            before = len(index)
            _read_class(root, key, (top, target), index)
            if len(index) == before:
                index.left_out.add("class folder without files", key)
    return index


def _read_class(root: Path, top: str, chain: tuple[str, ...], index: Index) -> None:
    """Add the files of a class. ``chain``: the folder itself, and those in which links were that have led there."""
    name = top.rpartition("/")[2]
    waiting = [(top, chain)]
    while waiting:  # the least of them first: no folder that is found later comes before it
        folder, chain = heapq.heappop(waiting)
        for entry, key, facts in _entries(root, folder, index.left_out):
            if facts is None:
                index.left_out.add("broken link", key)
            elif stat.S_ISREG(facts.st_mode):
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


def _images(files: Index, name: str) -> Index:
    """The files that are images: by their suffix, or where it is another one by how they begin."""
    root, rows = Path(files.root), []
    for row, key in enumerate(files.keys):
        if not key.lower().endswith(IMAGE_SUFFIXES) and not looks_like_an_image(root / key):
            rows.append(row)
            files.left_out.add("no image", key)
    images = files.without(rows) if rows else files
    for each in sorted(set(files.classes) - set(images.classes)):
        files.left_out.add("class folder without images", f"{name}/{each}")
    return images
