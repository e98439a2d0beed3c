"""Which values an option takes in a sweep, from what was typed: ``0.05,0.1``, ``0..4``, ``log:1e-3..1``. Pure."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from senet.config.options import types
from senet.config.reading import Quoted
from senet.errors import ConfigError

MOST_CELLS = 1000
_WHOLE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_RANGE = re.compile(r"(log:)?([-+0-9.e]*[0-9])\.\.([-+]?[0-9.][-+0-9.e]*)")


@dataclass(frozen=True)
class Range:
    """From which a random search draws."""

    low: float
    high: float
    log: bool
    """Evenly on a logarithmic scale, so 0.001 to 0.01 is as likely as 0.1 to 1."""
    whole: bool

    def draw(self, chance: random.Random) -> str:
        """A value, with three digits."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = chance.uniform(low, high)
        value = float(f"{math.exp(value) if self.log else value:.3g}")
        value = min(max(value, self.low), self.high)
        return str(round(value)) if self.whole else repr(value)


Values = tuple[str, ...] | Range
"""As they are typed."""


def read_values(key: str, text: str) -> Values:
    """The values of an option: a list with commas, whole numbers from..to, or a range to draw from.

    Commas within brackets, braces or quotes belong to a value: the values of an option that is a list are lists.

    Raises:
        ConfigError: an empty value, a value twice, a range that is none.
    """
    if types().get(key) is not str and (found := _RANGE.fullmatch(text)):
        is_whole = types().get(key, int) is int
        if not (is_whole and _WHOLE.fullmatch(text)):
            return _read_range(f"{key}={text}", found, is_whole)
    values = list(itertools.chain.from_iterable(_expand(key, part) for part in split(text)))
    if "" in values and len(values) > 1:
        quoted = f", or quote the value: '\"{text}\"'" if types().get(key, str) is str else ""
        raise ConfigError(f"{key}={text} has an empty value; leave the comma out, or the space behind it{quoted}")
    return tuple(values)


def _read_range(given: str, found: re.Match[str], whole: bool) -> Range:
    try:
        low, high = float(found[2]), float(found[3])
    except ValueError:
        raise ConfigError(f"{given} is no range; write numbers, e.g. 0.01..1 or log:0.001..1") from None
    log = bool(found[1])
    if not low < high or (log and low <= 0):
        rule = "both must be above 0, and the first below" if log else "the first number must be below"
        raise ConfigError(f"{given}: {rule} the second")
    return Range(low, high, log, whole)


def _expand(key: str, part: str) -> list[str]:
    found = _WHOLE.fullmatch(part)
    if not found or types().get(key, int) is not int:
        return [part]
    low, high = int(found[1]), int(found[2])
    if not low <= high < low + MOST_CELLS:
        raise ConfigError(f"{key}={part}: from..to must rise, and name at most {MOST_CELLS:,} numbers")
    return [str(number) for number in range(low, high + 1)]


def split(text: str) -> list[str]:
    """At the commas that stand in no bracket, brace or quotes."""
    parts, depth, quote = [""], 0, ""
    for each in text:
        if quote or each in "'\"":
            quote = "" if each == quote else quote or each
        depth += (each in "[{") - (each in "]}") if not quote else 0
        if each == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += each
    return [part.strip() for part in parts]


def typed_values(key: str, value: Any) -> Values:
    """The same from a YAML file: a list of values, or a text as on the command line."""
    if isinstance(value, Quoted):
        return (json.dumps(value, ensure_ascii=False),)
    if isinstance(value, str):
        return read_values(key, value)
    if not isinstance(value, list) or not value:
        raise ConfigError(f"sweep.vary.{key}: write a list of values, or a text such as 0..4 or log:0.001..1")
    return tuple(itertools.chain.from_iterable(_expand(key, _as_typed(each)) for each in value))


def _as_typed(value: Any) -> str:
    if isinstance(value, Quoted):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{','.join(map(_as_typed, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)}: {_as_typed(each)}' for key, each in value.items())}}}"
    return str(value)


def combinations(axes: Mapping[str, Values], draws: int, seed: int) -> Iterator[dict[str, str]]:
    """One value of each option: all combinations in the order of typing, or so many random ones.

    A draw depends on the seed, its number and the option alone: more draws, or another option, leave the others as
    they were. Each draw is made with each value of the option ``seed``, which nobody searches for.

    Raises:
        ConfigError: a range without random draws, or too many combinations.
    """
    lists = {key: values for key, values in axes.items() if not isinstance(values, Range)}
    ranges = [key for key in axes if key not in lists]
    if ranges and not draws:
        raise ConfigError(f"{ranges[0]} has a range to draw from; add sweep.random=20 for 20 draws, or list its values")
    if isinstance(axes.get("seed"), Range):
        raise ConfigError("seed is not drawn; list its values, e.g. seed=0..4")
    seeds = lists.get("seed", ("",))
    count = draws * len(seeds) if draws else math.prod(map(len, lists.values()))
    if count > MOST_CELLS:
        raise ConfigError(f"these are {count:,} trainings; a sweep has at most {MOST_CELLS:,}")
    if not draws:
        yield from (dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))
        return
    for number, value in itertools.product(range(draws), seeds):
        yield {key: value if key == "seed" else _draw(values, f"{seed} {number} {key}") for key, values in axes.items()}


def _draw(values: Values, key: str) -> str:
    chance = random.Random(key)
    return values.draw(chance) if isinstance(values, Range) else chance.choice(values)


def several(axes: Mapping[str, Values], known: Sequence[str]) -> list[str]:
    """The options that vary: those that did before in the same sweep, in the order of then, and others with several
    values."""
    new = [key for key, values in axes.items() if isinstance(values, Range) or len(values) > 1]
    return list(dict.fromkeys([*(key for key in known if key in axes), *new]))
