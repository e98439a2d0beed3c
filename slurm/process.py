"""This process, changed for a while: its environment, its streams."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_environment(variables: dict[str, str]) -> Iterator[None]:
    """These variables and no others."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ |= variables
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= kept


@contextmanager
def silent() -> Iterator[None]:
    """Processes that start in it write to /dev/null: in the background they would keep a caller's pipe open."""
    with Path(os.devnull).open("w") as null:
        kept = {stream: os.dup(stream) for stream in (1, 2)}
        for stream in kept:
            os.dup2(null.fileno(), stream)
        try:
            yield
        finally:
            for stream, copy in kept.items():
                os.dup2(copy, stream)
                os.close(copy)
