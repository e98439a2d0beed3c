"""What a checkpoint costs: how long training waits for it, how long it is on its way to the disk and back, how large.

    .venv/bin/python benchmarks/checkpoint.py [--pairs 10] [--ranks 2] [--note TEXT]

SENet18 by configs/cifar10.yaml (SGD with momentum, averaged weights) on random 32x32 images, batch 128; three parts.
Options of the trainer may follow (model.name=..., for a try).

1. One run of the trainer saves every 4 updates, in turn as it does and with ``torch.save`` in the loop, without and
   with fsync. Blocked: seconds in ``Trainer.save`` on rank 0, after all ranks have met; for ``torch.save`` too this
   counts the trainer's own checks before. Of the trainer's own saves also what the writer's thread takes beside
   training, on the clock (fsync, reading back and verifying included) and of a core, and where the time goes, as means
   over the saves; parts of the main thread that wait for other ranks include the wait.
2. Restoring in the same process: newest valid checkpoint found, verified, unpickled and loaded, in turn with
   ``torch.load`` of the plain file; both files are in the page cache.
3. Pairs of whole runs of --updates updates, with checkpoint.every_steps=10 and without any: seconds of training.

The share of training time at a checkpoint every 100 updates (target: at most 0.5 %) is too small to be seen in a run,
so it is found from what one save costs, in two ways: by 3, the difference divided by the number of saves, whose spread
shows the noise; by 1, blocked seconds and the thread's seconds of a core, as if training lost all of both, which is a
bound from above unless memory bandwidth or the disk slow the steps down besides. Prints tables and appends rows to
results.jsonl. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import arguments, lay_store, record, spread, torchrun, train

from senet.config.load import load_config
from senet.distributed.preemption import StopFlag
from senet.rundir.checkpoint import unpickle
from senet.rundir.saving import CheckpointManager
from senet.training.run import run
from senet.training.trainer import Trainer

OWN, PLAIN, DURABLE = VARIANTS = ("the trainer's", "torch.save", "torch.save, fsync")
MAIN = ["training.trainer:Trainer._collect", "training.learner:get_total_norm", "training.trainer:check_in_sync"]
MAIN += ["rundir.saving:to_cpu"]
THREAD = ["rundir.saving:torch.save", "rundir.saving:write_temporary", "rundir.saving:fsync_directory"]
THREAD += ["rundir.saving:verify", "rundir.saving:hashlib.sha256"]
BEHIND = "rundir.saving:CheckpointManager._write"
ROWS = {
    "training waits for a save": OWN,
    "training waits for torch.save": PLAIN,
    "training waits for torch.save and fsync": DURABLE,
    "writer's thread, on the clock": BEHIND,
    "writer's thread, of a core": f"{BEHIND} (core)",
    "restoring": "restore",
    "torch.load": "torch.load",
}
BATCH = 128
FIXED = ["train.epochs=1", "log.to=[]", f"train.global_batch_size={BATCH}"]
Times = dict[str, list[float]]


class Measured:
    """The trainer's saves in this process, in turn with others, and what was seen of them."""

    def __init__(self, plain: Path) -> None:
        self.times: Times = defaultdict(list)  # seconds of each call; "... (core)": of the processor
        self.trainer: Trainer | None = None
        self._plain = plain
        self._variant = OWN
        self._saves = 0
        self._in_save = False
        self._own_save, self._publish = Trainer.save, CheckpointManager.save
        for name in (*MAIN, *THREAD, BEHIND):
            self._watch(name)
        Trainer.save = lambda trainer, **how: self._save(trainer, **how)  # type: ignore[method-assign]
        CheckpointManager.save = (  # type: ignore[method-assign]
            lambda manager, payload, manifest, **how: self._pass_on(manager, payload, manifest, **how)
        )

    def _watch(self, name: str) -> None:
        module, _, attribute = name.partition(":")
        *path, last = attribute.split(".")
        owner: Any = importlib.import_module(f"senet.{module}")
        for each in path:
            owner = getattr(owner, each)
        function: Callable[..., Any] = getattr(owner, last)

        def watched(*args: Any, **options: Any) -> Any:
            began, core_began = time.perf_counter(), time.thread_time()
            result = function(*args, **options)
            in_thread = threading.current_thread().name == "checkpoint"
            if self._variant == OWN and (self._in_save or in_thread):
                self.times[name].append(time.perf_counter() - began)
                self.times[f"{name} (core)"].append(time.thread_time() - core_began)
            return result

        setattr(owner, last, watched)

    def _save(self, trainer: Trainer, *, best: bool = False, wait: bool = False) -> None:
        self.trainer = trainer
        trainer.record.checkpoints.close()  # what the thread has still to do is no part of the next save
        turn, place = divmod(self._saves, len(VARIANTS))
        self._variant = OWN if wait else (VARIANTS if turn % 2 == 0 else VARIANTS[::-1])[place]
        self._saves += 1
        dist.barrier()
        began = time.perf_counter()
        self._in_save = not wait  # the last one, of the end of the run, is waited for
        self._own_save(trainer, best=best, wait=wait)
        self._in_save = False
        if not wait:
            self.times[self._variant].append(time.perf_counter() - began)

    def _pass_on(self, manager: CheckpointManager, payload: Any, manifest: Any, **how: Any) -> None:
        if self._variant == OWN:
            self._publish(manager, payload, manifest, **how)
        elif manager.directory is not None:
            with self._plain.open("wb") as file:
                torch.save(payload, file)
                if self._variant == DURABLE:
                    file.flush()
                    os.fsync(file.fileno())

    def restore(self, repeats: int) -> None:
        """Time the way back."""
        assert self.trainer is not None
        directory = self.trainer.record.checkpoints.directory
        for _ in range(repeats):
            began = time.perf_counter()
            found = CheckpointManager(directory, keep=1, generation=2, resumed_from={}).newest()
            assert found is not None
            self.trainer.learner.load_state_dict(unpickle(found.content))
            self.times["restore"].append(time.perf_counter() - began)
            began = time.perf_counter()
            self.trainer.learner.load_state_dict(torch.load(self._plain, map_location="cpu", weights_only=True))
            self.times["torch.load"].append(time.perf_counter() - began)
            self.times["MB"] = [found.path.stat().st_size / 1e6, self._plain.stat().st_size / 1e6]


