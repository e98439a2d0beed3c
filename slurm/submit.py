"""Submit a training to SLURM, show its status, stop it: ``python slurm/submit.py --help``. Does not import torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import shlex

from senet import REPOSITORY
from senet.command import end
from senet.config.load import load_config
from senet.config.manual import asked, group_help, help_text
from senet.config.recipes import with_recipe
from senet.errors import ConfigError, did_you_mean
from senet.verbs import QUICKSTART, default_recipe, typed
from slurm import submission
from slurm.control import clear, status, stop
from slurm.doctor import doctor
from slurm.drill import drill
from slurm.gpus import ranks_per_node
from slurm.preflight import preflight
from slurm.sbatch import command_line, make_slurm_executor
from slurm.sweep import sweep

_USAGE = """\
usage: {here} [--dry-run] [FILE.yaml ...] [key=value ...]
       {here} sweep [--dry-run] [FILE.yaml ...] [key=value[,value ...] ...] sweep.name=NAME
       {here} status [RUN_DIR ...]
       {here} stop RUN_DIR
       {here} clear RUN_DIR
       {here} doctor [--json] [FILE.yaml ...] [key=value ...]
       {here} drill [FILE.yaml ...] [key=value ...] [drill.steps=60]

Submit a training; the same command again resumes. Without a file: {recipe}.
  --dry-run     print the checks, the sbatch script and the launch line; submit nothing
  --quickstart  take {quickstart} where no file is named; launch.sh adds it
  sweep         one array: a training for each combination of the values; {sweep} --help tells more
  status        what SLURM and the run itself say; without RUN_DIR: of all in runs/
  stop          save, end, and do not requeue
  clear         avoid no node any more, whatever the checks before earlier starts found
  doctor        look at the nodes asked for, by a job of a minute that is waited for
  drill         whether the training ends with the same bits when its jobs are requeued

Options of the training: {train} --help. Exit code: 0 done, 1 failed, 2 bad input. Those of the job:

{options}"""


def submit(argv: Sequence[str]) -> None:
    """Check, take the snapshot, submit, and print the commands that follow.

    Raises:
        ConfigError: bad options, or what preflight or SLURM refuses.
    """
    given = load_config(argv)
    for finding in submission.check(given):
        _say(f"warning: {finding.text}")
    config = submission.resolve(given)
    run_dir = Path(config.run_dir)
    job_id = submission.submit(config, argv)
    log = run_dir / "slurm" / f"{job_id}_0_log.out"
    slurm, here = config.slurm, typed("slurm")
    print(
        f"submitted job {job_id} ({run_dir.name}): {slurm.nodes} node(s) x {ranks_per_node(slurm)} rank(s), "
        f"{slurm.time} per start; run directory {run_dir}\n"
        f"  log      {shlex.quote(str(log))}   (other ranks: _1_log.out, ...)\n"
        f"  follow   {typed('follow')} {shlex.quote(given.run_dir)}\n"
        f"  status   {here} status {shlex.quote(given.run_dir)}\n"
        f"  stop     {here} stop {shlex.quote(given.run_dir)}\n"
        f"  resume   the same command again"
    )


def show(argv: Sequence[str]) -> None:
    """What would be checked, submitted and started. Raises as ``submit``."""
    given = load_config(argv)
    config = submission.resolve(given)
    run_dir = Path(config.run_dir)
    findings = preflight(given, run_dir)
    print("# preflight")
    for finding in findings:
        print(f"{'refused' if finding.refuse else 'warning'}: {finding.text}")
    code = run_dir / "slurm" / "code-HASH" if config.slurm.snapshot else REPOSITORY
    if config.slurm.cluster == "local":
        print(f"\n# launch line, in {ranks_per_node(config.slurm)} process(es)\n{command_line(config.slurm, run_dir)}")
    else:
        script = make_slurm_executor(config, run_dir, code).text()
        launch = next(line for line in reversed(script.splitlines()) if line.startswith("srun "))
        print(f"\n# sbatch script\n{script}\n\n# launch line of the script\n{launch}")
    submission.refuse(findings)


def main(argv: Sequence[str]) -> int:
    """Submit, or what the first word says."""
    arguments = [each for each in argv if each not in ("--dry-run", "--quickstart")]
    first = arguments[0] if arguments else ""
    if first in ("drill", "doctor"):
        command = drill if first == "drill" else doctor
        return command([each for each in argv if each != first], _say)
    if (topics := asked(argv)) is not None:
        print(help_text(topics) if topics else _usage())
    elif first == "sweep":
        return sweep(arguments[1:], _say, dry_run="--dry-run" in argv, quickstart="--quickstart" in argv)
    elif first == "status":
        status(arguments[1:])
    elif first == "stop":
        stop(arguments[1:])
    elif first == "clear":
        clear(arguments[1:])
    elif first.isalpha() and (near := did_you_mean(first, ["status", "stop", "clear", "doctor", "drill", "sweep"])):
        raise ConfigError(f"argument {first!r} is neither a command nor key=value nor a YAML file; {near}")
    else:
        if (count := os.environ.get("RESTARTS", "0")) != "0":
            _say(f"warning: RESTARTS={count} is for trainings without SLURM; a job has slurm.max_restarts={count}")
        if "--quickstart" in argv:
            arguments = with_recipe("slurm", arguments, _say)
        (show if "--dry-run" in argv else submit)(arguments)
    return 0


def _usage() -> str:
    return _USAGE.format(
        here=typed("slurm"),
        train=typed("train"),
        sweep=typed("sweep"),
        options=group_help("slurm"),
        recipe=default_recipe(),
        quickstart=QUICKSTART,
    )


def _say(what: str) -> None:
    print(f"slurm: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    end("slurm", main)
