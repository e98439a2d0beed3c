"""Whether a training that has failed is launched again, and ``restarts.jsonl``: a row for each failure; how the last
launch by launch.sh ended, in ``launch.json``. No torch."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from senet.rundir.files import read_rows, replace_file, write_json

FILE = "restarts.jsonl"
LAUNCH_FILE = "launch.json"
JOB_VARIABLE = "SENET_JOB"  # the job in the rows, for the ranks
WITHOUT_A_WORD = ", without a word"  # of a rank that has ended, where its launcher has heard nothing
SILENT = "did not answer any more"  # in the cause of a rank that was killed or hangs: why is not known
_NO_FAILURE = ("finished", "stopped", "refused", "port_taken")
_KEYS = {"step", "reason", "cause", "checkpoint", "job", "start", "launch", "again"}
_NOTE_S = 10.0  # how long a decision waits for a file system that does not answer
log = logging.getLogger(__name__)


def launch_again(
    run_dir: Path,
    outcome: Mapping[str, Any],
    *,
    most: int,
    option: str,
    job: str,
    start: int = 0,
    launch: int = 0,
    at_once: bool = True,
) -> str:
    """Record that a launch has failed, and decide what follows. Called again for the same launch, it does the same.

    Args:
        outcome: its last status, as in ``status.json``. Only "failed" names a cause; with another state ``reason`` is
            what the launcher knows: a rank was killed, and has left no word.
        most: launches in a row without a new checkpoint; 0: none.
        option: the name of ``most``, for the reason.
        job: failures of other jobs do not count.
        start: which start of the job it was, 0 and up; several launches can be one start.
        launch: which launch of this start it was, 0 and up.
        at_once: False where the job goes back into the queue instead, which is no restart.

    Returns:
        Why the training is not launched again; empty if it is.
    """
    if outcome.get("state") in _NO_FAILURE:
        return str(outcome.get("reason") or outcome["state"])
    now = failure(outcome, newest_checkpoint(run_dir)) | {"job": job, "start": start, "launch": launch}
    rows = [row for row in _rows(run_dir) if any(row[key] != now[key] for key in ("job", "start", "launch"))]
    before = [row for row in rows if row["job"] == job]
    # a full disk takes the rows, and the training could be launched for ever
    lost = max(0, launch - sum(row["start"] == start for row in before))
    why = why_not([*before, now], most, option, lost)
    content = "".join(json.dumps(row) + "\n" for row in [*rows, now | {"again": not why and at_once}])
    try:
        replace_file(run_dir / FILE, content.encode(), durable=True, limit_s=_NOTE_S)
    except OSError as error:  # only a note: without it the training can be launched too
        log.warning("%s not written: %s", run_dir / FILE, error)
    return why


def note_end(run_dir: Path, outcome: Mapping[str, Any], launcher: str, why: str) -> None:
    """Write how a launch ended as its launcher saw it: rank 0 may have been killed, and a start that is refused leaves
    the status of the start before. Nothing where there is no run directory.

    Args:
        outcome: the last status of the launch.
        launcher: what it knows of the rank that ended first.
        why: why there is no further launch.
    """
    state = outcome.get("state")
    said = why or (outcome.get("reason", "") if state in (*_NO_FAILURE, "failed") else launcher)
    facts = {"time": time.time(), "state": state if state in _NO_FAILURE else "failed", "reason": said}
    facts |= {"launcher": launcher} | {key: outcome[key] for key in ("step", "failure", "kind") if key in outcome}
    if os.path.exists(run_dir / "owner.json"):  # noqa: PTH110 # Path.exists raises where it may not be read
        try:
            write_json(run_dir / LAUNCH_FILE, facts, limit_s=_NOTE_S)
        except OSError as error:  # the terminal has said it
            log.warning("%s not written: %s", run_dir / LAUNCH_FILE, error)


def failure(outcome: Mapping[str, Any], checkpoint: str) -> dict[str, Any]:
    """A row: when, at which step, why, of which rank on which host, and the newest checkpoint then.

    The step is the number of updates that were done; None before the first.
    """
    known, reason = outcome.get("failure", {}), str(outcome.get("reason", ""))
    return {
        "time": outcome.get("heartbeat", time.time()),
        "step": outcome.get("step"),
        "reason": reason,
        "cause": known.get("cause", reason) if outcome.get("state") == "failed" else SILENT,
        "kind": outcome.get("kind", ""),
        "rank": known.get("rank"),
        "host": known.get("host"),
        "checkpoint": checkpoint,
    }


def why_not(failures: Sequence[Mapping[str, Any]], most: int, option: str, lost: int = 0) -> str:
    """Why the training is not launched again after the last of these failures of a job; empty if it is.

    Args:
        lost: how many failures could not be recorded.
    """
    *before, now = failures
    if most == 0:
        return str(now["reason"])
    if _words(now) and any(_same(row, now) for row in before):
        where = "before the first update" if now["step"] is None else f"at step {now['step']}"
        return f"failed twice {where}: {now['reason']}"
    in_a_row = takewhile(lambda row: row["checkpoint"] == now["checkpoint"], reversed(before))
    if sum(1 for _ in in_a_row) + lost >= most:
        return f"{option}={most} is used up: {now['reason']}"
    return ""


def last_restart(run_dir: Path, job: str) -> dict[str, Any]:
    """The last failure, if it was of this job and its training was launched again; else {}."""
    rows = _rows(run_dir)
    return rows[-1] if rows and rows[-1]["again"] and rows[-1]["job"] == job else {}


def count_restarts(run_dir: Path, job: str) -> int:
    """How often the training of this job was launched again."""
    return sum(row["job"] == job and row["again"] for row in _rows(run_dir))


def newest_checkpoint(run_dir: Path) -> str:
    """Name of the checkpoint that was published last, without reading it; empty if there is none."""
    found = (run_dir / "checkpoints").glob("step_*.pt")
    return max(((path.stat().st_mtime_ns, path.name) for path in found), default=(0, ""))[1]


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(run_dir / FILE) if row.keys() >= _KEYS]


def _same(row: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two failures have one cause at one step. Before the first update: of one start, without progress, since
    what a start needs may not be there for a while, twice in the life of a job."""
    keys = ("step",) if now["step"] is not None else ("step", "start", "checkpoint")
    return _words(row) == _words(now) and all(row[key] == now[key] for key in keys)


def _words(row: Mapping[str, Any]) -> str:
    """The cause without numbers: addresses, sizes and ports differ from time to time. Empty if it is not known."""
    return "" if SILENT in row["cause"] else re.sub(r"0x[0-9a-f]+|\d+", "", row["cause"])
