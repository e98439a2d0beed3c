"""Of a run that has not ended: why it does not train, or that it does. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from senet.distributed import hangs
from senet.why.evidence import Evidence, Fact
from senet.why.verdict import Verdict, name, owner_fact, say, status_fact

_STILL_S = 60.0  # without a new row, before a run counts as one that does not move
_PACES = 5.0  # and so many times the usual time between two rows
_HELD = (  # all others end by themselves
    *("Held", "Hold", "held", "Never", "Invalid", "NotAllowed", "NotSatisfied", "Constraints", "PartitionDown"),
    *("PartitionInactive", "PartitionNodeLimit", "TimeLimit", "MaxWall", "PerJob", "PerNode", "ReservationDeleted"),
)
_REMEDIES = {
    "JobArrayTaskLimit": "nothing: so many cells run as sweep.parallel allows",
    "BeginTime": "nothing: it starts by itself",
    "Dependency": "nothing: it starts by itself, after the job on which it depends",
    "ReqNodeNotAvail": "wait: a node is down, or kept for maintenance (sinfo -R, scontrol show reservation)",
    "Licenses": "wait until a licence is free",
    "Grp": "wait: the jobs of your account or QOS have reached the limit that they share",
}
"""Of reasons for which a smaller job is no remedy."""
_DUE_TO = {
    "PREEMPTION": "preempted",
    "NODE FAILURE": "node lost",
    "TIME LIMIT": "time limit",
    "JOB REQUEUE": "requeued",
}


def queued(known: Evidence) -> Verdict | None:
    """A job that waits for nodes."""
    job = known.job
    if job is None or not job.waiting:
        return None
    why = f"SLURM: {job.reason or 'no reason yet'}"
    if any(word in job.reason for word in _HELD):
        return say(known, "held", f"job {job.id} cannot start: {why}")
    if not job.was_started:
        remedy = next((text for word, text in _REMEDIES.items() if word in job.reason), "")
        return say(known, "in the queue", f"job {job.id} waits for its first start: {why}", remedy=remedy)
    end = job.last_end
    reached = f" at step {end['step']}" if end.get("step") is not None else ""
    cause, facts = _requeued_by(known)
    text = f"{cause}{reached}; job {job.id} waits to start again ({why})"
    return say(known, cause, text, *facts, *known.avoided, remedy="nothing: it starts again by itself")


def _requeued_by(known: Evidence) -> tuple[str, list[Fact]]:
    """What ended the start before, and where it stands."""
    assert known.job is not None
    end = known.job.last_end
    said = [Fact(str(end.get("file")), f"{end.get('state', 'running')}: {end.get('reason') or 'no reason'}")]
    if end.get("kind") in ("node excluded", "preempted"):
        return str(end["kind"]), said
    if end.get("slurm"):
        return str(end["slurm"]), [*said, Fact(str(end.get("file")), f"SLURM then: {end['slurm']}")]
    if known.status.get("kind") == "node lost":
        return "node lost", [status_fact(known)]
    for line in reversed(known.lines):
        for words, cause in _DUE_TO.items():
            if f"DUE TO {words}" in line.text:
                return cause, [line]
    if end.get("ended"):
        return "requeued", said
    return "node lost", [Fact(str(end.get("file")), "the start before left no word of its end")]


def suspended(known: Evidence) -> Verdict | None:
    """By SLURM."""
    if known.job is not None and known.job.word in ("SUSPENDED", "STOPPED"):
        return say(known, "suspended", f"job {known.job.id} is {known.job.word.lower()}")
    return None


def starting(known: Evidence) -> Verdict | None:
    """A start before its first update, which may wait for something."""
    lives, state = known.alive is not False or (known.job is not None and known.job.active), known.status.get("state")
    if not lives or (_is_of_this_start(known) and state in ("running", "finished")):
        return None
    if _is_of_this_start(known) and state == "stopped":
        return say(known, "stopped", f"stopped at step {known.status.get('step')}, about to end", status_fact(known))
    if held := [line for line in known.lines if ", which holds " in line.text or "watching for" in line.text]:
        return say(known, "waits for a lock", held[-1].text.removeprefix("INFO: "), held[-1])
    if still := [line for line in known.lines if ": still " in line.text or " has not begun " in line.text]:
        return say(known, "waits for a rank", "; ".join(line.text for line in still[:5]), *still)
    if stuck := _in_state(known, ("T", "t")):
        return stuck
    again = [status_fact(known)] if _is_of_this_start(known) else []  # after a failure
    return say(known, "starting", "it is starting" + (" again" if again else ""), owner_fact(known), *again)


def running(known: Evidence) -> Verdict | None:
    """A training that goes on, or should."""
    if not _is_of_this_start(known) or known.status.get("state") != "running":
        return None
    if stuck := _in_state(known, ("T", "t")):
        return stuck
    step, speed = max(known.status.get("step") or 0, known.last_step), known.status.get("images_per_s")
    text = f"training, at step {step}" + (f", {speed:.0f} images/s" if speed else "")
    if step and known.still_s > max(_STILL_S, _PACES * known.pace_s):
        if gone := _in_state(known, ("", "D")):
            return gone
        row = f"no new row for {known.still_s:.0f} s, {known.pace_s:.0f} s of training between the last two"
        return say(known, "does not move", f"at step {step}, {row}", Fact("metrics.jsonl", row), owner_fact(known))
    return say(known, "running", text, owner_fact(known))


def _is_of_this_start(known: Evidence) -> bool:
    """Whether status.json is of the start that is there now."""
    job = known.job
    if job is None or job.local or not job.active:
        return known.alive is not False and not known.is_starting
    ours = (known.status.get("job"), known.status.get("job_restarts", 0))
    return ours == (job.id, job.restarts) and not known.is_starting


def _in_state(known: Evidence, letters: Sequence[str]) -> Verdict | None:
    """The ranks of this host whose processes are in one of these states."""
    found = {rank: letter for rank, letter in sorted(known.processes.items()) if letter in letters}
    if not found:
        return None
    host = str(known.owner["host"])
    words = [f"{name(rank, host)}: {hangs.in_words(letter)}" for rank, letter in found.items()]
    remedy = "after distributed.step_timeout_s the run ends by itself"
    if set(found.values()) & {"T", "t"}:
        remedy = f"if it was not meant to be: kill -CONT; {remedy}"
    return say(known, "waits for a rank", "; ".join(words), *(Fact("/proc", text) for text in words), remedy=remedy)
