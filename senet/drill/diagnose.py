"""The probable cause of a difference, from the traces of the runs that were tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from senet.drill.compare import Difference, Run, differing, first_difference
from senet.rundir.files import read_rows

_MOST_NAMED = 5


@dataclass(frozen=True)
class Cause:
    """What is probable, and what it was concluded from."""

    text: str
    details: tuple[str, ...] = ()


def not_deterministic(unbroken: Run, again: Run, once_more: Run) -> Cause | None:
    """Whether three runs that nothing disturbed differ; the last two with the traces of their layers."""
    pairs = ((unbroken, again), (again, once_more))
    found = next((difference for pair in pairs if (difference := first_difference(*pair))), None)
    place = first_layer(again, once_more)
    if found is None and place is None:
        return None
    text = "it is not deterministic: a second run that nothing disturbed differs from the first"
    if place is not None:
        return Cause(text, (place,))
    assert found is not None
    return Cause(text, (f"{found.what} differs first, after update {found.step}; {_no_layer(again)}",))


def _no_layer(run: Run) -> str:
    """Why none is named."""
    if not list(run.folder.glob("layers-*.jsonl")):
        return "with train.compile=true the layers are not looked at, train.compile=false may name one"
    return "what the layers computed was the same: it is the backward pass, the optimizer, or seldom"


def lost_on_resume(unbroken: Run, resumed: Run, difference: Difference) -> Cause:
    """What the start in which the difference showed did not have, of what the unbroken run had at that step."""
    text = f"state that is not saved: it differs only after a resume (from update {difference.resumed_from}"
    ranks = resumed.ranks[difference.start - 2 : difference.start]
    text += ")" if len(set(ranks)) == 1 else f", on {ranks[1]} rank(s) instead of {ranks[0]})"
    before, after = unbroken.after(difference.resumed_from), resumed.restored_at(difference.start)
    if before is None or after is None:
        return Cause(f"{text}; the unbroken run has no trace of that update")
    lines = [f"{name}: not as it was in the unbroken run" for name in differing(before.tensors, after.tensors)]
    for name in differing(before.others, after.others):
        was, now = (moment.others.get(name, "missing") for moment in (before, after))
        lines.append(f"{name}: {was} in the unbroken run, {now} after the resume")
    if not lines:
        nothing = "unknown which: buffers, attributes of layers, optimizer, average and images were as they had been"
        return Cause(text, (nothing,))
    more = [f"and {len(lines) - _MOST_NAMED} more"] if len(lines) > _MOST_NAMED else []
    return Cause(text, (*lines[:_MOST_NAMED], *more))


def depends_on_ranks(one: Run, other: Run) -> Cause:
    """Of two runs on different numbers of ranks, with the traces of their layers."""
    text = f"it depends on the rank: {one.ranks[0]} and {other.ranks[0]} rank(s) differ, in the first start already"
    return Cause(text, (first_layer(one, other) or _no_layer(one),))


def first_layer(one: Run, other: Run) -> str | None:
    """Where what the layers of two runs computed differs first; None where it does not."""
    known, seen = _passes(one.folder), _passes(other.folder)
    for key in sorted(known.keys() & seen.keys()):
        place = _first_event(known[key], seen[key])
        if place:
            return f"{place}, in update {key[0]}"
    return None


Event = tuple[str, str, str, int]  # module, its type, "in" or "out", sum of the bits


def _first_event(known: list[Event], seen: list[Event]) -> str:
    for a, b in zip_longest(known, seen):
        if a == b:
            continue
        if a is None or b is None or a[:3] != b[:3]:
            names = [f"{each[0]} ({each[1]})" if each else "none" for each in (a, b)]
            return f"other layers run: {names[0]} in one run, {names[1]} in the other"
        name, kind, side, _ = a
        if side == "out":
            return f"the output of {name or 'the network'} ({kind}) differs first, from the same input"
        if not name:
            return "the images that the network is given differ first: the source of the images, not the network"
        parent = name.rpartition(".")[0] or "the network"
        return f"the input of {name} ({kind}) differs first: what {parent} computes before it"
    return ""


def _passes(folder: Path) -> dict[tuple[int, int], list[Event]]:
    """By update and number of the pass."""
    return {key: events for path in sorted(folder.glob("layers-*.jsonl")) for key, events in _rows(path)}


def _rows(path: Path) -> Iterator[tuple[tuple[int, int], list[Event]]]:
    for row in read_rows(path):
        yield (row["step"], row["pass"]), [(name, kind, side, value) for name, kind, side, value in row["events"]]
