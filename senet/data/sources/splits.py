"""The folder of the images, and the names of the two splits: of folders, in a column, of shards."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from senet.config.options import DataConfig
from senet.errors import ConfigError

TEST_NAMES = ("test", "val", "valid", "validation")


def data_folder(config: DataConfig, layout: str) -> Path:
    """``data.folder``. ConfigError with the ``layout`` that is expected there: there is no such folder."""
    root = Path(config.folder)
    if not root.is_dir():
        here = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(f"data.folder={root}: no such folder{here}; {layout}")
    return root


def split_names(there: Collection[str], named: Mapping[str, str], where: Path) -> dict[str, str]:
    """``train`` and ``test`` -> their names in the data.

    Args:
        there: names that are in the data.
        named: ``data.splits``.

    Raises:
        ConfigError: several that may be the test split, ``test`` not among them; or one name for both.
    """
    found = [name for name in TEST_NAMES if name in there]
    if "test" not in named and len(found) > 1 and "test" not in found:
        raise ConfigError(f"{where} has {' and '.join(found)}; name the one to test on: data.splits.test={found[0]}")
    names = {"train": named.get("train", "train"), "test": named.get("test", (found or TEST_NAMES)[0])}
    if names["train"] == names["test"]:
        raise ConfigError(f"data.splits: train and test are both {names['test']!r}; they need different images")
    return names


def other_splits(there: Collection[str], names: Mapping[str, str]) -> list[str]:
    """Splits that are in the data and are not read."""
    return [name for name in ("train", *TEST_NAMES) if name in there and name not in names.values()]
