"""What follows from the check before a start, and the names of the nodes that a run avoids. Pure but for its files."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from senet.rundir.files import read_json, read_rows, replace_file
from senet.verbs import typed

_MEASURED = {"arithmetic", "clock", "files", "versions"}
"""Checks whose findings are certain, also where others were not made."""
_ONE_IN = 4  # nodes of a partition may be avoided; more is no fault of single nodes


@dataclass(frozen=True)
class Excluded:
    """A node that a run avoids."""

    node: str
    """SLURM's name of it."""
    checks: tuple[str, ...]
    """Which of the doctor's checks found it wrong."""
    finding: str
    """What was wrong, in one line."""
    job: str
    time: float


@dataclass(frozen=True)
class Verdict:
    """On the nodes of a start. Nothing in it: the training starts."""

    exclude: tuple[Excluded, ...] = ()
    """The job must start again, without these."""
    refusal: str = ""
    """Why the job must end."""
    common: bool = False
    """Whether what was found is no fault of single nodes, nor was it of those that this job has excluded."""


def judge(
    report: Mapping[str, Any],
    nodes: Sequence[str],
    history: Sequence[Excluded],
    *,
    job: str,
    available: int,
    requeues_left: int,
) -> Verdict:
    """What follows from a check: from what is ``wrong``. What is slow or late is no reason not to start.

    Args:
        report: of the doctor.
        nodes: of the job.
        history: all that the run has excluded.
        available: nodes of the partition that the job may use.
        requeues_left: of slurm.max_requeues.
    """
    wrong = [each for each in report.get("findings", ()) if each["kind"] == "wrong"]
    if not report.get("complete"):  # that something is missing may be only slowness
        wrong = [each for each in wrong if each["check"] in _MEASURED]
    else:  # its collectives have worked with the names that there are
        wrong = [each for each in wrong if each["check"] != "names"]
    shared = [f"{each['check']}: {each['text']}" for each in wrong if not each["host"] and each["check"] == "files"]
    by_node = {node: [each for each in wrong if each["host"] == node] for node in nodes}
    found = tuple(_excluded(node, of_node, job) for node, of_node in by_node.items() if of_node)
    if shared:
        return Verdict(refusal="; ".join(dict.fromkeys(shared)))
    if not found:
        return Verdict()
    together = list({each.node: each for each in (*history, *found)}.values())
    others = available - len(together)
    if common := _common(found, nodes, history, job):
        why = f"all nodes have the same fault ({common}), which is none of a single node"
    elif again := [each.node for each in found if sum((old.node, old.job) == (each.node, job) for old in history) > 1]:
        why = f"SLURM gives the job {', '.join(again)} again and again, which was excluded"
    elif len(together) > max(1, available // _ONE_IN):
        why = f"of the {available} nodes of the partition more than one in {_ONE_IN} would be excluded"
    elif others < len(nodes):
        why = f"without these nodes the partition has {others}, and slurm.nodes={len(nodes)} are asked for"
    elif requeues_left <= 0:
        why = "slurm.max_requeues is used up, and nodes are unfit"
    else:
        return Verdict(exclude=found)
    return Verdict(refusal=f"{why}: {describe(together)}", common=bool(common))


def _excluded(node: str, findings: Sequence[Mapping[str, Any]], job: str) -> Excluded:
    checks = tuple(dict.fromkeys(each["check"] for each in findings))
    return Excluded(node, checks, "; ".join(f"{each['check']}: {each['text']}" for each in findings), job, time.time())


def _common(found: Sequence[Excluded], nodes: Sequence[str], history: Sequence[Excluded], job: str) -> str:
    """A check that all nodes have failed; for a job of one node also the node that it was on before. Empty if none."""
    before = [each for each in history if each.job == job and each.node not in nodes] if len(nodes) == 1 else []
    alike = [*found, *before[-1:]]
    if len(found) < len(nodes) or len(alike) == 1:
        return ""
    shared = set.intersection(*(set(each.checks) for each in alike))
    return next((check for check in found[0].checks if check in shared), "")


def describe(excluded: Iterable[Excluded]) -> str:
    """Each node with what was wrong with it."""
    return "; ".join(f"{each.node}: {each.finding}" for each in excluded)


def history_of(run_dir: Path) -> list[Excluded]:
    """All that was excluded since the last ``clear``, the oldest first."""
    rows = [row for row in read_rows(_file(run_dir)) if {"node", "checks", "finding", "job", "time"} <= row.keys()]
    return [Excluded(row["node"], tuple(row["checks"]), row["finding"], row["job"], row["time"]) for row in rows]


def avoided_by(run_dir: Path) -> list[Excluded]:
    """What submissions from this run directory avoid; the latest finding of each node."""
    return list({each.node: each for each in history_of(run_dir)}.values())


def avoided_texts(run_dir: Path) -> list[str]:
    """A line on each of them."""
    return [
        f"{each.node} is avoided since {datetime.fromtimestamp(each.time).isoformat(' ', 'minutes')} (job {each.job}: "
        f"{each.finding}); {typed('slurm')} clear {shlex.quote(str(run_dir))} ends that"
        for each in avoided_by(run_dir)
    ]


def avoid(run_dir: Path, excluded: Iterable[Excluded]) -> None:
    """Keep the names in the run directory."""
    _write(run_dir, [*history_of(run_dir), *excluded])


def forget_job(run_dir: Path, job: str) -> None:
    """Avoid no node because of this job any more."""
    _write(run_dir, [each for each in history_of(run_dir) if each.job != job])


def _write(run_dir: Path, history: Iterable[Excluded]) -> None:
    replace_file(_file(run_dir), "".join(json.dumps(vars(each)) + "\n" for each in history).encode(), durable=True)


def forget(run_dir: Path) -> list[Excluded]:
    """Avoid no node any more; returns those that were."""
    excluded = avoided_by(run_dir)
    _file(run_dir).unlink(missing_ok=True)
    return excluded


def exclude(run_dir: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """sbatch's option for the nodes that the run avoids, and those of the user's own; {} if the run avoids none."""
    names = [each.node for each in avoided_by(run_dir)]
    own = [str(options["exclude"])] if "exclude" in options else []
    return {"exclude": ",".join([*own, *names])} if names else {}


def check_file(run_dir: Path, job_id: str, start: int) -> Path:
    """What the check in front of a start found."""
    return run_dir / "slurm" / f"{job_id}.{start}.check.json"


def known_before(file: Path, reason: str) -> str:
    """For the end of a reason that names hosts: what the check before this start found of them; empty if nothing."""
    named = set(re.split(r"[^\w.-]+", reason)) | set(re.split(r"[^\w-]+", reason))
    found = [each for each in read_json(file).get("findings", []) if each["host"] and each["host"] in named]
    return f"; before the start {lines(found)}" if found else ""


def lines(findings: Iterable[Mapping[str, Any]]) -> str:
    """The findings in one line."""
    return "; ".join(line(each) for each in findings)


def line(finding: Mapping[str, Any]) -> str:
    """``n2 was slow: 0.48 of the median``, with the name of the check."""
    return f"{finding['host'] or 'the job'} was {finding['kind']}: {finding['check']}: {finding['text']}"


def usable(counts: str) -> int:
    """Nodes of a partition that are not down or drained, from ``sinfo --format=%F``; 0 if it did not answer."""
    return sum(int(each[1]) + int(each[2]) for each in re.finditer(r"^(\d+)/(\d+)/\d+/\d+$", counts, re.MULTILINE))


def unknown_name(words: str, script: str) -> str:
    """For the end of a line in which sbatch refuses a job: what may help."""
    names = "node name" in words.lower() and re.search(r"^#SBATCH --exclude=", script, re.MULTILINE)
    return f"; nodes that the run avoids may be gone: {typed('slurm')} clear RUN_DIR" if names else ""


def _file(run_dir: Path) -> Path:
    return run_dir / "slurm" / "excluded.jsonl"
