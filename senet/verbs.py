"""The commands as a person types them, for usage lines and hints."""

from __future__ import annotations

import os
import shlex
import shutil
import sys

DEFAULT_RECIPE = "configs/cifar10.yaml"
"""What is trained where no YAML file is named."""
QUICKSTART = "configs/quickstart.yaml"
"""The same for launch.sh, which passes it on."""
_ASK_SLURM = ("why", "follow")  # of any run, but they ask SLURM too


def by_launcher() -> bool:
    """Whether hints name launch.sh. A job inherits this variable: nothing else may depend on it."""
    return "SENET_COMMAND" in os.environ


def default_recipe() -> str:
    """What is trained by ``typed("train")`` where no YAML file is named."""
    return QUICKSTART if by_launcher() else DEFAULT_RECIPE


def typed(verb: str) -> str:
    """The start of a command line for a verb: by launch.sh, as it was called, or by Python, as this process was."""
    if by_launcher():
        return f"{shlex.quote(os.environ['SENET_COMMAND'])} {verb}"
    python = "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)
    if verb == "slurm":
        return f"{python} {shlex.quote(sys.argv[0])}"
    package = "slurm" if verb in _ASK_SLURM else "senet"
    return f"{python} {'train_ddp.py' if verb == 'train' else f'-m {package}.{verb}'}"
