"""``slurm sweep``: the cells of a sweep as one array, each task a run of its own."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from senet import REPOSITORY
from senet.config.load import to_yaml
from senet.errors import ConfigError
from senet.rundir.files import read_json, replace_file, write_json
from senet.rundir.named import SWEEP
from senet.rundir.standing import TAKEN
from senet.sweep import record
from senet.sweep.cells import Cell, check_ranks
from senet.sweep.prepare import LOCK, only_one, prepare
from senet.sweep.request import Request, read_request
from senet.verbs import typed
from slurm import check, cluster, nodes, sent, submission
from slurm.gpus import ranks_per_node
from slurm.job import Job
from slurm.preflight import preflight
from slurm.sbatch import SlurmExecutor, make_slurm_executor, python_command, submit_all
from slurm.snapshot import config_file, take_snapshot
from slurm.starts import may_shrink

_ALL = 1000  # at a time, where sweep.parallel is not said: more than a sweep has


def sweep(argv: Sequence[str], say: Callable[[str], None], *, dry_run: bool, quickstart: bool) -> int:
    """Submit what is missing or has failed, print the commands that follow, and return at once.

    Raises:
        ConfigError: bad options of any cell, or what preflight or SLURM refuses.
        NoAnswer: SLURM does not say which cells it has.
    """
    request = read_request(argv)
    cells, recorded = prepare(request, "slurm sweep", say, quickstart=quickstart)
    _check(cells)
    if not (waiting := _not_there(request.folder, cells, say)):
        return 0
    findings = preflight(waiting[0].config, waiting[0].run_dir)
    for finding in findings:
        if dry_run or not finding.refuse:
            say(f"{'refused' if finding.refuse else 'warning'}: {finding.text}")
    if dry_run:
        executor = _executor(request, waiting, request.folder.absolute() / "slurm" / "code-HASH")
        executor.parameters["map_count"] = len(waiting)
        print(executor.text())
        return 0
    submission.refuse(findings)
    submission.require_sbatch()
    with only_one(request.folder, recorded):
        sent.recover(request.folder)
        if not (waiting := _not_there(request.folder, cells)):  # another submission has come first
            return 0
        with _undone_if_refused(request.folder, recorded, waiting):
            # before sbatch: if this process is killed, status and stop know the cells
            record.write(request.folder, request, recorded, cells, **_threads(recorded))
            job_id = _submit(request, waiting, argv)
    _tell(request, cells[0], len(waiting), job_id)
    return 0


def _check(cells: Sequence[Cell]) -> None:
    slurm = cells[0].config.slurm
    if slurm.cluster == cluster.LOCAL:
        raise ConfigError(f"slurm.cluster=local has no arrays; use {typed('sweep')} with the same words")
    check_ranks(cells, slurm.nodes * ranks_per_node(slurm))
    if len({may_shrink(cell.config) for cell in cells}) > 1:
        text = "train.shards=0 and more cannot be one array where slurm.nodes is above 1"
        raise ConfigError(f"{text}: only with shards a job goes on without a lost node; make two sweeps")


def _not_there(folder: Path, cells: Sequence[Cell], say: Callable[[str], None] = lambda _: None) -> list[Cell]:
    """The cells that neither have finished, nor run, nor wait in SLURM's queue; with absolute paths."""
    jobs = {cell.name: str(read_json(cell.run_dir / "slurm" / "job.json").get("job", "")) for cell in cells}
    known = cluster.job_states([job for job in jobs.values() if job])
    words = {name: record.state_of(folder, name, known.get(job)).word for name, job in jobs.items()}
    queued = [name for name, job in jobs.items() if job and known[job].active]
    waiting = [cell for cell in cells if words[cell.name] not in ("finished", *TAKEN)]
    if not waiting:
        print(f"nothing to submit: {record.count([*words.values()])}; see: {typed('slurm')} status {folder}")
    elif queued:
        arrays = ", ".join(dict.fromkeys(jobs[name].partition("_")[0] for name in queued))
        say(f"warning: {len(queued)} cell(s) of job {arrays} wait or run besides, with a limit of their own")
    return [dataclasses.replace(cell, config=submission.resolve(cell.config)) for cell in waiting]


