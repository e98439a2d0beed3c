"""Of a run that has ended: why. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from senet.rundir.restarts import WITHOUT_A_WORD
from senet.why.causes import name_of
from senet.why.evidence import Evidence, Fact
from senet.why.verdict import Verdict, name, owner_fact, say, status_fact

_UNEXPLAINED = ("rank was killed", "rank hangs", "node lost", "connection lost", "failed", "restarts are used up")
_IN_SLURM = {
    "TIMEOUT": "time limit was hit",
    "OUT_OF_MEMORY": "out of memory of the host",
    "NODE_FAIL": "node lost",
    "BOOT_FAIL": "node lost",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "DEADLINE": "cancelled",
}
_SIGNALS = {"SIGINT": " (Ctrl-C)", "SIGHUP": " (its terminal was closed)"}


def refused(known: Evidence) -> Verdict | None:
    """The last start, by its ranks or by the check in front of it."""
    if known.alive or (known.job is not None and known.job.active):
        return None
    if not (said := _refusal(known)):
        return None
    text, cause = str(said.get("reason", "")), str(said.get("kind") or "refused")
    return say(known, cause, text, Fact(str(said.get("file", "launch.json")), text), *known.checked)


def _refusal(known: Evidence) -> Mapping[str, Any]:
    """What the last start was refused for; empty if it was not."""
    said = known.launch if known.job is None or known.job.local else known.job.last_end
    return said if said.get("state") == "refused" else {}


def finished(known: Evidence) -> Verdict | None:
    """The training is done, also where a later command was refused."""
    if known.status.get("state") != "finished":
        return None
    best = known.status.get("result", {}).get("best_top1")
    words = f", best {best:.2f} % top-1" if best is not None else ""
    facts = [status_fact(known)]
    if said := _refusal(known):
        where = str(said.get("file", "launch.json"))
        facts.append(Fact(where, f"a later command was refused: {said.get('reason', '')}"))
    return say(known, "finished", f"finished at step {known.status.get('step')}{words}", *facts)


def failed(known: Evidence) -> Verdict | None:
    """It has said why, or its launcher has."""
    said = known.status if known.status.get("state") == "failed" else known.launch
    if said.get("state") != "failed":
        return None
    reason, in_launch = str(said.get("reason", "")), str(known.launch.get("reason", ""))
    facts, also = [status_fact(known)] if said is known.status else [], str(known.launch.get("launcher", ""))
    facts += [Fact("launch.json", text) for text in dict.fromkeys((in_launch, also)) if text not in ("", reason)]
    if in_launch.endswith(reason):  # with "failed twice" before it
        reason = in_launch
    facts += [] if facts else [Fact("launch.json", reason)]
    cause = name_of(reason, str(said.get("kind", "")))
    if cause not in _UNEXPLAINED:  # the rank that ended has said why
        facts = [replace(fact, text=fact.text.removesuffix(WITHOUT_A_WORD)) for fact in facts]
    facts += [*_last_failure(known), *known.collective]
    if cause in _UNEXPLAINED:
        cause, more = _explained(known, cause, also)
        facts += more
    step = said.get("step", known.status.get("step"))
    at = f" (at step {step})" if step is not None and "step" not in reason else ""
    return say(known, cause, f"{reason or 'it gave no reason'}{at}", *facts)


def _explained(known: Evidence, cause: str, launcher: str) -> tuple[str, list[Fact]]:
    """Of a rank that left no word: what SLURM, the kernel and the logs say."""
    word = known.job.word if known.job is not None else ""
    killed = [line for line in known.lines if "oom" in line.text.lower() or "Out Of Memory" in line.text]
    if killed or "oom_kill" in launcher:
        return "out of memory of the host", killed
    return _IN_SLURM.get(word, cause), list(known.lines[-1:])


def _last_failure(known: Evidence) -> list[Fact]:
    if not known.failures:
        return []
    number, row = len(known.failures), known.failures[-1]
    who = f", {name(row['rank'], row.get('host'))}" if row.get("rank") is not None else ""
    again = "launched again" if row.get("again") else "not launched again"
    return [Fact(f"restarts.jsonl:{number}", f"at step {row.get('step')}{who}: {row.get('cause')}; {again}")]


def stopped(known: Evidence) -> Verdict | None:
    """It was saved, and has ended."""
    job, reason = known.job, str(known.status.get("reason", ""))
    if known.status.get("state") != "stopped":
        return None
    cause = name_of(reason, str(known.status.get("kind", "")))
    if cause in ("requeues are used up", "node lost"):
        return say(known, cause, reason, status_fact(known), *known.avoided)
    at = f" at step {known.status.get('step')}, all saved"
    if job is None:
        return say(known, "stopped", f"stopped by {reason}{_SIGNALS.get(reason, '')}{at}", status_fact(known))
    if job.was_stopped:
        file = Fact(f"slurm/{job.id}.stop", "is there")
        return say(known, "stopped", f"stopped by slurm stop{at}", status_fact(known), file)
    cause = _IN_SLURM.get(job.word) or job.last_end.get("slurm") or "cancelled"
    return say(known, cause, f"{cause}{at}; job {job.id}: {job.word or 'unknown to SLURM'}", status_fact(known))


def full(known: Evidence) -> Verdict | None:
    """It left no word of its end, and could not."""
    word = known.job.word if known.job is not None else ""
    if not known.is_full or known.alive or word in _IN_SLURM:
        return None
    fact = Fact(str(known.run_dir), "its file system has no room for a file")
    return say(
        known, "disk is full", "it left no word of its end, and its file system is full", fact, status_fact(known)
    )


def ended_in_slurm(known: Evidence) -> Verdict | None:
    """A job that has ended without a word of the run."""
    job = known.job
    if job is None or job.active:
        return None
    step = known.status.get("step")
    at = f"; last at step {step}" if step is not None else ""
    cause, facts = _explained(known, "", "")
    if cause:
        text = facts[-1].text if facts else f"SLURM has job {job.id} as {job.word}"
        return say(known, cause, f"{text}{at}", *facts, status_fact(known))
    if known.status.get("state") == "running" and not job.word:
        return None  # SLURM has forgotten it
    if facts:
        cause = name_of(facts[-1].text, str(job.last_end.get("kind", "")))
        return say(known, cause, f"{facts[-1].text}{at}", *facts, status_fact(known))
    return say(known, "unknown", f"job {job.id} is {job.word or 'unknown to SLURM'}{at}", status_fact(known))


def killed(known: Evidence) -> Verdict | None:
    """It had no time to say anything."""
    if known.status.get("state") != "running":
        return None
    step = max(known.status.get("step") or 0, known.last_step)
    text = f"killed, with its launcher, after step {step}: SIGKILL, power, or out of memory"
    return say(known, "killed", text, status_fact(known), owner_fact(known))


def unknown(known: Evidence) -> Verdict:
    """The last."""
    return say(known, "unknown", "nothing here says why", status_fact(known), owner_fact(known), *known.lines[-3:])
