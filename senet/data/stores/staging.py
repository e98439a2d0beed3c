"""Stores copied to the disk of a node, which reads faster than the file system that all nodes share."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from shutil import rmtree

from tqdm import tqdm

from senet.data.sources.index import some
from senet.data.stores.verify import verify_store
from senet.errors import ConfigError
from senet.rundir.files import forget_cached, fsync_directory, read_json
from senet.rundir.locks import StillHeld, lock, own_folder

_PATIENCE_S = 60.0  # for another process that holds the lock and no longer renews it
_BLOCK = 16 * 2**20  # bytes copied at once
log = logging.getLogger(__name__)


def stage(store: Path, folder: str) -> Path:
    """Copy a store into ``folder`` unless its copy is there; one process of the node does, the others wait for it.

    A copy of what the store was before is replaced; packs that both have are not copied again.

    Raises:
        ConfigError: no room; or the copy is not what was copied.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        copy = Path(folder) / store.name
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(Path(f"{copy}.lock"), patience_s=_PATIENCE_S))
            except StillHeld as held:
                log.warning("%s; copying here as well", held)
            if not _is_copy(store, copy):
                _replace(store, copy)
        return copy
    except OSError as error:
        raise ConfigError(f"data.stage={folder}: {error}; choose another folder, or leave data.stage out") from None


def _sizes(store: Path) -> dict[str, int]:
    """The files that count, and how many bytes of them do."""
    meta = read_json(store / "meta.json")
    packs: dict[str, int] = meta.get("packs", {})
    return {name: (store / name).stat().st_size for name in ("meta.json", *meta.get("sha256", {}))} | packs


def _is_copy(store: Path, copy: Path) -> bool:
    with suppress(FileNotFoundError):
        same = (copy / "meta.json").read_bytes() == (store / "meta.json").read_bytes()
        return same and all((copy / name).stat().st_size >= size for name, size in _sizes(store).items())
    return False


def _replace(store: Path, copy: Path) -> None:
    sizes = _sizes(store)
    with own_folder(copy.parent, copy.name) as own:
        new = own / "new"
        new.mkdir()
        if copy.exists():
            copy.rename(own / "old")
            for name, size in read_json(store / "meta.json").get("packs", {}).items():
                with suppress(FileNotFoundError):
                    if (own / "old" / name).stat().st_size >= size:
                        (own / "old" / name).rename(new / name)
            rmtree(own / "old")  # for its room
        missing = {name: size for name, size in sizes.items() if not (new / name).exists()}
        if sum(missing.values()) > (free := shutil.disk_usage(new).free):
            raise ConfigError(
                f"data.stage={copy.parent}: {store} takes {sum(missing.values()) / 1e9:,.1f} GB, {free / 1e9:,.1f} GB "
                f"are free; free some space, choose another folder, or leave data.stage out"
            )
        _copy(store, new, missing)
        _refuse_damaged(store, new, missing)
        try:
            new.rename(copy)
        except OSError:  # another process was faster
            if not _is_copy(store, copy):
                raise
    fsync_directory(copy.parent)


def _refuse_damaged(store: Path, new: Path, copied: Collection[str]) -> None:
    try:
        found = verify_store(new, copied=copied).damaged
    except ConfigError as error:
        found = [str(error)]
    if found:
        named = some(found).replace(str(new), str(store))
        raise ConfigError(
            f"data.stage={new.parents[1]}: the copy of {store} is damaged: {named}; so is the store itself (see "
            f"./launch.sh data verify), or the disk to which it was copied"
        )


def _copy(store: Path, new: Path, sizes: Mapping[str, int]) -> None:
    with tqdm(
        total=sum(sizes.values()), desc=f"copying to {new.parents[1]}", unit="B", unit_scale=True, disable=None
    ) as bar:
        for name, size in sizes.items():
            with (store / name).open("rb") as source, (new / name).open("xb") as target:
                while (left := size - target.tell()) and (content := source.read(min(left, _BLOCK))):
                    target.write(content)
                    bar.update(len(content))
                target.flush()
                os.fsync(target.fileno())
            forget_cached(new / name)  # it is verified as it is on the disk
