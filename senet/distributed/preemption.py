"""Stop signals: before the training has begun they end the process; after that they only set a flag.

Does not import torch, so that the handler can be installed in a program's first lines.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from senet.errors import STOPPED_EXIT_CODE

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT)
LAUNCHER_VARIABLE = "SENET_LAUNCHER"  # the launcher's process id, set by the launcher
_PR_SET_PDEATHSIG = 1
_CALLBACK_S = 3.0  # limit for each callback of before_leaving
_RANKS_PER_STEP = 16
_MOST_STEPS = 16


def steps_between_votes(world_size: int) -> int:
    """Steps between two votes on a stop. A stop takes effect at most twice as many steps after the signal.

    A vote is gloo's ring all-reduce, 2 (ranks - 1) messages in sequence: with many ranks it takes longer than a step.
    """
    return min(-(-world_size // _RANKS_PER_STEP), _MOST_STEPS)


class StopFlag:
    """Set by the first stop signal; further ones change nothing. The trainer reads it at step boundaries.

    Until ``hold`` a signal ends the process at once, from a thread: there is nothing to save yet, and the main thread
    may be waiting in C++ for a rank that is gone.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._held = False
        self._lock = threading.RLock()  # between ``hold`` and the thread that ends the process
        self._callbacks: list[Callable[[int, str], None]] = []

    @classmethod
    def install(cls) -> StopFlag:
        """Handle the stop signals from now to the end of the process; main thread only."""
        flag = cls()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # also written to while the main thread is in C++
        threading.Thread(target=flag._leave_at_a_signal, args=(reader,), name="stop", daemon=True).start()
        for number in STOP_SIGNALS:
            # nohup ignores SIGHUP: it must stay ignored
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, flag._handle)
        return flag

    def hold(self) -> None:
        """From now on a signal only sets the flag: the other ranks wait for this one in collectives."""
        with self._lock:
            self._held = True

    def before_leaving(self, callback: Callable[[int, str], None]) -> None:
        """Call this with exit code and reason when ``leave`` ends the process; the last one added is called first."""
        self._callbacks.insert(0, callback)

    def leave(self, code: int, reason: str) -> NoReturn:
        """End the process from any thread, within seconds even if a callback hangs."""
        with self._lock:
            for callback in self._callbacks:
                thread = threading.Thread(target=callback, args=(code, reason), name="leaving", daemon=True)
                thread.start()
                thread.join(_CALLBACK_S)
            os._exit(code)

    def _leave_at_a_signal(self, reader: int) -> None:
        number = 0
        while number not in STOP_SIGNALS:
            [number] = os.read(reader, 1)
        with self._lock:
            if not self._held:
                self.signal_name = signal.Signals(number).name
                self.leave(STOPPED_EXIT_CODE, self.signal_name)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # no lock: a second signal may interrupt this handler, and would wait for it for ever
        if not self.signal_name:
            self.signal_name = signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.signal_name != ""

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a signal arrives or the time is over; True after a signal."""
        deadline = time.monotonic() + timeout_s
        while not self and time.monotonic() < deadline:
            time.sleep(0.05)
        return bool(self)


def end_torchrun(stop: StopFlag, patience_s: float = 10.0) -> None:
    """On a host that is cut off from the others, end the torchrun that has started this process, if one has.

    It waits for an answer of the rendezvous's store without a limit, until the kernel gives up the connection after a
    quarter of an hour, and hears no signal meanwhile. One that does hear it signals this process, and is left alone.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and LAUNCHER_VARIABLE not in os.environ:
        torchrun = os.getppid()
        os.kill(torchrun, signal.SIGTERM)
        if not stop.wait(patience_s):
            os.kill(torchrun, signal.SIGKILL)


def die_with_launcher() -> None:
    """Have the kernel kill this process when its parent dies, however it dies (Linux).

    Does nothing unless a launcher (torchrun, submitit) started it: a shell may end before its commands.
    """
    if not {"TORCHELASTIC_RUN_ID", "SUBMITIT_EXECUTOR"} & os.environ.keys():
        return
    signal_when_ends(int(os.environ.get(LAUNCHER_VARIABLE) or os.getppid()), signal.SIGKILL)


def signal_when_ends(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent ends, however it ends (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), number)
