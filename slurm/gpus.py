"""GPUs and ranks per node, whichever of SLURM's options ask for them, and what is wrong with their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from senet.config.options import Config, SlurmConfig
from senet.config.shares import most_ranks
from senet.errors import ConfigError


def gpus_per_node(slurm: SlurmConfig) -> int:
    """GPUs on each node: of slurm.gpus_per_node, 4 or a100:4, or of slurm.sbatch.gres, gpus, gpus_per_task.

    Raises:
        ConfigError: slurm.gpus_per_node is no such number.
    """
    parts = slurm.gpus_per_node.split(",")
    if not all(re.fullmatch(r"([A-Za-z][\w.-]*:)?\d{1,4}", part) for part in parts):
        raise ConfigError(
            f"slurm.gpus_per_node={slurm.gpus_per_node}: write how many, with a type in front if the site has several: "
            f"4 or a100:4"
        )
    options = _options(slurm)
    per_task = _sum(options.get("gpus-per-task", "")) + _sum(options.get("tres-per-task", ""), "gres[/:]gpu")
    return (
        _sum(slurm.gpus_per_node)
        or _sum(options.get("gres", ""), "gpu(:|$)")
        or _sum(options.get("gpus", "")) // slurm.nodes
        or per_task * (slurm.ranks_per_node or 1)
    )


def ranks_per_node(slurm: SlurmConfig) -> int:
    """Tasks on each node; each task is a rank."""
    return slurm.ranks_per_node or max(1, gpus_per_node(slurm))


def fitting(config: Config) -> str:
    """For the end of a line that refuses ranks that do not divide train.shards: what would. Empty if they do."""
    slurm, train = config.slurm, config.train
    each = ranks_per_node(slurm)
    if not train.shards or train.shards % (slurm.nodes * each) == 0:
        return ""
    fewer = most_ranks(config, each)
    nodes = max(n for n in range(1, slurm.nodes + 1) if train.shards % (n * fewer) == 0)
    by_gpus = not slurm.ranks_per_node and slurm.gpus_per_node == str(each)
    return f"; slurm.nodes={nodes} slurm.{'gpus' if by_gpus else 'ranks'}_per_node={fewer} fits"


def binding(slurm: SlurmConfig) -> dict[str, Any]:
    """More sbatch options if GPUs are requested per task: else each task could use only its own, and NCCL could not
    reach those of the others. Newer versions of SLURM also require the number of tasks."""
    options = _options(slurm)
    if not options.keys() & {"gpus-per-task", "tres-per-task"}:
        return {}
    bound = {} if options.keys() & {"gpu-bind", "tres-bind"} else {"gpu-bind": "none"}
    return bound | {"ntasks": slurm.nodes * ranks_per_node(slurm)}


def gpu_findings(slurm: SlurmConfig, device: str) -> Iterator[tuple[bool, str]]:
    """Problems that are known before: whether to refuse the job, and a line."""
    gpus, ranks, options = gpus_per_node(slurm), ranks_per_node(slurm), _options(slurm)
    if device == "cpu":
        if gpus:
            yield False, f"{gpus} GPU(s) per node are asked for, but train.device=cpu leaves them idle"
        return
    if device == "cuda" and not gpus and not any(name.startswith(("gres", "gpus", "tres")) for name in options):
        yield True, "train.device=cuda, but slurm.gpus_per_node=0; set it to the GPUs of a node"
    if 0 < gpus < ranks:
        yield (
            True,
            f"slurm.ranks_per_node={ranks} is more than the {gpus} GPU(s) of a node: two ranks cannot share a GPU; use "
            f"{gpus}, or train.device=cpu",
        )
    if gpus > ranks:
        yield False, f"slurm.ranks_per_node={ranks}, but {gpus} GPUs per node: {gpus - ranks} of each stay idle"
    if gpus and not slurm.cpus_per_task and "cpus-per-gpu" not in options:
        yield (
            False,
            "slurm.cpus_per_task=0: each rank gets the site's default, often one core, and a GPU may wait for it; set "
            "a node's cores divided by its GPUs, e.g. slurm.cpus_per_task=8",
        )
    bound = options.get("gpu-bind", "none")
    if bound != "none" and ranks * slurm.nodes > 1:
        yield (
            False,
            f"slurm.sbatch.gpu_bind={bound}: where SLURM confines tasks by control groups, NCCL cannot reach the GPU "
            f"of another rank; without it each rank takes the GPU of its local rank",
        )


def _options(slurm: SlurmConfig) -> dict[str, str]:
    return {name.replace("_", "-"): str(value) for name, value in slurm.sbatch.items()}


def _sum(text: str, kind: str = "") -> int:
    """``4``, ``a100:4``, ``a100:2,v100:2``, ``gpu:4(S:0)``, ``cpu=8,gres/gpu=4`` -> 4; 1 where a name stands alone."""
    counts = [
        re.split(r"[:=]", part.partition("(")[0])[-1] for part in text.split(",") if part and re.match(kind, part)
    ]
    return sum(int(count) if count.isdecimal() else 1 for count in counts)
