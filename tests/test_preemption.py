"""Signals to a real process, before and after ``hold``."""

from __future__ import annotations

import os
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
        said, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    return process.returncode, said.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_before_the_training_a_signal_ends_a_process_that_waits_in_foreign_code(number: signal.Signals) -> None:
    """Each callback is called, though the one in the middle hangs."""
    assert told("waiting", number) == (STOPPED_EXIT_CODE, ["last named", f"first named 85 {number.name}"])


def test_once_held_a_signal_sets_the_flag_only() -> None:
    assert told("held", signal.SIGTERM) == (0, ["flag SIGTERM"])


# a launcher and, in it, a rank of a host that is cut off
LAUNCHER = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: None if sys.argv[1] == "deaf" else rank.terminate())
rank = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]])
sys.exit(rank.wait())
"""
CUT_OFF = """
import sys
from senet.distributed.preemption import StopFlag, end_torchrun
stop = StopFlag.install()
stop.hold()
end_torchrun(stop, patience_s=2.0 if sys.argv[1] == "deaf" else 40.0)
print("told", stop.signal_name, flush=True)
"""


@pytest.mark.parametrize(
    ("how", "variables", "code", "said"),
    [
        ("hears", {"TORCHELASTIC_RUN_ID": "1"}, 0, "told SIGTERM\n"),
        ("deaf", {"TORCHELASTIC_RUN_ID": "1"}, -signal.SIGKILL, "told \n"),
        ("hears", {"TORCHELASTIC_RUN_ID": "1", "SENET_LAUNCHER": "1"}, 0, "told \n"),  # launch.sh has no other host
        ("hears", {}, 0, "told \n"),  # a shell
    ],
)
def test_a_rank_of_a_host_that_is_cut_off_ends_a_torchrun_that_hears_nothing(
    how: str, variables: dict[str, str], code: int, said: str
) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "TORCHELASTIC_RUN_ID"} | variables
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, how, CUT_OFF], env=environment, stdout=subprocess.PIPE, text=True, timeout=180
    )
    assert (done.returncode, done.stdout) == (code, said)
