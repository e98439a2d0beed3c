"""Sums on the device, ``metrics.jsonl`` (the truth), and its views: TensorBoard, progress bars, lines."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from senet.files import replace_file

log = logging.getLogger(__name__)
T = TypeVar("T")
_CURVES = {  # kind of row, prefix: folder of TensorBoard, which draws one name in several folders into one chart
    ("train", "train"): "train",
    ("epoch", "train"): "train_epoch",
    ("epoch", "test"): "test",
    ("epoch", "ema"): "ema",
}
_LOSS_UNIT = 2.0**-24  # nats; a sum of 10**9 images still fits into 63 bits
_AT_ONCE = 16  # batches: on small tensors an operation costs the host more than its arithmetic
_NOT_FINITE = -(2.0**52)  # makes any sum negative, which no cross entropy is


@dataclass(frozen=True)
class Scores:
    """Means over ``num_images``: loss in nats, accuracies in percent [0, 100]; ``top5`` only beyond 5 classes."""

    num_images: int
    loss: float
    top1: float
    top5: float | None

    @classmethod
    def from_sums(cls, sums: Sequence[int], num_classes: int) -> Scores:
        """From a ``Tally``'s sums."""
        num_images, loss, top1, top5 = sums
        count = max(num_images, 1)
        return cls(
            num_images,
            loss * _LOSS_UNIT / count if loss >= 0 else math.nan,
            100 * top1 / count,
            100 * top5 / count if num_classes > 5 else None,
        )

    def row(self, prefix: str) -> dict[str, float]:
        """For metrics.jsonl."""
        named = {key: value for key, value in asdict(self).items() if value is not None and key != "num_images"}
        return {f"{prefix}_{key}": value for key, value in named.items()}


