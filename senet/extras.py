"""Libraries of the extras in pyproject.toml, imported when something needs them."""

from __future__ import annotations

import importlib
from typing import Any

from senet.errors import ConfigError


def library(name: str, extra: str) -> Any:
    """A module; ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{error.name or name} is not installed; run ./launch.sh setup {extra}") from None
