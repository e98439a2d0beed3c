"""What each view is, by its name in ``log.to``, and how rows get there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from senet.config.options import KEYS
from senet.extras import must_be_installed
from senet.rundir.files import read_rows
from senet.views.csv_file import CsvFile
from senet.views.identity import Identity
from senet.views.mlflow_run import MlflowRun
from senet.views.points import Point, points
from senet.views.wandb_run import WandbRun

SERVICES = ("wandb", "mlflow")
"""Those that may be on another machine. Each is an extra of pyproject.toml, and the name of its library."""


class View(Protocol):
    """A place that takes each step once, in order, and takes none back."""

    def open(self) -> int:
        """Connect, also after an error; the last step that is there, -1: none."""

    def send(self, points: Sequence[Point]) -> None:
        """Add these, all of which come after what is there."""

    def close(self, *, finished: bool) -> None:
        """Once, after ``open``; ``finished``: the training too."""


def check_installed(names: Iterable[str]) -> None:
    """ConfigError where the library of one of these views is missing. Imports none: that takes seconds."""
    for name in names:
        if name in SERVICES:
            must_be_installed(name, name)


def make_view(name: str, run_dir: Path, identity: Identity, *, trains: bool) -> View:
    """``trains``: for a training, which does without a server where there is none."""
    if name == "csv":
        return CsvFile(run_dir)
    if name == "mlflow":
        return MlflowRun(run_dir, identity)
    return WandbRun(run_dir, identity, trains=trains)


def catch_up(view: View, run_dir: Path, through: int, newer: Iterable[Mapping[str, Any]] = ()) -> tuple[int, int]:
    """Open a view and send what it lacks of metrics.jsonl, and of ``newer`` rows that may not be in there yet.

    Returns: how many steps were sent, and the last that is there now.
    """
    last = view.open()
    due = points([*read_rows(run_dir / "metrics.jsonl"), *newer], after=last, through=through)
    view.send(due)
    return len(due), due[-1].step if due else last


def in_words(error: Exception) -> str:
    """One line without the keys and passwords that a library may have put into it."""
    return without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:300]


def without_secrets(text: str) -> str:
    """A text for a terminal or a log, less the keys and passwords in it."""
    for secret in filter(None, map(os.environ.get, KEYS)):
        text = text.replace(secret, "***")
    text = re.sub(r"://[^/\s@]*@", "://***@", text)
    return re.sub(r"(?i)(token|key|secret|password)=[^&\s]+", r"\1=***", text)
