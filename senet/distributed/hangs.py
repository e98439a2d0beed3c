"""What is seen of a rank that hangs: its stacks, the state of its process. Does not import torch."""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from senet.distributed.roster import Process, Roster
from senet.rundir.locks import started_at

LIMIT_S = 20.0
"""``end`` takes no longer, for any number of processes."""
_STATES = {
    "": "its process has ended",
    "T": "stopped by a signal (state T)",
    "t": "stopped by a debugger (state t)",
    "D": "waits in the kernel, as a rule for a disk (state D)",
    "?": "killed, stopped or cut off",
}


def state(process: Process) -> str:
    """The letter of its state, as in /proc; empty: it has ended, or is about to."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # one that ends gives up its memory before its connections, and only then becomes a zombie
    lives = "\nVmSize:" in text and started_at(process.pid) == process.started
    return re.findall(r"^State:\s+(\S)", text, re.MULTILINE)[0] if lives else ""


def states(roster: Roster, own: int) -> dict[int, str]:
    """Of the ranks that this one sees."""
    return {rank: state(process) for rank, process in roster.beside(own).items()}


def in_words(letter: str) -> str:
    """``?``: the process is not to be seen from here."""
    return _STATES.get(letter, f"alive, but its Python does not run (state {letter})")


def write_stacks(name: str) -> None:
    """Those of all threads of this process, to stderr, whoever has closed it in Python."""
    _write(f"{name}: the stacks of all its threads")
    faulthandler.dump_traceback(file=2, all_threads=True)


def end(processes: Mapping[str, Process]) -> None:
    """Write to stderr what can be seen of other processes of this host without their help, by name, and kill them:
    their run is over, and torchrun and SLURM would first wait for them."""
    deadline = time.monotonic() + 0.9 * LIMIT_S
    there = {name: process for name, process in processes.items() if state(process)}
    for name, process in there.items():
        _look(name, process, deadline)
    for process in there.values():
        if state(process):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(process.pid, signal.SIGKILL)


def _look(name: str, process: Process, deadline: float) -> None:
    letter = state(process)
    _write(f"{name}: {in_words(letter)}, waits in {_read(f'/proc/{process.pid}/wchan')}")
    command = shutil.which("py-spy", path=f"{sys.prefix}/bin:{os.environ.get('PATH', '')}")
    # what is stopped does not stop for py-spy; what runs is stopped by it for a moment
    for options in (["--nonblocking"],) if letter in ("T", "t") else (["--native"], []):
        limit_s = min(0.4 * LIMIT_S, deadline - time.monotonic())
        if command and limit_s > 0 and _spy([command, "dump", "--pid", str(process.pid), *options], limit_s):
            return


def _spy(command: list[str], limit_s: float) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        _write(str(error))
        return False
    _write(" ".join(command), done.stdout or done.stderr)
    return done.returncode == 0


def _read(file: str) -> str:
    try:
        return Path(file).read_text() or "nothing"
    except OSError as error:
        return f"? ({error.strerror})"


def _write(title: str, text: str = "") -> None:
    os.write(2, f"--- {title}\n{text}".encode(errors="replace"))
