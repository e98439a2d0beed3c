"""Which collective did not come to its end, and which ranks did not come to it, by what the ranks remember. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from senet.rundir.collectives import Record

_GROUPS = {"default_pg": "the gradients", "votes": "the votes"}
_SHOWN = 3  # shapes


class Collective(NamedTuple):
    """One that a rank has begun, as torch's flight recorder has it."""

    kind: str
    """Of the record: gloo or nccl."""
    group: str
    description: str
    number: int
    """Counts those of the group, on each rank."""
    created: int
    is_open: bool
    """Certainly not done. Of gloo it is not known of one that has failed: that counts as one that is done."""
    text: str


def unfinished(records: Iterable[tuple[int, Record]]) -> str:
    """In one line; empty where the records do not tell."""
    begun, members = _read(records)
    everything = [each for ranks in begun.values() for several in ranks.values() for each in several]
    if not everything:
        return ""
    first = [_first_without_some(ranks, group) for ranks in begun.values() for group in members]
    came_not = [each for each in first if each is not None]
    still_open = [each for each in everything if each.is_open]
    if came_not or still_open:
        found = min(came_not or still_open, key=lambda each: each.created)
    else:
        found = max(everything, key=lambda each: each.created)
    return _say(found, begun[found.kind], members[found.group])


def _first_without_some(begun: Mapping[int, Sequence[Collective]], group: str) -> Collective | None:
    """The first collective of a group that some rank has begun, and another whose record of this kind is there has
    not."""
    last = {rank: max((c.number for c in several if c.group == group), default=0) for rank, several in begun.items()}
    missing = min(last.values()) + 1
    return next((c for several in begun.values() for c in several if (c.group, c.number) == (group, missing)), None)


def _say(found: Collective, begun: Mapping[int, Sequence[Collective]], members: Sequence[int]) -> str:
    same = (found.group, found.number)
    came = [rank for rank, several in begun.items() if any((c.group, c.number) == same for c in several)]
    unknown = [rank for rank in members if rank not in begun]
    missing = [rank for rank in begun if rank not in came]
    parts = [f"{_ranks(came)} came"]
    parts += [f"{_ranks(missing)} did not come"] if missing else []
    parts += [f"of {_ranks(unknown)} there is no record"] if unknown else []
    parts += [] if missing or unknown else ["all were there, and it did not come to its end"]
    group = _GROUPS.get(found.description, found.description)
    return f"{found.text}, number {found.number} of the group of {group}: {'; '.join(parts)}"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))}"


def _read(
    records: Iterable[tuple[int, Record]],
) -> tuple[dict[str, dict[int, list[Collective]]], dict[str, list[int]]]:
    """What each rank has begun, by the kind of its record; and the ranks of each group."""
    begun: dict[str, dict[int, list[Collective]]] = {}
    members: dict[str, list[int]] = {}
    for rank, record in records:
        kind = str(record["kind"])
        found = [each for entry in record["entries"] if (each := _readable(kind, entry)) is not None]
        begun.setdefault(kind, {}).setdefault(rank, []).extend(found)
        for each in found:
            members.setdefault(each.group, list(range(record.get("ranks", 0))))
        for group, facts in record.get("pg_config", {}).items():
            ranks = facts.get("ranks", "") if isinstance(facts, dict) else ""
            members[group] = [int(word) for word in re.findall(r"\d+", str(ranks))]
    return begun, members


def _readable(kind: str, entry: Any) -> Collective | None:
    """None for what is no collective, or was damaged."""
    try:
        return None if entry.get("is_p2p") else _collective(kind, entry)
    except (AttributeError, TypeError, ValueError):
        return None


def _collective(kind: str, entry: Mapping[str, Any]) -> Collective:
    group, description = [*entry.get("process_group", ()), "?", "?"][:2]
    name = str(entry.get("profiling_name", "?"))
    shapes = [
        f"{dtype} {size}"
        for dtype, size in zip(entry.get("input_dtypes", ()), entry.get("input_sizes", ()), strict=False)
    ]
    more = f" and {len(shapes) - _SHOWN} more" if len(shapes) > _SHOWN else ""
    is_open = not entry.get("retired") if kind == "gloo" else entry.get("state") != "completed"
    return Collective(
        kind,
        str(group),
        str(description),
        int(entry.get("collective_seq_id", 0)),
        int(entry.get("time_created_ns", 0)),
        bool(is_open),
        f"{name} ({', '.join(shapes[:_SHOWN])}{more})" if shapes else name,
    )
