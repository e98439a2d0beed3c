"""``./launch.sh sweep``: the cells trained on this machine; ``status`` and ``stop`` of a sweep."""

from senet.distributed.preemption import StopFlag

if __name__ == "__main__":
    stop = StopFlag.install()
    stop.hold()  # the cells are told, and waited for

import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from senet.command import end
from senet.config.manual import asked
from senet.distributed.devices import cores, count_gpus
from senet.errors import FAILED_EXIT_CODE, STOPPED_EXIT_CODE, ConfigError
from senet.launch import refuse_other_packages, wanted_number
from senet.rundir.files import read_json
from senet.rundir.hours import of_all
from senet.rundir.locks import has_ended
from senet.rundir.named import cell_names, sweep_of
from senet.rundir.standing import TAKEN
from senet.sweep import record
from senet.sweep.cells import Cell, check_ranks
from senet.sweep.local import Local
from senet.sweep.prepare import LOCK, only_one, prepare
from senet.sweep.request import Request, read_request
from senet.verbs import typed

_USAGE = """\
usage: {here} [FILE.yaml ...] [key=value[,value ...] ...] sweep.name=NAME [sweep.parallel=N]
       {here} status NAME
       {here} stop NAME

Train once for each combination of the values, each in a run directory runs/NAME/CELL.
  optim.lr=0.05,0.1,0.2      several values of an option of the training; of a list: [10,20],[15,25]
  seed=0..4                  whole numbers, both ends included
  optim.lr=log:0.001..1      a range to draw from, on a logarithmic scale; without log: evenly
  sweep.name=NAME            of the folder in runs/
  sweep.parallel=N           cells at a time (default: as many as have GPUs of their own, on a CPU 1)
  sweep.random=20            draws of all options but seed, in place of all combinations
  sweep.seed=0               of the draws
The same in a YAML file that holds nothing else: sweep: {{name: NAME, vary: {{optim.lr: [0.05, 0.1], seed: 0..4}}}}

The same command again trains what is missing or has failed; more values add cells. Ctrl-C saves and ends all.
NPROC=2: ranks of each cell (else 1). RESTARTS=3: as for train, of each cell.
Exit code: 0 all finished, 2 bad input, 85 stopped and resumable, 1 some failed or train elsewhere."""


def main(argv: Sequence[str], stop: StopFlag) -> int:
    """Train, or what the first word says."""
    if asked(argv) is not None:
        print(_USAGE.format(here=typed("sweep")))
        return 0
    if argv[:1] in (["status"], ["stop"]):
        if len(argv) != 2:
            raise ConfigError(f"{argv[0]} takes one sweep: {typed('sweep')} {argv[0]} NAME")
        folder = sweep_of(argv[1])
        return show(folder) if argv[0] == "status" else stop_trainer(folder)
    refuse_other_packages()
    return train(read_request(argv), stop)


