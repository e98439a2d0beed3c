"""The trainings of a sweep: their options, checked, and their names. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from senet.config.checks import check_split
from senet.config.load import load_config, to_flat
from senet.config.options import Config, flat_values
from senet.errors import ConfigError
from senet.sweep.grid import Range, combinations, several
from senet.sweep.request import Request

_LONGEST = 120  # of a name; file systems take 255 bytes, and files beside it have longer ones


@dataclass(frozen=True)
class Cell:
    """One training of a sweep."""

    name: str
    """Of its folder in that of the sweep."""
    words: tuple[str, ...]
    """Its command line, less ``run_dir``."""
    options: Mapping[str, Any]
    """Of those that vary, its values as the training has them."""
    config: Config
    """With its ``run_dir``."""

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)


def make_cells(request: Request, words: Sequence[str], known: Sequence[str] = ()) -> list[Cell]:
    """All cells, each checked as a training is.

    Args:
        words: files and options that are the same for all, beside those of the request.
        known: options that varied before in this sweep, and so count also with a single value.

    Raises:
        ConfigError: what ``load_config`` refuses of any; nothing varies; two cells that would be one.
    """
    varied = several(request.axes, known)
    if not varied:
        raise ConfigError("nothing varies: write several values of an option, e.g. optim.lr=0.05,0.1 or seed=0..4")
    single = [
        f"{key}={values[0]}"
        for key, values in request.axes.items()
        if key not in varied and not isinstance(values, Range)
    ]
    axes = {key: request.axes[key] for key in varied}
    cells: dict[str, Cell] = {}
    for values in combinations(axes, request.random, request.seed):
        own = (*words, *single, *(f"{key}={value}" for key, value in values.items()))
        config = load_config(own)
        options = {key: _value(config, key) for key in varied}
        name = name_of(options)
        if name in cells:
            if request.random:  # drawn twice
                continue
            text = ", ".join(f"{key}={value}" for key, value in values.items())
            raise ConfigError(f"{text}: there is another training of this name, {name}; leave one out")
        run_dir = str(request.folder / name)
        cells[name] = Cell(name, own, options, dataclasses.replace(config, run_dir=run_dir))
    return list(cells.values())


def check_ranks(cells: Sequence[Cell], ranks: int) -> None:
    """ConfigError unless so many ranks can share the batch of each."""
    for cell in cells:
        try:
            check_split(cell.config.train, ranks)
        except ConfigError as error:
            raise ConfigError(f"{cell.name}: {error}") from None


def shared_options(cells: Sequence[Cell]) -> dict[str, Any]:
    """What is the same for all, flat."""
    first = cells[0]
    return {key: value for key, value in to_flat(first.config).items() if key not in {*first.options, "run_dir"}}


def name_of(options: Mapping[str, Any]) -> str:
    """``lr=0.05_seed=0``: readable, and a folder on any file system; no comma or colon, at which TensorBoard cuts."""
    short = [key.removesuffix(".name").rpartition(".")[2] for key in options]
    keys = [key if short.count(last) > 1 else last for key, last in zip(options, short, strict=True)]
    name = "_".join(f"{key}={_in_a_name(value)}" for key, value in zip(keys, options.values(), strict=True))
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _in_a_name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "+".join(map(_in_a_name, value)) or "none"
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return re.sub(r"[^\w.+=-]+", "-", text, flags=re.ASCII).strip("-.") or "none"


def _value(config: Config, key: str) -> Any:
    """Of an option, or of one entry of a mapping (``model.args.width``)."""
    flat = flat_values(config)
    if key in flat:
        return flat[key]
    mapping, _, entry = key.rpartition(".")
    if isinstance(flat.get(mapping), dict):
        return flat[mapping][entry]
    raise ConfigError(f"{key} is a group; vary its options")
