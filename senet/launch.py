"""``launch.sh train``, ``launch.sh doctor`` and, on several ranks, ``launch.sh evaluate``, once ``.venv`` is there: the
options checked, the ranks counted, torchrun, one line on how it ended."""

from senet.distributed.preemption import StopFlag
from senet.errors import STOPPED_EXIT_CODE

if __name__ == "__main__":
    stop = StopFlag.install()
    stop.hold()  # the ranks are told, and waited for

import importlib.util
import io
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path

from senet import REPOSITORY
from senet.command import BUS_ERROR, end, leave
from senet.config.load import load_config
from senet.config.manual import asked, show_help
from senet.config.options import Config
from senet.config.recipes import with_recipe
from senet.config.shares import check_split, most_ranks, unit_of
from senet.distributed.devices import count_gpus
from senet.distributed.preemption import LAUNCHER_VARIABLE
from senet.distributed.roster import host_name
from senet.doctor.arguments import parse
from senet.errors import FAILED_EXIT_CODE, INTERRUPTED_EXIT_CODE, REFUSED_EXIT_CODE, ConfigError
from senet.notify import message, target, tell, was_finished
from senet.rundir.files import read_json
from senet.rundir.mirror import MIRROR_VARIABLE, forget_outcome, read_outcome
from senet.rundir.phases import BEGAN_VARIABLE, stamp
from senet.rundir.restarts import JOB_VARIABLE, launch_again, newest_checkpoint, note_end
from senet.torchrun import OUT_OF_MEMORY, run_ranks

_RANKS = "is not a number of ranks; use 1 or more"
_EXIT_CODES = {"finished": 0, "refused": REFUSED_EXIT_CODE, "stopped": STOPPED_EXIT_CODE}


def main(argv: Sequence[str], stop: StopFlag) -> int:
    """The verb and its arguments. 0 done, 2 bad input, 85 stopped by a signal and resumable, 1 failed."""
    verb, *arguments = argv
    try:
        refuse_other_packages()
        return {"train": train, "evaluate": evaluate, "doctor": doctor}[verb](arguments, stop)
    except ConfigError as error:
        _say(error)
        return REFUSED_EXIT_CODE


def train(argv: Sequence[str], stop: StopFlag) -> int:
    """Train on this machine.

    Raises:
        ConfigError: bad options.
    """
    argv = with_recipe("train", argv, _say)
    config = load_config(argv)
    target(config.notify)
    most = wanted_number("RESTARTS", "is not a number of restarts; use 0 or more") or 0
    ranks = choose_ranks(config)
    words, run_dir = io.StringIO(), Path(config.run_dir)
    with _temporary_folder() as folder:
        status = Path(folder) / "status.json"
        os.environ |= {MIRROR_VARIABLE: str(status), LAUNCHER_VARIABLE: str(os.getpid())}
        # for a last step and save; torchrun would end the ranks after 30 s, and waits as long for one that hangs
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", f"{max(30, config.distributed.step_timeout_s):.0f}")
        start = partial(run_ranks, ranks, [str(REPOSITORY / "train_ddp.py"), *argv], folder, words, stop)
        state, cause, why = _until_it_ends(start, status, run_dir, most, stop)
    if state == "finished" and config.notify and not was_finished(run_dir):
        tell(config.notify, message(run_dir, state, ""))
    if state in ("finished", "refused"):
        return _EXIT_CODES[state]
    if stop and not state:
        _say(f"stopped by {stop.signal_name} before the ranks had begun")
        return STOPPED_EXIT_CODE
    kept = _keep(words.getvalue(), run_dir) if words.getvalue() else ""
    said = state in ("failed", "stopped") and BUS_ERROR not in cause and OUT_OF_MEMORY not in cause  # by a rank
    if why or not said:
        _say(f"failed: {why or cause}{kept}")
    if stop.signal_name != "SIGINT":  # who presses Ctrl-C knows
        reason = read_json(run_dir / "status.json").get("reason", "") if said else cause
        tell(config.notify, message(run_dir, "stopped" if state == "stopped" else "failed", why or reason))
    return _EXIT_CODES.get(state, FAILED_EXIT_CODE)


def _until_it_ends(
    start: Callable[[], tuple[int, str]], status: Path, run_dir: Path, most: int, stop: StopFlag
) -> tuple[str, str, str]:
    """Start the ranks, and again after a failure; ``most``: in a row without a new checkpoint.

    Returns the last state that a rank wrote, what torchrun knows of the end, and why there is no further start (empty
    where there was none to be).
    """
    job = os.environ[JOB_VARIABLE] = f"launch.sh {host_name()} {os.getpid()} {time.time():.0f}"
    for launch in itertools.count():
        os.environ[BEGAN_VARIABLE] = stamp(process_start=not launch)
        forget_outcome(status)
        _, cause = start()
        outcome = read_outcome(status)
        state = outcome.get("state", "")
        if not most or stop or state in _EXIT_CODES:
            note_end(run_dir, outcome, cause, "")
            return state, cause, ""
        told = outcome if state == "failed" else outcome | {"reason": cause}
        if why := launch_again(run_dir, told, most=most, option="RESTARTS", job=job, launch=launch):
            note_end(run_dir, outcome, cause, why)
            return state, cause, why
        _say(f"starts again from {newest_checkpoint(run_dir) or 'the beginning'}: {told['reason']}")
    raise AssertionError


