"""From the options to a batch script or a local job, submitted by submitit."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from senet import REPOSITORY
from senet.config.options import Config, SlurmConfig
from senet.distributed.environment import CORES_VARIABLE, MALLOC
from senet.errors import ConfigError
from slurm.check import check_ranks
from slurm.gpus import binding, gpus_per_node, ranks_per_node
from slurm.job import Job
from slurm.nodes import exclude, unknown_name
from slurm.ports import free_port
from slurm.process import only_environment, silent
from slurm.snapshot import config_file
from slurm.starts import launch_variables, may_shrink

# sbatch options that this project sets itself -> what to use instead
_OWN = {
    **{name: f"slurm.{name}" for name in ("partition", "account", "qos", "constraint", "time", "nodes", "mem")},
    "gpus-per-node": "slurm.gpus_per_node",
    "cpus-per-task": "slurm.cpus_per_task",
    "ntasks-per-node": "slurm.ranks_per_node",
    "ntasks": "slurm.nodes and slurm.ranks_per_node",
    "signal": "slurm.signal_lead_s",
    "chdir": "slurm.snapshot",
    **dict.fromkeys(
        ("array", "requeue", "no-requeue", "output", "error", "open-mode", "wait", "wrap", "parsable", "no-kill"), ""
    ),
    "clusters": "",  # status, stop and requeue ask the cluster of the login node
}
# SBATCH_* variables whose names differ from their options
_OPTIONS = {"timelimit": "time", "array-inx": "array", "mem-per-node": "mem"}
_EXCLUDE_EACH_OTHER = (
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"gpus", "gpus-per-node", "gpus-per-task"},
    {"cpus-per-task", "cpus-per-gpu"},
)


class SlurmExecutor(submitit.SlurmExecutor):
    """Can make its batch script where there is no srun, too."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    def text(self) -> str:
        """The batch script."""
        return self._make_submission_file_text(self._submitit_command_str, "")


def minutes(text: str) -> int:
    """Minutes, rounded up, of ``90m``, ``8h``, ``2d`` or ``[days-]hours:minutes:seconds``.

    Raises:
        ConfigError: anything else; also a number without a unit, since SLURM and people read it differently.
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)", text):
        seconds = float(found[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}[found[2]]
    elif found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, mins, secs = (int(part or 0) for part in found.groups())
        seconds = days * 86_400 + hours * 3600 + mins * 60 + secs
    else:
        raise ConfigError(f"slurm.time={text!r}: write 90m, 8h, 2d, or hours:minutes:seconds")
    if seconds <= 0:
        raise ConfigError(f"slurm.time={text!r} must be more than 0, e.g. 8h")
    return math.ceil(seconds / 60)


def send(job: Job, config: Config, run_dir: Path, code: Path) -> str:
    """Submit the job; returns its id.

    Raises:
        ConfigError: an sbatch option that this project sets itself, or sbatch refused.
    """
    if config.slurm.cluster == "slurm":
        [job_id] = submit_all([job], make_slurm_executor(config, run_dir, code))
        return job_id
    variables = environment(config.slurm, code)
    variables["PYTHONPATH"] = ":".join(filter(None, (variables["PYTHONPATH"], os.environ.get("PYTHONPATH"))))
    # the tasks inherit the environment of this process
    os.environ |= variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with contextlib.chdir(code), silent():
        submitted = _make_local_executor(config, run_dir).submit(job)
    _keep_closed(submitted)
    return submitted.job_id


def submit_all(jobs: Sequence[Job], executor: SlurmExecutor) -> list[str]:
    """Submit the jobs, several as one array; returns the id of each. Raises ConfigError where sbatch refuses."""
    script = executor.text()
    try:
        # submitit prints what it raises
        with only_environment(sbatch_environment(script)), contextlib.redirect_stderr(io.StringIO()):
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
            ids = [each.job_id for each in submitted]
    except FailedJobError as error:
        raise refusal(str(error), script) from None
    finally:
        for path in executor.folder.iterdir():  # submitit does not remove its temporary files
            if re.fullmatch(r"\.submission_file_\w+\.sh|[0-9a-f]{32}\.pkl", path.name):
                path.unlink()
    for each in submitted:
        _keep_closed(each)
    return ids


def _keep_closed(job: submitit.Job[None]) -> None:
    """Who can write the pickle can run code as this user."""
    job.paths.submitted_pickle.chmod(0o600)


def refusal(said: str, script: str) -> ConfigError:
    """Why sbatch has not taken a batch script, from what it said."""
    words = " ".join(said.split())
    if re.search("configuration source|Unable to contact slurm controller", words):
        return ConfigError(
            f"no SLURM controller answers here, so nothing was submitted ({words.rpartition('sbatch: ')[2]}); "
            f"use a login node of the cluster, or slurm.cluster=local for this machine alone"
        )
    if "timed out" in words.lower():
        words += "; SLURM may have accepted it: look with squeue before you submit again"
    return ConfigError(f"sbatch refused the job: {words}{unknown_name(words, script)}")


def sbatch_environment(script: str) -> dict[str, str]:
    """The variables for sbatch. Left out are those of a job in which the user submits, whose size and restarts the new
    job would inherit, and SBATCH_* that would override a line of the script or a setting that the job depends on.
    (submitit's clean_env would also remove SLURM_CONF and the user's other defaults in SBATCH_*.)
    """
    asked = set(re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE))
    for group in _EXCLUDE_EACH_OTHER:
        asked |= group if group & asked else set()
    asked |= {name for name, instead in _OWN.items() if not instead}

    def is_kept(name: str) -> bool:
        if name.startswith("SBATCH_"):
            option = name.removeprefix("SBATCH_").lower().replace("_", "-")
            return _OPTIONS.get(option, option) not in asked
        return name == "SLURM_CONF" or not name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_"))

    return {name: value for name, value in os.environ.items() if is_kept(name)}


def make_slurm_executor(config: Config, run_dir: Path, code: Path) -> SlurmExecutor:
    """submitit's executor, its files in ``run_dir/slurm``. Raises ConfigError as ``send``."""
    slurm = config.slurm
    executor = SlurmExecutor(run_dir / "slurm", python=python_command(slurm))
    passed, shrinks = _passed_through(slurm), may_shrink(config)
    own = {"requeue": True, "chdir": str(code)} | ({"no-kill": True} if shrinks else {})
    executor.update_parameters(
        job_name=run_dir.name,
        partition=slurm.partition or None,
        account=slurm.account or None,
        qos=slurm.qos or None,
        constraint=slurm.constraint or None,
        time=minutes(slurm.time),
        nodes=slurm.nodes,
        ntasks_per_node=ranks_per_node(slurm),
        gpus_per_node=slurm.gpus_per_node if slurm.gpus_per_node != "0" else None,
        cpus_per_task=slurm.cpus_per_task or None,
        mem=slurm.mem or None,
        signal_delay_s=slurm.signal_lead_s,
        stderr_to_stdout=True,  # one log per rank
        wckey=None,  # submitit's default would be refused by sites that check keys
        # else sbatch's --export=NONE would apply to the ranks too, which need MASTER_ADDR and more
        srun_args=["--kill-on-bad-exit=1", "--export=ALL", *(["--no-kill"] if shrinks else [])],
        additional_parameters=passed | exclude(run_dir, passed) | binding(slurm) | own,
        setup=_setup(config, run_dir, code),
        teardown=["finish"],
    )
    return executor


