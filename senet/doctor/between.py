"""Faults that show between hosts: clocks, names, links, the all-reduce. Pure functions.

Where one of two must be wrong, it is the one that also disagrees with a third; of two hosts alone, both are named, or
the one that differs from rank 0, and the text says so.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from statistics import median_high
from typing import Any

from senet.doctor.reports import CLOCK_ROW, LINK_ROW, NAMES_ROW, TRIP_ROW, Finding, Kind, Reports, usual

WRONG_CLOCK_S, SLOW_CLOCK_S = 30.0, 2.0
SLOW_LINK = 0.3
"""Of the median of all hosts."""
ONLY_LINK = 0.2
"""Of two hosts: of what the interface states, or of what a host sends to itself, whichever is less."""
_UNSTATED = 125e6  # bytes per second of an interface whose driver states nothing: 1 Gbit/s
_LONG_TRIP_S, _LONG_TRIPS = 0.002, 10


def wrong_clocks(reports: Reports) -> Iterator[Finding]:
    """Clocks that are not those of most hosts, by more than the round trip can explain."""
    found = reports.of("clock")
    ahead = {host: found[ranks[0]] for host, ranks in reports.hosts().items() if ranks[0] in found}
    if len(ahead) < 2:
        return
    right, whose = median_high(each["ahead_s"] for each in ahead.values()), "those of most hosts"
    clear = 2 * sum(abs(each["ahead_s"] - right) < SLOW_CLOCK_S for each in ahead.values()) > len(ahead)
    if len(ahead) == 2 and (agreed := _agreed_with_files(reports, list(ahead))):
        right, whose, clear = ahead[agreed]["ahead_s"], f"that of {agreed} and of the file system", True
    for host, each in ahead.items():
        far = each if clear else max(ahead.values(), key=lambda other: abs(other["ahead_s"] - each["ahead_s"]))
        off_s = each["ahead_s"] - (right if clear else far["ahead_s"])
        if (at_least_s := abs(off_s) - max(each["error_s"], far["error_s"])) > SLOW_CLOCK_S:
            than = whose if clear else "that of another host, and no majority tells which is wrong"
            how = f"{abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} {than}"
            kind: Kind = "wrong" if at_least_s > WRONG_CLOCK_S and clear else "slow"
            yield Finding(host, None, kind, "clock", f"its clock is {how}; start chrony or ntpd", (CLOCK_ROW,))


def _agreed_with_files(reports: Reports, two: Sequence[str]) -> str:
    """Which of two clocks the file server agrees with; "" where it is not one alone."""
    hosts = reports.hosts()
    behind = [reports.parts[hosts[host][0]].get("files", {}).get("run_dir", {}).get("behind_s") for host in two]
    agree = [host for host, seconds in zip(two, behind, strict=True) if seconds is None or abs(seconds) < SLOW_CLOCK_S]
    return agree[0] if len(agree) == 1 and None not in behind else ""


def unknown_names(reports: Reports) -> Iterator[Finding]:
    """Hosts that do not find others by name, or a host whose name hardly any other finds. A training needs the name
    MASTER_ADDR alone, which each rank that is here has found."""
    known = {reports.host(rank): found for rank, found in reports.of("names", "addresses").items()}
    lacks = {host: lacking_names(host, addresses) for host, addresses in known.items()}
    asked = Counter(name for host, addresses in known.items() for name in addresses if name != host)
    missing = Counter(name for lacking in lacks.values() for name in lacking)
    unfindable = {name for name, count in missing.items() if count > 1 and 2 * count > asked[name]}
    for name in sorted(unfindable):
        text = f"most hosts find no address of another host under its name {name}; add it to DNS or their /etc/hosts"
        yield Finding(name, None, "slow", "names", text)
    for host, lacking in lacks.items():
        if names := [name for name in lacking if name not in unfindable]:
            text = f"it finds no address of another host under the name {', '.join(names[:3])}"
            more = f" and {len(names) - 3} more" * (len(names) > 3)
            yield Finding(host, None, "slow", "names", f"{text}{more}; add it to DNS or its /etc/hosts", (NAMES_ROW,))
    dead = any("error" in link for link in links_of(reports).values())
    for rank, address in reports.of("interface", "address").items():
        if dead and _is_loopback(address):  # where the links work, so does the address: several hosts are one machine
            text = f"other hosts would be told the address {address} of it; correct its own name in /etc/hosts, or set "
            yield Finding(reports.host(rank), None, "slow", "names", f"{text}GLOO_SOCKET_IFNAME=eth0 or the like")


def lacking_names(host: str, addresses: Mapping[str, Collection[str]]) -> list[str]:
    """Names of other hosts for which it found no address that leads to another host."""
    return [name for name, found in addresses.items() if name != host and all(map(_is_loopback, found))]


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def bad_links(reports: Reports) -> Iterator[Finding]:
    """Pairs of hosts that do not reach each other, or slower than others."""
    links = links_of(reports)
    dead = [pair for pair, found in links.items() if "error" in found]
    for host, others in _blamed(dead, links).items():
        reason = next(links[pair]["error"] for pair in dead if host in pair)
        kind: Kind = "late" if "timed out" in reason else "wrong"
        text = f"no connection with {', '.join(others[:3])} ({reason}); check cable, firewall, GLOO_SOCKET_IFNAME"
        yield Finding(host, None, kind, "links", text, (LINK_ROW,))
    alive = {pair: found for pair, found in links.items() if "error" not in found}
    if not alive:
        return
    rates = {pair: min(found["to"], found["from"]) for pair, found in alive.items()}
    expected, rule = _expected_rate(reports, rates)
    slow = [pair for pair, rate in rates.items() if rate < expected * (1 - alive[pair]["busy"])]  # whatever cores cost
    for host, others in _blamed(slow, alive).items():
        slowest = min(rate for pair, rate in rates.items() if host in pair)
        text = f"{slowest / 1e6:.3g} MB/s with {', '.join(others[:3])}, {rule}"
        yield Finding(
            host,
            None,
            "slow",
            "links",
            f"{text}; check its cable and port (ethtool), and who else uses it",
            (LINK_ROW,),
        )
    trips = {pair: found["trip_s"] for pair, found in alive.items()}
    limit_s = max(_LONG_TRIP_S, _LONG_TRIPS * _by_best(trips, min)) if len(trips) > 1 else _LONG_TRIPS * _LONG_TRIP_S
    for host, others in _blamed([pair for pair, trip_s in trips.items() if trip_s > limit_s], alive).items():
        worst = max(trip_s for pair, trip_s in trips.items() if host in pair)
        text = f"{1e3 * worst:.3g} ms for a round trip with {', '.join(others[:3])}, usual {1e3 * usual(trips):.3g}"
        yield Finding(host, None, "slow", "links", f"{text}; are the hosts in one place and one network?", (TRIP_ROW,))


def links_of(reports: Reports) -> dict[tuple[str, str], dict[str, Any]]:
    """What was measured of each pair of hosts."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for rank, pairs in reports.of("links", "pairs").items():
        found |= {(reports.host(rank), other): link for other, link in pairs.items()}
    return found


