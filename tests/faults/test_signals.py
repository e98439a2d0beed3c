"""SIGTERM and SIGUSR2 in each phase of a run, once, twice, thrice: one save, one stop; before it trains, the end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from senet.errors import STOPPED_EXIT_CODE
from tests.faults.conftest import FULL, Trial, Unbroken
from tests.faults.runs import EVERY, LAST, last_step, newest_step, options, ranks_of, recover
from tests.harness import differing, payload, rows, started, status, train_command, without_clock

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


def handles_signals(process: psutil.Process) -> bool:
    """Whether the program has got through its first lines (the handlers that the kernel knows of)."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                caught = int(line.split()[1], 16)
                return all(caught >> (number - 1) & 1 for number in SIGNALS)
    return False


def state(run_dir: Path) -> str:
    return str(status(run_dir)["state"]) if (run_dir / "status.json").exists() else ""


# what can be seen from outside when a phase has begun
PHASES: dict[str, Callable[[Path, Path], object]] = {
    "import": lambda run, data: True,
    "rendezvous": lambda run, data: (run / "owner.json").exists(),
    "data": lambda run, data: list(data.glob("stores/*")) + list(data.glob("stores/.*")),
    "first step": lambda run, data: state(run) == "running",
    "step": lambda run, data: last_step(run) > EVERY + 2,
    "evaluation": lambda run, data: last_step(run) == 22 and not rows(run, "epoch"),
    "save": lambda run, data: list(run.glob("checkpoints/*.tmp")),
    "end": lambda run, data: len(rows(run, "epoch")) == 2,
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.fault("SIGTERM or SIGUSR2 in any phase, once to thrice", quick=1, full=20)
def test_a_signal_anywhere_is_one_save_and_one_stop(
    phase: str, trial: Trial, data_root: Path, tmp_path: Path, unbroken: Unbroken
) -> None:
    order = list(PHASES).index(phase) + trial.number
    ranks = order % 2 * 2  # 0: without torchrun
    kind, times = trial.random.choice(SIGNALS), 1 + order % 3
    run_dir, data = tmp_path / "run", tmp_path / "data" if phase == "data" else data_root
    network = "long_test" if phase == "evaluation" else "paced"
    arguments = options(data, run_dir, f"model.name=tests.faults.networks:{network}")
    command = train_command(ranks, arguments)
    with started(command, tmp_path / "log") as launcher:
        deadline = time.monotonic() + 120
        found: dict[int, psutil.Process] = {}
        while not (len(found) == max(ranks, 1) and all(map(handles_signals, found.values()))):
            found = ranks_of(launcher) if ranks else {0: psutil.Process(launcher.pid)}
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        while not PHASES[phase](run_dir, data):  # some last for milliseconds
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            assert launcher.poll() is None, (tmp_path / "log").read_text()
        # to each rank, as SLURM does; once also to torchrun, as a user does, which passes on only the first signal
        told = [psutil.Process(launcher.pid)] if times == 1 else list(found.values())
        began = time.monotonic()
        for _ in range(times):
            for process in told:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(kind)
            time.sleep(trial.random.uniform(0, 0.05))
        code = launcher.wait(400)
        trial.recovered(time.monotonic() - began)
    log = (tmp_path / "log").read_text()
    assert 'train_ddp.py", line' not in log, log  # no traceback of ours
    if not (run_dir / "status.json").exists():  # the training had not begun
        assert phase in ("import", "rendezvous", "data")
        assert code == (1 if ranks else STOPPED_EXIT_CODE)
        assert newest_step(run_dir) == 0
        # in the first tenths of a second no handler is installed
        assert ranks or phase == "import" or f"stopped by {kind.name} before the first update" in log
        return
    ended = status(run_dir)
    if phase == "end" and ended["state"] == "finished":
        assert (code, newest_step(run_dir)) == (0, LAST)
        return
    assert ended["state"] == "stopped", log
    assert ended["reason"] == kind.name
    assert code == (1 if ranks else STOPPED_EXIT_CODE)  # torchrun says 1 for any code of a worker
    assert log.count("stopped at step") == 1
    assert newest_step(run_dir) == ended["step"] >= last_step(run_dir)
    if FULL or phase == "step":
        recover(trial, command, run_dir, tmp_path / "log2")
        assert differing(unbroken(max(ranks, 1)), without_clock(payload(run_dir))) == []