def be_a_rank(options: list[str], pairs: int) -> None:
    """Train, save in turn; rank 0 restores, and prints the times."""
    config = load_config(options)
    measured = Measured(Path(config.run_dir) / "plain.pt")
    run(config, options, StopFlag())
    if os.environ["RANK"] == "0":
        measured.restore(pairs)
        print(json.dumps(measured.times), flush=True)


def show_saves(times: Times) -> None:
    """Tables of parts 1 and 2, in milliseconds."""

    def line(name: str, key: str, note: str = "") -> None:
        print(f"{name:36} {spread([1000 * value for value in times[key]], 1):>28} {note}", flush=True)

    def part(name: str, mean_s: float) -> None:
        print(f"  {name.partition(':')[2]:34} {1000 * mean_s:7.1f} (mean of a save)", flush=True)

    print(f"\n{'milliseconds':36} {'median (smallest to largest)':>28}")
    for variant in VARIANTS:
        line(f"blocked: {variant}", variant, f"{times['MB'][variant != OWN]:.1f} MB")
    for name in MAIN:
        part(name, sum(times[name]) / len(times[OWN]))
    line("writer's thread, on the clock", BEHIND)
    line("writer's thread, of a core", f"{BEHIND} (core)")
    for name in THREAD:
        part(f"{name}, core", sum(times[f"{name} (core)"]) / len(times[BEHIND]))
    line("restored: the trainer's", "restore")
    line("restored: torch.load", "torch.load")


def compare_runs(recipe: list[str], *, pairs: int, ranks: int, updates: int) -> tuple[list[float], float]:
    """Seconds that a save costs, pair by pair, and those of an update without any."""
    costs, steps = [], []
    for number in range(pairs):
        seconds = {}
        for every in (10, 1_000_000) if number % 2 else (1_000_000, 10):
            with tempfile.TemporaryDirectory() as run_dir:
                rows = train(Path(run_dir), *recipe, f"checkpoint.every_steps={every}", ranks=ranks)
            seconds[every] = next(row["train_s"] for row in rows if row["kind"] == "epoch")
        costs.append((seconds[10] - seconds[1_000_000]) / ((updates - 1) // 10))
        steps.append(seconds[1_000_000] / updates)
        print(f"pair {number + 1}: {1000 * costs[-1]:.0f} ms a save, {1000 * steps[-1]:.0f} ms an update", flush=True)
    return costs, statistics.median(steps)


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("options", nargs="*", help="key=value, on top of configs/cifar10.yaml")
    parser.add_argument("--ranks", type=int, default=2, help="the cores are shared among them")
    parser.add_argument("--updates", type=int, default=45, help="of a run of part 3")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)  # this process is one
    args = parser.parse_intermixed_args()
    if args.rank:
        return be_a_rank(args.options, args.pairs)
    recipe = ["configs/cifar10.yaml", "train.amp=bf16", *args.options, *FIXED]
    with tempfile.TemporaryDirectory() as folder:
        saving = lay_store(Path(folder) / "saving", BATCH * (4 * len(VARIANTS) * args.pairs + 1))
        saving += [*recipe, "checkpoint.every_steps=4", f"run_dir={folder}/run"]
        times: Times = torchrun("checkpoint.py", f"--pairs={args.pairs}", "--rank", *saving, ranks=args.ranks)
        show_saves(times)
        recipe += lay_store(Path(folder) / "pairs", BATCH * args.updates)
        costs, step_s = compare_runs(recipe, pairs=args.pairs, ranks=args.ranks, updates=args.updates)
    keep(times, costs, step_s, args)
    return None


def keep(times: Times, costs: list[float], step_s: float, args: argparse.Namespace) -> None:
    """The rows."""
    special = [*args.options, *([f"{args.ranks} ranks"] if args.ranks != 2 else [])]

    def row(what: str, values: list[float], unit: str, **more: Any) -> None:
        record("checkpoint.py", ", ".join([what, *special]), values, unit, note=args.note, **more)

    for what, key in ROWS.items():
        row(what, [1000 * value for value in times[key]], "ms", of="saves", digits=0)
    row("a checkpoint", times["MB"][:1], "MB", of="saves", digits=0)
    row("cost of a save, whole runs", [1000 * cost for cost in costs], "ms", digits=0)
    row("seconds an update", [step_s], "s", n=args.pairs, digits=3)
    row("share of training, a save each 100 steps", [cost / step_s for cost in costs], "%", target="<= 0.5")
    bound_s = statistics.median(times[OWN]) + statistics.median(times[f"{BEHIND} (core)"])
    row("share of training, bound from above", [bound_s / step_s], "%", n=args.pairs, of="saves")


if __name__ == "__main__":
    main()
