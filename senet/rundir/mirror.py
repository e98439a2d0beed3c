"""The status of a launch for its launcher: of what rank 0 does, and the first end that a rank has written. No torch."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from senet.rundir.files import read_json, write_json

MIRROR_VARIABLE = "SENET_STATUS_FILE"  # a launcher reads the outcome of its own launch there
ENDS = {"finished", "stopped", "failed", "refused", "port_taken"}
log = logging.getLogger(__name__)


def mirror_status(status: dict[str, Any], *, limit_s: float | None = None) -> None:
    """Copy a status to the file that the launcher named, if it named one. An error is only logged.

    The first end that is written there stays, of whichever rank. Only a ``guess`` about another rank is replaced by
    what a rank reports of itself. An end has a file of its own too: a rank 0 that is stopped while it writes, and goes
    on when another has told of that, would undo it.
    """
    if path := os.environ.get(MIRROR_VARIABLE):
        try:
            ends, there = status["state"] in ENDS, mirrored_end()
            if there and not (ends and there.get("guess") and not status.get("guess")):
                return
            for each in (_end_file(Path(path)), Path(path)) if ends else (Path(path),):
                write_json(each, status, durable=True, limit_s=limit_s)
        except OSError as error:
            log.warning("status in %s not written: %s", path, error)


def mirrored_end() -> dict[str, Any]:
    """The end of this launch that a rank has written for the launcher; {} if none has."""
    path = os.environ.get(MIRROR_VARIABLE)
    status = read_outcome(Path(path)) if path else {}
    return status if status.get("state") in ENDS else {}


def read_outcome(path: Path) -> dict[str, Any]:
    """For the launcher that named this file: the end of the launch, else what it did last; {} if no rank wrote."""
    return read_json(_end_file(path)) or read_json(path)


def forget_outcome(path: Path) -> None:
    """Before the launch: what an earlier one has left there."""
    path.unlink(missing_ok=True)
    _end_file(path).unlink(missing_ok=True)


def _end_file(path: Path) -> Path:
    return path.with_suffix(".end.json")
