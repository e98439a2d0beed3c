"""Faults of a host that show in what it reports of itself, most of them beside what others report. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from senet.doctor.reports import EXACT_ROW, Finding, Reports, limit_row, minority, rate_row, usual

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
    """Ranks that never came, whose device cannot be used, or that never ended a part."""
    for rank, parts in reports.parts.items():
        if "here" not in parts:
            yield Finding(
                reports.host(rank), rank, "wrong", "start",
                f"rank {rank} did not come: its own output says why (it may not find {reports.master or 'rank 0'} by "
                f"name or not reach it, its Python may not start, a file system may hang)",
            )  # fmt: skip
    for rank, part in reports.doing.items():
        if part != "all-reduce":  # told with what the others report of it
            text = f"rank {rank} did not end the part '{part}' within {reports.limit_s:g} s: {_why_late(part)}"
            yield Finding(reports.host(rank), rank, "wrong", part, text)


def _why_late(part: str) -> str:
    if part.startswith("files"):
        return "the file system of run_dir or data.root does not answer"
    return "it hangs or was killed; see its own output, and what else runs there"


def failed_parts(reports: Reports) -> Iterator[Finding]:
    """Errors that a part of the check ended with."""
    for rank, parts in reports.parts.items():
        for part, report in parts.items():
            if "error" in report and part != "all-reduce":
                name = "device" if part == "here" else part
                text = f"rank {rank}: {report['error'].removeprefix('ConfigError: ')}"
                yield Finding(reports.host(rank), rank, "wrong", name, text)


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
    for rank, own in rates.items():
        kind = reports.parts[rank]["here"]["processor"]
        alike = [each for other, each in rates.items() if reports.parts[other]["here"]["processor"] == kind]
        told = {}
        for name, rate in own.items():
            median = usual({number: each[name] for number, each in enumerate(alike) if name in each})
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
    """Versions, code or kind of device that most hosts do not have."""
    found = reports.of("here", "versions")
    if not found:
        return
    told: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(name for versions in found.values() for name in versions):
        values = {rank: versions.get(name, "none") for rank, versions in found.items()}
        expected, others, clear = minority(values, reports.host)
        for rank, value in others.items():
            whose = "most hosts have" if clear else f"{reports.host(0)}, where rank 0 is, has"
            told.setdefault(reports.host(rank), {})[name] = f"{name} {value}, {whose} {expected}"
    for host, texts in told.items():
        text = f"{'; '.join(texts.values())}; install the same code and packages on all hosts"
        yield Finding(host, None, "wrong", "versions", text, tuple(texts))
