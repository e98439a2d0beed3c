"""``launch.sh train`` and, on several ranks, ``launch.sh evaluate``, once ``.venv`` is there: the options checked, the
ranks counted, torchrun, one line on how it ended. torchrun runs in this process, so that the ranks die with it, however
it dies."""

from senet.distributed.preemption import STOP_SIGNALS, StopFlag
from senet.errors import STOPPED_EXIT_CODE

if __name__ == "__main__":
    stop = StopFlag.install()
    stop.hold()  # the ranks are told, and waited for

import importlib.util
import io
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import datetime
from importlib.machinery import PathFinder
from pathlib import Path
from types import FrameType

from senet import REPOSITORY
from senet.command import BUS_ERROR, end, leave
from senet.config.checks import check_split, most_ranks
from senet.config.load import load_config
from senet.config.manual import asked, show_help
from senet.config.options import TrainConfig
from senet.config.recipes import with_recipe
from senet.distributed.devices import count_gpus
from senet.distributed.environment import MALLOC
from senet.distributed.preemption import LAUNCHER_VARIABLE
from senet.distributed.roster import host_name
from senet.errors import FAILED_EXIT_CODE, INTERRUPTED_EXIT_CODE, REFUSED_EXIT_CODE, ConfigError
from senet.rundir.files import read_json
from senet.rundir.lease import MIRROR_VARIABLE

_EXIT_CODES = {"finished": 0, "refused": REFUSED_EXIT_CODE, "stopped": STOPPED_EXIT_CODE}


def main(argv: Sequence[str], stop: StopFlag) -> int:
    """The verb and its arguments. 0 done, 2 bad input, 85 stopped by a signal and resumable, 1 failed."""
    verb, *arguments = argv
    try:
        refuse_other_packages()
        return evaluate(arguments, stop) if verb == "evaluate" else train(arguments, stop)
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
    ranks = choose_ranks(config.train)
    with _temporary_folder() as folder:
        status = Path(folder) / "status.json"
        os.environ |= {MIRROR_VARIABLE: str(status), LAUNCHER_VARIABLE: str(os.getpid())}
        # for a last step and save; torchrun would end the ranks after 30 s, and waits as long for one that hangs
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", f"{max(30, config.distributed.step_timeout_s):.0f}")
        words = io.StringIO()
        _, cause = torchrun(ranks, [str(REPOSITORY / "train_ddp.py"), *argv], folder, words, stop)
        state = read_json(status).get("state", "")
    if state in ("finished", "refused"):
        return _EXIT_CODES[state]
    if stop and not state:
        _say(f"stopped by {stop.signal_name} before the ranks had begun")
        return STOPPED_EXIT_CODE
    kept = _keep(words.getvalue(), Path(config.run_dir)) if words.getvalue() else ""
    if state not in ("failed", "stopped") or BUS_ERROR in cause:  # else a rank has said why
        _say(f"failed: {cause}{kept}")
    return _EXIT_CODES.get(state, FAILED_EXIT_CODE)


def evaluate(argv: Sequence[str], stop: StopFlag) -> int:
    """``senet.evaluate`` by NPROC ranks on this machine; Ctrl-C ends it as it ends one process.

    Raises:
        ConfigError: NPROC is no number.
    """
    ranks = wanted_ranks() or 1
    os.environ["PYTHONSAFEPATH"] = "1"  # as launch.sh has it: no module of the folder one stands in
    words = io.StringIO()
    with _temporary_folder() as folder:
        code, cause = torchrun(ranks, ["-m", "senet.evaluate", *argv], folder, words, stop)
    if stop.signal_name == "SIGINT":
        return INTERRUPTED_EXIT_CODE
    if stop:
        _say(f"evaluate: stopped by {stop.signal_name}")
    elif code < 0:  # else a rank has said why
        _say(f"evaluate: failed: {cause}; torchrun says:\n{words.getvalue()}")
    return FAILED_EXIT_CODE if stop or code < 0 else code


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="senet-")
    except OSError as error:
        text = f"no folder for temporary files: {error}; name one that can be written with TMPDIR"
        raise ConfigError(text) from None