def _expected_rate(reports: Reports, rates: Mapping[tuple[str, str], float]) -> tuple[float, str]:
    """Below which a link is slow, and the words for that."""
    if len(rates) > 1:
        median = _by_best(rates, max)
        return SLOW_LINK * median, f"usual {median / 1e6:.3g}"
    loops = [loop["to"] for loop in reports.of("links", "loop").values() if "to" in loop]
    stated = [speed or _UNSTATED for speed in reports.of("interface", "stated").values()]
    possible = min([*loops, *stated])
    rule = f"{possible / 1e6:.3g} are possible by the interface, or inside a host; it may be either of the two"
    return ONLY_LINK * possible, rule


def _by_best(values: Mapping[tuple[str, str], float], best: Callable[[list[float]], float]) -> float:
    """The median over hosts of the best of each, so that one bad host does not spoil that of three."""
    by_host: dict[str, list[float]] = {}
    for pair, value in values.items():
        for host in pair:
            by_host.setdefault(host, []).append(value)
    return usual({host: best(each) for host, each in by_host.items()})


def _blamed(bad: Collection[tuple[str, str]], pairs: Collection[tuple[str, str]]) -> dict[str, list[str]]:
    """Host -> the others of its bad pairs: hosts all of whose pairs are bad while others have good ones; of what these
    do not explain, both of each pair."""
    partners: dict[str, list[str]] = {}
    for one, other in pairs:
        for host in (one, other):
            partners.setdefault(host, [])
    for one, other in bad:
        partners[one].append(other)
        partners[other].append(one)
    count = Counter(host for pair in pairs for host in pair)
    causes = {host for host, others in partners.items() if len(others) == count[host] > 1}
    if len(causes) == len(partners):
        return partners
    for one, other in bad:
        if not {one, other} & causes:
            causes |= {one, other}
    return {host: partners[host] for host in partners if host in causes}


def failed_all_reduce(reports: Reports) -> Iterator[Finding]:
    """Wrong sums; or an all-reduce that did not end in time, though each link works."""
    for rank, count in reports.of("all-reduce", "wrong").items():
        if count:
            text = f"rank {rank} received {count} wrong sums in an all-reduce; test its memory and network card"
            yield Finding(reports.host(rank), rank, "wrong", "all-reduce", text)
    hung = [rank for rank, part in reports.doing.items() if part == "all-reduce"]
    failed = reports.of("all-reduce", "error")
    if late := hung or list(failed):
        reason = failed[late[0]] if not hung else f"rank {late[0]} did not end it in time; a training waits longer"
        hosts = {reports.host(rank) for rank in late}
        known = len(hosts) == 1
        for host in hosts if known else [""]:
            text = f"{reason}; see distributed.start_timeout_s, GLOO_SOCKET_IFNAME, NCCL_DEBUG=INFO"
            yield Finding(host, late[0] if known else None, "late", "all-reduce", text)
