"""A check from its beginning to its end: what each rank does, and how rank 0 leads. Collectives come last, and only if
all ranks are there and reach each other."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from senet.config.options import Config
from senet.distributed.devices import choose_device, set_threads
from senet.distributed.environment import GLOO_INTERFACE, Place
from senet.distributed.interfaces import choose_interface, own_address
from senet.distributed.ranks import Ranks
from senet.distributed.roster import host_name
from senet.doctor import folders, machine, network, products
from senet.doctor.board import Board
from senet.doctor.reports import WAITING, Reports, launched_on
from senet.errors import ConfigError

EXACT_S = 0.3
_LOOK_S = 5.0  # how long a file is looked for on a file system that other hosts may see late
_SLACK_S, _PER_RANK_S = 2.0, 0.05
_LATE_S = 300.0  # rank 0 may begin so much later than another, and ends the wait with its own end


def attend(board: Board, place: Place, config: Config, limit_s: float) -> None:
    """What each rank does, in a thread of its own: whatever hangs in it, the process can end."""
    with contextlib.suppress(dist.DistError):  # rank 0 has ended, or has judged without this one
        if ranks := _arrive(board, place, config):
            _compute(board, ranks, config, limit_s)
            leaders = board.wait("leaders", _LATE_S)
            deadline = time.monotonic() + limit_s
            leads = ranks.rank in leaders.values()
            if leads:
                own = next(host for host, leader in leaders.items() if leader == ranks.rank)
                _names(board, network.looked_up(own, list(leaders)), limit_s / 2)
                _folders(board, ranks.rank, leaders, config, deadline)
            if _wait(board, "connect", deadline):
                _connect(board, ranks, leaders if leads else {}, deadline)


@contextmanager
def _part(board: Board, name: str) -> Iterator[dict[str, Any]]:
    """A part of the check, and its report; an error in it is reported, and becomes a finding."""
    board.begin(name)
    report: dict[str, Any] = {}
    try:
        yield report
    except Exception as error:
        report["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        of_others = isinstance(error, torch.OutOfMemoryError | dist.DistError)
        report["refused"] = isinstance(error, ConfigError)
        report["of_device"] = isinstance(error, ConfigError | RuntimeError) and not of_others
    board.tell(name, report)


def _arrive(board: Board, place: Place, config: Config) -> Ranks | None:
    """Report what this host has, and compare its clock with rank 0's; None if its device cannot be used."""
    ranks = None
    asked = time.time()
    with _part(board, "here") as report:
        report["host"] = host_name()
        device = choose_device(config.train.device, place.local_rank)
        report |= machine.describe(device, place.local_rank)
        report |= {"versions": machine.versions(device), "limits": machine.limits(device)}
        ranks = Ranks(*place, device)
        asked = time.time()
    answer = board.wait(f"time/{place.rank}", _LATE_S)
    answered = time.time()
    with _part(board, "clock") as report:
        ahead_s = (asked + answered) / 2 - answer if place.rank > 0 else 0.0
        report |= {"ahead_s": round(ahead_s, 2), "error_s": (answered - asked) / 2}
    return ranks


def _compute(board: Board, ranks: Ranks, config: Config, limit_s: float) -> None:
    with _part(board, "compute") as report:
        set_threads(config.train.threads_per_rank, ranks.local_world_size)
        report["wrong"] = products.wrong_elements(ranks.device, EXACT_S)
        torch.set_num_threads(1)
        report["rates"] = products.rates(ranks.device, limit_s / 3)


def _names(board: Board, hosts: Sequence[str], patience_s: float) -> None:
    with _part(board, "names") as report:
        found: dict[str, list[str]] = {}
        thread = threading.Thread(target=lambda: found.update(network.resolve(hosts)), name="names", daemon=True)
        thread.start()
        thread.join(patience_s)
        if thread.is_alive():  # five seconds for each name and name server
            raise TimeoutError(f"names were not resolved within {patience_s:g} s; see /etc/resolv.conf")
        report["addresses"] = found


def _folders(board: Board, rank: int, leaders: Mapping[str, int], config: Config, deadline: float) -> None:
    paths = {"run_dir": Path(config.run_dir), "data.root": Path(config.data.root)}
    with ExitStack() as stack:
        with _part(board, "files") as report:
            report |= {what: stack.enter_context(folders.written(path)) for what, path in paths.items()}
        theirs = _wait(board, "look", deadline)
        with _part(board, "files seen") as report:
            for what in paths:
                report[what] = folders.look(_looked_at(theirs, what, rank, leaders), min(_LOOK_S, _left(deadline)))
        _wait(board, "all have looked", deadline)
        with _part(board, "files removed"):
            stack.close()


def _looked_at(theirs: Mapping[str, Any], what: str, rank: int, leaders: Mapping[str, int]) -> dict[str, Any]:
    """The files of the next host and of the first, without which there would be as many looks as pairs of hosts."""
    hosts = [host for host in leaders if host in theirs]
    own = next(host for host, leader in leaders.items() if leader == rank)
    after = dict(itertools.pairwise([*hosts, *hosts[:1]]))
    wanted = {after.get(own, own), *hosts[:1]} - {own}
    return {host: theirs[host][what] for host in wanted if what in theirs[host]}


