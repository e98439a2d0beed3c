"""One rank of the check before a start: SLURM's variables become torchrun's, and the process becomes the doctor's.

python -m slurm.check_rank ...        the arguments of senet.doctor
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping


def torchruns_variables(task: Mapping[str, str]) -> dict[str, str]:
    """RANK and its like, from what SLURM sets for a task of a job with as many tasks on each node."""
    ranks = int(task["SLURM_NTASKS"])
    return {
        "RANK": task["SLURM_PROCID"],
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": task["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(ranks // int(task["SLURM_JOB_NUM_NODES"])),
    }


if __name__ == "__main__":
    command = [sys.executable, "-m", "senet.doctor", *sys.argv[1:]]
    os.execve(sys.executable, command, os.environ | torchruns_variables(os.environ))