@contextmanager
def _undone_if_refused(folder: Path, recorded: Mapping[str, object], cells: Sequence[Cell]) -> Iterator[None]:
    """If SLURM refuses the cells, remove what their submission has made, and nothing else."""
    made = [path for path in (folder / "slurm", *(cell.run_dir for cell in cells)) if not path.exists()]
    try:
        yield
    except ConfigError:
        for path in made:
            if path.exists():
                shutil.rmtree(path)
        sent.forget(folder)
        if recorded:
            write_json(folder / SWEEP, recorded, durable=True)
        else:
            (folder / SWEEP).unlink(missing_ok=True)
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            with suppress(OSError):  # another process has come to lock it
                folder.rmdir()
        raise


def _executor(request: Request, cells: Sequence[Cell], code: Path) -> SlurmExecutor:
    """That of a job in the folder of the sweep; its batch script finds the cell of its task."""
    config, folder = cells[0].config, request.folder.absolute()
    executor = make_slurm_executor(config, folder, code)
    files = [shlex.quote(str(config_file(cell.config, cell.run_dir).relative_to(folder))) for cell in cells]
    own = [
        f"cells=({' '.join(files)})",
        f"export SENET_CONFIG={shlex.quote(str(folder))}/${{cells[${{SLURM_ARRAY_TASK_ID:-0}}]}}",
        "export SENET_RUN_DIR=${SENET_CONFIG%/slurm/*}",
    ]
    if config.slurm.check:
        own.append(check.check_ranks(python_command(config.slurm), '"$SENET_CONFIG"'))
    *before, last = executor.parameters["setup"]
    options = executor.parameters["additional_parameters"] | _excluded(cells)
    executor.update_parameters(
        array_parallelism=request.parallel or _ALL, setup=[*before, *own, last], additional_parameters=options
    )
    return executor


def _excluded(cells: Sequence[Cell]) -> dict[str, str]:
    """sbatch's option for the nodes that any cell avoids, and those of the user's own."""
    names = [each.node for cell in cells for each in nodes.avoided_by(cell.run_dir)]
    own = str(cells[0].config.slurm.sbatch.get("exclude", ""))
    return {"exclude": ",".join(dict.fromkeys(filter(None, [own, *names])))} if names else {}


def _submit(request: Request, cells: Sequence[Cell], argv: Sequence[str]) -> str:
    """Submit them, and record the job of each in its ``job.json``; returns the id of the array."""
    folder = request.folder.absolute()
    (folder / "slurm").mkdir(exist_ok=True)
    snapshot = cells[0].config.slurm.snapshot
    code = take_snapshot(folder / "slurm", without=folder) if snapshot else REPOSITORY
    executor = _executor(request, cells, code)
    jobs = []
    for cell in cells:
        file = config_file(cell.config, cell.run_dir)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, to_yaml(cell.config).encode())
        jobs.append(Job(str(cell.run_dir), str(file), str(code), cell.config.slurm.max_requeues))
    facts = {"cluster": "slurm", "host": socket.gethostname(), "submitted": time.time(), "code": str(code)}
    facts["argv"] = [sys.argv[0], "sweep", *argv]
    sent.announce(folder, {cell.name: {**facts, "config": job.config} for cell, job in zip(cells, jobs, strict=True)})
    ids = submit_all(jobs, executor)
    sent.confirm(folder, ids)
    return ids[0].partition("_")[0]


def _threads(recorded: dict[str, object]) -> dict[str, object]:
    """Those of cells that were trained on one machine."""
    return {key: recorded[key] for key in ("threads_per_rank",) if key in recorded}


def _tell(request: Request, cell: Cell, count: int, job_id: str) -> None:
    slurm, here, folder = cell.config.slurm, typed("slurm"), request.folder
    at_a_time = f", {request.parallel} at a time" if request.parallel else ""
    print(
        f"submitted job {job_id} ({request.name}): {count} cell(s){at_a_time}, each {slurm.nodes} node(s) x "
        f"{ranks_per_node(slurm)} rank(s), {slurm.time} per start; run directories in {folder.absolute()}\n"
        f"  status   {here} status {folder}\n"
        f"  stop     {here} stop {folder}\n"
        f"  resume   the same command again"
    )
