"""The commands ``status``, ``stop`` and ``clear`` for submitted runs."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from senet.errors import ConfigError
from senet.rundir.files import read_json
from senet.rundir.hours import of_all
from senet.rundir.named import one_run
from senet.rundir.restarts import count_restarts, last_restart
from senet.rundir.standing import over_file, state_of
from senet.sweep import record
from senet.verbs import typed
from slurm import cluster, nodes, runs
from slurm.starts import stop_file

_COLUMNS = ("run", "job", "state", "step", "epoch", "images/s", "test %", "requeues", "restarts", "reason")
_STOPPABLE = cluster.ACTIVE - {"COMPLETING"}


def status(names: list[str]) -> None:
    """Print a line per run directory (default: all submitted ones in ``runs/``).

    Raises:
        ConfigError: a word that means no run directory from which something was submitted.
    """
    jobs = {run_dir: job for name in names for run_dir, job in runs.jobs_of(name).items()} or runs.all_jobs()
    run_dirs, submitted = list(jobs), list(jobs.values())
    try:
        known = cluster.job_states([of["job"] for of in submitted if of["cluster"] != cluster.LOCAL])
    except cluster.NoAnswer as error:
        print(f"slurm: {error}; this is only what the runs themselves have written", file=sys.stderr)
        known = {}
    known |= {of["job"]: cluster.state_of(of) for of in submitted if of["cluster"] == cluster.LOCAL}
    rows = [_row(run_dir, of, known.get(of["job"])) for run_dir, of in zip(run_dirs, submitted, strict=True)]
    table = [_COLUMNS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(run_dirs) > len(names) > 0:  # a sweep
        print(record.count([row[2] for row in rows]))
    if time := of_all(run_dirs) if names else "":
        print(f"time: {time}")
    for run_dir, of in zip(run_dirs, submitted, strict=True):
        run = read_json(run_dir / "status.json")
        for line in run.get("warnings", ()) if run.get("job") == of["job"] else ():
            print(f"{run_dir}: {line}")
        for text in nodes.avoided_texts(run_dir):
            print(f"{run_dir}: {text}")


def stop(names: list[str]) -> None:
    """Have the job of a run directory save and end; one that waits in the queue is cancelled. Of a sweep, all cells.

    Raises:
        ConfigError: no run directory, or no job of it that can be stopped.
        NoAnswer: SLURM does not answer whether there is one.
    """
    if len(names) != 1:
        raise ConfigError(f"stop takes one run directory, one sweep, or one job: {typed('slurm')} stop RUN_DIR")
    jobs = runs.jobs_of(names[0], several=False)
    ids = [job["job"] for job in jobs.values()]
    who = f"job {', '.join(dict.fromkeys(ids if len(ids) == 1 else map(_array, ids)))}"
    try:
        known = _states([*jobs.values()])
    except cluster.NoAnswer as error:
        raise cluster.NoAnswer(f"{who} of run_dir={names[0]} was not stopped, try again: {error}") from None
    if not shutil.which("squeue") and any(not known[each].word for each in ids):
        raise ConfigError(f"{who}: there is no squeue on this machine, so whether it waits is not known; stop it there")
    active = {run_dir: job for run_dir, job in jobs.items() if known[job["job"]].active}
    _note({run_dir: job for run_dir, job in jobs.items() if run_dir not in active})
    if not active:
        seen = ", ".join(dict.fromkeys(known[each].word or "unknown to SLURM" for each in ids))
        print(f"{who} does not run any more: it is {seen}")
        return
    _end(active, known)
    _note(active)
    words = [known[job["job"]].word for job in active.values()]
    said = words[0] if len(jobs) == 1 else record.count(words)
    print(f"{who} ({said}) was asked to stop; see: {typed('slurm')} status {shlex.quote(names[0])}")


def _note(jobs: Mapping[Path, Mapping[str, Any]]) -> None:
    """That these jobs do not come back, for who does not ask SLURM."""
    for run_dir, job in jobs.items():
        over_file(run_dir, job["job"]).touch()


def _array(job_id: str) -> str:
    return job_id.partition("_")[0]


def _states(jobs: Sequence[Mapping[str, Any]]) -> dict[str, cluster.JobState]:
    known = cluster.job_states([job["job"] for job in jobs if job["cluster"] != cluster.LOCAL])
    return known | {job["job"]: cluster.state_of(job) for job in jobs if job["cluster"] == cluster.LOCAL}


def _end(jobs: Mapping[Path, Mapping[str, Any]], known: Mapping[str, cluster.JobState]) -> None:
    """Each saves and ends.

    Raises:
        ConfigError: scancel refuses, and there are jobs that wait or run as before.
        NoAnswer: SLURM does not say whether there are.
    """
    files = {job["job"]: stop_file(run_dir, job["job"]) for run_dir, job in jobs.items()}
    for file in files.values():
        file.touch()  # the batch script looks for it before it launches the ranks, and before it requeues
    ids = [job["job"] for job in jobs.values() if job["cluster"] != cluster.LOCAL]
    if _cancel(ids, known):
        # a job that has ended meanwhile is enough for that; the others have their signal, and a second changes nothing
        now = cluster.job_states(ids)
        refused = {each: said for each in ids if (said := _cancel([each], now))}
        left = [each for each, state in cluster.job_states(refused).items() if state.word in _STOPPABLE]
        if left:
            if len(jobs) == 1:
                files[ids[0]].unlink()  # else its next preemption would be its end
            raise ConfigError("; ".join(dict.fromkeys(refused[each] for each in left)))
    for job in jobs.values():
        if job["cluster"] == cluster.LOCAL:
            os.kill(int(job["job"]), signal.SIGTERM)  # passed on to the ranks


def _cancel(ids: Sequence[str], known: Mapping[str, cluster.JobState]) -> str:
    """Those that wait first: in an array others would take the place of those that end. Returns what failed."""
    waiting = [each for each in ids if known[each].word in cluster.WAITING]
    running = [each for each in ids if known[each].word in _STOPPABLE - cluster.WAITING]
    failed = []
    # signals the ranks, not the batch script; a job in the queue has no ranks
    for words, those in ((["scancel"], waiting), (["scancel", "--signal=USR2"], running)):
        done = subprocess.run([*words, *those], capture_output=True, text=True) if those else None
        if done and done.returncode:
            failed.append(f"{' '.join([*words, *those])}: {' '.join(done.stderr.split())}")
    return "; ".join(failed)


def clear(names: list[str]) -> None:
    """Avoid no node any more.

    Raises:
        ConfigError: no run directory from which something was submitted.
    """
    if len(names) != 1:
        raise ConfigError(f"clear takes one run directory: {typed('slurm')} clear RUN_DIR")
    [(run_dir, job)] = runs.jobs_of(str(one_run(names[0]))).items()
    cleared = nodes.forget(run_dir)
    for each in cleared:
        print(f"{each.node} is avoided no more; it was because of {each.finding}")
    print(
        f"the next submission takes any node; job {job['job']}, if it waits, does not yet"
        if cleared
        else "none was avoided"
    )


def _about(restart: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    """Why the ranks were last launched again, and what that has cost, once the run knows it."""
    if not restart:
        return ""
    lost = f", {told['lost_s']:.0f} s lost" if told.get("time") == restart["time"] else ""
    return f"last restart{lost}: {restart['reason']}"


def _row(run_dir: Path, submitted: Mapping[str, Any], job: cluster.JobState | None) -> tuple[str, ...]:
    state = state_of(run_dir, job)
    run, job_id = state.status, submitted["job"]
    reason = state.reason or _about(last_restart(run_dir, job_id), run.get("restart", {}))
    if state.word == "failed" and not reason:  # not even the batch script has recorded one
        reason = f"see {run_dir}/slurm/{job_id}_0_log.out"
    return (
        str(run_dir),
        job_id,
        state.word,
        *(str(run.get(key, "-")) for key in ("step", "epoch")),
        f"{run.get('images_per_s', '-')}" + (f" (MFU {run['mfu']:.0%})" if "mfu" in run else ""),
        state.score,
        str(max(job.restarts if job else 0, run.get("job_restarts", 0) if run.get("job") == job_id else 0)),
        str(count_restarts(run_dir, job_id)),
        reason,
    )
