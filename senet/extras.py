"""Libraries of the extras in pyproject.toml, imported when something needs them."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from senet.errors import ConfigError


def library(name: str, extra: str) -> Any:
    """A module; ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _missing(error.name or name, extra) from None


def must_be_installed(name: str, extra: str) -> None:
    """ConfigError where a module is not installed. It is not imported."""
    found = find_spec(name)
    if found is None or found.origin is None:  # None: a mere folder of this name, as wandb leaves some
        raise _missing(name, extra)


def _missing(name: str, extra: str) -> ConfigError:
    return ConfigError(f"{name} is not installed; run ./launch.sh setup {extra}")
