"""Checks before a submission, so that a job does not wait in the queue to fail."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from senet.config.options import Config, DataConfig, SlurmConfig
from senet.config.shares import check_split
from senet.data.stores.choice import look_for_files
from senet.distributed.preemption import steps_between_votes
from senet.errors import ConfigError
from senet.rundir.files import read_json
from senet.rundir.owner import holder, read_owner, refuse_folder, refuse_links
from senet.verbs import typed
from slurm import cluster, nodes
from slurm.gpus import fitting, gpu_findings, ranks_per_node
from slurm.sbatch import make_slurm_executor, minutes, sbatch_environment

_LEAVING_S = 5.0  # from the published checkpoint to the end of the last rank
_LOCAL_FILE_SYSTEMS = {"tmpfs", "ramfs", "ext3", "ext4", "xfs", "btrfs", "overlay", "zfs"}
_SHORT_LIMIT_MIN = 10


@dataclass(frozen=True)
class Finding:
    """One line with value, rule and remedy."""

    refuse: bool
    text: str


def preflight(config: Config, run_dir: Path) -> list[Finding]:
    """All findings, refusals first. Asks SLURM if it answers; writes nothing.

    Raises:
        ConfigError: no script can be made from the options, or this user may not read the run directory.
    """
    refuse_folder(run_dir)
    findings = [*_tasks(config), *_limits(config, run_dir), *_directory(config, run_dir), *owner(run_dir)]
    findings += [*_images(config.data), *(Finding(False, text) for text in nodes.avoided_texts(run_dir))]
    if config.slurm.cluster == "slurm":
        script = make_slurm_executor(config, run_dir, run_dir / "slurm" / "code").text()
        environment, site = sbatch_environment(script), cluster.site()
        findings += [*_memory(config.slurm), *_from_environment(environment)]
        findings += _site(config, run_dir, environment, site)
        if site:
            findings += _test_only(script, environment)
    return sorted(findings, key=lambda finding: not finding.refuse)


def _tasks(config: Config) -> Iterator[Finding]:
    slurm = config.slurm
    ranks = ranks_per_node(slurm)
    try:
        check_split(config, slurm.nodes * ranks)
    except ConfigError as error:
        yield Finding(True, f"{error}{fitting(config)}")
    if slurm.cluster == "local" and slurm.nodes > 1:
        yield Finding(True, f"slurm.nodes={slurm.nodes} with slurm.cluster=local, which has one machine; use 1")
    if slurm.cluster == "local" and slurm.setup:
        yield Finding(True, "slurm.setup with slurm.cluster=local is not supported; run those lines in your shell")
    yield from (Finding(*found) for found in gpu_findings(slurm, config.train.device))


def _images(data: DataConfig) -> Iterator[Finding]:
    """Files that this machine does not see: the nodes may."""
    try:
        look_for_files(data)
    except (ConfigError, OSError) as error:
        yield Finding(False, f"{error}; the job will fail unless its nodes see them")


def _limits(config: Config, run_dir: Path) -> Iterator[Finding]:
    slurm = config.slurm
    limit_min, lead_s = minutes(slurm.time), slurm.signal_lead_s
    if lead_s >= 60 * limit_min:
        yield Finding(
            True,
            f"slurm.signal_lead_s={lead_s} is not less than slurm.time={slurm.time} ({60 * limit_min} s): "
            f"the job would be told to stop as it starts; lower the first or raise the second",
        )
    elif limit_min <= _SHORT_LIMIT_MIN and slurm.cluster == "slurm":
        yield Finding(
            False,
            f"slurm.time={slurm.time}: of {60 * limit_min} s the start takes some 20 and slurm.signal_lead_s={lead_s}, "
            f"and SLURM may send that signal up to 60 s early; little time is left for training",
        )
    if (needed_s := _stop_s(config, run_dir)) and lead_s < 2 * needed_s:
        yield Finding(
            False,
            f"slurm.signal_lead_s={lead_s}: the last run here needed {needed_s:.0f} s to stop (two steps, a save, "
            f"the exit); use at least {2 * needed_s:.0f}",
        )


def _stop_s(config: Config, run_dir: Path) -> float:
    """Seconds from the signal to the end of the last rank, as an earlier run here measured them; 0: none did."""
    status = read_json(run_dir / "status.json")
    if not status.get("images_per_s"):
        return 0.0
    step_s = config.train.global_batch_size / float(status["images_per_s"])
    steps = 2 * steps_between_votes(config.slurm.nodes * ranks_per_node(config.slurm))
    return steps * step_s + float(status.get("save_s", 0)) + _LEAVING_S


def _directory(config: Config, run_dir: Path) -> Iterator[Finding]:
    try:
        refuse_links(run_dir)
    except ConfigError as error:
        yield Finding(True, str(error))
    if "%" in str(run_dir):
        yield Finding(True, f"run_dir={run_dir}: SLURM replaces % in paths; choose a name without it")
    if not Path(config.run_dir).is_absolute():
        yield Finding(False, f"run_dir={config.run_dir} is relative; the job uses {run_dir}")
    if config.slurm.cluster == "local":
        return
    temporary = (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", "/run")
    kind = _file_system(run_dir)
    if any(run_dir.is_relative_to(folder) for folder in temporary) or kind in _LOCAL_FILE_SYSTEMS:
        yield Finding(
            False,
            f"run_dir={run_dir} looks local to this machine ({kind}): every node, and that on which a requeued job "
            f"starts, must see it; use a shared file system",
        )


def _file_system(path: Path) -> str:
    """Type of the file system that a path lies on or would lie on."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    device = existing.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return "unknown file system"


