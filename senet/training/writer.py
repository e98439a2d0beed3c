"""``metrics.jsonl`` (the truth) and TensorBoard (a view of it), written by a thread of their own."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor, nn

from senet.rundir.files import PATIENCE_S, may_pass, patiently, read_rows, replace_file
from senet.rundir.lease import LeaseLost

log = logging.getLogger(__name__)
_CURVES = {  # kind of row, prefix: folder of TensorBoard, which draws one name in several folders into one chart
    ("train", "train"): "train",
    ("epoch", "train"): "train_epoch",
    ("epoch", "test"): "test",
    ("epoch", "ema"): "ema",
}


class Writer:
    """Rows to ``metrics.jsonl`` and TensorBoard, on rank 0; on other ranks (``run_dir=None``) it writes nothing.

    Rows past the point that the run resumes from are cut, so that after any number of kills each step has one row.
    Training hands rows over and goes on; what the file system did not take is written anew with the next checkpoint.
    """

    def __init__(
        self,
        run_dir: Path | None,
        *,
        resumed_step: int,
        epochs_done: int,
        tensorboard: bool,
        is_held: Callable[[], bool] = lambda: True,
    ) -> None:
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._boards: _Boards | None = None
        self._error: Exception | None = None
        if run_dir is None:
            return
        path = run_dir / "metrics.jsonl"
        kept = [
            _line(row)
            for row in read_rows(path)
            if isinstance(row.get("step"), int)  # a person may have put in a line
            and row["step"] <= resumed_step
            and (row.get("kind") != "epoch" or row.get("epoch", 0) <= epochs_done)
        ]
        self._rows = _Rows(path, kept, is_held)
        if tensorboard:
            self._boards = _Boards(run_dir / "tensorboard", resumed_step)
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def write(self, kind: str, step: int, **values: float | str) -> None:
        """One row, and each number as a scalar of that step."""
        if self._error is not None:
            raise self._error
        if self._thread is None:
            return
        line = _line({"kind": kind, "step": step, **values})
        self._jobs.put(lambda: self._rows.add(line))

        def show(boards: Mapping[str, Any]) -> None:
            for name, value in values.items():
                part, _, quantity = name.partition("_")
                if (kind, part) in _CURVES and quantity in ("loss", "top1", "top5"):
                    boards[_CURVES[kind, part]].add_scalar(quantity, value, step)
                elif not isinstance(value, str) and name not in ("epoch", "best_epoch"):
                    boards[""].add_scalar(f"{kind}/{name}", value, step)

        self._show(show, step)

    def graph(self, model: nn.Module, images_NCHW: Tensor) -> None:
        """The network's graph, traced in evaluation mode."""
        if self._boards is not None and self._boards.writers:
            was_training = model.training
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # add_graph has no other way than the old tracer
                try:
                    model.eval()
                    self._boards.writers[""].add_graph(model, images_NCHW)
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

        self._show(show, step=0)

    def sync(self) -> None:
        """Return when the rows so far are durable; before a checkpoint that counts on them is published."""
        if self._thread is None:
            return
        done = threading.Event()
        self._jobs.put(self._rows.sync)
        if self._boards is not None:
            self._jobs.put(self._boards.flush)  # or a kill would leave a gap before the resumed step
        self._jobs.put(done.set)
        while not done.wait(0.5) and self._thread.is_alive():
            pass

    def close(self) -> None:
        """Make everything durable, or say what was not, and end."""
        if self._thread is None:
            return
        self._jobs.put(self._rows.close)
        if self._boards is not None:
            self._jobs.put(self._boards.close)
        self._jobs.put(None)
        self._thread.join(PATIENCE_S)

    def _show(self, action: Callable[[Mapping[str, Any]], object], step: int) -> None:
        if (boards := self._boards) is not None:
            self._jobs.put(lambda: boards.show(action, step))

    def _work(self) -> None:
        for job in iter(self._jobs.get, None):
            try:
                job()
            except Exception as error:  # handed to the training thread by write
                self._error = error
                return


class _Rows:
    """The rows of ``metrics.jsonl``: appended; after an error nobody knows what of the file is on the disk, so that all
    of it is written anew.
    """

    def __init__(self, path: Path, lines: list[bytes], is_held: Callable[[], bool]) -> None:
        self._path, self._lines, self._is_held = path, lines, is_held
        self._file: FileIO | None = None
        self._write_anew()  # a left-over writer goes on writing to the old file, which nobody sees

    def add(self, line: bytes) -> None:
        self._lines.append(line)
        try:
            if self._file is not None and self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:  # whether the run can go on is for the checkpoints to say
            self._lose(error)

    def sync(self) -> None:
        try:
            if self._file is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._lose(error)
        if self._file is None:
            try:
                self._write_anew()
            except LeaseLost:
                return  # for the checkpoint to find out
            except OSError as error:
                log.warning("rows of metrics.jsonl are not on the disk: %s", error)

    def close(self) -> None:
        self.sync()
        if self._file is not None:
            self._file.close()

    def _lose(self, error: OSError) -> None:
        log.warning("%s: %s; it is written anew with the next checkpoint", self._path, error)
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None

    def _write_anew(self) -> None:
        if not patiently(self._is_held):
            raise LeaseLost(f"run_dir={self._path.parent} was taken over by another start")
        replace_file(self._path, b"".join(self._lines), durable=True)
        self._file = patiently(lambda: FileIO(self._path, "a"))


class _Boards:
    """TensorBoard's writers. Their own threads fail behind one's back: what may be lost since the last flush is shown
    again, to new files.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder
        self._flushed = self._step = step
        self._since: list[Callable[[Mapping[str, Any]], object]] = []
        self.writers: dict[str, Any] = {}
        self._begin_anew()

    def show(self, action: Callable[[Mapping[str, Any]], object], step: int) -> None:
        if not self.writers:
            return
        self._since.append(action)
        self._step = max(step, self._step)
        try:
            action(self.writers)
        except OSError as error:
            self._begin_anew(after=error)

    def flush(self) -> None:
        try:
            for writer in self.writers.values():
                writer.flush()
        except OSError as error:
            self._begin_anew(after=error)
        self._flushed, self._since = self._step, []

    def close(self) -> None:
        self.flush()
        for writer in self.writers.values():
            writer.close()

    def _open(self) -> dict[str, Any]:
        from torch.utils.tensorboard import SummaryWriter

        parts = ("", *_CURVES.values())
        return {part: SummaryWriter(self._folder / part, purge_step=self._flushed + 1) for part in parts}

    def _begin_anew(self, after: OSError | None = None) -> None:
        def repeat() -> None:
            self.writers = self._open()
            for action in self._since:
                action(self.writers)
            for writer in self.writers.values():
                writer.flush()

        try:
            if after is not None and not may_pass(after):
                raise after
            patiently(repeat)
        except OSError as error:
            log.warning("no more TensorBoard: %s", error)
            self.writers = {}


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row) + "\n").encode()
