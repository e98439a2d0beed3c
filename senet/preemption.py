"""Signals: a handler only sets a flag. No torch, so that it can be installed in a program's first lines."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from types import FrameType

STOPPED_EXIT_CODE = 85  # reserved: stopped by a signal, checkpoint published, can go on
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT)
LAUNCHER_VARIABLE = "SENET_LAUNCHER"  # its process id, from the launcher itself
_PR_SET_PDEATHSIG = 1


class StopFlag:
    """Set by the first stop signal; further ones change nothing. The trainer reads it at step boundaries."""

    def __init__(self) -> None:
        self.signal_name = ""

    @classmethod
    def install(cls) -> StopFlag:
        """Handle the stop signals from now to the end of the process; main thread only."""
        flag = cls()
        for number in STOP_SIGNALS:
            # nohup asks for exactly this one to be ignored
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, flag._handle)
        return flag

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