def owner(run_dir: Path) -> Iterator[Finding]:
    """A job that is queued for the run directory, or a run that holds it."""
    submitted = read_json(run_dir / "slurm" / "job.json")
    if submitted:
        try:
            state = cluster.state_of(submitted).word
        except cluster.NoAnswer as error:
            text = f"whether job {submitted['job']} still waits or runs is not known ({error})"
            yield Finding(True, f"run_dir={run_dir}: {text}; try again, or choose another run_dir")
            return
        if state in cluster.ACTIVE:
            yield Finding(
                True,
                f"run_dir={run_dir} belongs to job {submitted['job']}, which is {state}; wait for it, stop it "
                f"({typed('slurm')} stop {shlex.quote(str(run_dir))}), or choose another run_dir",
            )
            return
        if state and read_owner(run_dir).get("job") == submitted["job"]:  # with a full disk it could not release it
            return
    who, certain = holder(run_dir)
    if who and certain:
        yield Finding(True, f"run_dir={run_dir} is owned by a run that is alive ({who}); stop it, or choose another")
    elif who:
        text = f"run_dir={run_dir} was last held by a run that may be alive ({who})"
        yield Finding(False, f"{text}; if it is still alive when the job starts, the job is refused")


def _memory(slurm: SlurmConfig) -> Iterator[Finding]:
    by_name = {key.replace("_", "-"): (f"slurm.sbatch.{key}", value) for key, value in slurm.sbatch.items()}
    for name, value in (
        ("slurm.mem", slurm.mem),
        *(by_name[name] for name in ("mem-per-cpu", "mem-per-gpu", "tmp") if name in by_name),
    ):
        if re.fullmatch(r"[1-9]\d*", str(value)):
            yield Finding(True, f"{name}={value} is {value} MB to SLURM; say which unit is meant: {value}G or {value}M")
        elif value and not re.fullmatch(r"0|\d+[KMGT]B?", str(value), re.IGNORECASE):
            yield Finding(True, f"{name}={value} is no size to SLURM; use a whole number and a unit, e.g. 64G")


