"""Submit a training to SLURM, show its status, stop it: ``python slurm/submit.py --help``. Does not import torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import contextlib
import dataclasses
import hashlib
import shlex
import shutil
import socket
import time

from senet import REPOSITORY
from senet.command import end
from senet.config.load import load_config, to_yaml
from senet.config.manual import asked, group_help, help_text
from senet.config.options import Config
from senet.config.recipes import with_recipe
from senet.errors import ConfigError, did_you_mean
from senet.rundir.files import replace_file, write_json
from senet.rundir.locks import StillHeld, lock
from senet.verbs import QUICKSTART, default_recipe, typed
from slurm.control import status, stop
from slurm.gpus import ranks_per_node
from slurm.job import Job
from slurm.preflight import Finding, owner, preflight
from slurm.sbatch import command_line, make_slurm_executor, send
from slurm.snapshot import take_snapshot

_USAGE = """\
usage: {here} [--dry-run] [FILE.yaml ...] [key=value ...]
       {here} status [RUN_DIR ...]
       {here} stop RUN_DIR

Submit a training; the same command again resumes. Without a file: {recipe}.
  --dry-run     print the checks, the sbatch script and the launch line; submit nothing
  --quickstart  take {quickstart} where no file is named; launch.sh adds it
  status        what SLURM and the run itself say; without RUN_DIR: of all in runs/
  stop          save, end, and do not requeue

Options of the training: {train} --help. Exit code: 0 done, 1 failed, 2 bad input. Those of the job:

{options}"""


def submit(argv: Sequence[str], *, dry_run: bool) -> None:
    """Check, take the snapshot, submit, and print the commands that follow; with ``dry_run`` only show the script.

    Raises:
        ConfigError: bad options, or what preflight or SLURM refuses.
    """
    given = load_config(argv)
    config = _resolve(given)
    run_dir = Path(config.run_dir)
    findings = preflight(given, run_dir)
    if dry_run:
        _show(config, run_dir, findings)
    _refuse(findings)
    if dry_run:
        return
    if config.slurm.cluster == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("there is no sbatch here; use a login node, or slurm.cluster=local for this machine alone")
    for finding in findings:
        _say(f"warning: {finding.text}")
    folder = run_dir / "slurm"
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir={run_dir} cannot be created ({error.strerror}); name another folder") from None
    try:
        with lock(folder / ".submit.lock", patience_s=60):
            _refuse([*owner(run_dir)])  # another submission may have come first
            try:
                job_id = _submit(config, run_dir, argv)
            except ConfigError:
                _remove(made)
                raise
    except StillHeld as error:
        raise ConfigError(f"{error}; if it has ended, delete that file and try again") from None
    log = folder / f"{job_id}_0_log.out"
    slurm, here = config.slurm, typed("slurm")
    print(
        f"submitted job {job_id} ({run_dir.name}): {slurm.nodes} node(s) x {ranks_per_node(slurm)} rank(s), "
        f"{slurm.time} per start; run directory {run_dir}\n"
        f"  log      tail -F {shlex.quote(str(log))}   (other ranks: _1_log.out, ...)\n"
        f"  status   {here} status {shlex.quote(given.run_dir)}\n"
        f"  stop     {here} stop {shlex.quote(given.run_dir)}\n"
        f"  resume   the same command again"
    )


def _remove(made: list[Path]) -> None:
    """Remove the folders that a refused submission has made, the innermost first."""
    if made:
        shutil.rmtree(made[0])
    for parent in made[1:]:
        with contextlib.suppress(OSError):  # no longer empty
            parent.rmdir()


def _resolve(config: Config) -> Config:
    """Absolute paths, since the job runs in another folder."""

    def absolute(path: str) -> str:
        return str(Path(path).absolute()) if path else ""

    data = dataclasses.replace(config.data, root=absolute(config.data.root), folder=absolute(config.data.folder))
    model = dataclasses.replace(config.model, init_from=absolute(config.model.init_from))
    mode = config.resume.mode
    resume = dataclasses.replace(config.resume, mode=mode if mode in ("auto", "never") else absolute(mode))
    return dataclasses.replace(config, run_dir=absolute(config.run_dir), data=data, model=model, resume=resume)


def _refuse(findings: list[Finding]) -> None:
    if refused := [finding.text for finding in findings if finding.refuse]:
        raise ConfigError(refused[0])


def _show(config: Config, run_dir: Path, findings: list[Finding]) -> None:
    print("# preflight")
    for finding in findings:
        print(f"{'refused' if finding.refuse else 'warning'}: {finding.text}")
    code = run_dir / "slurm" / "code-HASH" if config.slurm.snapshot else REPOSITORY
    if config.slurm.cluster == "local":
        print(f"\n# launch line, in {ranks_per_node(config.slurm)} process(es)\n{command_line(config.slurm, run_dir)}")
        return
    script = make_slurm_executor(config, run_dir, code).text()
    launch = next(line for line in reversed(script.splitlines()) if line.startswith("srun "))
    print(f"\n# sbatch script\n{script}\n\n# launch line of the script\n{launch}")


def _submit(config: Config, run_dir: Path, argv: Sequence[str]) -> str:
    """Submit, and record the job in ``job.json``; returns its id."""
    folder = run_dir / "slurm"
    code = take_snapshot(folder, without=run_dir) if config.slurm.snapshot else REPOSITORY
    resolved = to_yaml(config)
    file = folder / f"config-{hashlib.sha256(resolved.encode()).hexdigest()[:12]}.yaml"
    replace_file(file, resolved.encode())
    job = Job(run_dir=str(run_dir), config=str(file), code=str(code), max_requeues=config.slurm.max_requeues)
    job_id = send(job, config, run_dir, code)
    facts = {"job": job_id, "cluster": config.slurm.cluster, "host": socket.gethostname(), "submitted": time.time()}
    write_json(folder / "job.json", facts | {"argv": [sys.argv[0], *argv], "code": str(code), "config": str(file)})
    return job_id


def main(argv: Sequence[str]) -> int:
    """Submit, or what the first word says."""
    arguments = [each for each in argv if each not in ("--dry-run", "--quickstart")]
    first = arguments[0] if arguments else ""
    if (topics := asked(argv)) is not None:
        print(help_text(topics) if topics else _usage())
    elif first == "status":
        status(arguments[1:])
    elif first == "stop":
        stop(arguments[1:])
    elif first.isalpha() and (near := did_you_mean(first, ["status", "stop"])):
        raise ConfigError(f"argument {first!r} is neither a command nor key=value nor a YAML file; {near}")
    else:
        if "--quickstart" in argv:
            arguments = with_recipe("slurm", arguments, _say)
        submit(arguments, dry_run="--dry-run" in argv)
    return 0


def _usage() -> str:
    return _USAGE.format(
        here=typed("slurm"),
        train=typed("train"),
        options=group_help("slurm"),
        recipe=default_recipe(),
        quickstart=QUICKSTART,
    )


def _say(what: str) -> None:
    print(f"slurm: {what}", file=sys.stderr)


if __name__ == "__main__":
    end("slurm", main)
