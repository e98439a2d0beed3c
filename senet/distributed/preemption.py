"""Signals: before the training has begun they end the process, then a handler only sets a flag. No torch, so that it
can be installed in a program's first lines."""

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
LAUNCHER_VARIABLE = "SENET_LAUNCHER"  # its process id, from the launcher itself
_PR_SET_PDEATHSIG = 1
_LEAVING_S = 3.0  # for each act before the end
_RANKS_PER_STEP = 16
_MOST_STEPS = 16


def steps_between_votes(world_size: int) -> int:
    """How often ranks vote on a stop, which takes place twice as many steps later at the most.

    A vote is a ring of gloo, 2 (ranks - 1) messages one after another: among many it takes longer than a step.
    """
    return min(-(-world_size // _RANKS_PER_STEP), _MOST_STEPS)


class StopFlag:
    """Set by the first stop signal; further ones change nothing. The trainer reads it at step boundaries.

    Until ``hold`` there is nothing to save, and the main thread may wait in C++ for a rank that is gone: a thread ends
    the process at once.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._held = False
        self._lock = threading.RLock()  # whoever has it ends the process, or sees to it that nobody does
        self._acts: list[Callable[[int, str], None]] = []

    @classmethod
    def install(cls) -> StopFlag:
        """Handle the stop signals from now to the end of the process; main thread only."""
        flag = cls()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written to even while no Python code runs
        threading.Thread(target=flag._leave_at_a_signal, args=(reader,), name="stop", daemon=True).start()
        for number in STOP_SIGNALS:
            # nohup asks for exactly this one to be ignored
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, flag._handle)
        return flag

    def hold(self) -> None:
        """From now on a signal only sets the flag, since others count on this process."""
        with self._lock:
            self._held = True

    def before_leaving(self, act: Callable[[int, str], None]) -> None:
        """Have this called, with exit code and reason, when ``leave`` ends the process; what is named last is first."""
        self._acts.insert(0, act)

    def leave(self, code: int, reason: str) -> NoReturn:
        """End the process from any thread, within seconds: what is called before may hang."""

        with self._lock:
            for act in self._acts:  # one that hangs keeps no other from its turn
                thread = threading.Thread(target=act, args=(code, reason), name="leaving", daemon=True)
                thread.start()
                thread.join(_LEAVING_S)
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
        # no lock of any kind: a second signal may run this while the first is still in it
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


def die_with_launcher() -> None:
    """Have the kernel kill this process when its parent dies, however it dies (Linux).

    Nothing where no launcher (torchrun, submitit) started it: a person's shell may go.
    """
    if not {"TORCHELASTIC_RUN_ID", "SUBMITIT_EXECUTOR"} & os.environ.keys():
        return
    launcher = int(os.environ.get(LAUNCHER_VARIABLE) or os.getppid())
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != launcher:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)
