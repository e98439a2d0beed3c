"""The trainings of a sweep: their options, checked, and their names. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from senet.config.load import load_config, to_flat
from senet.config.options import Config, entry_of, flat_values, short_name, types
from senet.config.shares import check_split
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


def make_cells(
    request: Request, words: Sequence[str], recorded: Mapping[str, Any] = MappingProxyType({})
) -> list[Cell]:
    """All cells, each checked as a training is.

    Args:
        words: files and options that are the same for all, beside those of the request.
        recorded: ``sweep.json``. What varied before varies also with a single value, and a cell with the options of one
            that is there is that one, whatever its name.

    Raises:
        ConfigError: what ``load_config`` refuses of any; nothing varies; two cells of one name.
    """
    varied = several(request.axes, recorded.get("varied", ()))
    if not varied:
        raise ConfigError("nothing varies: write several values of an option, e.g. optim.lr=0.05,0.1 or seed=0..4")
    single = [
        f"{key}={values[0]}"
        for key, values in request.axes.items()
        if key not in varied and not isinstance(values, Range)
    ]
    axes = {key: request.axes[key] for key in varied}
    there, cells = _names(recorded, varied), dict[str, Cell]()
    for values in combinations(axes, request.random, request.seed):
        own = (*words, *single, *(f"{key}={value}" for key, value in values.items()))
        config = load_config(own)
        options = _varied(flat_values(config), varied)
        known = there.get(_as_text(options))
        name = known or name_of(options)
        if name in cells and request.random and cells[name].options == options:  # drawn twice
            continue
        text = ", ".join(f"{key}={value}" for key, value in values.items())
        if name in cells:
            raise ConfigError(f"{text}: there is another training of this name, {name}; leave one out")
        if name in recorded.get("cells", ()) and not known:
            text += f": in sweep.name={request.name} the training {name} has other options"
            raise ConfigError(f"{text}; choose another sweep.name")
        run_dir = str(request.folder / name)
        cells[name] = Cell(name, own, options, dataclasses.replace(config, run_dir=run_dir))
    return list(cells.values())


def check_ranks(cells: Sequence[Cell], ranks: int) -> None:
    """ConfigError unless so many ranks can share the batch of each."""
    for cell in cells:
        try:
            check_split(cell.config, ranks)
        except ConfigError as error:
            raise ConfigError(f"{cell.name}: {error}") from None


def shared_options(cells: Sequence[Cell]) -> dict[str, Any]:
    """What is the same for all, flat."""
    first = cells[0]
    return {key: value for key, value in to_flat(first.config).items() if key not in {*first.options, "run_dir"}}


def name_of(options: Mapping[str, Any]) -> str:
    """``lr=0.05_seed=0``: readable, and a folder on any file system; no comma or colon, at which TensorBoard cuts."""
    short = [short_name(key) for key in options]
    keys = [key if short.count(last) > 1 else last for key, last in zip(options, short, strict=True)]
    name = "_".join(f"{_in_a_name(key)}={_in_a_name(value)}" for key, value in zip(keys, options.values(), strict=True))
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


def with_options(base: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``base``, flat, with these options, also single entries of mappings, over it."""
    flat = dict(base)
    for key, value in options.items():
        mapping, entry = entry_of(key)
        flat |= {key: value} if key in types() else {mapping: flat.get(mapping, {}) | {entry: value}}
    return flat


def _names(recorded: Mapping[str, Any], varied: Sequence[str]) -> dict[str, str]:
    """Of the cells that there are, by the values of their options."""
    base = to_flat(Config()) | recorded.get("base", {})  # an option may be younger than the sweep
    cells = recorded.get("cells", {})
    return {_as_text(_varied(with_options(base, options), varied)): name for name, options in cells.items()}


def _as_text(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True)


def _varied(flat: Mapping[str, Any], varied: Sequence[str]) -> dict[str, Any]:
    """Of options, and of single entries of mappings (``model.args.width``); None of an entry that is not there."""
    values = {}
    for key in varied:
        mapping, entry = entry_of(key)
        if key not in flat and not isinstance(flat.get(mapping), dict):
            raise ConfigError(f"{key} is a group; vary its options")
        values[key] = flat[key] if key in flat else flat[mapping].get(entry)
    return values
