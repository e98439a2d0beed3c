"""The runs of a drill: an unbroken one, others that must end with the same bits, and more where one does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from senet.config.options import Config
from senet.drill.compare import (
    Difference,
    Left,
    Run,
    first_difference,
    read_left,
    read_run,
    what_differs,
)
from senet.drill.diagnose import Cause, depends_on_ranks, lost_on_resume, not_deterministic
from senet.drill.plan import Size, choose_kills, first_plan, save_every
from senet.errors import ConfigError, RunError

Carry = Callable[[Sequence[str], Path, Sequence[int]], None]
"""Carries out the starts of one run: arguments of the training, file of the plan, ranks of each start. It returns when
the last start has ended by itself, and raises where a start ended otherwise than planned."""


@dataclass(frozen=True)
class Verdict:
    """Whether all runs ended with the same bits, and what is printed."""

    same: bool
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Trials:
    """The runs of one drill, each in a folder of its own, and how they are carried out."""

    argv: Sequence[str]
    """Of the user's training."""
    config: Config
    size: Size
    scratch: Path
    carry: Carry
    say: Callable[[str], None]
    interruption: str = "SIGKILL"

    def run(self, name: str, ranks: Sequence[int], **changes: Any) -> Run:
        """Train once, in as many starts as there are entries in ``ranks``; ``changes`` are to fields of the plan.

        Raises:
            ConfigError: the first start of the drill was refused.
            RunError: another was, with the same options; or one ended otherwise than planned.
        """
        folder, began = self.scratch / name, time.monotonic()
        is_first = not any(self.scratch.iterdir())
        folder.mkdir(parents=True)
        plan = replace(first_plan(self.config, self.size, folder), **changes)
        plan.write(folder / "plan.json")
        try:
            self.carry([*self.argv, *_options(folder, self.size)], folder / "plan.json", ranks)
        except ConfigError as error:
            if is_first:
                raise
            text = f"{name}: a start was refused, though an earlier one was not: {error}; in {folder}"
            raise RunError(text) from None
        killed = f", {self.interruption} after {' and '.join(map(str, plan.kills))}" if plan.kills else ""
        count = ", then ".join(map(str, ranks if len(set(ranks)) > 1 else ranks[:1]))
        self.say(f"{name}: {plan.steps} updates{killed}; {count} rank(s), {time.monotonic() - began:.0f} s")
        return read_run(folder)


def _options(folder: Path, size: Size) -> list[str]:
    """What a drill sets: it never touches the user's run directory, and begins anew."""
    return [
        f"run_dir={folder / 'run'}",
        "resume.mode=auto",
        f"checkpoint.every_steps={save_every(size.steps)}",
        "checkpoint.keep=1",
        "log.every_steps=1",
        "log.to=[]",
    ]


def drill_all(trials: Trials) -> bool:
    """Print a verdict on all numbers of ranks together, if they must give the same bits, else on each."""
    numbers = trials.size.ranks
    at_once = trials.config.train.shards or len(numbers) == 1
    together = [("", numbers)] if at_once else [(f"on-{each}-", (each,)) for each in numbers]
    verdicts = [drill(trials, ranks, name) for name, ranks in together]
    for verdict in verdicts:
        print("\n".join(verdict.lines), flush=True)
    same = all(verdict.same for verdict in verdicts)
    if not same:
        print(f"kept: {trials.scratch}, with the run directory and the output of each start")
    return same


