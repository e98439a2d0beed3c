"""Stores of files as they are: built, gone on with after a kill, added to.

No process undoes what another did, so that any number may build at once, on file systems without locks: packs have one
writer and do not change, an index is a new file, and ``meta.json`` is replaced in one step. The last that replaces it
wins, and each of them is whole. What no longer counts is removed after a month: trainings that run may read it.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from senet.config.options import DataConfig
from senet.data.sources.choice import open_files, open_source
from senet.data.sources.index import some
from senet.data.sources.intact import refuse_damaged
from senet.data.sources.pictures import reason_of
from senet.data.stores.encoded import digest_of, fingerprint_of, read_meta, write_encoded
from senet.data.stores.journal import PackWriter, forget_journals, wait_for_earlier
from senet.data.stores.matching import WHERE, Known, Listed, match
from senet.data.stores.reading import ahead
from senet.data.stores.uses import unfinished
from senet.distributed.devices import cores
from senet.errors import ConfigError
from senet.rundir.files import patiently, remedy
from senet.rundir.locks import StillHeld, beating, lock

_PATIENCE_S = 60.0  # for another process that holds the lock and no longer renews it
_UNUSED_S = 30 * 24 * 3600.0  # longer than a training runs without a new start
log = logging.getLogger(__name__)


class Packed(NamedTuple):
    """What has become of a store: images that it had not, had otherwise, had and has no longer, had already."""

    added: int
    changed: int
    removed: int
    kept: int

    def __str__(self) -> str:
        """``10 images added, 999,990 kept``"""
        rest = {"changed": self.changed, "removed": self.removed, "kept": self.kept}
        return ", ".join([f"{self.added:,} images added", *(f"{many:,} {what}" for what, many in rest.items() if many)])


def pack(config: DataConfig, store: Path, *, add: bool, anyway: bool = False) -> Packed | None:
    """Build the store, or add to it what is new. One process at a time; where there are no locks, several.

    Args:
        add: False: a store that is there is left as it is, and None returned; nothing is listed then.
        anyway: also where runs need the images as they were.

    Raises:
        ConfigError: what ``open_source`` refuses; files that are no images, all of them; no space; runs that need the
            images as they were. What is new is in a pack then, and is not read again.
    """
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(Path(f"{store}.lock"), patience_s=_PATIENCE_S))
            except StillHeld as held:
                log.warning("%s; packing here as well", held)
            if not add and (store / "meta.json").exists():
                return None
            store.mkdir(exist_ok=True)
            stack.callback(_remove_empty, store)
            writer = stack.enter_context(closing(PackWriter(store)))
            stack.enter_context(beating(writer.journal))
            wait_for_earlier(store, writer.journal, _PATIENCE_S)
            if not add and (store / "meta.json").exists():
                return None
            return _pack(config, store, writer, anyway)
    except OSError as error:
        raise ConfigError(f"data.root={config.root}: {error}; {remedy(error)}") from None


def _remove_empty(store: Path) -> None:
    with suppress(OSError):  # it is not empty
        store.rmdir()


def _pack(config: DataConfig, store: Path, writer: PackWriter, anyway: bool) -> Packed:
    files = open_files(config)
    if files is None:
        raise ConfigError(f"data.source={config.source} has no files to pack; use data.store=pixels")
    source = open_source(config, files)
    listed, known = Listed(files, source), Known(store)
    before, todo = match(listed, known)
    _refuse_too_large(config, store, listed, known, before, todo)
    unreadable = _fill(listed, known, before, todo, writer, config.decode_threads or cores())
    writer.sync()
    if unreadable:
        raise ConfigError(
            f"{files.where}: {len(unreadable):,} of {len(listed.keys):,} files cannot be read as images: "
            f"{some(unreadable)}; repair or remove them (the others are kept in {store})"
        )
    had = before >= 0
    same = (listed.rows["digest"][had] == known.rows["digest"][before[had]]).all(1).sum()
    packed = Packed(int((~had).sum()), int(had.sum() - same), int(known.indexed - had.sum()), int(same))
    facts = {
        "source": str(files.where.resolve()),
        "classes": list(source.classes),
        "counts": {split: len(labels) for split, labels in source.labels.items()},
        "left_out": source.left_out,
    }
    if known.meta and fingerprint_of(facts, listed.rows) != known.meta["fingerprint"] and not anyway:
        _refuse_to_end_runs(store, known, packed)
    _publish(store, facts, listed, known, [*known.packs, writer.path.name])
    forget_journals(store, writer.journal)
    log.info("%s", packed)
    return packed


def _refuse_too_large(
    config: DataConfig, store: Path, listed: Listed, known: Known, before: np.ndarray, todo: np.ndarray
) -> None:
    """Files of the same name and size most often are the same ones, with another time."""
    sizes, at = listed.rows["size"][todo], before[todo]
    needed = int(sizes[(at < 0) | (sizes != known.rows["size"][at])].sum()) if known.indexed else int(sizes.sum())
    if needed > (free := shutil.disk_usage(store).free):
        raise ConfigError(
            f"data.root={config.root}: the images take {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; free "
            f"some space, or choose another folder"
        )
    if len(todo):
        log.info("packing %s of %s images into %s", f"{len(todo):,}", f"{len(listed.keys):,}", store)


def _fill(
    listed: Listed, known: Known, before: np.ndarray, todo: np.ndarray, writer: PackWriter, threads: int
) -> list[str]:
    """Read the images ``todo``, and write those that have changed. Returns the errors of those that are none."""
    unreadable = []

    def read(number: int) -> tuple[int, bytes, bytes, str]:
        index, row = listed.at(number)
        try:
            content = patiently(index.place(row).read)
            refuse_damaged(content)
        except Exception as error:  # each decoder raises its own
            return number, b"", b"", f"{index.keys[row]} ({reason_of(error)})"
        return number, content, digest_of(content), ""

    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(todo), desc="packing", unit="image", disable=None) as bar,
    ):
        for number, content, digest, error in ahead(pool, read, todo.tolist(), 4 * threads):
            row = listed.rows[number]
            if error:
                unreadable.append(error)
            elif (
                (at := before[number]) >= 0
                and known.rows[at]["pack"] >= 0
                and bytes(known.rows[at]["digest"]) == digest
            ):
                for name in WHERE:
                    row[name] = known.rows[at][name]
            else:
                row["offset"] = writer.add(listed.keys[number], int(row["mtime_ns"]), content, digest)
                row["pack"], row["digest"] = len(known.packs), np.frombuffer(digest, np.uint8)
            bar.update()
    return unreadable


def _refuse_to_end_runs(store: Path, known: Known, packed: Packed) -> None:
    if runs := unfinished(store, known.meta["fingerprint"]):
        raise ConfigError(
            f"{store}: {packed}: this would end {some(runs, 3)}, as a run goes on with the images that it began with "
            f"alone; let it finish, add --anyway to `data prepare`, or name another data.root= for the new images"
        )


def _publish(store: Path, facts: dict[str, Any], listed: Listed, known: Known, names: Sequence[str]) -> None:
    """Make an index of what is in packs, unless the one that is there says the same."""
    used = np.unique(listed.rows["pack"])
    ends = listed.rows["offset"] + listed.rows["size"]
    packs = {names[number]: int(ends[listed.rows["pack"] == number].max()) for number in used.tolist()}
    listed.rows["pack"] = np.searchsorted(used, listed.rows["pack"])
    facts = facts | {"packs": packs}
    keys = np.frombuffer(b"".join(map(os.fsencode, listed.keys)), np.uint8)
    same = np.array_equal(keys, known.keys) and np.array_equal(listed.rows, known.rows[: known.indexed])
    if not (same and facts == {name: known.meta.get(name) for name in facts}):
        write_encoded(store, facts, listed.rows, keys)
    for path in unused(store):
        with suppress(OSError):  # removed meanwhile
            if path.name in known.meta.get("packs", {}) or path.name in known.meta.get("sha256", {}):
                os.utime(path)  # from now on it is not used
            elif time.time() - path.stat().st_mtime > _UNUSED_S:
                path.unlink()


def unused(store: Path) -> list[Path]:
    """Files of a store that no longer count, or not yet. Trainings and builders that run may use them."""
    meta = read_meta(store)
    counts = {"meta.json", *meta["packs"], *meta["sha256"]}
    return sorted(path for path in store.iterdir() if path.is_file() and path.name not in counts)
