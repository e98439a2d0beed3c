"""A shell in a terminal, typed into as by a person, and what the terminal shows in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROMPT = "$ "
LIMIT_S = 1800.0  # for one command; digits take a minute where nothing else runs


class Session:
    """bash in a terminal of its own, in ``folder``."""

    def __init__(self, folder: Path, columns: int) -> None:
        self._shown = ""
        variables = os.environ | {"PS1": PROMPT, "TERM": "dumb"}
        self._shell, self._terminal = pty.fork()
        if self._shell == 0:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"], variables)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        os.set_blocking(self._terminal, False)
        self._until_prompt(lambda _: False)

    def type(self, command: str, *, kill_when: Callable[[str], bool] = lambda _: False) -> None:
        """Type a command and return when the prompt is back.

        Args:
            kill_when: given what the command has shown so far; once true, SIGKILL goes to all processes of the command.
        """
        os.write(self._terminal, f"{command}\n".encode())
        self._until_prompt(kill_when)

    def close(self) -> list[str]:
        """End the shell; returns the lines that were shown, without the last prompt."""
        os.close(self._terminal)  # SIGHUP
        os.waitpid(self._shell, 0)
        return on_screen(self._shown.removesuffix(PROMPT).rstrip())

    def _until_prompt(self, kill_when: Callable[[str], bool]) -> None:
        data, killed, deadline = b"", False, time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            try:
                data += os.read(self._terminal, 1 << 16)
            except BlockingIOError:
                time.sleep(0.05)
            text = data.decode(errors="replace")
            if text.endswith(f"\n{PROMPT}") or text == PROMPT:
                self._shown += text
                return
            if not killed and kill_when(text):
                killed = True
                for process in psutil.Process(self._shell).children(recursive=True):
                    process.kill()
                data += b"\n"  # else bash writes "Killed" behind the progress bar
        raise TimeoutError(f"no prompt after {LIMIT_S:.0f} s; the terminal shows:\n{data.decode(errors='replace')}")


def on_screen(shown: str) -> list[str]:
    """The lines of a terminal; what follows a carriage return has replaced what was there."""
    lines = []
    for line in shown.split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines
