"""Runs in groups: one for each combination of options, with one run for each seed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from senet.compare.collect import Collected, scores
from senet.config.options import Argument, Config, flat_values, short_name, those, types
from senet.config.reading import as_type, parse
from senet.rundir.history import Run

_OF_IMAGES = ("data.source", "data.folder", "data.table", "data.columns", "data.splits", "data.holdout")
_FACTS = ("commit", "torch", "amp", "world_size", "device", "processor")  # of starts.jsonl
_HASH = re.compile("([0-9a-f]{10})[0-9a-f]{30}")  # of a commit; a + may follow
_MOST_NAMED = 6


@dataclass(frozen=True)
class Group:
    """The runs that differ in their seed alone."""

    options: dict[str, Any]
    """Those in which the groups differ."""
    runs: dict[int, Run]
    """Seed -> the run that counts."""
    repeats: list[Run]
    """Later runs of these options and of a seed that is there already. They do not count: they are no new draw."""
    images: tuple[str, ...]
    """Which images the runs were evaluated on."""

    @property
    def words(self) -> list[str]:
        """The options as they are typed."""
        return [f"{key}={typed_value(value)}" for key, value in self.options.items()]

    @property
    def name(self) -> str:
        return ", ".join(self.words) or "all runs"

    def has(self, pair: str) -> bool:
        """Whether it has an option with a value, as one types it: by its name, or by the last part that cells are named
        with; a number as a number."""
        name, _, text = (part.strip() for part in pair.partition("="))
        for key, value in self.options.items():
            entries = {f"{key}.{entry}": each for entry, each in value.items()} if isinstance(value, dict) else {}
            for full, own in {key: value, **entries}.items():
                if name in (full, short_name(full)) and is_typed_as(full, text, own):
                    return True
        return False

    def scores(self, which: str) -> dict[int, float]:
        """Seed -> accuracy, of the runs that have this one."""
        found = {seed: scores(run) for seed, run in self.runs.items()}
        return {seed: values[which] for seed, values in found.items() if which in values}


def group(collected: Collected) -> list[Group]:
    """All runs by the options that differ, in the order of their values. A group may have no finished run."""
    everything = [*collected.finished, *collected.unfinished]
    varied = varied_options(everything)
    members: dict[str, list[Run]] = {}
    for run in everything:
        members.setdefault(_as_key([settings(run).get(key) for key in varied]), []).append(run)
    groups = []
    for runs in members.values():
        counted: dict[int, Run] = {}
        repeats = []
        for run in sorted((each for each in runs if each in collected.finished), key=_begun):
            if counted.setdefault(int(run.options.get("seed", 0)), run) is not run:
                repeats.append(run)
        of_first = settings(runs[0])
        images = tuple(_as_key(of_first[key]) for key in _OF_IMAGES)
        own = {key: of_first.get(key) for key in varied}
        groups.append(Group(own, dict(sorted(counted.items())), repeats, images))
    return sorted(groups, key=lambda each: [_order(value) for value in each.options.values()])


def settings(run: Run) -> dict[str, Any]:
    """The options of a run that change its numbers, but the seed. An option that it does not know has its default."""
    without = those("compared", are=False)
    return {key: value for key, value in (_defaults() | run.options).items() if key not in without}


@cache
def _defaults() -> dict[str, Any]:
    return flat_values(Config())


def varied_options(runs: Sequence[Run]) -> list[str]:
    """Those that are not the same in all runs, in the order of the manual."""
    found = [settings(run) for run in runs]
    keys = dict.fromkeys(key for each in found for key in each)
    return [key for key in keys if len({_as_key(each.get(key)) for each in found}) > 1]


def is_typed_as(key: str, text: str, value: Any) -> bool:
    """Whether a text is this value of an option: 0.10 is 0.1."""
    try:
        meant = as_type(parse(text), types().get(key, Argument))
    except ValueError:
        return text == typed_value(value)
    return text == typed_value(value) or (list(meant) if isinstance(meant, tuple) else meant) == value


def typed_value(value: Any) -> str:
    """A value as one types it on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _begun(run: Run) -> str:
    return str(run.starts[0].get("time", "")) if run.starts else ""


def _as_key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, before texts."""
    is_number = isinstance(value, int | float)
    return (0, float(value), "") if is_number else (1, 0.0, typed_value(value))


def notes(groups: Sequence[Group], collected: Collected) -> list[str]:
    """What a reader must know of these runs: what does not count and why, and what else differs between them."""
    runs = [run for each in groups for run in each.runs.values()]
    repeats = [str(run.folder) for each in groups for run in each.repeats]
    whys = dict.fromkeys(collected.left_out.values())
    found = [
        f"not counted, {why}: {listed([str(folder) for folder, of in collected.left_out.items() if of == why])}"
        for why in whys
    ]
    if any(why.startswith("failed") for why in collected.left_out.values()):
        found.append("runs that failed are missing from the means: options that make runs fail look too good here")
    if repeats:
        found.append(f"not counted, since a run with the same options and seed is there: {listed(repeats)}")
    for fact in _FACTS:
        counts = _counts(_HASH.sub(r"\1", str(run.starts[-1].get(fact))) for run in runs if run.starts)
        if len(counts) > 1:
            parts = [f"{value} ({count})" for value, count in counts.items()]
            found.append(f"{fact} differs between the runs: {listed(parts)}")
    if changed := [str(run.folder) for run in runs if run.changes]:
        found.append(f"options were changed on resume, those of the last start are shown: {listed(changed)}")
    if begun := [str(run.folder) for run in runs if run.starts and int(run.starts[0].get("resumed_from", 0))]:
        found.append(f"began from a checkpoint of another run: {listed(begun)}")
    return found


def _counts(values: Iterable[str]) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return found


def listed(names: Sequence[str], gap: str = ", ") -> str:
    """The first of them, and how many more there are."""
    more = [f"and {len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return gap.join([*names[:_MOST_NAMED], *more])