def evaluate(argv: Sequence[str], stop: StopFlag) -> int:
    """``senet.evaluate`` by NPROC ranks on this machine.

    Raises:
        ConfigError: NPROC is no number.
    """
    return by_ranks(wanted_number("NPROC", _RANKS, 1) or 1, "evaluate", argv, stop)


def doctor(argv: Sequence[str], stop: StopFlag) -> int:
    """``senet.doctor`` by NPROC ranks, or as many as a training would have.

    Raises:
        ConfigError: bad options.
    """
    arguments = parse(argv)
    options = with_recipe("doctor", arguments.options, _say)
    flags = [each for each in argv if each not in arguments.options]
    config = load_config(options)
    ranks = wanted_number("NPROC", _RANKS, 1) or choose_ranks(config)  # NPROC need not share the batch
    return by_ranks(ranks, "doctor", [*options, *flags], stop)


def by_ranks(ranks: int, verb: str, argv: Sequence[str], stop: StopFlag) -> int:
    """A module of ``senet`` by several ranks on this machine; Ctrl-C ends it as it ends one process."""
    os.environ["PYTHONSAFEPATH"] = "1"  # as launch.sh has it: no module of the folder one stands in
    words = io.StringIO()
    with _temporary_folder() as folder:
        code, cause = run_ranks(ranks, ["-m", f"senet.{verb}", *argv], folder, words, stop)
    if stop.signal_name == "SIGINT":
        return INTERRUPTED_EXIT_CODE
    if stop:
        _say(f"{verb}: stopped by {stop.signal_name}")
    elif code < 0:  # else a rank has said why
        _say(f"{verb}: failed: {cause}; torchrun says:\n{words.getvalue()}")
    return FAILED_EXIT_CODE if stop or code < 0 else code


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="senet-")
    except OSError as error:
        text = f"no folder for temporary files: {error}; name one that can be written with TMPDIR"
        raise ConfigError(text) from None


def wanted_number(name: str, rule: str, least: int = 0) -> int | None:
    """Of this variable; None where it is not set.

    Raises:
        ConfigError: it is no number, or below ``least``; in the words of ``rule``.
    """
    text = os.environ.get(name, "")
    if text and not (text.isascii() and text.isdigit() and int(text) >= least):
        raise ConfigError(f"{name}={text} {rule}")
    return int(text) if text else None


def choose_ranks(config: Config) -> int:
    """NPROC, or one rank for each GPU, 2 on a CPU, fewer where they could not share the batch equally, and said so.

    Raises:
        ConfigError: NPROC is no number, or the batch cannot be split over so many.
    """
    if wanted := wanted_number("NPROC", _RANKS, 1):
        check_split(config, wanted)
        return wanted
    train = config.train
    gpus = count_gpus() if train.device != "cpu" else 0
    most = gpus or 2
    ranks = most_ranks(config, most)
    if ranks < most and train.shards:
        which = f"for {gpus} GPUs" if gpus else "instead of 2"
        _say(f"{ranks} rank(s) {which}, since train.shards={train.shards} cannot be dealt to more")
    elif ranks < most:
        _say(
            f"{ranks} rank(s) {f'for {gpus} GPUs' if gpus else 'instead of 2'}, since "
            f"train.global_batch_size={train.global_batch_size} (train.accumulate={train.accumulate}) cannot be split "
            f"over more; a multiple of {unit_of(config, most)} can"
        )
    return ranks


def refuse_other_packages() -> None:
    """A module of a cluster or a profile may put packages of another Python in front of those of .venv.

    Raises:
        ConfigError: it does, for one of those that cannot be exchanged.
    """
    folders = {Path(folder).absolute() for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder}
    own = [folder for folder in sys.path if Path(folder).absolute() not in folders]
    for name in ("numpy", "torch", "torchvision"):
        found, without = importlib.util.find_spec(name), PathFinder.find_spec(name, own)
        # with SYSTEM_TORCH=1 the one that is found may be the only one
        if found and found.origin and without and without.origin and not Path(found.origin).samefile(without.origin):
            text = f"PYTHONPATH puts {Path(found.origin).parent} in front of the {name} of {sys.prefix}"
            raise ConfigError(f"{text}; take that folder off PYTHONPATH (module unload, or unset it)")


def _keep(words: str, run_dir: Path) -> str:
    """Put torchrun's words into the run directory, or here where there is none; say where they are."""
    try:
        with (run_dir / "torchrun.log").open("a") as file:
            file.write(f"--- {datetime.now().isoformat(timespec='seconds')}\n{words}\n")
    except OSError:  # nothing was begun there
        return f"; torchrun says:\n{words}"
    return f"; torchrun's words are in {run_dir}/torchrun.log"


def _say(what: object) -> None:
    print(f"launch.sh: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if asked(sys.argv[1:]) is not None:  # launch.sh starts senet.evaluate itself for its --help
        end("launch.sh", show_help)
    leave(main(sys.argv[1:], stop))
