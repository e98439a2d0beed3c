"""What precedes a sweep, on this machine and in jobs: its cells, and nobody else who starts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from senet.config.recipes import with_recipe
from senet.errors import ConfigError
from senet.rundir.files import must_be_writable, read_json
from senet.rundir.locks import StillHeld, lock
from senet.rundir.named import SWEEP, is_run
from senet.sweep import record
from senet.sweep.cells import Cell, make_cells
from senet.sweep.request import Request
from senet.verbs import typed

LOCK = ".sweep.lock"


def prepare(
    request: Request, verb: str, say: Callable[[str], None], *, quickstart: bool = True
) -> tuple[list[Cell], dict[str, Any]]:
    """The cells, each checked, and what was recorded of the sweep before. ``quickstart``: the files as launch.sh finds
    them."""
    recorded = record.read(request.folder)
    if is_run(request.folder):
        raise ConfigError(f"sweep.name={request.name}: {request.folder} is the directory of a run; choose another name")
    words = with_recipe(verb, request.words, say) if quickstart else request.words
    cells = make_cells(request, words, recorded)
    record.refuse_other(request, recorded, cells)
    asked = request.random * len(cast(tuple[str, ...], request.axes.get("seed", ("",))))  # a seed is not drawn
    if len(cells) < asked:
        say(f"sweep.random={request.random}: {asked - len(cells)} of {asked} cells are drawn twice, and trained once")
    return cells, recorded


@contextmanager
def only_one(folder: Path, recorded: Mapping[str, Any]) -> Iterator[None]:
    """One process at a time starts the cells of a sweep.

    Args:
        recorded: ``sweep.json`` as ``prepare`` has read it.

    Raises:
        ConfigError: another does, or has changed that file meanwhile; or the folder cannot be written.
    """
    with ExitStack() as stack:
        must_be_writable(folder)  # lock() goes on without one where its file belongs to another user
        try:
            stack.enter_context(lock(folder / LOCK, patience_s=0))
        except StillHeld:
            holder = read_json(folder / LOCK)
            who = f"process {holder.get('pid')} on host {holder.get('host')}"
            text = f"{who} starts the cells of {folder} already; wait, or stop it: {typed('sweep')} stop {folder.name}"
            raise ConfigError(text) from None
        if record.read(folder) != recorded:
            raise ConfigError(f"another command has just changed {folder / SWEEP}; give this one again")
        yield