def _connect(board: Board, ranks: Ranks, leaders: Mapping[str, int], deadline: float) -> None:
    """The links, measured by the leader of each host, then the all-reduce of all ranks."""
    token = board.wait("token", _SLACK_S).encode()
    with ExitStack() as stack:
        with _part(board, "interface") as report:
            choose_interface(ranks, PrefixStore("interface", board.store), _left(deadline))
            report["name"] = os.environ.get(GLOO_INTERFACE, "")
            if leaders:
                report["address"] = own_address() if len(leaders) > 1 else "127.0.0.1"
                report["port"] = stack.enter_context(network.answering(report["address"], token))
                report["stated"] = network.stated_speed(report["name"].partition(",")[0])
        addresses = _wait(board, "links", deadline)
        if leaders and addresses:
            with _part(board, "links") as report:
                own = next(host for host, leader in leaders.items() if leader == ranks.rank)
                address, port = addresses[own]
                report["loop"] = network.measure_link(address, port, token)

                def in_step(number: int) -> None:
                    board.meet(f"round/{number}", len(addresses), _left(deadline) / 4)

                report["pairs"] = network.measure_links(own, addresses, token, in_step)
        if task := _wait(board, "reduce", deadline):
            with _part(board, "all-reduce") as report:
                group = PrefixStore("group", board.second().store)
                report |= network.all_reduce(ranks, group, task["numbers"], task["seconds"])


def _wait(board: Board, key: str, deadline: float) -> Any:
    """What rank 0 says, which it does at the deadline at the latest."""
    return board.wait(key, _left(deadline) + _SLACK_S)


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def lead(board: Board, place: Place, limit_s: float, started_s: float) -> Reports:
    """Of rank 0: say when to go on, and collect what comes in time.

    Args:
        started_s: how long the start of this process took. Others may be as slow again, with a cold file system.
    """
    world = range(place.world_size)
    reports = Reports(place.world_size, place.local_world_size, limit_s, {rank: {} for rank in world})
    reports.launched_on, reports.master = launched_on(), os.environ.get("MASTER_ADDR", "")

    def take(
        part: str, ranks: Collection[int], came: Callable[[int], None] = lambda _: None, at_least_s: float = 0.0
    ) -> dict[int, Any]:
        found = board.gather(part, ranks, max(until, time.monotonic() + at_least_s), came)
        for rank, report in found.items():
            reports.parts[rank][part] = report
        if not reports.doing:  # else others are late because these were
            late = {rank: board.doing(rank) for rank in ranks if rank not in found and "here" in reports.parts[rank]}
            reports.doing = {rank: what for rank, what in late.items() if what != WAITING}
        return found

    until = time.monotonic() + max(limit_s, 2 * started_s)
    here = take("here", world, lambda rank: board.say(f"time/{rank}", time.time()))
    able = [rank for rank in here if "error" not in here[rank]]
    leaders = {
        host: able_ones[0] for host, ranks in reports.hosts().items() if (able_ones := [r for r in ranks if r in able])
    }
    whole = len(able) == place.world_size
    board.say("token", secrets.token_hex(16))
    board.say("leaders", leaders)
    until = time.monotonic() + limit_s
    take("clock", able)
    computed = take("compute", able)
    take("names", leaders.values())
    written = take("files", leaders.values())
    board.say("look", {host: written[rank] for host, rank in leaders.items() if rank in written})
    seen = take("files seen", leaders.values())
    board.say("all have looked", True)
    removed = take("files removed", leaders.values())
    board.say("connect", whole and not reports.doing)
    if whole and not reports.doing:
        _lead_connections(board, take, leaders, world, limit_s / 2 + _PER_RANK_S * len(world))
    reports.complete = whole and len(reports.of("all-reduce")) == (place.world_size if place.world_size > 1 else 0)
    reports.complete &= len(computed) == place.world_size and len(leaders) == len(written) == len(seen) == len(removed)
    return reports


def _lead_connections(
    board: Board, take: Callable[..., dict[int, Any]], leaders: Mapping[str, int], world: range, collective_s: float
) -> None:
    """The links, then the all-reduce, which has a time of its own: the first of many ranks takes long."""
    ready = take("interface", world)
    addresses = {
        host: (ready[rank]["address"], ready[rank]["port"])
        for host, rank in leaders.items()
        if "port" in ready.get(rank, {})
    }
    several = len(addresses) > 1
    board.say("links", addresses if several else {})
    links = take("links", leaders.values()) if several else {}
    pairs = [pair for report in links.values() for pair in report.get("pairs", {}).values()]
    reached = len(addresses) == len(leaders) and (not several or len(links) == len(leaders))
    reached = reached and not any("error" in pair for pair in pairs)
    if len(world) > 1 and reached:
        slowest = min((min(pair["to"], pair["from"]) for pair in pairs), default=1e9)
        board.say("reduce", {"numbers": network.numbers_to_reduce(slowest), "seconds": collective_s})
        take("all-reduce", world, at_least_s=collective_s + _SLACK_S)
    else:
        board.say("reduce", None)