def train(request: Request, stop: StopFlag) -> int:
    """What is missing or has failed, on this machine.

    Raises:
        ConfigError: bad options of any cell, or another process trains the sweep.
    """
    folder, ranks = request.folder, wanted_number("NPROC", "is not a number of ranks; use 1 or more", 1) or 1
    wanted_number("RESTARTS", "is not a number of restarts; use 0 or more")  # the cells read it
    cells, recorded = prepare(request, "sweep", _say)
    if unused := [word for word in request.words if word.startswith(("slurm.", "slurm=")) and "=" in word]:
        _say(f"{' '.join(unused)}: not used on this machine; for jobs it is {typed('slurm')} sweep")
    check_ranks(cells, ranks)
    gpus = visible_gpus(cells)
    parallel = min(request.parallel or max(1, len(gpus) // ranks), len(cells))
    threads = _threads(recorded, parallel * ranks)
    with only_one(folder, recorded):
        record.write(folder, request, recorded, cells, threads_per_rank=threads)
        words = {cell.name: record.state_of(folder, cell.name).word for cell in cells}
        waiting = [cell for cell in cells if words[cell.name] not in ("finished", *TAKEN)]
        _leave_alone(folder, words)
        fixed = cells[0].config.train.threads_per_rank
        own = [] if fixed else [f"train.threads_per_rank={threads}"]
        each = f"{ranks} rank(s) x {fixed or threads} thread(s)"
        _say(f"{len(cells)} cells, {len(waiting)} to train, {parallel} at a time, {each}; {folder.absolute()}")
        Local(folder, parallel, ranks, gpus, stop, _say).train(waiting, own)
    return conclude(folder, [cell.name for cell in cells], stopped=bool(stop))


def _leave_alone(folder: Path, words: Mapping[str, str]) -> None:
    """Say which cells are trained elsewhere, or may be: SLURM is not asked here."""
    if sent := [name for name, word in words.items() if word == "submitted"]:
        text = "left alone, since they have jobs which may wait in the queue; to train them here, end those first"
        _say(f"{text}: {typed('slurm')} stop {folder}: {', '.join(sent)}")
    if elsewhere := [name for name, word in words.items() if word in TAKEN and word != "submitted"]:
        _say(f"left alone, since another process trains them: {', '.join(elsewhere)}")


def _threads(recorded: Mapping[str, Any], ranks: int) -> int:
    """Of each rank: its share of the cores when the sweep began, since another number may change the last bits."""
    share = max(1, cores() // ranks)
    before = int(recorded.get("threads_per_rank", share))
    if before != share:
        _say(f"train.threads_per_rank={before} as the sweep began, for equal bits; its share of the cores is {share}")
    return before


def visible_gpus(cells: Sequence[Cell]) -> list[str]:
    """Those that the cells may use, by the names that CUDA_VISIBLE_DEVICES has; none where all train on the CPU."""
    if all(cell.config.train.device == "cpu" for cell in cells):
        return []
    count, given = count_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [each.strip() for each in given.split(",")][:count] if given else [str(gpu) for gpu in range(count)]


def conclude(folder: Path, names: Sequence[str], *, stopped: bool) -> int:
    """Print the table; the exit code."""
    states = {name: record.state_of(folder, name) for name in names}
    print("\n".join(record.table(folder, states)))
    words = {state.word for state in states.values()}
    if stopped:
        _say("the same command goes on")
    if stopped and "failed" not in words:
        return STOPPED_EXIT_CODE
    return 0 if words <= {"finished"} else FAILED_EXIT_CODE


def show(folder: Path) -> int:
    """``status``: the table of all cells, and where their time went, added up."""
    names = cell_names(folder)
    print("\n".join(record.table(folder, {name: record.state_of(folder, name) for name in names})))
    if time := of_all(folder / name for name in names):
        print(f"time of all cells: {time}")
    return 0


def stop_trainer(folder: Path) -> int:
    """``stop``: have the process that trains the sweep on this machine save all cells and end.

    Raises:
        ConfigError: there is none, or it runs on another host.
    """
    trainer = read_json(folder / LOCK)
    if not trainer or has_ended(trainer):
        text = f"no process trains the sweep {folder.name}; jobs of it are stopped by"
        raise ConfigError(f"{text} {typed('slurm')} stop {folder}")
    if trainer["host"] != os.uname().nodename:
        raise ConfigError(f"the sweep {folder.name} is trained on host {trainer['host']}; stop it there")
    if b"senet.sweep" not in Path(f"/proc/{trainer['pid']}/cmdline").read_bytes():
        text = f"process {trainer['pid']} submits the sweep {folder.name} as jobs; when it has ended, stop them by"
        raise ConfigError(f"{text} {typed('slurm')} stop {folder}")
    os.kill(trainer["pid"], signal.SIGTERM)
    print(f"process {trainer['pid']} was asked to stop; see: {typed('sweep')} status {folder.name}")
    return 0


def _say(what: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone, or a full disk: the cells go on
        print(f"sweep: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    end("sweep", lambda argv: main(argv, stop))
