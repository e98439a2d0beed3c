"""The commands as a person types them, for usage lines and hints."""

from __future__ import annotations

import os
import shlex
import shutil
import sys


def by_launcher() -> bool:
    """Whether launch.sh started this process."""
    return "SENET_COMMAND" in os.environ


def default_recipe() -> str:
    """What is trained where no YAML file is named."""
    return "configs/quickstart.yaml" if by_launcher() else "configs/cifar10.yaml"


def typed(verb: str) -> str:
    """The start of a command line for a verb: by launch.sh, as it was called, or by Python, as this process was."""
    if by_launcher():
        return f"{shlex.quote(os.environ['SENET_COMMAND'])} {verb}"
    python = "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)
    if verb == "slurm":
        return f"{python} {shlex.quote(sys.argv[0])}"
    return "train_ddp.py" if verb == "train" else f"{python} -m senet.{verb}"
