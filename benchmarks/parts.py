"""Where the time of a training step goes: the trainer runs in this process, and what it calls is timed by name.

    .venv/bin/python benchmarks/parts.py [--json] FILE.yaml key=value ...

Takes what train_ddp.py takes; one rank. Of the last epoch; what a part calls that is a part itself is not counted
twice. For a CPU: on a GPU the host's time is not the device's.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from senet import REPOSITORY


class Clock:
    """Seconds that each label's calls have taken, without those of other labels' within them."""

    def __init__(self) -> None:
        self.spent_s: Counter[str] = Counter()
        self._within_s = [0.0]

    def watch(self, owner: Any, name: str, label: str) -> None:
        """Replace ``owner.name`` by itself with a clock."""
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._within_s.append(0.0)
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                elapsed_s = time.perf_counter() - began
                self.spent_s[label] += elapsed_s - self._within_s.pop()
                self._within_s[-1] += elapsed_s

        setattr(owner, name, timed)


def watch_all(clock: Clock) -> None:
    """The parts of a step."""
    import torch

    from senet.data.augment import Preprocess
    from senet.data.samplers import Split
    from senet.distributed.agreement import Agreement
    from senet.training import losses, replicated, trainer
    from senet.training.optim import Muon, WeightAverage
    from senet.training.scores import Tally
    from senet.training.trainer import Trainer

    for owner, name, label in (
        (Split, "__getitem__", "batch from the store"),
        (replicated, "seed_everything", "seeds"),
        (trainer, "lr_at", "learning rate"),
        (Preprocess, "train", "augmentation and normalisation"),
        (losses.F, "cross_entropy", "loss"),
        (torch.Tensor, "backward", "backward"),
        (Tally, "add", "sums for metrics"),
        (torch.optim.SGD, "step", "optimizer"),
        (torch.optim.AdamW, "step", "optimizer"),
        (Muon, "step", "optimizer"),
        (torch.optim.Optimizer, "zero_grad", "optimizer"),
        (WeightAverage, "update_parameters", "averaged weights"),
        (Agreement, "exchange", "agreement"),
        (Agreement, "settle", "agreement"),
        (Agreement, "conclude", "agreement"),
        (Trainer, "log", "log rows"),
        (trainer, "check_in_sync", "comparison of ranks"),
        (Trainer, "save", "checkpoints"),
        (Trainer, "train_epoch", "rest"),
    ):
        clock.watch(owner, name, label)


def parts_ms(options: list[str]) -> dict[str, float]:
    """Train once; milliseconds a step of each part, the largest first, of what is in none, and of the whole."""
    from senet.config.load import load_config
    from senet.distributed.preemption import StopFlag
    from senet.training.run import run
    from senet.training.trainer import Trainer

    clock, epoch_s = Clock(), Counter[str]()
    watch_all(clock)
    train_epoch = Trainer.train_epoch

    def last_epoch(trainer: Trainer) -> None:
        if "forward" not in vars(trainer.learner.running):
            clock.watch(trainer.learner.running, "forward", "forward")
        clock.spent_s.clear()
        train_epoch(trainer)
        epoch_s.clear()
        epoch_s.update({label: s / trainer.steps_per_epoch for label, s in clock.spent_s.items()})

    Trainer.train_epoch = last_epoch  # type: ignore[method-assign]
    with contextlib.redirect_stdout(sys.stderr):
        run(load_config(options), options, StopFlag())
    return {label: 1000 * seconds for label, seconds in epoch_s.most_common()} | {"whole step": 1000 * epoch_s.total()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", help="as for train_ddp.py")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_intermixed_args()
    sys.path.insert(0, str(REPOSITORY))  # for model.name=benchmarks.networks:linear
    ms = parts_ms(args.options)
    print(json.dumps(ms) if args.json else "\n".join(f"{label:32} {value:8.3f} ms" for label, value in ms.items()))


if __name__ == "__main__":
    main()
