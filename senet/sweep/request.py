"""What was asked for: the arguments of ``sweep``, and a YAML file with the group ``sweep``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from senet.config.load import named_path, sort_arguments
from senet.config.reading import parse
from senet.errors import ConfigError, did_you_mean
from senet.rundir.named import ROOT
from senet.sweep.grid import Values, read_values, typed_values

_NUMBERS = {"parallel": 1, "random": 1, "seed": 0}  # name -> the least
NAMES = ("name", *_NUMBERS)


@dataclass(frozen=True)
class Request:
    """A sweep as somebody wants it."""

    name: str
    words: tuple[str, ...]
    """Files and options of all cells alike, as for a training."""
    axes: Mapping[str, Values]
    """Options -> values as typed, also single ones, in the order of typing. Without the group slurm."""
    parallel: int = 0
    """How many cells at a time; 0: not said."""
    random: int = 0
    """How many draws; 0: all combinations."""
    seed: int = 0
    """Of the draws."""

    @property
    def folder(self) -> Path:
        """Holds a run directory for each cell."""
        return ROOT / self.name


def read_request(argv: Sequence[str]) -> Request:
    """The arguments of the command, the later ones over the earlier.

    Raises:
        ConfigError: a bad option of the sweep, no name, options that a sweep sets itself.
    """
    files, pairs = sort_arguments(argv)
    recipes, group, name = [], {}, ""
    for file in files:
        if found := _read_group(file):
            group, name = found, Path(file).stem
        else:
            recipes.append(file)
    axes = {key: typed_values(key, value) for key, value in _vary(group).items()}
    given = {key: str(value) for key, value in group.items() if key != "vary"}
    kept = []
    for pair in pairs:
        key, _, text = (part.strip() for part in pair.partition("="))
        if key.startswith("sweep.") or key == "sweep":
            given[key.removeprefix("sweep.")] = text
        elif key == "run_dir":
            raise ConfigError(f"{pair}: a sweep sets it for each cell; the folder of all is runs/ and sweep.name=NAME")
        elif key.startswith("slurm.") or key == "slurm":
            kept.append(pair)
        else:
            axes[key] = read_values(key, text)
    _refuse_unknown(given)
    numbers = {key: _number(key, given[key]) for key in _NUMBERS if key in given}
    name = given.get("name", name)
    return Request(_checked_name(name), (*recipes, *kept), axes, **numbers)


def _read_group(file: str) -> dict[str, Any]:
    """The group ``sweep`` of a file that holds nothing else; {} where a file has none, or cannot be read here."""
    try:
        content = parse(named_path(file).read_bytes())
    except (OSError, ValueError):  # load_config will say it
        return {}
    if not isinstance(content, dict) or "sweep" not in content:
        return {}
    if len(content) > 1 or not isinstance(content["sweep"], dict):
        raise ConfigError(f"{file}: the group sweep has a file of its own, without other options; see docs/sweeps.md")
    return content["sweep"]


def _vary(group: Mapping[str, Any]) -> dict[str, Any]:
    """Option -> what the file says of it."""
    vary = group.get("vary") or {}
    if not isinstance(vary, dict):
        raise ConfigError("sweep.vary is a mapping of options to values, e.g. vary: {optim.lr: [0.05, 0.1]}")
    for key in vary:
        if key.startswith("slurm.") or key == "run_dir":
            raise ConfigError(f"sweep.vary.{key}: only options of the training are varied")
    return vary


def _refuse_unknown(given: Mapping[str, str]) -> None:
    for key in given:
        if key not in NAMES:
            near = did_you_mean(key, NAMES) or f"there is {', '.join(NAMES)}, and in a file vary"
            raise ConfigError(f"sweep.{key} is no option of a sweep; {near}")


def _number(key: str, text: str) -> int:
    least = _NUMBERS[key]
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise ConfigError(f"sweep.{key}={text} is no whole number of {least} or more")
    return int(text)


def _checked_name(name: str) -> str:
    if not name:
        raise ConfigError("a sweep needs a name: sweep.name=NAME; its runs are in runs/NAME")
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name, re.ASCII):
        raise ConfigError(f"sweep.name={name} is no simple name; use letters, digits, and _ . + -")
    return name