def _make_local_executor(config: Config, run_dir: Path) -> submitit.LocalExecutor:
    slurm = config.slurm
    executor = submitit.LocalExecutor(run_dir / "slurm", python=python_command(slurm))
    executor.update_parameters(
        timeout_min=minutes(slurm.time),
        tasks_per_node=ranks_per_node(slurm),
        gpus_per_node=gpus_per_node(slurm),
        signal_delay_s=slurm.signal_lead_s,
        stderr_to_stdout=True,
    )
    return executor


def command_line(slurm: SlurmConfig, run_dir: Path) -> str:
    """What each task runs."""
    return f"{python_command(slurm)} -u -m submitit.core._submit {shlex.quote(str(run_dir / 'slurm'))}"


def python_command(slurm: SlurmConfig) -> str:
    return slurm.python or shlex.quote(sys.executable)


def environment(slurm: SlurmConfig, code: Path) -> dict[str, str]:
    """Variables of the job besides those of the submitting shell; PYTHONPATH is put before that shell's."""
    cwd = Path.cwd()
    # the user's own modules in the working directory; those of the checkout come from the snapshot
    paths = [code] if cwd == REPOSITORY else [code, cwd]
    own = {name: os.environ.get(name, value) for name, value in MALLOC.items()}
    own[CORES_VARIABLE] = str(slurm.cpus_per_task)
    return {**own, **slurm.environment, "PYTHONPATH": ":".join(str(path) for path in paths)}


def _passed_through(slurm: SlurmConfig) -> dict[str, Any]:
    flags = {}
    for key, value in slurm.sbatch.items():
        name = key.replace("_", "-")
        if name in _OWN:
            instead = f"use {_OWN[name]}" if _OWN[name] else "the job depends on its own setting of it"
            raise ConfigError(f"slurm.sbatch.{key}={value} cannot be passed to sbatch; {instead}")
        if value is not False:
            flags[name] = value
    return flags


def _setup(config: Config, run_dir: Path, code: Path) -> list[str]:
    slurm = config.slurm
    variables = {name: shlex.quote(value) for name, value in environment(slurm, code).items()}
    variables["PYTHONPATH"] += "${PYTHONPATH:+:$PYTHONPATH}"
    variables |= {name: shlex.quote(value) for name, value in launch_variables(config, run_dir).items()}
    return [
        *slurm.setup,
        *(f"export {name}={value}" for name, value in variables.items()),
        f'run_python() {{ {python_command(slurm)} "$@"; }}',
        *([check_ranks(python_command(slurm), shlex.quote(str(config_file(config, run_dir))))] if slurm.check else []),
        f"source {shlex.quote(str(code / 'slurm/batch.sh'))} || exit 1",
    ]
