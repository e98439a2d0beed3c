"""``data.source`` -> where its images come from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from senet.command import printable
from senet.config.options import DataConfig
from senet.data.sources.arrays import ARRAYS, Source
from senet.data.sources.folder import open_folder
from senet.data.sources.index import SPLITS, Files, Tally, some
from senet.data.sources.pictures import decode
from senet.data.sources.shards import open_shards
from senet.data.sources.table import open_table
from senet.errors import ConfigError

FILES: dict[str, Callable[[DataConfig], Files]] = {
    "imagefolder": open_folder,
    "table": open_table,
    "webdataset": open_shards,
}


def open_files(config: DataConfig) -> Files | None:
    """The files of the images; None where the source has other ones. Looks at little; see the functions in ``FILES``.

    Raises:
        ConfigError: what the options name is not there.
    """
    return FILES[config.source](config) if config.source in FILES else None


def open_source(config: DataConfig, files: Files | None) -> Source:
    """What a store is built from: all that can be known without decoding an image.

    Raises:
        ConfigError: no such images; rows, samples or files that cannot be used; classes that cannot be learned.
    """
    return ARRAYS[config.source](config) if files is None else _of_files(files)


def _of_files(files: Files) -> Source:
    indexes = {split: files.index(split) for split in SPLITS}
    train, test = indexes["train"], indexes["test"]
    classes = files.in_order(train.classes)
    if unknown := files.in_order(sorted(set(test.classes) - set(classes))):
        raise ConfigError(
            f"{files.where}: test images of classes that have no training images and cannot be learned: "
            f"{some(unknown)}; add training images, or remove these test images"
        )
    if len(classes) == 1:
        raise ConfigError(f"{files.where}: all training images are of one class, {classes[0]}; nothing can be learned")
    if empty := [index.keys[row] for index in indexes.values() for row, size in enumerate(index.sizes) if not size]:
        raise ConfigError(f"{files.where}: {len(empty):,} files are empty: {some(empty)}; replace or remove them")
    left_out = Tally()
    for index in indexes.values():
        left_out.merge(index.left_out)
    for name in files.in_order(sorted(set(classes) - set(test.classes))):
        left_out.add("class without test images", name)
    number = {name: label for label, name in enumerate(classes)}
    return Source(
        classes,
        {
            split: np.array([number[name] for name in index.classes])[np.asarray(index.labels)]
            for split, index in indexes.items()
        },
        {split: partial(decode, index) for split, index in indexes.items()},
        {split: index.facts for split, index in indexes.items()},
        printable(str(left_out)),
    )
