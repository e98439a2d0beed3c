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


def judge(
    findings: Iterable[Mapping[str, Any]],
    nodes: Sequence[str],
    avoided: Sequence[Excluded],
    *,
    job: str,
    available: int,
    requeues_left: int,
) -> Verdict:
    """What follows from the findings of a check.

    Args:
        findings: of the doctor; only those of kind ``wrong`` count here.
        nodes: of the job.
        avoided: what the run avoids by now.
        available: nodes of the partition.
        requeues_left: of slurm.max_requeues.
    """
    wrong = [each for each in findings if each["kind"] == "wrong"]
    if nobodys := [f"{each['check']}: {each['text']}" for each in wrong if each["host"] not in nodes]:
        return Verdict(refusal="; ".join(dict.fromkeys(nobodys)))
    by_node = {node: [each for each in wrong if each["host"] == node] for node in nodes}
    found = tuple(_excluded(node, of_node, job) for node, of_node in by_node.items() if of_node)
    all_of_them = [*(each for each in avoided if each.node not in nodes), *found]
    others = available - len(all_of_them)
    if not found:
        return Verdict()
    if {each.node for each in found} & {each.node for each in avoided if each.job == job}:
        why = "SLURM gives the job a node again that was excluded"
    elif common := _common(found, nodes, avoided, job):
        why = f"all nodes have the same fault ({common}), which is none of a single node"
    elif len(all_of_them) > max(1, available // _ONE_IN):
        why = f"of the {available} nodes of the partition more than one in {_ONE_IN} would be excluded"
    elif others < len(nodes):
        why = f"without these nodes the partition has {others}, and slurm.nodes={len(nodes)} are asked for"
    elif requeues_left <= 0:
        why = "slurm.max_requeues is used up, and nodes are unfit"
    else:
        return Verdict(exclude=found)
    return Verdict(refusal=f"{why}: {describe(all_of_them)}")


def _excluded(node: str, findings: Sequence[Mapping[str, Any]], job: str) -> Excluded:
    checks = tuple(dict.fromkeys(each["check"] for each in findings))
    return Excluded(node, checks, "; ".join(f"{each['check']}: {each['text']}" for each in findings), job, time.time())


def _common(found: Sequence[Excluded], nodes: Sequence[str], avoided: Sequence[Excluded], job: str) -> str:
    """A check that all nodes have failed; for a job of one node also the node that it was on before. Empty if none."""
    alike = [*found, *([each for each in avoided if each.job == job][-1:] if len(nodes) == 1 else [])]
    if len(found) < len(nodes) or len(alike) == 1:
        return ""
    shared = set.intersection(*(set(each.checks) for each in alike))
    return next((check for check in found[0].checks if check in shared), "")


def describe(excluded: Iterable[Excluded]) -> str:
    """Each node with what was wrong with it."""
    return "; ".join(f"{each.node}: {each.finding}" for each in excluded)


def avoided_by(run_dir: Path) -> list[Excluded]:
    """What submissions from this run directory avoid; the latest finding of each node."""
    rows = [row for row in read_rows(_file(run_dir)) if {"node", "checks", "finding", "job", "time"} <= row.keys()]
    latest = {row["node"]: row for row in rows}
    return [
        Excluded(row["node"], tuple(row["checks"]), row["finding"], row["job"], row["time"]) for row in latest.values()
    ]


def avoided_texts(run_dir: Path) -> list[str]:
    """A line on each of them."""
    return [
        f"{each.node} is avoided since {datetime.fromtimestamp(each.time).isoformat(' ', 'minutes')} (job {each.job}: "
        f"{each.finding}); {typed('slurm')} clear {shlex.quote(str(run_dir))} ends that"
        for each in avoided_by(run_dir)
    ]


def avoid(run_dir: Path, excluded: Iterable[Excluded]) -> None:
    """Keep the names in the run directory."""
    rows = [*read_rows(_file(run_dir)), *(vars(each) for each in excluded)]
    replace_file(_file(run_dir), "".join(json.dumps(row) + "\n" for row in rows).encode(), durable=True)


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


def partition_size(partition: str) -> int:
    """Nodes, from ``scontrol show partition --oneliner``; 0 if it did not answer."""
    found = re.search(r" TotalNodes=(\d+)", partition)
    return int(found[1]) if found else 0


def names_to_exclude(job: str, excluded: Iterable[Excluded]) -> str:
    """For ``scontrol update ExcNodeList=``: also those that the job has by now, as ``scontrol show job`` has them."""
    before = re.search(r" ExcNodeList=(\S+)", job)
    kept = [before[1]] if before and before[1] != "(null)" else []
    return ",".join([*kept, *(each.node for each in excluded)])


def _file(run_dir: Path) -> Path:
    return run_dir / "slurm" / "excluded.jsonl"
