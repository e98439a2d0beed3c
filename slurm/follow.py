"""What a run says while it runs: ``./launch.sh follow RUN``. With or without SLURM; does not import torch."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from senet.command import Parser, end, printable
from senet.errors import FAILED_EXIT_CODE, REFUSED_EXIT_CODE, STOPPED_EXIT_CODE, ConfigError
from senet.follow import Rows, Tail
from senet.rundir.files import patiently, read_json
from senet.rundir.named import cells_not_begun, is_run, is_sweep
from senet.verbs import typed
from senet.why.evidence import gather
from senet.why.judge import judge
from slurm import cluster
from slurm.logs import BEGINS, log_files, rank_of
from slurm.runs import meant, runs_of
from slurm.why import look

_POLL_S = 0.5
_FILES_PER_S = 200  # a network file system has other work too
_ASK_S = 10.0  # between two questions to SLURM, for all runs together
_GONE_S = 15.0  # nothing lives for so long, before a run without a job is over: a launcher may start it again
_COLOURS = (36, 33, 32, 35, 34, 31)
_EXIT_CODES = {"finished": 0, "stopped": STOPPED_EXIT_CODE, "refused": REFUSED_EXIT_CODE}


@dataclass
class Followed:
    """One run: its logs, whichever its jobs have, and how it stands."""

    run_dir: Path
    job: str
    """The one to follow; "": the newest, and what is submitted after it."""
    first: int
    label: str = ""
    """In front of the rank, where several runs are followed."""
    said: str = ""
    """The last wait that was told."""
    is_over: bool = False
    alive_at: float = field(default_factory=time.monotonic)
    _tails: dict[tuple[str, int], Tail] = field(default_factory=dict)
    _names: dict[tuple[str, int], str] = field(default_factory=dict)
    _rows: Rows | Tail | None = None
    _has_looked: bool = False

    @property
    def job_id(self) -> str:
        """Empty where it has none."""
        return self.job or str(read_json(self.run_dir / "slurm" / "job.json").get("job", ""))

    def lines(self, *, last: bool = False) -> Iterator[tuple[int, str, str]]:
        """Rank, the name of the rank, and a new line of it; of all ranks."""
        job_id = patiently(lambda: self.job_id)
        logs = patiently(lambda: log_files(self.run_dir, job_id)) if job_id else {}
        for rank, path in logs.items():
            key = (job_id, rank)
            if key not in self._tails:
                self._tails[key] = Tail(path, None if self._has_looked else self.first)
                self._names[key] = patiently(partial(rank_of, path)) or f"rank {rank}"
            for line in self._tails[key].lines(last=last):
                if begins := BEGINS.search(line):
                    self._names[key] = begins[1]
                yield rank, self._names[key], line
        if not job_id:
            if self._rows is None:
                kept = self.run_dir.parent / "logs" / f"{self.run_dir.name}.log"  # of a cell of a sweep
                self._rows = Tail(kept, self.first) if kept.exists() else Rows(self.run_dir, self.first)
            for line in self._rows.lines(last=last):
                yield 0, "", line
        self._has_looked = True

    @property
    def files(self) -> int:
        """That are read at each look."""
        return len(self._tails)

    def ask(self, states: dict[str, cluster.JobState]) -> str:
        """Find out whether it is over; what it waits for, if that is new. Without a question to SLURM of its own."""
        now = time.monotonic()
        job = states.get(self.job_id)
        if job is not None:
            self.is_over = job.word not in cluster.ACTIVE
            wait = f"job {self.job_id} waits: {job.reason or job.word}" if job.word in cluster.WAITING else ""
        else:
            known = gather(self.run_dir)
            if known.alive is not False:
                self.alive_at = now
            has_ended = known.launch or known.status.get("state") == "finished" or now - self.alive_at > _GONE_S
            self.is_over = known.alive is False and bool(has_ended)
            verdict = judge(known)
            wait = verdict.text if verdict.cause.startswith("waits") else ""
        told, self.said = self.said, wait
        return wait if wait != told else ""


def follow(word: str, first: int, *, colours: bool) -> int:
    """Print the lines of all runs that a word names, also of those that come later, until all are over; returns the
    exit code of the worst."""
    runs: list[Followed] = []
    asked, over = -math.inf, math.inf
    while True:
        now = time.monotonic()
        if now - asked > _ASK_S:
            _find(word, runs, first)
            for run, wait in _ask(runs):
                _say(run, wait)
            asked = now
        for run in runs:
            _show(run, colours)
        if not all(run.is_over for run in runs):
            over = math.inf
        elif now - (over := min(over, now)) >= (_GONE_S if _more_may_begin(word) else 0.0):
            break
        time.sleep(max(_POLL_S, sum(run.files for run in runs) / _FILES_PER_S))
    codes = []
    for run in runs:
        _show(run, colours, last=True)
        verdict = judge(look(run.run_dir, run.job))
        _say(run, f"{verdict.cause}: {verdict.text}")
        codes.append(_EXIT_CODES.get(verdict.cause, FAILED_EXIT_CODE))
    return max(codes, key=[0, STOPPED_EXIT_CODE, REFUSED_EXIT_CODE, FAILED_EXIT_CODE].index)


def _find(word: str, runs: list[Followed], first: int) -> None:
    """Add the runs that are not yet among these."""
    folder = meant(word)
    for run_dir, job in runs_of(word):
        if run_dir not in [run.run_dir for run in runs]:
            is_alone = job == word or run_dir == folder
            runs.append(Followed(run_dir, job, first, "" if is_alone else run_dir.name))


def _more_may_begin(word: str) -> bool:
    """Whether a run may come that is not there yet. The cells of a sweep are known."""
    folder = meant(word)
    if folder is None or is_run(folder):
        return False
    return not is_sweep(folder) or bool(cells_not_begun(folder))


def _ask(runs: Sequence[Followed]) -> Iterator[tuple[Followed, str]]:
    """Each run with what it waits for, if that is new."""
    left = [run for run in runs if not run.is_over]
    jobs = {run.job_id: read_json(run.run_dir / "slurm" / "job.json").get("cluster") for run in left if run.job_id}
    here = {job: cluster.JobState(cluster.local_state(job)) for job, of in jobs.items() if of == cluster.LOCAL}
    try:
        states = here | cluster.job_states([job for job in jobs if job not in here])
    except cluster.NoAnswer:  # its logs may go on all the same
        return
    for run in left:
        if wait := run.ask(states):
            yield run, wait


def _show(run: Followed, colours: bool, *, last: bool = False) -> None:
    for rank, name, line in run.lines(last=last):
        prefix = " ".join(filter(None, (run.label, name)))
        if prefix and colours:
            prefix = f"\033[{_COLOURS[rank % len(_COLOURS)]}m{prefix}\033[0m"
        print(f"{prefix}  {printable(line)}" if prefix else printable(line), flush=True)


def _say(run: Followed, what: str) -> None:
    print(printable(f"follow: {run.run_dir}: {what}"), file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """Follow a run, or those in a folder, to the end."""
    parser = Parser(
        prog=typed("follow"),
        description="The log lines of all ranks, over requeues, to the end of the run. Of a run without a job, whose "
        "output only its terminal has: the rows of metrics.jsonl. Ctrl-C ends this command alone.",
        epilog="Exit code: 0 finished, 85 stopped, 2 refused, 1 failed; 130 Ctrl-C.",
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, a sweep or a folder of runs, or the id of a job")
    parser.add_argument("--lines", type=int, default=10, metavar="N", help="of each log to begin with (default 10)")
    arguments = parser.parse_args(argv)
    if arguments.lines < 0:
        raise ConfigError(f"--lines {arguments.lines}: use 0 or more")
    return follow(arguments.run, arguments.lines, colours=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


if __name__ == "__main__":
    end("follow", main)
