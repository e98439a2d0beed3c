"""``slurm doctor``: the check of the nodes as a short job of its own. Prints what it waits for, then the table."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from senet import REPOSITORY
from senet.command import Parser, printable
from senet.config.load import load_config, to_yaml
from senet.config.options import Config
from senet.config.recipes import with_recipe
from senet.errors import FAILED_EXIT_CODE, ConfigError, RunError
from senet.rundir.files import read_json
from senet.verbs import typed
from slurm import attend, cluster, submission
from slurm.sbatch import make_slurm_executor, refusal, sbatch_environment
from slurm.snapshot import config_file

_TIME = "5m"


def doctor(argv: Sequence[str], say: Callable[[str], None]) -> int:
    """0: nothing is wrong or late; 1: something is.

    Raises:
        ConfigError: bad options, or SLURM refuses the job.
        RunError: the job ended without a result.
    """
    options = _parser().parse_intermixed_args(argv)
    config = load_config(with_recipe("slurm doctor", options.words, say) if options.quickstart else options.words)
    if config.slurm.cluster == cluster.LOCAL:
        raise ConfigError(f"slurm.cluster=local has no nodes; use {typed('doctor')} with the same words")
    submission.require_sbatch()
    config = submission.resolve(config)
    config = replace(config, slurm=replace(config.slurm, time=_TIME, signal_lead_s=1, check=True))
    attend.end_on_signals()
    scratch = attend.scratch_folder(Path(config.run_dir), "doctor")
    try:
        job_id = _submit(config, scratch)
        try:
            _wait(job_id, say)
        except BaseException:
            attend.cancel(job_id, say)
            raise
        return _show(job_id, scratch / "slurm", as_json=options.json)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _submit(config: Config, scratch: Path) -> str:
    """The batch script of a training, which ends after the check; returns the job's id."""
    (scratch / "slurm").mkdir()
    config_file(config, scratch).write_text(to_yaml(config))
    executor = make_slurm_executor(config, scratch, REPOSITORY)
    executor.update_parameters(setup=[*executor.parameters["setup"], "run_check; exit"])
    script = executor.text()
    done = cluster.ask("sbatch", "--parsable", text=script, environment=sbatch_environment(script))
    if done.returncode:
        raise refusal(done.stderr, script)
    return done.stdout.strip().partition(";")[0]  # the name of the cluster may follow


def _wait(job_id: str, say: Callable[[str], None]) -> None:
    told = ""
    while not attend.is_over(state := attend.state_of(job_id)):
        if (text := attend.in_words(state)) != told:
            told = text
            say(f"job {job_id}: {text}")
        time.sleep(attend.POLL_S)


def _show(job_id: str, folder: Path, *, as_json: bool) -> int:
    """Print what the doctor has printed, or its file; returns its exit code."""
    lines = _lines(folder, "*.check.log")
    report = next((read_json(path) for path in sorted(folder.glob("*.check.json"), reverse=True)), {})
    if not report:
        last = next((line for line in reversed([*_lines(folder, "*_log.out"), *lines]) if line.strip()), "no output")
        raise RunError(f"job {job_id} ended without a result; its last line: {printable(last)}")
    print(json.dumps(report, indent=1) if as_json else "\n".join(lines))
    return FAILED_EXIT_CODE if any(each["kind"] != "slow" for each in report["findings"]) else 0


def _lines(folder: Path, names: str) -> list[str]:
    """Of some files, without what srun itself says."""
    text = "".join(path.read_text(errors="replace") for path in sorted(folder.glob(names)))
    return [line for line in text.splitlines() if not line.startswith("srun: ")]


def _parser() -> Parser:
    parser = Parser(
        prog=f"{typed('slurm')} doctor",
        description=f"Looks at nodes that a training with these options would get, by a job of a minute that asks for "
        f"slurm.time={_TIME}. Ctrl-C cancels it. What is checked: {typed('doctor')} --help",
        epilog="Exit code: 0 nothing is wrong, 1 something is or the job failed, 2 bad input.",
    )
    parser.add_argument("words", nargs="*", default=(), metavar="FILE.yaml | key=value", help="as of a submission")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quickstart", action="store_true", help=argparse.SUPPRESS)
    return parser