class Tally:
    """Number of images, loss, top-1 and top-5 hits, summed as int64 on the device.

    Integers (the loss in units of 2**-24 nats) add up to the same bits in any order: over ranks, log intervals and
    restarts. Nothing here synchronises. A loss that is not finite makes the mean NaN. The logits of up to 16 batches
    are kept until they are counted, and must not be changed meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.int64, device=device)
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self) -> Tensor:
        """The sums since the last call, int64 [4]."""
        self._count()
        sums, self._sums = self._sums, torch.zeros_like(self._sums)
        return sums

    def add(self, loss: Tensor, logits_NK: Tensor, labels_N: Tensor) -> None:
        """Count a batch; ``loss`` is its mean, a float32 scalar."""
        if self._pending and self._pending[0][1].shape != logits_NK.shape:
            self._count()
        self._pending.append((loss, logits_NK, labels_N))
        if len(self._pending) == _AT_ONCE:
            self._count()

    def _count(self) -> None:
        if not self._pending:
            return
        losses, logits, labels = zip(*self._pending, strict=True)
        self._pending.clear()
        batch, num_classes = logits[0].shape
        loss_B, logits_MK, labels_M = torch.stack(losses), torch.cat(logits), torch.cat(labels)
        hits = logits_MK.topk(min(5, num_classes), dim=1).indices == labels_M[:, None]
        units_B = torch.where(loss_B.isfinite(), (loss_B.double() * (batch / _LOSS_UNIT)).round(), _NOT_FINITE).long()
        images = torch.full((), len(hits), device=hits.device)
        self._sums += torch.stack((images, units_B.sum(), hits[:, :1].sum(), hits.sum()))


class Writer:
    """Rows to ``metrics.jsonl`` and TensorBoard, on rank 0; on other ranks (``run_dir=None``) it writes nothing.

    Rows past the point that the run resumes from are cut, so that after any number of kills each step has one row.
    """

    def __init__(self, run_dir: Path | None, *, resumed_step: int, epochs_done: int, tensorboard: bool) -> None:
        self._file = None
        self._boards: dict[str, Any] = {}
        if run_dir is None:
            return
        path = run_dir / "metrics.jsonl"
        kept = [
            line
            for line, row in _rows(path)
            if row["step"] <= resumed_step and (row["kind"] != "epoch" or row["epoch"] <= epochs_done)
        ]
        # a left-over writer goes on writing to the old file, which nobody sees
        replace_file(path, "".join(kept).encode(), durable=True)
        self._file = path.open("a")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            for part in ("", *_CURVES.values()):
                self._boards[part] = SummaryWriter(run_dir / "tensorboard" / part, purge_step=resumed_step + 1)

    def write(self, kind: str, step: int, **values: float | str) -> None:
        """One row, and each number as a scalar of that step."""
        if self._file is not None:
            try:
                self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
                self._file.flush()
            except OSError as error:  # a full disk: whether the run can go on is for the checkpoints to say
                log.warning("a row of metrics.jsonl was lost: %s", error)

        def show(boards: Mapping[str, Any]) -> None:
            for name, value in values.items():
                part, _, quantity = name.partition("_")
                if (kind, part) in _CURVES and quantity in ("loss", "top1", "top5"):
                    boards[_CURVES[kind, part]].add_scalar(quantity, value, step)
                elif not isinstance(value, str) and name not in ("epoch", "best_epoch"):
                    boards[""].add_scalar(f"{kind}/{name}", value, step)

        self._show(show)

    def graph(self, model: nn.Module, images_NCHW: Tensor) -> None:
        """The network's graph, traced in evaluation mode."""
        if self._boards:
            was_training = model.training
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # add_graph has no other way than the old tracer
                try:
                    model.eval()
                    self._boards[""].add_graph(model, images_NCHW)
                except Exception as error:  # the tracer cannot follow every network; training does not need it
                    log.warning("no graph in TensorBoard: %s", error)
            model.train(was_training)

    def final(self, options: Mapping[str, Any], result: Mapping[str, float], *, first: Collection[str]) -> None:
        """The options, those in ``first`` before the others, beside the final result: TensorBoard's table of runs."""

        def show(boards: Mapping[str, Any]) -> None:
            from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
            from torch.utils.tensorboard.summary import hparams

            plain = {key: value if isinstance(value, int | float) else str(value) for key, value in options.items()}
            final = {f"final/{key}": value for key, value in result.items()}
            summaries = hparams(plain, final)
            table = summaries[0].value[0].metadata.plugin_data
            content = HParamsPluginData.FromString(table.content)
            for column in content.experiment.hparam_infos:
                column.differs = column.name in first  # TensorBoard sorts by this, then by name, and shows a few
            table.content = content.SerializeToString()
            for summary in summaries:
                boards[""].file_writer.add_summary(summary)
            for name, value in final.items():
                boards[""].add_scalar(name, value)

        self._show(show)

    def sync(self) -> None:
        """Make the rows durable; before a checkpoint that counts on them is published."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # write has warned, and the checkpoint that follows fails too
                os.fsync(self._file.fileno())
        self._show(lambda boards: [board.flush() for board in boards.values()])  # or a kill would leave a gap

    def close(self) -> None:
        """Flush and close both."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # of rows that could not be written: write has warned
                self._file.close()
        self._show(lambda boards: [board.close() for board in boards.values()])

    def _show(self, action: Callable[[Mapping[str, Any]], object]) -> None:
        """Do something with TensorBoard's writers, whose threads hand on what went wrong before."""
        if self._boards:
            try:
                action(self._boards)
            except OSError as error:  # a full disk: its thread has ended
                log.warning("no more TensorBoard: %s", error)
                self._boards = {}


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whole rows of a metrics file; a last line that a kill cut short is none."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            try:
                yield line, json.loads(line)
            except ValueError:
                continue


class Progress:
    """What a person sees of rank 0: bars on a terminal, plain lines elsewhere; other ranks show nothing."""

    def __init__(self, visible: bool) -> None:
        self._visible = visible
        self._bars = visible and sys.stdout.isatty()
        self._bar: tqdm[Any] | None = None

    def over(self, batches: Iterable[T], *, title: str, total: int, done: int = 0) -> Iterator[T]:
        """Iterate, with a bar."""
        if not self._bars:
            yield from batches
            return
        with tqdm(total=total, initial=done, desc=title, unit="batch", file=sys.stdout, leave=False) as self._bar:
            for batch in batches:
                yield batch
                self._bar.update()
        self._bar = None

    def facts(self, line: str) -> None:
        """Numbers of the last log interval: behind the bar, or as a line."""
        if self._bar is not None:
            self._bar.set_postfix_str(line, refresh=False)
        else:
            self.say(line)

    def say(self, line: str) -> None:
        """A line of its own."""
        if self._visible:
            try:
                tqdm.write(line) if self._bars else print(line, flush=True)
            except OSError:  # the terminal was closed: the run goes on unseen
                self._visible = False
