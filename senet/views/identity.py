"""Under which id and name a run is shown, over all its starts; kept in views.json."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from senet.rundir.files import read_json, read_rows, write_json
from senet.rundir.history import read_options
from senet.rundir.named import is_sweep

_NOT_SHOWN = ("notify",)  # a command may hold what only its user should read


@dataclass(frozen=True)
class Identity:
    """What a service is told of a run besides its numbers."""

    id: str
    """Its own, the same in all services."""
    name: str
    group: str
    """The sweep that it is a cell of; empty: none."""
    began: float
    """Its first start, seconds since 1970. A function of the run directory, as every time that is sent."""
    options: dict[str, Any]
    """Flat, "optim.lr"."""


def identify(run_dir: Path, *, trains: bool) -> Identity:
    """Of a run directory; its id is made where there is none yet.

    Args:
        trains: a training goes on here. In a copy of a run directory it is another run from now on, with an id of its
            own. Where rows are only sent, a copy stands for the run that it was copied from.
    """
    path = run_dir / "views.json"
    kept = read_json(path)
    here = {"folder": str(run_dir.resolve()), "inode": run_dir.stat().st_ino}
    moved = kept.items() & here.items()  # a folder that was moved, or is mounted elsewhere, has one of the two
    if "id" not in kept or (trains and not moved):
        kept = {"id": secrets.token_hex(6), **here}
        write_json(path, kept, durable=True)
    sweep = run_dir.resolve().parent
    starts = [row["time"] for row in read_rows(run_dir / "starts.jsonl") if isinstance(row.get("time"), str)]
    return Identity(
        id=str(kept["id"]),
        name=run_dir.resolve().name,
        group=sweep.name if is_sweep(sweep) else "",
        began=(datetime.fromisoformat(starts[0]) if starts else datetime.now(UTC)).timestamp(),
        options={key: value for key, value in read_options(run_dir / "config.yaml").items() if key not in _NOT_SHOWN},
    )
