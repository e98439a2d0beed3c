"""Why a run has ended, or does not move: ``./launch.sh why RUN``. With or without SLURM; does not import torch."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from senet.command import Parser, end, printable
from senet.rundir.files import read_json
from senet.rundir.named import cells_not_begun
from senet.verbs import typed
from senet.why.evidence import Evidence, Fact, Job, gather
from senet.why.judge import judge
from senet.why.verdict import Verdict, start_facts
from slurm import cluster, nodes
from slurm.logs import not_begun, telling_lines
from slurm.runs import meant, runs_of
from slurm.starts import starts_of, stop_file

_SHOWN = ("JobState", "Reason", "ExitCode", "Restarts", "NodeList", "ExcNodeList", "StartTime", "EndTime", "TimeLimit")
_NOTHING = (None, "", "None", "(null)", "Unknown")


def look(run_dir: Path, job_id: str = "") -> Evidence:
    """All that is known of a run, or of one of its jobs."""
    known = gather(run_dir)
    submitted = read_json(run_dir / "slurm" / "job.json")
    job_id = job_id or str(submitted.get("job", ""))
    if not job_id:
        return known
    job = _job(run_dir, job_id, submitted)
    is_of_job = known.status.get("job") == job_id
    if job.local:
        is_of_job = known.status.get("heartbeat", 0.0) > submitted["submitted"]
    elif not is_of_job and not job.active and known.status.get("heartbeat", 0.0) > submitted.get("submitted", 0.0):
        return known  # trained on without SLURM since then
    last, lines = job.last_end.get("start", 0), telling_lines(run_dir, job_id)
    if any(": still meeting " in line.text for line in lines):
        lines += not_begun(run_dir, job_id)
    return replace(
        known,
        job=job,
        status=known.status if is_of_job else {},
        lines=lines,
        checked=_checked(run_dir, nodes.check_file(run_dir, job_id, last)),
        avoided=[Fact("slurm/excluded.jsonl", text) for text in nodes.avoided_texts(run_dir)],
    )


def _job(run_dir: Path, job_id: str, submitted: Mapping[str, Any]) -> Job:
    last = _last_end(run_dir, job_id)
    local = submitted.get("job") == job_id and submitted.get("cluster") == cluster.LOCAL
    job = Job(job_id, local=local, last_end=last, was_started=bool(last or starts_of(run_dir, job_id)))
    job = replace(job, was_stopped=stop_file(run_dir, job_id).exists())
    if local:
        return replace(job, active=cluster.local_state(job_id) == "RUNNING")
    try:
        state = cluster.job_states([job_id])[job_id]
    except cluster.NoAnswer as error:
        return replace(job, facts=[Fact("SLURM", str(error))])
    return replace(
        job,
        word=state.word,
        active=state.word in cluster.ACTIVE,
        waiting=state.word in cluster.WAITING,
        reason=state.reason,
        restarts=state.restarts,
        facts=[Fact("SLURM", text) for text in [_in_slurm(job_id)] if text],
    )


def _last_end(run_dir: Path, job_id: str) -> dict[str, Any]:
    """What the last launch has left; {} where there was none. One that the check has ended was not even recorded."""
    found = {}
    for path in (run_dir / "slurm").glob(f"{job_id}.*.status.json"):
        if match := re.fullmatch(r"\.(\d+)\.(\d+)\.status\.json", path.name.removeprefix(job_id)):
            found[int(match[1]), int(match[2])] = path
    if not found:
        return {}
    last = max(found)
    return read_json(found[last]) | {"start": last[0], "file": str(found[last].relative_to(run_dir))}


def _in_slurm(job_id: str) -> str:
    """SLURM's own words on a job; empty where it does not know it."""
    fields = cluster.job_fields(job_id)
    if shown := [f"{name}={fields[name]}" for name in _SHOWN if fields.get(name) not in _NOTHING]:
        return " ".join(shown)
    columns = ("--noheader", "--parsable2", "--format=State,ExitCode,NodeList,Start,End", f"--jobs={job_id}")
    return cluster.query("sacct", "-X", *columns)


def _checked(run_dir: Path, file: Path) -> list[Fact]:
    """What the check in front of the last start found of its nodes."""
    report = read_json(file)
    if not report:
        return []
    where, found = str(file.relative_to(run_dir)), report.get("findings", [])
    if not found and report.get("complete"):
        return [Fact(where, "nothing was wrong or slow on the nodes before this start")]
    return [Fact(where, f"before this start {nodes.line(each)}") for each in found]


def in_words(run_dir: Path, verdict: Verdict, start: Sequence[Fact]) -> str:
    """As a person reads it."""
    lines = [f"{run_dir}: {verdict.cause}: {verdict.text}"]
    if verdict.is_healthy:
        return printable(lines[0])
    facts = [(fact, "evidence") for fact in verdict.evidence] + [(fact, "start") for fact in start]
    before = ""
    for fact, kind in facts:
        where = fact.where if fact.where.startswith(("SLURM", "/")) else f"{run_dir}/{fact.where}"
        lines.append(f"  {kind if kind != before else '':9} {where}: {fact.text}")
        before = kind
    lines.append(f"  {'remedy':9} {verdict.remedy}")
    return "\n".join(printable(line) for line in lines)


def _not_started(folder: Path) -> str:
    """Of a sweep: how many of its cells have not been started; empty where all have, or it is none."""
    left, more = [cell.name for cell in cells_not_begun(folder)], ", ..."
    return f"{folder}: {len(left)} cell(s) not started: {', '.join(left[:5])}{more * (len(left) > 5)}" if left else ""


def main(argv: Sequence[str]) -> int:
    """Say of each run why it ended, or does not move."""
    parser = Parser(
        prog=typed("why"),
        description="Why a run has ended, or does not move: the cause, the evidence, the remedy.",
        epilog="Of a folder of runs: a line each. Exit code: 0, or 2 for bad input.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run directory, a sweep, a folder of runs, or the id of a job"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per run, a line each")
    arguments = parser.parse_args(argv)
    for word in arguments.runs:
        found = runs_of(word)
        for run_dir, job_id in found:
            known = look(run_dir, job_id)
            verdict = judge(known)
            start = start_facts(known)
            if arguments.json:
                print(json.dumps(_plain(run_dir, verdict, start)))
            elif len(found) > 1:
                print(printable(f"{run_dir}: {verdict.cause}: {verdict.text}"))
            else:
                print(in_words(run_dir, verdict, start))
        folder = None if arguments.json else meant(word)
        if folder is not None and (left := _not_started(folder)):
            print(printable(left))
    return 0


def _plain(run_dir: Path, verdict: Verdict, start: Sequence[Fact]) -> dict[str, Any]:
    evidence = [dataclasses.asdict(fact) for fact in verdict.evidence]
    return {
        "run_dir": str(run_dir),
        "cause": verdict.cause,
        "text": verdict.text,
        "is_healthy": verdict.is_healthy,
        "evidence": evidence,
        "start": [dataclasses.asdict(fact) for fact in start],
        "remedy": verdict.remedy,
    }


if __name__ == "__main__":
    end("why", main)
