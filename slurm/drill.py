"""``slurm drill``: the starts of a drill as jobs, interrupted by ``scontrol requeue``. Prints what it waits for."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from senet.command import Parser
from senet.config.load import load_config
from senet.config.options import Config, SlurmConfig
from senet.config.recipes import with_recipe
from senet.drill.plan import PLAN_VARIABLE, Plan, Size, take_options
from senet.errors import FAILED_EXIT_CODE, ConfigError, RunError
from senet.rundir.files import read_json, read_rows
from senet.verbs import typed
from slurm import attend, cluster, submission
from slurm.gpus import ranks_per_node

_TOLD_EVERY_S = 10.0


def drill(argv: Sequence[str], say: Callable[[str], None]) -> int:
    """0: the same bits; 1: a difference.

    Raises:
        ConfigError: bad options, or what preflight or SLURM refuses.
        RunError: a job ended otherwise than planned.
    """
    options = _parser().parse_intermixed_args(argv)
    size, words = take_options(options.words)
    if options.quickstart:
        words = with_recipe("slurm drill", words, say)
    config = load_config(words)
    if config.slurm.cluster == cluster.LOCAL:
        raise ConfigError(f"slurm.cluster=local has no scontrol requeue; use {typed('drill')} with the same words")
    size = replace(size, ranks=size.ranks or usual_ranks(config))
    run_dir = Path(config.run_dir).absolute()
    for ranks in size.ranks:
        found = submission.check(load_config([*words, *job_of(config.slurm, ranks), f"run_dir={run_dir}-drill"]))
        for finding in found if ranks == size.ranks[0] else ():
            say(f"warning: {finding.text}")
    attend.end_on_signals()
    scratch = attend.scratch_folder(run_dir, "drill")
    kept = False
    try:
        kept = not _drill(words, config, size, scratch, say)
    except RunError:
        kept = True
        say(f"kept: {scratch}, with the run directory and the output of each start")
        raise
    finally:
        if not kept:
            shutil.rmtree(scratch, ignore_errors=True)
    return FAILED_EXIT_CODE if kept else 0


def _drill(words: Sequence[str], config: Config, size: Size, scratch: Path, say: Callable[[str], None]) -> bool:
    from senet.drill.trials import Trials, drill_all  # takes seconds: torch

    say(f"{size.steps} updates of {config.model.name}, unbroken; again with two requeues; in {scratch}")
    carry = _Carry(config.slurm, say)
    return drill_all(Trials(words, config, size, scratch, carry, say, interruption="requeue"))


def usual_ranks(config: Config) -> tuple[int, ...]:
    """Those of the job, and with shards another number."""
    ranks = config.slurm.nodes * ranks_per_node(config.slurm)
    if config.train.shards < 2:
        return (ranks,)
    return (ranks, ranks // 2) if ranks > 1 else (1, 2)


def job_of(slurm: SlurmConfig, ranks: int) -> list[str]:
    """The options of a job with so many ranks: on other nodes, if each can have as many as before."""
    each = ranks_per_node(slurm)
    nodes, each = (ranks // each, each) if ranks % each == 0 else (1, ranks)
    return [f"slurm.nodes={nodes}", f"slurm.ranks_per_node={each}"]


@dataclass
class _Carry:
    """Carries out the starts of one run: those in a row on as many ranks are one job, requeued between them; for
    another number of ranks the job is cancelled, and the run submitted again."""

    slurm: SlurmConfig
    say: Callable[[str], None]

    def __call__(self, argv: Sequence[str], plan_file: Path, ranks: Sequence[int]) -> None:
        plan = replace(Plan.read(plan_file), waits=True)
        plan.write(plan_file)
        last = 0  # start of this job
        for count, group in groupby(ranks):
            starts = len(list(group))
            last += starts
            job = [f"slurm.environment.{PLAN_VARIABLE}={plan_file}", f"slurm.max_requeues={starts - 1}"]
            job.append("slurm.max_restarts=0")
            words = [*argv, *job_of(self.slurm, count), *job]
            config = submission.resolve(load_config(words))
            job_id = submission.submit(config, words)
            final = last == len(ranks)
            try:
                self._attend(job_id, plan, last_start=0 if final else last)
            except BaseException:
                attend.cancel(job_id, self.say)
                raise
            self._check_end(job_id, Path(config.run_dir), plan, plan.steps if final else plan.kills[last - 1])

    def _attend(self, job_id: str, plan: Plan, last_start: int) -> None:
        """Until the job has ended: interrupt each start where it waits; the one with that number for good."""
        interrupted, _ = _reached(Path(plan.folder))  # by an earlier job
        told, told_at = "", 0.0
        while True:
            state = attend.state_of(job_id)
            if attend.is_over(state):
                return
            start, step = _reached(Path(plan.folder))
            running = state.word == "RUNNING" and start > interrupted
            text = f"start {start}, update {step} of {plan.steps}" if running else attend.in_words(state)
            if text != told and (not running or time.monotonic() - told_at > _TOLD_EVERY_S):
                told, told_at = text, time.monotonic()
                self.say(f"job {job_id}: {text}")
            if interrupted < start <= len(plan.kills) and step == plan.kills[start - 1]:
                interrupted = start
                command = "scancel" if start == last_start else "scontrol requeue"
                self.say(f"job {job_id}: {command} after update {step}")
                attend.tell_slurm(command, job_id)
            time.sleep(attend.POLL_S)  # the ranks wait at an update for ten minutes, so nothing is missed

    def _check_end(self, job_id: str, run_dir: Path, plan: Plan, goal: int) -> None:
        """RunError unless the run has come as far as planned; ConfigError where it was refused."""
        status, (_, step) = read_json(run_dir / "status.json"), _reached(Path(plan.folder))
        state = status.get("state")
        if state == "finished" or (step == goal and state != "failed"):
            return
        why = status.get("reason") or "no rank reported a reason"
        log = run_dir / "slurm" / f"{job_id}_0_log.out"
        kind = ConfigError if state == "refused" else RunError
        raise kind(f"job {job_id} ended after update {step}, not {goal}: {why}; its log is {log}")


def _reached(folder: Path) -> tuple[int, int]:
    """The newest start that has begun to train, and its last update; 0, 0: none has."""
    start = len(list(folder.glob("start-*.jsonl")))
    rows = list(read_rows(folder / f"start-{start}.jsonl"))
    return (start, rows[-1]["step"]) if rows else (0, 0)


def _parser() -> Parser:
    parser = Parser(
        prog=f"{typed('slurm')} drill",
        description="Trains your network on your images with your options for a while, as jobs in a folder beside "
        "run_dir: once undisturbed, once with two scontrol requeue, with train.shards on another number of ranks too, "
        "and compares all tensors and scores bit by bit. Where they differ, it looks for the cause. Leave your code as "
        "it is meanwhile: each job takes a copy. Ctrl-C cancels its job.",
        epilog="Exit code: 0 the same bits, 1 a difference or a failure, 2 bad input.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        default=(),
        metavar="FILE.yaml | key=value",
        help="as of a submission; besides, drill.steps=60: updates, 8 or more; drill.ranks=8,4: numbers of ranks, each "
        "drilled; default: those of the job",
    )
    parser.add_argument("--quickstart", action="store_true", help=argparse.SUPPRESS)
    return parser
