"""``sweep.json``: the cells of a sweep and their options; what each has come to, from its own files. No torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from senet.config.load import changed_options
from senet.errors import ConfigError
from senet.rundir import standing
from senet.rundir.files import read_json, write_json
from senet.rundir.named import SWEEP, cell_names
from senet.sweep.cells import Cell, shared_options, with_options
from senet.sweep.request import Request
from senet.verbs import typed

ENDED = "--- ended with exit code "
"""The last line of a cell's log."""


def read(folder: Path) -> dict[str, Any]:
    """What was recorded; {} of a new sweep."""
    return read_json(folder / SWEEP)


def refuse_other(request: Request, recorded: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """ConfigError where the options that all cells share are not those of the cells that there are."""
    name = request.name
    if forgotten := [key for key in recorded.get("varied", ()) if key not in request.axes]:
        raise ConfigError(f"{forgotten[0]} varied before in sweep.name={name}; give its values, or choose another name")
    before = with_options(recorded["base"], cells[0].options) if recorded else {}
    for key, was, now in changed_options(before, cells[0].config) if recorded else ():
        text = f"sweep.name={name} was begun with {key}={was}, and this is {key}={now}"
        raise ConfigError(f"{text}; the cells of a sweep differ in what varies alone: choose another name")


def write(folder: Path, request: Request, recorded: Mapping[str, Any], cells: Sequence[Cell], **facts: Any) -> None:
    """Add these cells to those that there are."""
    content = {
        "name": request.name,
        # as it began: from it alone is known what the first cells have of options that vary later
        "base": shared_options(cells) | recorded.get("base", {}),
        "varied": list(dict.fromkeys([*recorded.get("varied", ()), *cells[0].options])),
        **facts,
        "cells": recorded.get("cells", {}) | {cell.name: dict(cell.options) for cell in cells},
    }
    write_json(folder / SWEEP, content, durable=True)


def state_of(folder: Path, name: str, job: standing.Job | None = None) -> standing.State:
    """Of a cell. One that was refused on this machine before it had a directory has failed."""
    state = standing.state_of(folder / name, job)
    reason = refusal(folder, name) if state.word == "not begun" else ""
    return standing.State("failed", reason) if reason else state


def log_of(folder: Path, name: str) -> Path:
    """What a cell that was trained on this machine would have shown on a terminal."""
    return folder / "logs" / f"{name}.log"


def refusal(folder: Path, name: str) -> str:
    """The last words of a cell that has failed before it had a status; empty of others."""
    try:
        lines = log_of(folder, name).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    if len(lines) < 2 or not re.fullmatch(rf"{ENDED}[12]", lines[-1]):
        return ""
    said = next((line for line in reversed(lines[:-1]) if line.strip()), "")
    return said.removeprefix("launch.sh: ").removeprefix("train_ddp: ")


def table(folder: Path, states: Mapping[str, standing.State]) -> list[str]:
    """A line for each cell, below a heading, and one that counts."""
    rows: list[tuple[str, ...]] = [("cell", "state", "step", "epoch", "test %", "reason")]
    for name, state in states.items():
        facts = (str(state.status.get(key, "-")) for key in ("step", "epoch"))
        rows.append((name, state.word, *facts, state.score, state.short))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    words, last, where = [state.word for state in states.values()], "", shlex.quote(str(folder))
    if more := len(cell_names(folder)) - len(states):
        last = f"; {more} more of other commands: {typed('sweep')} status {where}"
    if "finished" in words:
        last += f"; compare: {typed('compare')} {where}"
    return [*lines, f"{folder}: {count(words)}{last}"]


def count(words: Sequence[str]) -> str:
    """``15 cells: 12 finished, 3 failed``."""
    found = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(sorted(words)))
    return f"{len(words)} cell{'s' if len(words) != 1 else ''}: {found}"
