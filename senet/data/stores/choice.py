"""The kind of store that the options say."""

from __future__ import annotations

import logging
from pathlib import Path

from senet.config.images import stored_as
from senet.config.options import DataConfig
from senet.data.sources.choice import open_files
from senet.data.stores.encoded import EncodedStore, encoded_folder, open_encoded, read_meta
from senet.data.stores.packing import Packed, pack
from senet.data.stores.pixels import PixelStore, map_pixels, pixel_folder
from senet.data.stores.staging import stage
from senet.errors import ConfigError

log = logging.getLogger(__name__)


def open_store(config: DataConfig, *, build: bool = True, verify: bool = True) -> PixelStore | EncodedStore:
    """Open the images, building what is missing first, and copying it to the folder ``data.stage``.

    An encoded store that is there is opened as it is: no folder is listed, and the images may be gone. No collective.

    Args:
        build: False: nothing is downloaded, written or copied, and a missing store is an error.
        verify: check what ``map_pixels`` or ``open_encoded`` does; for one process of a node.

    Raises:
        ConfigError: what ``pixel_folder``, ``pack``, ``stage``, ``map_pixels`` and ``open_encoded`` refuse.
    """
    pixels = stored_as(config) == "pixels"
    folder = store = pixel_folder(config, build=build) if pixels else _packed(config, build=build)
    if config.stage and build:
        store = stage(store, config.stage)
    if pixels:
        return map_pixels(store, verify=verify)._replace(folder=folder)
    if verify:
        meta = read_meta(store)
        left_out = f", without some of what was there: {meta['left_out']}" if meta.get("left_out") else ""
        log.info("%s images, packed %s%s", f"{sum(meta['counts'].values()):,}", meta["built"], left_out)
    return open_encoded(store, verify=verify)._replace(folder=folder)


def store_folder(config: DataConfig) -> Path:
    """Where the images are kept. ConfigError: they are not."""
    return pixel_folder(config, build=False) if stored_as(config) == "pixels" else _packed(config, build=False)


def look_for_files(config: DataConfig) -> None:
    """ConfigError where a start would miss the files of the images: it needs none that are packed already."""
    if stored_as(config) == "pixels" or not (encoded_folder(config) / "meta.json").exists():
        open_files(config)


def _packed(config: DataConfig, *, build: bool) -> Path:
    store = encoded_folder(config)
    if not (store / "meta.json").exists():  # checked before the lock, so that a complete store may be read-only
        if not build:
            raise ConfigError(
                f"data.source={config.source}: no packed images in {store.absolute()}; name the data.root= that the "
                f"training had (data.root={config.root}, seen from another folder), or any to have them packed there"
            )
        pack(config, store, add=False)
    return store


def prepare(config: DataConfig, *, anyway: bool = False) -> tuple[Path, Packed]:
    """Look at all images, and build what is missing or add what is new. Returns where they are kept, and what has
    become of that.

    Args:
        anyway: also where runs need the images as they were.

    Raises:
        ConfigError: what ``pixel_folder`` and ``pack`` refuse.
    """
    if stored_as(config) == "encoded":
        packed = pack(config, encoded_folder(config), add=True, anyway=anyway)
        assert packed is not None  # nothing is left as it is
        return encoded_folder(config), packed
    before = {path.name for path in Path(config.root, "stores").glob("*")}
    store = map_pixels(pixel_folder(config, build=True), verify=False)
    count = len(store.train[1]) + len(store.test[1])
    return store.folder, Packed(0, 0, 0, count) if store.folder.name in before else Packed(count, 0, 0, 0)
