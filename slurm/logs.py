"""The logs of a job's ranks in its run directory: which there are, and their lines that tell why it ended or waits."""

from __future__ import annotations

import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

from senet.command import printable
from senet.rundir.files import patiently
from senet.rundir.restarts import WITHOUT_A_WORD
from senet.why.evidence import Fact

_NAME = re.compile(r"(\d+(?:_\d+)?)_(\d+)_log\.out")
_TAIL = 2**17  # bytes at the end of a log that are looked at
_MOST = 2**24  # of a search from the end: a network file system has other work too
_MOST_LOGS = 64
_WAITS = re.compile(r"^INFO: (waiting for .*, which holds |run_dir=.*; watching for )|: still .* after \d+ s$")
_TELLS = re.compile(
    r"oom[_-]kill|Out Of Memory|\bDUE TO |^srun: error: Node failure|^slurm: job \S+ ends here: |^train_ddp: "
)
BEGINS = re.compile(r"^slurm: (rank (\d+) on (\S+)) begins$")
"""The first line of each launch in the log of each rank."""
_ENDED = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.*)")
_LAST = 3  # lines in which a wait must stand to be one now


def log_files(run_dir: Path, job_id: str) -> dict[int, Path]:
    """Rank -> its log, of one job."""
    found = {}
    for path in (run_dir / "slurm").glob(f"{job_id}_*_log.out"):
        if (match := _NAME.fullmatch(path.name)) and match[1] == job_id:
            found[int(match[2])] = path
    return dict(sorted(found.items()))


def jobs(run_dir: Path) -> list[str]:
    """The ids of those that have logs here."""
    matches = map(_NAME.fullmatch, (path.name for path in (run_dir / "slurm").glob("*_log.out")))
    return sorted({match[1] for match in matches if match})


def rank_of(path: Path) -> str:
    """``rank 1 on n2``, from the last launch in a log; empty where it has none in its last ``_MOST`` bytes."""
    with path.open("rb") as file:
        size, rest = file.seek(0, os.SEEK_END), b""
        end = size
        while end > max(0, size - _MOST):
            start = max(0, end - _TAIL)
            file.seek(start)
            first, *lines = (file.read(end - start) + rest).split(b"\n")
            for line in reversed(lines if start else [first, *lines]):
                if found := BEGINS.search(line.decode(errors="replace")):
                    return found[1]
            end, rest = start, first  # whose beginning is in the part before
    return ""


def parse_ended(words: str) -> dict[str, Any]:
    """What srun has said of a task that failed, or of several at once, as in a run's status; {} for other words."""
    if not (found := _ENDED.match(words)):
        return {}
    host, ranks, how = found[1], found[2], found[3].removesuffix(" (core dumped)")
    at = "" if host == "Unknown" else f" on {host}"  # srun's own word where it has lost the node's name
    by_signal = {signal.strsignal(each): each.name for each in signal.Signals}
    is_one, failure = ranks.isdigit(), {}
    if how.startswith("Exited with "):  # as a rank does too that has found another one lost: no blame
        how = f"{how.removeprefix('Exited with ')}: see its log"
    else:
        how = f"{by_signal[how]}{WITHOUT_A_WORD}" if how in by_signal else how
        is_known = bool(at) and not re.search(r"[\[,]", host)
        failure = ({"host": host} if is_known else {}) | ({"rank": int(ranks)} if is_one else {})
    return {"reason": f"rank{'s' * (not is_one)} {ranks}{at} ended by {how}", "failure": failure}


def not_begun(run_dir: Path, job_id: str) -> list[Fact]:
    """The ranks whose logs have fewer launches than those of others."""
    launches = {rank: _count_launches(path) for rank, path in log_files(run_dir, job_id).items()}
    late = [rank for rank, count in launches.items() if count < max(launches.values())]
    return [Fact(f"slurm/{job_id}_{rank}_log.out", f"rank {rank} has not begun this launch") for rank in late]


def _count_launches(path: Path) -> int:
    with path.open(errors="replace") as file:
        return sum(1 for line in file if BEGINS.search(line))


def telling_lines(run_dir: Path, job_id: str) -> list[Fact]:
    """Of the last start: where SLURM, a launcher or a rank says why it ends, or that it waits."""
    found = []
    for path in list(log_files(run_dir, job_id).values())[:_MOST_LOGS]:
        before, lines = patiently(partial(_tail, path), limit_s=2)
        begins = [number for number, line in enumerate(lines) if BEGINS.search(line)]
        for number, line in enumerate(lines):
            waits = number >= len(lines) - _LAST and _WAITS.search(line)
            if waits or (number > max(begins, default=-1) and _TELLS.search(line)):
                where = f"{path.relative_to(run_dir)}:{before + number + 1}"
                found.append(Fact(where, printable(line)[:300]))
    return found


def _tail(path: Path) -> tuple[int, list[str]]:
    """The last lines of a log, and how many there are before them."""
    with path.open("rb") as file:
        size, before = path.stat().st_size, 0
        while file.tell() < size - _TAIL:
            before += file.read(min(2**20, size - _TAIL - file.tell())).count(b"\n")
        text = file.read()
    _, newline, rest = text.partition(b"\n")
    if size > _TAIL and newline:  # cut in the middle
        before, text = before + 1, rest
    return before, text.decode(errors="replace").splitlines()
