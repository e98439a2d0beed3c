"""The table and the advice, as a person reads them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from senet.command import printable
from senet.doctor.judge import Values
from senet.doctor.reports import Finding, Reports, usual

_MOST_COLUMNS = 4
"""Hosts up to which each has a column; of more, the usual value and those that stand apart are shown."""
_MOST_NAMED = 4
_MARK = " !"
Marked = Collection[tuple[str, str]]
"""Rows and hosts of which there is a finding."""


def text(reports: Reports, checks: Values, findings: Sequence[Finding]) -> str:
    """A heading, a row for each check, a line for each finding, and a verdict."""
    hosts = list(reports.hosts())
    head = f"{len(hosts)} host(s), {len(reports.of('here'))} of {reports.world_size} rank(s), {reports.seconds:.1f} s"
    marked = {(row, finding.host) for finding in findings for row in finding.rows}
    rows = _columns(checks, hosts, marked) if len(hosts) <= _MOST_COLUMNS else _aggregates(checks, marked)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [head, "", *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)]
    if not reports.complete:
        lines += ["", "not all of it was checked"]
    lines += ["", *_advice(findings)]
    return "\n".join(printable(line.rstrip()) for line in lines)


def _columns(checks: Values, hosts: Sequence[str], marked: Marked) -> list[list[str]]:
    def cell(row: str, host: str) -> str:
        return shown(checks[row].get(host, "")) + _MARK * ((row, host) in marked)

    return [["", *hosts], *([row, *(cell(row, host) for host in hosts)] for row in checks)]


def _aggregates(checks: Values, marked: Marked) -> list[list[str]]:
    """Of numbers the median, the lowest and the highest, where they differ; of texts the usual one, and the others."""
    rows = [["", "usual", "lowest", "highest"]]
    for row, of in checks.items():
        cells = {host: f"{shown(value)} {host}{_MARK * ((row, host) in marked)}" for host, value in of.items()}
        numbers = {host: value for host, value in of.items() if isinstance(value, int | float)}
        if len(numbers) == len(of):
            order = sorted(numbers, key=lambda host: (numbers[host], (row, host) not in marked))
            differ = shown(numbers[order[0]]) != shown(numbers[order[-1]])
            rows.append(
                [row, shown(usual(numbers)), *(cells[host] if differ else "" for host in (order[0], order[-1]))]
            )
        else:
            texts = [shown(value) for value in of.values()]
            most = max(texts, key=texts.count)
            apart = [cells[host] for host, value in of.items() if shown(value) != most]
            rows.append([row, most, "; ".join(_few(apart)), ""])
    return rows


def shown(value: Any) -> str:
    """A value in a cell."""
    if value is None:
        return "no limit"
    if isinstance(value, int | float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def _advice(findings: Sequence[Finding]) -> list[str]:
    """One line for what several hosts have alike."""
    hosts: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        hosts.setdefault((finding.kind, finding.check, finding.text), []).append(
            finding.host or "(which host is unknown)"
        )
    lines = [
        f"{kind.upper() if kind == 'wrong' else kind}  {', '.join(_few(names))}: {check}: {what}"
        for (kind, check, what), names in hosts.items()
    ]
    wrong = len({finding.host for finding in findings if finding.kind == "wrong"})
    late = any(finding.kind == "late" for finding in findings)
    verdict = f"{wrong} host(s) are not fit to train" if wrong else "nothing is wrong" + " in what was checked" * late
    return [*lines, verdict]


def _few(names: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(names))
    return [*names[:_MOST_NAMED], f"and {len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED + 1 else names