def drill(trials: Trials, ranks: Sequence[int], name: str = "") -> Verdict:
    """Whether a run is the same when it is killed twice, and on the other numbers of ranks.

    Args:
        ranks: of the unbroken run, and the others that must give its bits.
        name: in front of the names of the folders.
    """
    began = time.monotonic()
    unbroken = trials.run(f"{name}unbroken", ranks[:1])
    left = read_left(unbroken.folder)
    kept = [f"train.amp={unbroken.amp}"]  # train.amp=auto measures in each run anew
    if trials.config.train.shards:  # the number of threads changes bits, and is that of a run's first start
        kept.append(f"train.threads_per_rank={unbroken.threads}")
    trials = replace(trials, argv=[*trials.argv, *kept])
    kills = choose_kills(trials.size.steps, unbroken.epoch_steps, trials.config.seed)
    planned = {"killed": (ranks[0],) * 3}
    planned |= {f"ranks-{other}": (other, ranks[0], other) for other in ranks[1:]}
    starts = 1
    for what, counts in planned.items():
        other = trials.run(f"{name}{what}", counts, kills=kills)
        starts += len(counts)
        differing = what_differs(left, read_left(other.folder))
        difference = first_difference(unbroken, other) or _of_the_rest(differing, other)
        if difference is not None:
            cause = find_cause(trials, name, unbroken, other, difference)
            return Verdict(False, (*_told(left, differing, other, difference), *_because(cause)))
    how = f"{starts} starts on {', '.join(map(str, ranks))} rank(s), {trials.interruption} after updates "
    how += f"{kills[0]} and {kills[1]}; {time.monotonic() - began:.0f} s"
    return Verdict(True, (*_praise(left, unbroken), f"    {how}"))


def _of_the_rest(differing: Sequence[str], other: Run) -> Difference | None:
    """Where the weights were the same after each update, but a score or a counter is not."""
    if not differing:
        return None
    last = other.moments[-1]
    in_rows = [name for name in differing if "in the row of step" in name]
    step = int(in_rows[0].partition("in the row of step ")[2].split()[0]) if in_rows else last.step
    start = max(moment.start for moment in other.moments if moment.restored and moment.step < step)
    restored = other.restored_at(start)
    return Difference((in_rows or differing)[0], step, start, restored.step if restored else 0)


def find_cause(trials: Trials, name: str, unbroken: Run, other: Run, difference: Difference) -> Cause:
    """Try more runs, of which the input and the output of each layer are kept."""
    ranks = unbroken.ranks[:1]
    steps = max(difference.step, trials.size.steps // 2)  # the longer, the more likely that a rare cause shows again
    trials.say("they differ: more runs, to find the cause")
    again, once_more = (
        trials.run(f"{name}{which}", ranks, steps=steps, layers=True) for which in ("again", "once-more")
    )
    if cause := not_deterministic(unbroken, again, once_more):
        return cause
    if scores := what_differs(read_left(again.folder), read_left(once_more.folder)):
        text = "the evaluation is not deterministic: in two runs that nothing disturbed the weights were the same"
        return Cause(text, (f"{scores[0]} differs first",))
    if difference.start > 1:
        return lost_on_resume(unbroken, other, difference)
    if other.ranks[0] == ranks[0]:
        text = "it is not deterministic, though seldom: it differed before the first kill"
        return Cause(text, (f"unknown where: in two more runs of {steps} updates nothing differed",))
    elsewhere = trials.run(f"{name}again-{other.ranks[0]}", other.ranks[:1], steps=steps, layers=True)
    return depends_on_ranks(again, elsewhere)


def _told(left: Left, differing: Sequence[str], other: Run, difference: Difference) -> list[str]:
    when = f"after update {difference.step}"
    if difference.start > 1:
        when += f", in start {difference.start}, which went on from update {difference.resumed_from}"
    in_checkpoint = [name for name in differing if "metrics.jsonl" not in name]
    return [
        f"not the same: {difference.what} differs first, {when} ({other.folder.name})",
        f"in the end: {len(in_checkpoint)} of {len(left.payload)} parts of the last checkpoint differ, "
        f"{len(differing) - len(in_checkpoint)} numbers in the {len(left.rows)} rows of metrics.jsonl",
    ]


def _because(cause: Cause) -> list[str]:
    return [f"probable cause: {cause.text}", *(f"    {line}" for line in cause.details)]


def _praise(left: Left, unbroken: Run) -> list[str]:
    evaluations = sum("epoch" in row for row in left.rows)
    return [
        f"same: {left.tensors} tensors of the last checkpoint (weights, averages, optimizer) and its counters,",
        f"    {len(left.rows)} rows of metrics.jsonl, {evaluations} of them of evaluations, and all weights after each "
        f"of {unbroken.moments[-1].step} updates",
    ]
