"""Reports in, findings and a value for each host and check out. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from senet.doctor import between, inside, shared
from senet.doctor.reports import (
    CLOCK_ROW,
    EXACT_ROW,
    LINK_ROW,
    NAMES_ROW,
    TRIP_ROW,
    Finding,
    Reports,
    limit_row,
    rate_row,
)

Values = dict[str, dict[str, Any]]
"""Check -> host -> value."""
_RULES = (
    inside.late_ranks,
    inside.failed_parts,
    inside.other_versions,
    inside.wrong_products,
    between.wrong_clocks,
    between.unknown_names,
    shared.bad_folders,
    between.bad_links,
    between.failed_all_reduce,
    inside.slow_ranks,
    inside.low_limits,
)


def judge(reports: Reports) -> list[Finding]:
    """What is wrong, what was late, what is only slow."""
    found = [finding for rule in _RULES for finding in rule(reports)]
    return sorted(found, key=lambda finding: ("wrong", "late", "slow").index(finding.kind))


def values(reports: Reports) -> Values:
    """What was measured: of each host the worst of its ranks."""
    found: Values = {}
    links: dict[str, list[dict[str, Any]]] = {}
    for pair, link in between.links_of(reports).items():
        for host in pair if "to" in link else ():
            links.setdefault(host, []).append(link)
    for host, ranks in reports.hosts().items():
        parts = [reports.parts[rank] for rank in ranks]
        row = _of_ranks(parts) | _of_links(links.get(host, [])) | _of_leader(parts[0], host)
        for check, value in row.items():
            found.setdefault(check, {})[host] = value
    return found


def _of_ranks(parts: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    computed = [part["compute"] for part in parts if "rates" in part.get("compute", {})]
    if computed:
        precisions = computed[0]["wrong"]
        bad = [name for name in precisions if any(each["wrong"].get(name) for each in computed)]
        found[EXACT_ROW] = f"not in {', '.join(bad)}" if bad else ", ".join(precisions)
        for name in computed[0]["rates"]:
            found[rate_row(name)] = min(inside.best_rates(each["rates"])[name] for each in computed)
    reduced = [part["all-reduce"] for part in parts if "rate" in part.get("all-reduce", {})]
    if reduced:
        found["all-reduce, MB/s"] = min(each["rate"] for each in reduced) / 1e6
        found["all-reduce of one number, ms"] = 1e3 * max(each["trip_s"] for each in reduced)
    return found


def _of_links(links: list[dict[str, Any]]) -> dict[str, Any]:
    if not links:
        return {}
    slowest = min(min(link["to"], link["from"]) for link in links)
    return {LINK_ROW: slowest / 1e6, TRIP_ROW: 1e3 * max(link["trip_s"] for link in links)}


def _of_leader(parts: dict[str, Any], host: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "ahead_s" in parts.get("clock", {}):
        found[CLOCK_ROW] = parts["clock"]["ahead_s"]
    addresses = parts.get("names", {}).get("addresses", {})
    if addresses.keys() - {host}:
        lacks = between.lacking_names(host, addresses)
        found[NAMES_ROW] = f"not {', '.join(lacks[:3])}" if lacks else "yes"
    if interface := parts.get("interface", {}).get("name"):
        found["interface"] = interface
    for what in ("run_dir", "data.root"):
        found |= _of_folder(what, parts.get("files", {}).get(what, {}), parts.get("files seen", {}).get(what, {}))
    for name, left in parts["here"].get("limits", {}).items():
        found[limit_row(name)] = left
    found |= parts["here"].get("versions", {})
    return found


def _gigabytes(size: float | None) -> float | str:
    return "unknown" if size is None else size / 1e9


def _of_folder(what: str, report: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    if not report:
        return {}
    found: dict[str, Any] = {f"{what}, kind": report["kind"]}
    if "error" in report:
        found[f"{what}, written in s"] = report["error"]
        return found
    found |= {f"{what}, written in s": report["seconds"], f"{what}, GB free": _gigabytes(report["free"])}
    locks = "not between hosts" if not all(each.get("excluded", True) for each in seen.values()) else "yes"
    found[f"{what}, locks"] = report["lock"] or locks
    if seen:
        times = [each["seen_s"] for each in seen.values()]
        found[f"{what}, others' files seen after s"] = "not seen" if None in times else max(times)
    return found
