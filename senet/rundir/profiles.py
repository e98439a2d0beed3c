"""Profiles of a run that trains: how one is asked for, and where its files lie. No torch.

Who asks leaves a file, for which rank 0's heartbeat looks every five seconds, in a thread of its own: one look-up of a
name, beside the two files that it writes anyway. The file lies in the run directory itself, where that host makes files
all the time, so that a network file system does not answer from an old listing.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import NamedTuple

from senet.errors import ConfigError
from senet.rundir.files import read_json, write_first

REQUEST = "profile_request.json"
FOLDER = "profile"
MOST_UPDATES = 1000
log = logging.getLogger(__name__)


class Request(NamedTuple):
    """To profile the next updates."""

    id: str
    """By which the answer in status.json is known."""
    updates: int


def stem(run_dir: Path, first: int) -> Path:
    """What the names of all files of a profile begin with; ``first``: its first update."""
    return run_dir / FOLDER / f"step_{first:09}"


def table_file(stem: Path) -> Path:
    """The most expensive operations, of rank 0."""
    return Path(f"{stem}.table.txt")


def trace_file(stem: Path, rank: int) -> Path:
    """For ui.perfetto.dev."""
    return Path(f"{stem}.rank_{rank:04}.json.gz")


def memory_file(stem: Path, rank: int) -> Path:
    """For pytorch.org/memory_viz."""
    return Path(f"{stem}.rank_{rank:04}.memory.pickle")


def ask(run_dir: Path, updates: int) -> Request:
    """Leave a request in a run directory.

    Raises:
        ConfigError: there is one already.
    """
    path, request = run_dir / REQUEST, Request(secrets.token_hex(8), updates)
    if write_first(path, request._asdict()).get("id") != request.id:
        raise ConfigError(f"{path}: somebody else's request has not been answered yet; try again, or remove that file")
    return request


def take(run_dir: Path) -> Request | None:
    """The request; None where there is none, or none that makes sense. It is removed in any case."""
    path = run_dir / REQUEST
    try:
        found = read_json(path)
        path.unlink()
        return Request(str(found["id"]), min(max(1, int(found["updates"])), MOST_UPDATES))
    except FileNotFoundError:  # the usual case
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:  # the heartbeat must go on
        log.warning("%s: %s: %s", path, type(error).__name__, error)
        return None


def withdraw(run_dir: Path, request: Request) -> None:
    """Remove a request that was not taken."""
    if read_json(run_dir / REQUEST).get("id") == request.id:
        (run_dir / REQUEST).unlink(missing_ok=True)
