"""torchrun in the process of the launcher, so that the ranks die with it, however it dies."""

from __future__ import annotations

import io
import logging
import os
import signal
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from senet.command import BUS_ERROR
from senet.distributed.environment import MALLOC
from senet.distributed.preemption import STOP_SIGNALS, StopFlag
from senet.distributed.roster import host_name
from senet.rundir.restarts import WITHOUT_A_WORD

OUT_OF_MEMORY = "out of memory: oom_kill of this control group"


def run_ranks(ranks: int, command: Sequence[str], folder: str, words: io.StringIO, stop: StopFlag) -> tuple[int, str]:
    """Run the ranks to their end; torchrun's own messages go into ``words``.

    Returns the exit code of the first rank that failed (0: none did, below 0: it did not end by itself), and what
    torchrun knows of it.
    """
    _set_environment()
    import torch.distributed.run as torch_run  # takes seconds
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from senet.compat import set_torchrun_signal_handler

    runs, kills = False, _oom_kills()

    def handle(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if stop:  # a second one would make torchrun leave its ranks in the middle of their save
            return
        stop.signal_name = signal.Signals(signum).name
        if runs:
            raise SignalException(f"got {stop.signal_name}", signal.Signals(signum))

    _log_into(words)
    signals = [each for each in STOP_SIGNALS if signal.getsignal(each) != signal.SIG_IGN]  # nohup ignores one
    set_torchrun_signal_handler(handle)  # torchrun installs it again when it starts the ranks
    arguments = torch_run.parse_args([*_options(ranks, folder, signals), *command])
    for each in signals:
        signal.signal(each, handle)
    try:
        if not stop:
            runs = True
            try:
                torch_run.run(arguments)
            finally:
                runs = False
    except SignalException:
        limit_s = os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
        return -1, f"{stop.signal_name}, and ranks that had not saved within TORCH_ELASTIC_SHUTDOWN_TIMEOUT={limit_s} s"
    except ChildFailedError as error:
        words.write(f"{error}\n")
        rank, failure = error.get_first_failure()
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        return failure.exitcode, f"rank {rank} on {host_name()} ended by {how}{_known_of(how, kills)}{WITHOUT_A_WORD}"
    except OSError as error:
        return -1, f"torchrun: {error}"
    except Exception as error:
        words.write(traceback.format_exc())
        return -1, f"torchrun: {' '.join(str(error).split())[:300]}"
    return 0, "the ranks ended without a word"


def _known_of(how: str, kills: int) -> str:
    """What explains such an end; ``kills``: those of the kernel for memory, before."""
    if (now := _oom_kills()) > kills:
        return f" ({OUT_OF_MEMORY} went from {kills} to {now})"
    return f" ({BUS_ERROR})" if how == "SIGBUS" else ""


def _oom_kills() -> int:
    """How many processes of this control group the kernel has killed because there was no memory left; 0 if unknown."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers or controllers == "memory":
                root = Path("/sys/fs/cgroup", controllers)
                name = "memory.oom_control" if controllers else "memory.events"
                for folder in (root / group.lstrip("/"), root):  # the second: in a container
                    if (folder / name).exists():
                        counts = dict(each.split() for each in (folder / name).read_text().splitlines())
                        return int(counts.get("oom_kill", 0))
    return 0


def _options(ranks: int, folder: str, signals: Sequence[signal.Signals]) -> list[str]:
    # no name of this host is needed, and nothing stays in the folder for temporary files
    where = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--rdzv-conf=is_host=1", "--local-addr=127.0.0.1"]
    names = ",".join(each.name for each in signals)
    return [*where, f"--nproc-per-node={ranks}", f"--log-dir={folder}", f"--signals-to-handle={names}"]


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
    logging.getLogger().handlers = [handler]
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch")]:
        logger = logging.getLogger(name)
        if logger.handlers:
            logger.handlers = [handler]
