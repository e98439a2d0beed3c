"""The kind of store that the options say."""

from __future__ import annotations

from senet.config.images import stored_as
from senet.config.options import DataConfig
from senet.data.stores.encoded import EncodedStore, encoded_folder, open_encoded
from senet.data.stores.packing import Packed, pack
from senet.data.stores.pixels import PixelStore, open_pixels
from senet.errors import ConfigError


def open_store(config: DataConfig, *, build: bool = True, verify: bool = True) -> PixelStore | EncodedStore:
    """Open the images, building what is missing first. An encoded store that is there is opened as it is: no folder is
    listed, and the images may be gone.

    No collective.

    Args:
        build: False: nothing is downloaded or written, and a missing store is an error.
        verify: check what ``open_pixels`` or ``open_encoded`` does; for one process of a node.

    Raises:
        ConfigError: what ``open_pixels``, ``pack`` and ``open_encoded`` refuse.
    """
    if stored_as(config) == "pixels":
        return open_pixels(config, build=build, verify=verify)
    store = encoded_folder(config)
    if not (store / "meta.json").exists():  # checked before the lock, so that a complete store may be read-only
        if not build:
            raise ConfigError(
                f"data.source={config.source}: no packed images in {store.absolute()}; name the data.root= that the "
                f"training had (data.root={config.root}, seen from another folder), or any to have them packed there"
            )
        pack(config, store, add=False)
    return open_encoded(store, verify=verify)


def prepare(config: DataConfig) -> Packed | None:
    """Look at the images, and build what is missing or add what is new. None: they are decoded; see ``open_pixels``."""
    if stored_as(config) == "encoded":
        return pack(config, encoded_folder(config), add=True)
    open_pixels(config)
    return None
