"""Evidence -> a verdict. Each rule looks at one kind of end or wait; the first that says something holds. Pure."""

from __future__ import annotations

from senet.why import ends, waits
from senet.why.evidence import Evidence
from senet.why.verdict import Verdict

_RULES = (
    waits.queued,
    waits.suspended,
    waits.starting,
    waits.running,
    ends.finished,
    ends.refused,
    ends.failed,
    ends.stopped,
    ends.full,
    ends.ended_in_slurm,
    ends.killed,
)


def judge(known: Evidence) -> Verdict:
    """Why a run has ended, or does not move; or that it is healthy."""
    return next((found for rule in _RULES if (found := rule(known)) is not None), None) or ends.unknown(known)