def wanted_ranks() -> int | None:
    """NPROC; None where it is not set.

    Raises:
        ConfigError: it is no number.
    """
    text = os.environ.get("NPROC", "")
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise ConfigError(f"NPROC={text} is not a number of ranks; use 1 or more")
    return int(text) if text else None


def choose_ranks(train: TrainConfig) -> int:
    """NPROC, or one rank for each GPU, 2 on a CPU, fewer where they could not share the batch equally, and said so.

    Raises:
        ConfigError: NPROC is no number, or the batch cannot be split over so many.
    """
    if wanted := wanted_ranks():
        check_split(train, wanted)
        return wanted
    gpus = count_gpus() if train.device != "cpu" else 0
    most = gpus or 2
    ranks = most_ranks(train, most)
    if ranks < most and train.shards:
        which = f"for {gpus} GPUs" if gpus else "instead of 2"
        _say(f"{ranks} rank(s) {which}, since train.shards={train.shards} cannot be dealt to more")
    elif ranks < most:
        _say(
            f"{ranks} rank(s) {f'for {gpus} GPUs' if gpus else 'instead of 2'}, since "
            f"train.global_batch_size={train.global_batch_size} (train.accumulate={train.accumulate}) cannot be split "
            f"over more; a multiple of {most * train.accumulate} can"
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


def torchrun(ranks: int, command: Sequence[str], folder: str, words: io.StringIO, stop: StopFlag) -> tuple[int, str]:
    """Run the ranks to their end; torchrun's own messages go into ``words``.

    Returns the exit code of the first rank that failed (0: none did, below 0: it did not end by itself), and what
    torchrun knows of it.
    """
    _set_environment()
    import torch.distributed.run as torch_run  # takes seconds
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from senet.compat import set_torchrun_signal_handler

    def handle(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if not stop:  # a second one would make torchrun leave its ranks in the middle of their save
            stop.signal_name = signal.Signals(signum).name
            raise SignalException(f"got {stop.signal_name}", signal.Signals(signum))

    _log_into(words)
    signals = [each for each in STOP_SIGNALS if signal.getsignal(each) != signal.SIG_IGN]  # nohup ignores one
    set_torchrun_signal_handler(handle)  # torchrun installs it again when it starts the ranks
    # no name of this host is needed, and nothing stays in the folder for temporary files
    where = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--rdzv-conf=is_host=1", "--local-addr=127.0.0.1"]
    options = [
        f"--nproc-per-node={ranks}",
        f"--log-dir={folder}",
        f"--signals-to-handle={','.join(s.name for s in signals)}",
    ]
    try:
        for each in signals:
            signal.signal(each, handle)
        if not stop:
            torch_run.run(torch_run.parse_args([*where, *options, *command]))
    except SignalException:
        limit_s = os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
        return -1, f"{stop.signal_name}, and ranks that had not saved within TORCH_ELASTIC_SHUTDOWN_TIMEOUT={limit_s} s"
    except ChildFailedError as error:
        words.write(f"{error}\n")
        rank, failure = error.get_first_failure()
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        why = f" ({BUS_ERROR})" if how == "SIGBUS" else ""
        return failure.exitcode, f"rank {rank} on {host_name()} ended by {how}{why}, without a word"
    except OSError as error:
        return -1, f"torchrun: {error}"
    except Exception as error:
        words.write(traceback.format_exc())
        return -1, f"torchrun: {' '.join(str(error).split())[:300]}"
    return 0, "the ranks ended without a word"


def _set_environment() -> None:
    """What torchrun and the ranks inherit; what the user has set stays."""
    os.environ |= MALLOC | os.environ
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a rank sets its number of threads itself
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]  # torchrun's options, as Kubeflow sets them for a job of its own


def _log_into(words: io.StringIO) -> None:
    """Instead of to stderr, where the one line that matters would drown."""
    logging.captureWarnings(True)
    handler = logging.StreamHandler(words)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch")]:
        logger = logging.getLogger(name)
        if logger.handlers:
            logger.handlers = [handler]


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
