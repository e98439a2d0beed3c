"""Two runs of a drill: what they left, and where they first differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from senet.errors import RunError
from senet.rundir.checkpoint import published_files, read_checkpoint, unpickle
from senet.rundir.files import read_rows

CLOCKS = ("train_s", "epoch_s", "logged_s", "images_per_s", "spent", "memory_gb", "gpu_memory_gb")


@dataclass(frozen=True)
class Moment:
    """What a start held after an update, or when all was restored, before its first one."""

    start: int
    """1 is the first start of its run."""
    step: int
    restored: bool
    tensors: Mapping[str, int]
    """Sums of the bits of what a checkpoint must hold."""
    others: Mapping[str, str]
    """What no checkpoint holds."""


@dataclass(frozen=True)
class Run:
    """What one run of the training left."""

    folder: Path
    """Of its traces and its run directory, ``run``."""
    moments: tuple[Moment, ...]
    ranks: tuple[int, ...]
    """Of each start."""
    epoch_steps: int
    """Updates per epoch."""
    threads: int
    """Of each rank of the first start."""
    amp: str
    """The precision of the first start."""

    def after(self, step: int) -> Moment | None:
        """The last time that this update was done."""
        return next((m for m in reversed(self.moments) if m.step == step and not m.restored), None)

    def restored_at(self, start: int) -> Moment | None:
        """What a start had before its first update."""
        return next((m for m in self.moments if m.start == start and m.restored), None)

    @property
    def resumed_from(self) -> list[int]:
        """The update that each start but the first went on from."""
        return [moment.step for moment in self.moments if moment.restored][1:]


@dataclass(frozen=True)
class Difference:
    """Where one run first differs from another."""

    what: str
    step: int
    start: int
    """Of the other run, in which it showed."""
    resumed_from: int
    """What that start went on from; 0: it was the first."""


def read_run(folder: Path) -> Run:
    """Read the traces of a run."""
    moments: list[Moment] = []
    starts: list[dict[str, Any]] = []
    for start, path in enumerate(sorted(folder.glob("start-*.jsonl"), key=lambda path: int(path.stem[6:])), 1):
        others: dict[str, str] = {}
        for row in read_rows(path):
            others = others | row["others"]
            moments.append(Moment(start, row["step"], row["restored"], row["tensors"], others))
            starts += [row] if row["restored"] else []
    if not starts:
        return Run(folder, (), (), 0, 0, "")
    ranks = tuple(row["ranks"] for row in starts)
    first = starts[0]
    return Run(folder, tuple(moments), ranks, first["epoch_steps"], first["threads"], first["amp"])


def first_difference(one: Run, other: Run) -> Difference | None:
    """The first update of ``other``, in the order in which they were done, after which it held what ``one`` did not."""
    for moment in other.moments:
        expected = one.after(moment.step)
        if moment.restored or expected is None or moment.tensors == expected.tensors:
            continue
        what = next(iter(differing(expected.tensors, moment.tensors)))
        restored = other.restored_at(moment.start)
        return Difference(what, moment.step, moment.start, restored.step if restored else 0)
    return None


@dataclass(frozen=True)
class Left:
    """What is in a run directory at the end, without clocks and memory."""

    payload: Mapping[str, Any]
    """Flat: the leaves of the last checkpoint."""
    rows: tuple[Mapping[str, Any], ...]

    @property
    def tensors(self) -> int:
        return sum(hasattr(leaf, "dtype") for leaf in self.payload.values())


def read_left(folder: Path) -> Left:
    """Of the run directory in the folder of a run.

    Raises:
        RunError: it holds no checkpoint.
    """
    files = published_files(folder / "run" / "checkpoints")
    if not files:
        raise RunError(f"{folder / 'run'} holds no checkpoint")
    payload = unpickle(read_checkpoint(files[0]).content)
    rows = tuple(_without_clocks(row) for row in read_rows(folder / "run" / "metrics.jsonl"))
    return Left(dict(leaves(_without_clocks(payload))), rows)


def what_differs(one: Left, other: Left) -> list[str]:
    """Names of the leaves of the checkpoint, and of the rows' numbers, that are not the same bits."""
    found = differing(one.payload, other.payload)
    if len(one.rows) != len(other.rows):
        found.append(f"metrics.jsonl: {len(one.rows)} rows and {len(other.rows)}")
    for a, b in zip(one.rows, other.rows, strict=False):
        found += [f"{name} in the row of step {a['step']} of metrics.jsonl" for name in differing(a, b)]
    return found


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of what is not the same in two flat mappings, in the order of the first."""
    names = [*one, *(name for name in other if name not in one)]
    return [name for name in names if name not in one or name not in other or not _same(one[name], other[name])]


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """``("model.conv.weight", tensor)`` and so on."""
    if isinstance(tree, Mapping):
        parts = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple):
        parts = [(str(number), value) for number, value in enumerate(tree)]
    else:
        yield path, tree
        return
    for key, value in parts:
        yield from leaves(value, f"{path}.{key}" if path else key)


def _without_clocks(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_clocks(value) for key, value in tree.items() if key not in CLOCKS}
    return tree


def _same(one: Any, other: Any) -> bool:
    """Bit for bit: NaN is the same as itself."""
    if hasattr(one, "dtype") and hasattr(other, "dtype"):
        import torch

        same = one.dtype == other.dtype and one.shape == other.shape
        return same and bool(torch.equal(_bits(one), _bits(other)))
    return type(one) is type(other) and (one == other or repr(one) == repr(other))


def _bits(tensor: Any) -> Any:
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
