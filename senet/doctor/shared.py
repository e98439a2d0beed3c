"""Faults of the folders that hosts share: the run directory, the data root. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from senet.doctor.folders import LOCAL_KINDS
from senet.doctor.reports import Finding, Kind, Reports

LATE_FILE_S = 90.0
_FEW_FILES, _ROOM = 100, 3
_SEEN = ("run_dir, others' files seen after s",)


def bad_folders(reports: Reports) -> Iterator[Finding]:
    """Folders that cannot be written, are full, or are not the same on all hosts; file systems without locks. What all
    hosts have alike is no host's fault."""
    for what in ("run_dir", "data.root"):
        found = reports.of("files", what)
        some_can = any("error" not in report for report in found.values())
        told = [
            each for rank, report in found.items() for each in _own_folder(reports.host(rank), what, report, some_can)
        ]
        for check in ("files", "locks"):
            alike = [each for each in told if each.check == check]
            everywhere = {(each.kind, each.check) for each in alike} if len(alike) == len(found) else ()
            yield from [replace(alike[0], host="")] if len(everywhere) == 1 else alike
    if len(reports.of("files seen")) > 1:
        yield from _unshared(reports)
        yield from _late(reports)


def _own_folder(host: str, what: str, report: Mapping[str, Any], some_can: bool) -> Iterator[Finding]:
    where = f"{what}={report['path']}"
    if "error" in report:
        # a data root with all images in it may be read-only, for everybody; where it is not there, it cannot be made
        kind: Kind = "slow" if what == "data.root" and report["exists"] else "wrong"
        if kind == "wrong" or some_can:
            text = f"{where}: nothing can be written in {report['folder']} ({report['kind']}): {report['error']}"
            remedy = "free some space, or ask for a larger quota" if report["full"] else "mount it for writing"
            row = f"{what}, written in s"
            yield Finding(host, None, kind, "files", f"{text}; {remedy}, or name another folder", (row,))
    elif report["free"] is not None and report["free"] < _ROOM * report["checkpoint"]:
        kind = "wrong" if report["free"] < report["checkpoint"] else "slow"
        room = f"{report['free'] / 1e9:.3g} GB free, a checkpoint takes {report['checkpoint'] / 1e9:.3g} GB"
        remedy = f"free some space, {_ROOM} times as much are on the safe side"
        yield Finding(host, None, kind, "files", f"{where}: {room}; {remedy}", (f"{what}, GB free",))
    elif report["free_files"] is not None and report["free_files"] < _FEW_FILES:
        text = f"{where}: no more than {report['free_files']} files can be made in {report['folder']}; delete some"
        yield Finding(host, None, "slow", "files", text)
    if report.get("lock"):
        row = f"{what}, locks"
        yield Finding(host, None, "slow", "locks", f"{where}: {report['lock']}; {_WITHOUT_LOCKS}", (row,))


_WITHOUT_LOCKS = (
    "hosts that start at once may do some work twice, nothing becomes wrong; mount it with locks (NFS: lockd)"
)


def _unshared(reports: Reports) -> Iterator[Finding]:
    """Hosts whose run directory is not that of the others. A data root may be each host's own."""
    written = {
        reports.host(rank): report for rank, report in reports.of("files", "run_dir").items() if "file" in report
    }
    both_see: dict[tuple[str, ...], bool] = {}
    for rank, seen in reports.of("files seen", "run_dir").items():
        for other, how in seen.items():
            pair = tuple(sorted((reports.host(rank), other)))
            both_see[pair] = both_see.get(pair, True) and how["seen_s"] is not None
    group = {host: host for host in written}
    for (one, other), see in both_see.items():
        if see and {one, other} <= group.keys():
            old, new = group[other], group[one]
            group = {host: new if name == old else name for host, name in group.items()}
    names = list(group.values())
    if not both_see or len(set(names)) < 2:
        return
    largest = max(names, key=names.count)
    outside = [host for host, name in group.items() if name != largest]
    if 2 * names.count(largest) <= len(names):  # no majority: those that cannot be shared, else nobody alone
        outside = [host for host in group if written[host]["kind"] in LOCAL_KINDS]
        if len(outside) in (0, len(group)):
            text = f"run_dir={next(iter(written.values()))['path']}: hosts do not see each other's new files in it"
            yield Finding("", None, "slow", "files", f"{text}; name a folder on a file system that they share", _SEEN)
            return
    for host in outside:
        report = written[host]
        where = f"run_dir={report['path']}: {report['folder']}"
        if report["kind"] in LOCAL_KINDS:
            text = f"{where} is a folder of this host alone ({report['kind']}): others do not see a file in it, nor it"
            yield Finding(
                host,
                None,
                "wrong",
                "files",
                f"{text} theirs; mount the shared file system, or name a folder on one",
                _SEEN,
            )
        else:
            text = f"{where} ({report['kind']}): other hosts did not see a new file in the time of the check"
            yield Finding(
                host, None, "slow", "files", f"{text}; {LATE_FILE_S:.0f} s are too long: try --max-seconds 200", _SEEN
            )


def _late(reports: Reports) -> Iterator[Finding]:
    """Files that are seen after too long, and locks that do not exclude another host."""
    own = {reports.host(rank): report["run_dir"].get("lock", "") for rank, report in reports.of("files").items()}
    open_to = set()
    for rank, seen in reports.of("files seen", "run_dir").items():
        for other, how in seen.items():
            if (seconds := how["seen_s"]) is not None and seconds > LATE_FILE_S:
                text = (
                    f"a new file of {other} in the run directory was seen after {seconds:.0f} s, {LATE_FILE_S:.0f} is"
                )
                yield Finding(
                    reports.host(rank), None, "wrong", "files", f"{text} the most; mount it with less caching", _SEEN
                )
            if not how.get("excluded", True):
                open_to |= {reports.host(rank), other}
    if not any(own.values()):  # else that host is named already
        for host in sorted(open_to):
            text = "a lock in the run directory does not exclude another host"
            yield Finding(host, None, "slow", "locks", f"{text}; {_WITHOUT_LOCKS}", ("run_dir, locks",))
