"""A submission: checked, the snapshot taken, sent to SLURM. Does not import torch."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from senet import REPOSITORY
from senet.config.load import to_yaml
from senet.config.options import HUBS, Config
from senet.errors import ConfigError
from senet.notify import target
from senet.rundir.files import replace_file, write_json
from senet.rundir.locks import StillHeld, lock
from slurm.job import Job
from slurm.preflight import Finding, owner, preflight
from slurm.sbatch import send
from slurm.snapshot import config_file, take_snapshot


def check(config: Config) -> list[Finding]:
    """What there is to warn of before the submission.

    Raises:
        ConfigError: what preflight refuses, or there is no SLURM here.
    """
    if config.notify and config.slurm.cluster == "local":
        raise ConfigError("notify= is sent by a batch script, and slurm.cluster=local has none; leave notify out")
    target(config.notify)
    findings = preflight(config, Path(config.run_dir).absolute())
    refuse(findings)
    if config.slurm.cluster == "slurm":
        require_sbatch()
    return findings


def require_sbatch() -> None:
    """ConfigError where it is not installed."""
    if shutil.which("sbatch") is None:
        raise ConfigError("there is no sbatch here; use a login node, or slurm.cluster=local for this machine alone")


def refuse(findings: Sequence[Finding]) -> None:
    """Raise ConfigError for the first that is a refusal."""
    if refused := [finding.text for finding in findings if finding.refuse]:
        raise ConfigError(refused[0])


def submit(config: Config, argv: Sequence[str]) -> str:
    """Make the run directory, and submit; returns the job's id.

    Raises:
        ConfigError: the folder cannot be made, another job has it, or sbatch refuses.
    """
    run_dir = Path(config.run_dir)
    folder = run_dir / "slurm"
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir={run_dir} cannot be created ({error.strerror}); name another folder") from None
    try:
        with lock(folder / ".submit.lock", patience_s=60):
            refuse([*owner(run_dir)])  # another submission may have come first
            try:
                return _send(config, run_dir, argv)
            except ConfigError:
                _remove(made)
                raise
    except StillHeld as error:
        raise ConfigError(f"{error}; if it has ended, delete that file and try again") from None


def _remove(made: list[Path]) -> None:
    """Remove the folders that a refused submission has made, the innermost first."""
    if made:
        shutil.rmtree(made[0])
    for parent in made[1:]:
        with contextlib.suppress(OSError):  # no longer empty
            parent.rmdir()


def resolve(config: Config) -> Config:
    """Absolute paths, since the job runs in another folder."""

    def absolute(path: str) -> str:
        return str(Path(path).absolute()) if path and not path.startswith(HUBS) else path

    root, folder, table = map(absolute, (config.data.root, config.data.folder, config.data.table))
    data = dataclasses.replace(config.data, root=root, folder=folder, table=table)
    model = dataclasses.replace(config.model, init_from=absolute(config.model.init_from))
    mode = config.resume.mode
    resume = dataclasses.replace(config.resume, mode=mode if mode in ("auto", "never") else absolute(mode))
    return dataclasses.replace(config, run_dir=absolute(config.run_dir), data=data, model=model, resume=resume)


def _send(config: Config, run_dir: Path, argv: Sequence[str]) -> str:
    """Submit, and record the job in ``job.json``; returns its id."""
    folder = run_dir / "slurm"
    code = take_snapshot(folder, without=run_dir) if config.slurm.snapshot else REPOSITORY
    file = config_file(config, run_dir)
    replace_file(file, to_yaml(config).encode())
    job = Job(run_dir=str(run_dir), config=str(file), code=str(code), max_requeues=config.slurm.max_requeues)
    job_id = send(job, config, run_dir, code)
    facts = {"job": job_id, "cluster": config.slurm.cluster, "host": socket.gethostname(), "submitted": time.time()}
    write_json(folder / "job.json", facts | {"argv": [sys.argv[0], *argv], "code": str(code), "config": str(file)})
    return job_id
