"""What is said of a run: one cause, its evidence, the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from senet.distributed.roster import Process, Roster
from senet.why import causes
from senet.why.evidence import Evidence, Fact

_HEALTHY = ("finished", "running", "starting")


@dataclass(frozen=True)
class Verdict:
    """Why a run has ended, or does not move; or that it is healthy."""

    cause: str
    """A name of ``CAUSES``."""
    text: str
    """In one line, with step, rank and host where they are known."""
    evidence: Sequence[Fact]
    remedy: str

    @property
    def is_healthy(self) -> bool:
        """Whether nothing has to be done."""
        return self.cause in _HEALTHY


def say(known: Evidence, cause: str, text: str, *facts: Fact, remedy: str = "") -> Verdict:
    """With SLURM's words behind the other facts."""
    from_slurm = known.job.facts if known.job is not None else ()
    return Verdict(
        cause,
        text,
        list(dict.fromkeys([*facts, *from_slurm])),
        remedy or causes.remedy(cause, has_checkpoint=bool(known.checkpoint)),
    )


def status_fact(known: Evidence) -> Fact:
    """What the run last said of itself."""
    status = known.status
    if not status:
        return Fact("status.json", "not there")
    reason = f": {status['reason']}" if status.get("reason") else ""
    return Fact("status.json", f"{status.get('state')} at step {status.get('step')}{reason}")


def owner_fact(known: Evidence) -> Fact:
    """Who holds the run directory, and its last sign of life."""
    owner = known.owner
    if not owner:
        return Fact("owner.json", "not there")
    return Fact("owner.json", f"process {owner['pid']} on {owner['host']}, heartbeat {known.silent_s:.0f} s ago")


def start_facts(known: Evidence) -> list[Fact]:
    """What the ranks knew of themselves and of their hosts at the last start."""
    start, facts = known.start, list(known.checked)
    if start:
        of = f"{start.get('world_size')} rank(s) on {start.get('device')} ({start.get('processor')})"
        code = f"torch {start.get('torch')}, commit {start.get('commit')}"
        begun = f"from step {start.get('resumed_from')} at {start.get('time')}"
        facts.insert(0, Fact("starts.jsonl", f"{begun}: {of}, rank 0 on {start.get('host')}, {code}"))
    return facts


def name(rank: int, host: str | None) -> str:
    """``rank 1 on n2``."""
    return Roster({rank: Process(host or "", "", 0, 0)}).name([rank])
