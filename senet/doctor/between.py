"""Faults that show between hosts: clocks, names, links, the all-reduce. Pure functions.

Where one of two must be wrong, it is the one that also disagrees with a third; of two hosts alone, both are named, or
the one that differs from rank 0, and the text says so.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping
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
    if len(ahead) == 2:
        right, whose = _right_of_two(reports, {host: each["ahead_s"] for host, each in ahead.items()})
    for host, each in ahead.items():
        off_s = each["ahead_s"] - right
        if (at_least_s := abs(off_s) - each["error_s"]) > SLOW_CLOCK_S:
            how = f"{abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} {whose}"
            kind: Kind = "wrong" if at_least_s > WRONG_CLOCK_S else "slow"
            yield Finding(host, None, kind, "clock", f"its clock is {how}; start chrony or ntpd", (CLOCK_ROW,))


def _right_of_two(reports: Reports, ahead: Mapping[str, float]) -> tuple[float, str]:
    """Which of two clocks is right, and whose that is: the one that the file server agrees with, else rank 0's."""
    hosts = reports.hosts()
    behind = {host: reports.parts[hosts[host][0]].get("files", {}).get("run_dir", {}).get("behind_s") for host in ahead}
    agree = [host for host, seconds in behind.items() if seconds is not None and abs(seconds) < SLOW_CLOCK_S]
    if len(agree) == 1 and None not in behind.values():
        return ahead[agree[0]], f"that of {agree[0]} and of the file system"
    return ahead[next(iter(hosts))], f"that of {reports.host(0)} (which of the two is wrong is not known)"


def unknown_names(reports: Reports) -> Iterator[Finding]:
    """Hosts that do not find others by name, or a host whose name hardly any other finds."""
    hosts = reports.hosts()
    known = {reports.host(rank): found for rank, found in reports.of("names", "addresses").items()}
    lacks = {
        host: [name for name in hosts if name != host and not finds(addresses, name)]
        for host, addresses in known.items()
    }
    kind: Kind = "slow" if _is_address(reports.master) else "wrong"  # then no start depends on names
    unfindable = [
        name for name in hosts
        if (missing := sum(name in lacking for lacking in lacks.values())) > 1 and 2 * missing > len(known) - 1
    ]  # fmt: skip
    for name in unfindable:
        text = f"most hosts find no address of another host under its name {name}; add it to DNS or their /etc/hosts"
        yield Finding(name, None, kind, "names", text)
    for host, lacking in lacks.items():
        if names := [name for name in lacking if name not in unfindable]:
            text = f"it finds no address of another host under the name {', '.join(names[:3])}"
            more = f" and {len(names) - 3} more" * (len(names) > 3)
            yield Finding(host, None, kind, "names", f"{text}{more}; add it to DNS or its /etc/hosts", (NAMES_ROW,))
    for rank, address in reports.of("interface", "address").items():
        if len(hosts) > 1 and ipaddress.ip_address(address).is_loopback:
            text = f"other hosts would be told the address {address} of it; correct its own name in /etc/hosts, or set "
            yield Finding(reports.host(rank), None, "wrong", "names", f"{text}GLOO_SOCKET_IFNAME=eth0 or the like")


def finds(addresses: Mapping[str, Collection[str]], name: str) -> bool:
    """Whether a name has an address there that leads to another host."""
    return not all(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in addresses.get(name, ()))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def bad_links(reports: Reports) -> Iterator[Finding]:
    """Pairs of hosts that do not reach each other, or slower than others."""
    links = links_of(reports)
    dead = [pair for pair, found in links.items() if "error" in found]
    for host, others in _blamed(dead, links).items():
        reason = next(links[pair]["error"] for pair in dead if host in pair)
        text = f"no connection with {', '.join(others[:3])} ({reason}); check cable, firewall, GLOO_SOCKET_IFNAME"
        yield Finding(host, None, "wrong", "links", text, (LINK_ROW,))
    alive = {pair: found for pair, found in links.items() if "error" not in found}
    if not alive:
        return
    rates = {pair: min(found["to"], found["from"]) for pair, found in alive.items()}
    expected, rule = _expected_rate(reports, rates)
    for host, others in _blamed([pair for pair, rate in rates.items() if rate < expected], alive).items():
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


def _by_best(values: Mapping[tuple[str, str], float], best: Any) -> float:
    """The median over hosts of the best of each, so that one bad host does not spoil that of three."""
    hosts = {host for pair in values for host in pair}
    return usual({host: best(value for pair, value in values.items() if host in pair) for host in hosts})


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
    count = {host: sum(host in pair for pair in pairs) for host in partners}
    causes = {host for host, others in partners.items() if len(others) == count[host] > 1}
    if len(causes) == len(partners):
        return partners
    for one, other in bad:
        if not {one, other} & causes:
            causes |= {one, other}
    return {host: partners[host] for host in partners if host in causes}


def failed_all_reduce(reports: Reports) -> Iterator[Finding]:
    """Collectives that fail or hang where each link works, or whose sums are wrong."""
    hung = [rank for rank, part in reports.doing.items() if part == "all-reduce"]
    failed = reports.of("all-reduce", "error")
    wrong = {rank: count for rank, count in reports.of("all-reduce", "wrong").items() if count}
    guilty = hung or list(wrong) or list(failed)
    if not guilty:
        return
    if hung:
        text = f"rank {hung[0]} did not end the all-reduce"
    elif wrong:
        text = f"rank {guilty[0]} received {wrong[guilty[0]]} wrong sums in an all-reduce"
    else:
        text = f"the all-reduce failed: {failed[guilty[0]]}"
    hosts = {reports.host(rank) for rank in guilty}
    known = len(hosts) < len(reports.hosts()) or len(reports.hosts()) == 1
    for host in sorted(hosts) if known else [""]:
        yield Finding(
            host,
            guilty[0] if known else None,
            "wrong",
            "all-reduce",
            f"{text}; see GLOO_SOCKET_IFNAME, NCCL_DEBUG=INFO",
        )
