"""A profile of a run that trains: ``python -m senet.profile RUN [--steps 5]``. Does not import torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from senet.command import Parser, end, printable
from senet.errors import ConfigError, RunError
from senet.rundir.files import patiently, read_json
from senet.rundir.named import one_run
from senet.rundir.profiles import MOST_UPDATES, REQUEST, Request, ask, stem, table_file, trace_file, withdraw
from senet.verbs import typed
from senet.why.evidence import gather
from senet.why.judge import judge

_POLL_S = 0.5
_LOOK_S = 10.0  # between two looks whether the run still trains
_UNSEEN_S = 120.0  # a network file system may show a file a minute later
_LATE_S = 60.0  # for the traces of other ranks, once the table of rank 0 is there


def main(argv: Sequence[str]) -> int:
    """Ask, wait until it is there, and print the table."""
    parser = Parser(
        prog=typed("profile"),
        description="Have torch.profiler record the next updates of a run that trains, on all its ranks, also on other "
        "hosts; wait for the traces, and print the ten most expensive operations. Ctrl-C withdraws the wish.",
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, or the name of a run in runs/")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="updates to record (default 5)")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.steps <= MOST_UPDATES:
        raise ConfigError(f"--steps {arguments.steps}: use 1 to {MOST_UPDATES}")
    run_dir = one_run(arguments.run)
    if why := does_not_train(run_dir):
        raise ConfigError(f"{run_dir} does not train: {why}")
    request = ask(run_dir, arguments.steps)
    try:
        told = wait(run_dir, request)
    finally:
        withdraw(run_dir, request)
    found = stem(run_dir, told["first"])
    print(printable(f"updates {told['first']} to {told['last']}: {found}.*; open the traces at ui.perfetto.dev"))
    if (count := told["last"] - told["first"] + 1) < arguments.steps:
        print(f"{count} updates instead of {arguments.steps}: an epoch has no more, and a profile ends with its epoch")
    print(table_file(found).read_text(), end="")
    return 0


def does_not_train(run_dir: Path) -> str:
    """Why not; empty where it does."""
    verdict = judge(gather(run_dir))
    return "" if verdict.cause == "running" else f"{verdict.cause}: {verdict.text}"


def wait(run_dir: Path, request: Request) -> dict[str, Any]:
    """What status.json says of the profile, once all files are there.

    Raises:
        RunError: it failed, or the run has ended before.
    """
    looked, written, why = time.monotonic(), 0.0, ""
    began = looked
    while not why:
        time.sleep(_POLL_S)
        now = time.monotonic()
        if now - looked > _LOOK_S:
            looked, why = now, does_not_train(run_dir)
        told = patiently(lambda: read_json(run_dir / "status.json")).get("profile", {})
        if told.get("id") != request.id:
            if now - began > _UNSEEN_S and (run_dir / REQUEST).exists():
                raise RunError(f"{run_dir}: nobody has taken the request in {_UNSEEN_S:.0f} s; is its code older?")
            continue
        if told.get("failed"):
            raise RunError(f"{run_dir}: no profile: {told['failed']}")
        if told.get("written"):
            written = written or now
            files = [trace_file(stem(run_dir, told["first"]), rank) for rank in range(told["ranks"])]
            late = [path for path in files if not path.exists()]
            if not late:
                return dict(told)
            if now - written > _LATE_S:
                raise RunError(f"{len(late)} of {len(files)} traces are not there, the first {late[0]}")
    raise RunError(f"{run_dir} does not train any more: {why}")


if __name__ == "__main__":
    end("profile", main)
