"""Send the numbers of runs to Weights & Biases or MLflow: ``python -m senet.sync RUN [RUN ...]``.

From a machine with network, what a training without one could not send: each step that the service lacks, from
metrics.jsonl. The same command again sends what is new. Where, say the variables of the services: WANDB_PROJECT,
WANDB_ENTITY, WANDB_BASE_URL; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from senet.command import Parser, end
from senet.errors import FAILED_EXIT_CODE, ConfigError, RunError
from senet.rundir.files import read_json
from senet.rundir.history import read_options
from senet.rundir.locks import lock
from senet.rundir.named import folder_of, runs_in
from senet.rundir.owner import holder
from senet.verbs import typed
from senet.views.identity import identify
from senet.views.points import complete_through
from senet.views.services import SERVICES, catch_up, check_installed, in_words, make_view, without_secrets
from senet.views.wandb_run import check_key

_PATIENCE_S = 60.0
_QUIET_S = 10.0  # longer than a library is imported, and than it takes to send as a rule

_NOT_WRITTEN = {errno.EROFS, errno.EACCES, errno.EPERM}


def main(argv: Sequence[str]) -> int:
    """Send all that is missing; a line for each run and service."""
    assert __doc__
    parser = Parser(prog=typed("sync"), description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, a sweep, or a folder of runs")
    parser.add_argument(
        "--to", action="append", choices=SERVICES, help="this service; else those in log.to of each run"
    )
    arguments = parser.parse_args(argv)
    runs = _without_copies([run for word in arguments.runs for run in runs_in(folder_of(word))])
    wanted = [(run, name) for run in runs for name in SERVICES if name in (arguments.to or _named_by(run))]
    if not wanted:
        raise ConfigError(f"log.to has neither {' nor '.join(SERVICES)} in {runs[0]}; name the service: --to wandb")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        wanted = _without_mlflow(wanted, is_asked_for="mlflow" in (arguments.to or ()))
    check_installed({name for _, name in wanted})
    if any(name == "wandb" for _, name in wanted):
        check_key()
    sent = [send(run, name) for run, name in wanted]
    return 0 if all(sent) else FAILED_EXIT_CODE


def _without_copies(runs: Sequence[Path]) -> list[Path]:
    """Of runs with one id, which are one run in the services, the one for which it was made, else the first."""
    kept: dict[str, Path] = {}
    views = {run: read_json(run / "views.json") for run in runs}
    for run in sorted(runs, key=lambda run: views[run].get("folder") != str(run.resolve())):
        first = kept.setdefault(str(views[run].get("id", run)), run)
        if first != run:
            print(f"{run}: left out, since it is a copy of {first}", file=sys.stderr)
    return [run for run in runs if run in kept.values()]


def _without_mlflow(wanted: Sequence[tuple[Path, str]], *, is_asked_for: bool) -> list[tuple[Path, str]]:
    """Where no server is named: what has been written into the run directories stays there."""
    others = [(run, name) for run, name in wanted if name != "mlflow"]
    missing = "MLFLOW_TRACKING_URI is not set, so there is no server to send to; export it, e.g. http://HOST:5000"
    if len(others) < len(wanted):
        if is_asked_for or not others:
            raise ConfigError(missing)
        print(f"not to mlflow: {missing}", file=sys.stderr)
    return others


def _named_by(run: Path) -> Sequence[str]:
    return read_options(run / "config.yaml").get("log.to") or ()


def send(run: Path, name: str) -> bool:
    """Of one run to one service; whether all is there now."""
    try:
        with lock(run / ".sync.lock", patience_s=_PATIENCE_S):
            finished, through = covered(run)
            if sends_itself(run, name):
                raise RunError("the training sends its steps itself; when it has ended")
            if through < 0:
                print(f"{run}: no checkpoint is there yet", flush=True)
                return True
            view = make_view(name, run, identify(run, trains=False), trains=False)
            with _told_if_slow(f"{run}: {name}: {_server(name)} has not taken all yet; Ctrl-C loses nothing"):
                count, last = catch_up(view, run, through)
                view.close(finished=finished)
    except Exception as error:  # whatever a library raises: the other runs have their turn
        refused = isinstance(error, OSError) and error.errno in _NOT_WRITTEN
        remedy = "run it where you can write that folder" if refused else "the same command again sends what is missing"
        print(f"{run}: {name}: {in_words(error)}; {remedy}", file=sys.stderr)
        return False
    print(f"{run}: {name}: {count} steps sent, up to step {max(last, 0)}", flush=True)
    return True


@contextmanager
def _told_if_slow(what: str) -> Iterator[None]:
    """Libraries try again for many minutes, and say nothing of it."""
    timer = threading.Timer(_QUIET_S, print, (what,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _server(name: str) -> str:
    address = os.environ.get({"wandb": "WANDB_BASE_URL", "mlflow": "MLFLOW_TRACKING_URI"}[name], "")
    return without_secrets(f"the server {address}" if address else "its server")


def sends_itself(run: Path, name: str) -> bool:
    """Two that send to W&B at once would write over each other's lines. MLflow takes what comes twice once."""
    at_work = name == "wandb" and name in _named_by(run) and holder(run)[0]
    return bool(at_work) and not list(run.glob("wandb/offline-run-*"))


def covered(run: Path) -> tuple[bool, int]:
    """Whether a run has finished, and up to which step nothing is done again: that of its newest checkpoint."""
    status = read_json(run / "status.json")
    if status.get("state") == "finished":
        return True, int(status["step"])
    from senet.rundir.checkpoint import published_files  # imports torch

    resumed_from = {int(key): step for key, step in read_json(run / "owner.json").get("resumed_from", {}).items()}
    published = published_files(run / "checkpoints", resumed_from)
    if not published:
        return False, -1
    return False, complete_through(json.loads(published[0].with_suffix(".json").read_text()))


if __name__ == "__main__":
    end("sync", main)
