"""Signals to a real process, before and after ``hold``."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from senet.errors import STOPPED_EXIT_CODE

# the main thread waits where no signal handler of Python runs, as in C++ that waits for another rank
PROGRAM = """
import ctypes, sys, threading
from senet.distributed.preemption import StopFlag

stop = StopFlag.install()
stop.before_leaving(lambda code, reason: print("first named", code, reason, flush=True))
stop.before_leaving(lambda code, reason: threading.Event().wait())
stop.before_leaving(lambda code, reason: print("last named", flush=True))
if sys.argv[1] == "held":
    stop.hold()
print("ready", flush=True)
if sys.argv[1] == "held":
    stop.wait(60)
    print("flag", stop.signal_name, flush=True)
    sys.exit(0)
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)
"""


def told(how: str, number: signal.Signals) -> tuple[int, list[str]]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_before_the_training_a_signal_ends_a_process_that_waits_in_foreign_code(number: signal.Signals) -> None:
    """Each callback is called, though the one in the middle hangs."""
    assert told("waiting", number) == (STOPPED_EXIT_CODE, ["last named", f"first named 85 {number.name}"])


def test_once_held_a_signal_sets_the_flag_only() -> None:
    assert told("held", signal.SIGTERM) == (0, ["flag SIGTERM"])
