"""The starts of a drill on this machine, as ``launch.sh train`` makes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from senet.drill.compare import read_run
from senet.drill.plan import PLAN_VARIABLE, Plan
from senet.errors import REFUSED_EXIT_CODE, STOPPED_EXIT_CODE, ConfigError, RunError

Start = Callable[[Sequence[str], Path, int, Path], int]
"""Arguments of the training, file of the plan, ranks, file for what they print; the exit code."""
_SPEAKERS = ("train_ddp: ", "launch.sh: ")


def torchrun(argv: Sequence[str], plan_file: Path, ranks: int, log: Path) -> int:
    """One start, as ``launch.sh train`` makes it; its exit code."""
    environment = os.environ | {"NPROC": str(ranks), "RESTARTS": "0", PLAN_VARIABLE: str(plan_file)}
    with log.open("wb") as file:
        command = [sys.executable, "-P", "-m", "senet.launch", "train", *argv]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            return process.wait()
        finally:
            if process.poll() is None:  # this process is told to stop
                process.send_signal(signal.SIGTERM)
                process.wait()


def carry_out(argv: Sequence[str], plan_file: Path, ranks: Sequence[int], start: Start = torchrun) -> None:
    """One start after another; each but the last must end by the kill that is planned.

    Raises:
        ConfigError: the first start was refused.
        RunError: a start ended otherwise than planned: that one that resumes is refused is a defect of the training.
    """
    plan = Plan.read(plan_file)
    for number, count in enumerate(ranks, 1):
        log = plan_file.parent / f"start-{number}.log"
        code = start(argv, plan_file, count, log)
        if code == REFUSED_EXIT_CODE and number == 1:
            raise ConfigError(_why(log))
        reached = [moment.step for moment in read_run(plan_file.parent).moments if moment.start == number]
        planned = plan.kills[number - 1] if number <= len(plan.kills) else plan.steps
        if reached[-1:] != [planned] or (planned == plan.steps and code not in (0, STOPPED_EXIT_CODE)):
            raise RunError(f"a start failed: {_why(log)}; its output is in {log}")


def _why(log: Path) -> str:
    """The line on how it ended: a command's, or the last one of a traceback."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["it said nothing"]
    said = [line.partition(": ")[2].removeprefix("failed: ") for line in lines if line.startswith(_SPEAKERS)]
    return (said or lines)[-1]