def _from_environment(environment: dict[str, str]) -> Iterator[Finding]:
    """``environment`` has only those SBATCH_* that no option of the job replaces."""
    for name, value in environment.items():
        if name.startswith("SBATCH_"):
            yield Finding(False, f"{name}={value} in the environment applies to this job; unset it if it should not")
    if others := os.environ.get("SLURM_CLUSTERS"):
        yield Finding(False, f"SLURM_CLUSTERS={others} in the environment is ignored; submit on a host of that cluster")


def _site(config: Config, run_dir: Path, environment: dict[str, str], site: dict[str, str]) -> Iterator[Finding]:
    if not site:
        yield Finding(False, "scontrol does not answer here: partition, account, KillWait, GraceTime are not checked")
        return
    slurm, known = config.slurm, cluster.partitions()
    default = next((name for name, fields in known.items() if fields.get("Default") == "YES"), "")
    wanted = slurm.partition or environment.get("SBATCH_PARTITION", default)
    names = [name for name in wanted.split(",") if name]  # of several, SLURM takes the one that is free first
    if unknown := [name for name in names if name not in known]:
        text = f"slurm.partition={wanted}: {', '.join(unknown)} does not exist"
        yield Finding(True, f"{text}; this cluster has {', '.join(sorted(known))}")
        return
    if slurm.account and (accounts := cluster.accounts()) and slurm.account not in accounts:
        text = f"slurm.account={slurm.account} is not among the accounts that you may use"
        yield Finding(True, f"{text}: {', '.join(sorted(accounts))}")
    for partition in map(known.__getitem__, names):
        if partition.get("MaxTime", "UNLIMITED")[:1].isdigit() and minutes(slurm.time) > minutes(partition["MaxTime"]):
            yield Finding(
                True,
                f"slurm.time={slurm.time} is more than MaxTime={partition['MaxTime']} of partition "
                f"{partition['PartitionName']}; lower it: a run that needs longer is requeued by itself",
            )
        yield from _preemption(site, partition, _stop_s(config, run_dir))


def _test_only(script: str, environment: dict[str, str]) -> Iterator[Finding]:
    """SLURM's own check, which knows qos, constraint, reservation, and what the nodes have."""
    try:
        done = cluster.ask("sbatch", "--test-only", text=script, environment=environment)
    except (cluster.NoAnswer, OSError):  # no command or no answer: the submission will report it
        return
    words = " ".join(done.stderr.split()).removeprefix("allocation failure: ")
    if done.returncode and re.search("node configuration is not available|nodes are busy|not available now", words):
        text = "; either no node has what is asked for, or those that have it are down: the job may wait for ever"
        yield Finding(False, f"sbatch --test-only: {words}{text}")
    elif done.returncode:
        yield Finding(True, f"sbatch refuses the job: {words}{nodes.unknown_name(words, script)}")


def _preemption(site: dict[str, str], partition: dict[str, str], needed_s: float) -> Iterator[Finding]:
    """The time that a job of this partition has to save when it is preempted."""
    mode = partition.get("PreemptMode", "OFF")
    if site.get("PreemptType", "preempt/none") == "preempt/none" or mode in ("OFF", "GANG"):
        return
    kill_wait_s = int(site.get("KillWait", "30").split()[0])
    grace_s = int(partition.get("GraceTime", "0")) or kill_wait_s
    needed_s = needed_s or _LEAVING_S
    if grace_s < 2 * needed_s:
        yield Finding(
            False,
            f"partition {partition['PartitionName']} gives {grace_s} s at a preemption "
            f"(GraceTime={partition['GraceTime']}, KillWait={kill_wait_s}), a stop may take {2 * needed_s:.0f} s: "
            f"what is not saved by then is repeated; lower checkpoint.every_steps",
        )
    if mode == "CANCEL":
        text = "has PreemptMode=CANCEL: only a job that has saved within its GraceTime requeues itself; any other ends"
        yield Finding(False, f"partition {partition['PartitionName']} {text}, and must be submitted again")
