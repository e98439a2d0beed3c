"""The cells of a sweep on this machine, some at a time, each by ``launch.sh train`` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from senet.distributed.preemption import StopFlag
from senet.errors import STOPPED_EXIT_CODE
from senet.sweep import record
from senet.sweep.cell import SWEEP_VARIABLE
from senet.sweep.cells import Cell

_POLL_S = 0.1


@dataclass
class Local:
    """Trains the cells, and says what happens."""

    folder: Path
    parallel: int
    ranks: int
    """Of each cell."""
    gpus: Sequence[str]
    """As CUDA_VISIBLE_DEVICES names them; empty: none, or none to choose from."""
    stop: StopFlag
    say: Callable[[str], None]
    _live: dict[int, tuple[Cell, subprocess.Popen[bytes], float]] = field(default_factory=dict)

    def train(self, cells: Sequence[Cell], words: Sequence[str]) -> None:
        """To the end of all, or until a signal: then each saves and ends. ``words`` come after those of each cell."""
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        waiting, told = deque(cells), False
        while self._live or (waiting and not self.stop):
            for slot in range(self.parallel):
                if waiting and slot not in self._live and not self.stop:
                    self._start(slot, waiting.popleft(), words)
            if self.stop and not told:
                told = True
                self.say(f"{self.stop.signal_name}: {len(self._live)} cell(s) save and end")
                told_by = signal.SIGINT if self.stop.signal_name == "SIGINT" else signal.SIGTERM
                for _, process, _ in self._live.values():
                    process.send_signal(told_by)  # of Ctrl-C nobody is notified
            time.sleep(_POLL_S)
            for slot, (cell, process, began) in list(self._live.items()):
                if process.poll() is not None:
                    del self._live[slot]
                    self._ended(cell, process.returncode, time.monotonic() - began)

    def _start(self, slot: int, cell: Cell, words: Sequence[str]) -> None:
        environment = os.environ | {SWEEP_VARIABLE: str(os.getpid()), "NPROC": str(self.ranks)}
        if self.gpus:
            own = [self.gpus[(slot * self.ranks + rank) % len(self.gpus)] for rank in range(self.ranks)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(own))
        command = [sys.executable, "-P", "-m", "senet.sweep.cell", *cell.words, *words, f"run_dir={cell.run_dir}"]
        try:
            with record.log_of(self.folder, cell.name).open("ab") as log:
                # a session of its own: Ctrl-C reaches this process alone, which tells the cells
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
                )
        except OSError as error:  # a full disk, too many processes: those that train go on
            self.say(f"{cell.name} could not be started: {error}")
            return
        self._live[slot] = (cell, process, time.monotonic())
        self.say(f"{cell.name} starts")

    def _ended(self, cell: Cell, code: int, took_s: float) -> None:
        log = record.log_of(self.folder, cell.name)
        try:
            with log.open("a") as file:
                file.write(f"{record.ENDED}{code}\n")
            state = record.state_of(self.folder, cell.name)
        except OSError as error:  # the others go on
            self.say(f"{cell.name} ended with exit code {code}; {error}")
            return
        if code == 0:
            self.say(f"{cell.name} finished: {state.score} %, {took_s:.0f} s")
        elif code in (STOPPED_EXIT_CODE, -signal.SIGTERM, -signal.SIGINT):  # the others: before it had begun
            self.say(f"{cell.name} stopped" + (" before it had begun" if state.word == "not begun" else ""))
        else:
            self.say(f"{cell.name} failed: {state.short or f'exit code {code}'}; {log}")
