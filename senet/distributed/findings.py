"""What a roll call finds: from the reports of the ranks, or without them. Asks no store."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

import torch.distributed as dist

from senet.distributed import hangs
from senet.distributed.ranks import PeerFailed, Ranks
from senet.errors import Kind, has_own_line, note, noted
from senet.rundir.restarts import SILENT

_DYING_S = 2.0  # a process that has been killed runs until then: this host may be busy


class Report(NamedTuple):
    """What a rank tells at a roll call."""

    cause: str  # its error; empty if only a collective failed
    place: str  # where in the code it is
    seen: dict[int, str]  # state of the processes of other ranks that it sees
    kind: Kind  # of its error


class Finding(NamedTuple):
    """What a roll call found; the same on all ranks that read it."""

    text: str
    known: bool  # a rank reported its own error; else deduced from which ranks answer
    reporter: int  # the lowest rank that answered
    answered: list[int]
    failure: dict[str, Any]  # for the status: the cause, and which rank on which host, if it was one
    silent: list[int]  # did not answer
    hang: bool  # stacks may tell more: a rank may be there and not get on
    kind: Kind


def is_of_others(error: BaseException) -> bool:
    """Whether a collective or the ranks' store has failed, and so as a rule another rank."""
    from_gloo = type(error) is RuntimeError and ("gloo" in str(error) or "pair closure" in str(error))
    from_store = isinstance(error, dist.DistError) and not has_own_line(error)  # the user's code may have its own
    return isinstance(error, dist.DistBackendError) or from_gloo or from_store


def peer_failed(found: Finding, error: BaseException, ranks: Ranks, advice: str = "") -> PeerFailed:
    """What this rank raises instead of ``error``. ``advice`` is for ranks that have all answered."""
    reason = " ".join(str(error).split("]", 1)[-1].split())[:200]
    text = found.text if found.known else f"{found.text} ({reason})"
    if advice and not found.known and len(found.answered) == ranks.world_size:
        text = f"{text}; {advice}"
    lost = PeerFailed(text)
    lost.reporter, lost.guess, lost.kind = found.reporter, not found.known, found.kind
    others_unknown = len(ranks.roster) < ranks.world_size and ranks.local_world_size < ranks.world_size
    several_hosts = others_unknown or len({process.boot for process in ranks.roster.values()}) > 1
    lost.cut_off = not found.answered and several_hosts
    note(lost, **noted(error) | {"reason": str(lost), "failure": found.failure})
    return lost


def judge(reports: dict[int, Report], ranks: Ranks) -> Finding:
    answered = sorted(reports)
    for rank in answered:
        if cause := reports[rank].cause:
            found = failed(cause, rank, ranks, reports[rank].kind)
            return found._replace(reporter=answered[0], answered=answered)
    if silent := sorted(set(range(ranks.world_size)) - reports.keys()):
        seen = {rank: letter for report in reports.values() for rank, letter in report.seen.items()}
        return _silent({rank: seen.get(rank, "?") for rank in silent}, answered, ranks)
    places: dict[str, list[int]] = {}
    for rank in answered:
        places.setdefault(reports[rank].place, []).append(rank)
    by_place = sorted(places.items(), key=lambda place: len(place[1]))
    what = "the ranks waited too long for each other"
    where = "; ".join(f"{ranks.roster.name(group)} at {place}" for place, group in by_place)
    cause = f"{what}: {'; '.join(place for place, _ in by_place)}"
    return Finding(f"{what}: {where}", False, answered[0], answered, {"cause": cause}, [], hang=True, kind="rank hangs")


def judge_without_store(ranks: Ranks) -> Finding:
    """The host of the store is gone: under torchrun a launcher, else rank 0."""
    deadline = time.monotonic() + _DYING_S
    while (letter := hangs.states(ranks.roster, ranks.rank).get(0, "?")) in ("R", "S") and time.monotonic() < deadline:
        time.sleep(_DYING_S / 20)
    if ranks.rank > 0 and letter not in ("R", "S"):
        return _silent({0: letter}, [], ranks)
    what = f"the store at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    cause = f"{SILENT}: {what}"
    return Finding(f"{what} {SILENT}", False, ranks.rank, [], {"cause": cause}, [], hang=True, kind="rank hangs")


def failed(cause: str, rank: int, ranks: Ranks, kind: Kind = "") -> Finding:
    """What a rank says of itself."""
    failure, text = {"cause": cause, "rank": rank, "host": ranks.roster.host(rank)}, f"failed: {cause}"
    return Finding(f"{ranks.roster.name([rank])} {text}", True, rank, [rank], failure, [], hang=False, kind=kind)


def _silent(letters: dict[int, str], answered: list[int], ranks: Ranks) -> Finding:
    """Of ranks that do not answer, by the states of their processes."""
    by_letter: dict[str, list[int]] = {}
    for rank, letter in letters.items():
        by_letter.setdefault(letter, []).append(rank)
    text = "; ".join(
        f"{ranks.roster.name(group)} {SILENT}: {hangs.in_words(letter)}" for letter, group in by_letter.items()
    )
    first = min(letters)
    cause = f"{SILENT}: {hangs.in_words(letters[first])}"
    failure = {"cause": cause, "rank": first, "host": ranks.roster.host(first)}
    reporter = answered[0] if answered else ranks.rank
    kind: Kind = "rank was killed" if {"", "?"} & by_letter.keys() else "rank hangs"
    return Finding(text, False, reporter, answered, failure, list(letters), hang=set(by_letter) != {""}, kind=kind)
