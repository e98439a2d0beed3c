"""Faults of a host that show in what it reports of itself, most of them beside what others report. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from senet.doctor.reports import EXACT_ROW, Finding, Kind, Reports, limit_row, majority, rate_row, usual

SLOW = 0.6
"""Of the median rate of all ranks on devices of a kind."""
ENOUGH = {"memory, GB": 1.0, "/dev/shm, GB": 0.06, "open files": 1024.0, "processes": 256.0, "GPU memory, GB": 2.0}
"""What a rank needs at least: memory and processes by a training of senet18, /dev/shm by NCCL's buffers."""
_SHARED = {"memory, GB", "/dev/shm, GB", "processes"}  # by the ranks of a host
_REMEDIES = {
    "memory, GB": "end what else uses it, or ask for more (--mem)",
    "/dev/shm, GB": "enlarge it (mount -o remount,size=, docker --shm-size), or delete what was left in it",
    "open files": "ulimit -n 65536",
    "processes": "ulimit -u, or the pids limit of the control group",
    "GPU memory, GB": "another process uses the GPU (nvidia-smi): end it",
}
_UNITS = {"copy": "GB/s"}


def late_ranks(reports: Reports) -> Iterator[Finding]:
    """Ranks that did not come, or did not end a part, in time."""
    for rank, parts in reports.parts.items():
        if "here" not in parts:
            text = (
                f"rank {rank} did not come in time; its own output says why (it may not find "
                f"{reports.master or 'rank 0'} by name or not reach it; Python starts slowly from a cold file system)"
            )
            yield Finding(reports.host(rank), rank, "late", "start", text)
    for rank, part in reports.doing.items():
        if part != "all-reduce":  # told with what the others report of it
            text = f"rank {rank} did not end the part '{part}' within {reports.limit_s:g} s: {_why_late(part)}"
            yield Finding(reports.host(rank), rank, "late", part, text)


def _why_late(part: str) -> str:
    if part.startswith("files"):
        return "the file system of run_dir or data.root does not answer"
    return "it is slow, hangs or was killed; see its own output, and what else runs there"


def failed_parts(reports: Reports) -> Iterator[Finding]:
    """Errors that a part of the check ended with: wrong where a device does not compute."""
    for rank, parts in reports.parts.items():
        for part, report in parts.items():
            if "error" in report and part != "all-reduce":
                kind: Kind = "wrong" if part in ("here", "compute") and report["of_device"] else "late"
                name = "device" if part == "here" else part
                text = f"rank {rank}: {report['error'].removeprefix('ConfigError: ')}"
                yield Finding(reports.host(rank), rank, kind, name, text)


def wrong_products(reports: Reports) -> Iterator[Finding]:
    """Products of small integers that are not exact."""
    for rank, wrong in reports.of("compute", "wrong").items():
        here = reports.parts[rank]["here"]
        for precision, text in wrong.items():
            if text:
                yield Finding(
                    reports.host(rank), rank, "wrong", "arithmetic",
                    f"rank {rank} on {here['device']} ({here['processor']}), {precision}: {text}; the sums are "
                    f"exact in any order; use this host no more until its processor and memory are tested",
                    (EXACT_ROW,),
                )  # fmt: skip


def slow_ranks(reports: Reports) -> Iterator[Finding]:
    """Rates far below those of other ranks on the same kind of device; both times that they were measured."""
    rates = {rank: best_rates(each) for rank, each in reports.of("compute", "rates").items()}
    alike: dict[tuple[str, str], dict[int, float]] = {}
    for rank, own in rates.items():
        for name, rate in own.items():
            alike.setdefault((reports.parts[rank]["here"]["processor"], name), {})[rank] = rate
    medians = {kind: usual(of) for kind, of in alike.items()}
    for rank, own in rates.items():
        told = {}
        for name, rate in own.items():
            median = medians[reports.parts[rank]["here"]["processor"], name]
            if rate < SLOW * median:
                told[rate_row(name)] = f"{name} {rate:.3g} {_UNITS.get(name, 'GFLOP/s')}, usual here {median:.3g}"
        if told:
            text = "; ".join(told.values())
            text = f"rank {rank}: {text}; look for another process on its cores, a quota, a low frequency, heat"
            yield Finding(reports.host(rank), rank, "slow", "speed", text, tuple(told))


def best_rates(windows: dict[str, list[float]]) -> dict[str, float]:
    return {name: max(rates) for name, rates in windows.items()}


def low_limits(reports: Reports) -> Iterator[Finding]:
    """Too little memory, too few open files and the like."""
    for host, ranks in reports.hosts().items():
        found: dict[str, Any] = reports.parts[ranks[0]]["here"].get("limits", {})
        for name, left in found.items():
            if name == "/dev/shm, GB" and "GPU memory, GB" not in found:
                continue  # only NCCL uses it
            needed = ENOUGH[name] * (len(ranks) if name in _SHARED else 1)
            if left is not None and left < needed:
                what, _, unit = name.partition(", ")
                text = f"{what}: {left:.3g} {unit}".rstrip() + f" left, {needed:.3g} wanted for {len(ranks)} rank(s)"
                yield Finding(host, None, "slow", "limits", f"{text}; {_REMEDIES[name]}", (limit_row(name),))


def other_versions(reports: Reports) -> Iterator[Finding]:
    """Versions, code or kind of device that most hosts do not have; without a majority nobody's is wrong."""
    found = reports.of("here", "versions")
    told: dict[tuple[str, Kind], dict[str, str]] = {}
    for name in dict.fromkeys(name for versions in found.values() for name in versions):
        values = {rank: versions.get(name, "none") for rank, versions in found.items()}
        expected = majority(values, reports.host)
        for rank, value in values.items():
            if expected is None:
                other = next(each for each, theirs in values.items() if theirs != value)
                text = f"{name} {value}, {reports.host(other)} has {values[other]} (there is no majority)"
                told.setdefault((reports.host(rank), "slow"), {})[name] = text
            elif value != expected:
                kind: Kind = "wrong" if _matters(name, value, expected) else "slow"
                told.setdefault((reports.host(rank), kind), {})[name] = f"{name} {value}, most hosts have {expected}"
    for (host, kind), texts in told.items():
        text = f"{'; '.join(texts.values())}; install the same code and packages on all hosts"
        yield Finding(host, None, kind, "versions", text, tuple(texts))


def _matters(name: str, value: str, expected: str) -> bool:
    """Whether ranks that differ in it cannot train together."""
    if name == "Python":
        return value.split(".")[:2] != expected.split(".")[:2]
    return name in ("torch", "NCCL", "code", "device")
