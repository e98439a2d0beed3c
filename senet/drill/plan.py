"""What the starts of a drill do. No torch."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from senet.config.options import Config
from senet.errors import ConfigError

PLAN_VARIABLE = "SENET_DRILL"  # names the file of a plan; a training that finds it is under drill
FEWEST_STEPS = 8
_TEST_BATCHES = 1.5  # per rank


@dataclass(frozen=True)
class Size:
    """The options of the command."""

    steps: int = 60
    ranks: tuple[int, ...] = ()
    """Empty: what a training would take."""


@dataclass(frozen=True)
class Plan:
    """What one run of the training does, over all its starts."""

    folder: str
    """Where its traces lie."""
    steps: int
    """It stops after this update."""
    epoch_steps: int
    """Updates per epoch, if there are images for so many."""
    tested: int
    """Test images, at most."""
    kills: tuple[int, ...] = ()
    """Start n is killed after update ``kills[n - 1]``; one that has no entry goes on to the end."""
    waits: bool = False
    """Instead of being killed, a start waits there until it is told to stop, and saves."""
    layers: bool = False
    """Whether the input and the output of every layer are traced."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Plan:
        content = json.loads(path.read_text())
        return cls(**{**content, "kills": tuple(content["kills"])})


def take_options(words: Sequence[str]) -> tuple[Size, list[str]]:
    """The options of the command, and the words that are left for the training.

    Raises:
        ConfigError: an unknown option, or a value that cannot be.
    """
    size, left = Size(), []
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        if not key.startswith("drill."):
            left.append(word)
        elif not equals:
            raise ConfigError(f"{key} has no value; give it one: drill.steps=60 or drill.ranks=1,2")
        elif key == "drill.steps":
            size = replace(
                size, steps=_numbers(key, text, f"one number of {FEWEST_STEPS} or more", least=FEWEST_STEPS, most=1)[0]
            )
        elif key == "drill.ranks":
            size = replace(size, ranks=_numbers(key, text, "numbers of ranks, each once, such as 1,2", least=1, most=8))
        else:
            raise ConfigError(f"unknown option {key!r}; there is drill.steps and drill.ranks")
    return size, left


def _numbers(key: str, text: str, what: str, *, least: int, most: int) -> tuple[int, ...]:
    parts = [part.strip() for part in text.strip("[]").split(",")]
    numbers = [int(part) for part in parts if part.isascii() and part.isdigit() and int(part) >= least]
    if not len(numbers) == len(parts) == len(set(numbers)) <= most:
        raise ConfigError(f"{key}={text} is not {what}")
    return tuple(numbers)


def first_plan(config: Config, size: Size, folder: Path) -> Plan:
    """For a run that nothing disturbs. Two ends of an epoch lie in it, and it stops in the middle of one, if
    ``train.epochs`` and the number of images allow."""
    epochs = config.train.epochs
    epoch_steps = 2 * size.steps // 5 if epochs > 2 else -(-size.steps // epochs)
    tested = int(_TEST_BATCHES * config.train.eval_batch_size * max(size.ranks, default=1))
    return Plan(str(folder), size.steps, epoch_steps, tested)


def save_every(steps: int) -> int:
    """Updates between checkpoints."""
    return max(2, steps // 10)


def choose_kills(steps: int, epoch_steps: int, seed: int) -> tuple[int, int]:
    """Two updates after which a run is killed, the first in the first half, with a checkpoint between them. If possible
    it goes on from a checkpoint in the middle of an epoch: there the unbroken run was looked at in the same moment."""
    every = save_every(steps)

    def pairs(candidates: Sequence[int]) -> list[tuple[int, int]]:
        return [
            (a, b) for a in candidates if a <= steps // 2 for b in candidates if (b - 1) // every > (a - 1) // every
        ]

    anywhere = range(every + 1, steps)
    inside = [step for step in anywhere if all(each % epoch_steps for each in range((step - 1) // every * every, step))]
    return random.Random(seed).choice(pairs(inside) or pairs(anywhere))
