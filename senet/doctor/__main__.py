"""``python -m senet.doctor [FILE.yaml ...] [key=value ...]``: one process per rank, started as those of a training."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from senet.command import end
from senet.config.load import load_config
from senet.distributed.environment import read_place
from senet.doctor.arguments import parse
from senet.doctor.judge import judge, values
from senet.doctor.table import text
from senet.errors import FAILED_EXIT_CODE, ConfigError
from senet.rundir.files import write_json
from senet.rundir.locks import started_at

_LEAVE_S, _WRITE_S = 2.0, 10.0
_OVER_S = 3600.0  # the end of rank 0 ends the wait sooner


def main(argv: Sequence[str]) -> int:
    """Check with all ranks; rank 0 prints. 0: nothing is wrong, 1: something is, or came late."""
    arguments = parse(argv)
    config = load_config(arguments.options)
    place = read_place()

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each wait that is too long prints a C++ stack
    import torch.distributed as dist  # takes seconds

    from senet.doctor.board import open_board
    from senet.doctor.visit import attend, lead

    limit_s = arguments.max_seconds
    board = open_board(place, 2 * limit_s)
    worker = threading.Thread(target=attend, args=(board.second(), place, config, limit_s), name="visit", daemon=True)
    worker.start()
    if place.rank > 0:
        try:
            board.wait("over", _OVER_S)
        except dist.DistError:  # rank 0 hosts the store, and has ended
            return 0
        worker.join(_LEAVE_S)
        return 0
    reports = lead(board, place, limit_s, _age_s())
    board.say("over", True)
    here = [parts.get("here", {}) for parts in reports.parts.values()]
    if all(report.get("refused") for report in here):  # the same is wrong everywhere: the options
        raise ConfigError(here[0]["error"].removeprefix("ConfigError: "))
    findings, checks = judge(reports), values(reports)
    worker.join(_LEAVE_S)  # its files are removed
    reports.seconds = _age_s()
    result = {
        "seconds": round(reports.seconds, 2),
        "complete": reports.complete,
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "checks": checks,
    }
    try:
        print(json.dumps(result) if arguments.json else text(reports, checks, findings), flush=True)
    except BrokenPipeError:  # its reader has ended, like head; the exit code says what was found
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 # to the end of the process
    if arguments.out:  # last: its file system may be one that does not answer
        write_json(arguments.out, result, limit_s=_WRITE_S)
    return FAILED_EXIT_CODE if any(finding.kind != "slow" for finding in findings) else 0


def _age_s() -> float:
    """Seconds since this process was started."""
    return float(Path("/proc/uptime").read_text().split()[0]) - started_at(os.getpid()) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    end("doctor", main)
