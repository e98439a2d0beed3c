"""Which of the images of a source are in packs already."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from senet.data.sources.arrays import Source
from senet.data.sources.index import SPLITS, Files, Index
from senet.data.stores.encoded import ROW, Packs, read_index, read_meta
from senet.data.stores.journal import read_journals
from senet.errors import ConfigError

WHERE = ("pack", "offset", "size", "digest")
"""What of a ``ROW`` is the same wherever an image comes from."""
log = logging.getLogger(__name__)


class Known:
    """Images that are in packs already: those of the index, and those of builders that have not come to its end.

    About 300 bytes each, while a store is built.
    """

    def __init__(self, store: Path) -> None:
        """ConfigError: the index is damaged, or of a newer version."""
        self.packs, self.rows, self.keys = list[str](), np.empty(0, ROW), np.empty(0, np.uint8)
        self.meta = read_meta(store) if (store / "meta.json").exists() else {}
        if self.meta:
            rows, self.keys = read_index(store, self.meta, verify=True)
            self.rows, self.packs = np.array(rows), list(self.meta["packs"])
        self.indexed = len(self.rows)
        ends = self.rows["key_end"].tolist()
        names = self.keys.tobytes()
        self.at = {os.fsdecode(names[a:b]): n for n, (a, b) in enumerate(zip([0, *ends], ends, strict=False))}
        for number, name in enumerate(self.packs):
            try:
                Packs(store, {name: self.meta["packs"][name]})
            except ConfigError as error:
                log.warning("%s", error)
                self.rows["pack"][self.rows["pack"] == number] = -1
        self.sure: dict[str, int] = {}
        """As ``at``, of images that no index has."""
        for name, keys, rows in read_journals(store):
            if name not in self.packs:
                self.packs.append(name)
            rows["pack"] = self.packs.index(name)
            with suppress(OSError):  # of another user
                os.utime(store / name)  # what is old and does not count is removed
            self.sure |= {key: len(self.rows) + number for number, key in enumerate(keys)}
            self.rows = np.concatenate([self.rows, rows])


class Listed:
    """The images of both splits, of training first."""

    def __init__(self, files: Files, source: Source) -> None:
        self.indexes = [files.index(split) for split in SPLITS]
        self.keys = [key for index in self.indexes for key in index.keys]
        self.rows = np.zeros(len(self.keys), ROW)
        self.rows["label"] = np.concatenate([source.labels[split] for split in SPLITS])
        self.rows["size"] = np.concatenate([np.asarray(index.sizes) for index in self.indexes])
        self.rows["mtime_ns"] = np.concatenate([np.asarray(index.times) for index in self.indexes])
        self.rows["key_end"] = np.cumsum([len(os.fsencode(key)) for key in self.keys])
        self.rows["pack"] = -1

    def at(self, number: int) -> tuple[Index, int]:
        train, test = self.indexes
        return (train, number) if number < len(train) else (test, number - len(train))


def match(listed: Listed, known: Known) -> tuple[np.ndarray, np.ndarray]:
    """Take over what is in packs. Returns for each image its row in the index, or -1; and those that must be read."""
    before = np.array([known.at.get(key, -1) for key in listed.keys])
    sure = np.array([known.sure.get(key, -1) for key in listed.keys])
    for found in (sure, before):
        there = np.flatnonzero(found >= 0)
        rows, old = listed.rows[there], known.rows[found[there]]
        alike = (old["pack"] >= 0) & (rows["size"] == old["size"]) & (rows["mtime_ns"] == old["mtime_ns"])
        for name in WHERE:
            listed.rows[name][there[alike]] = old[name][alike]
    return before, np.flatnonzero(listed.rows["pack"] < 0)
