"""TensorBoard's files: a view of what metrics.jsonl and config.yaml hold."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from senet.rundir.files import may_pass, patiently

log = logging.getLogger(__name__)
_CURVES = {  # kind of row, prefix of a value: folder; TensorBoard draws one name in several folders into one chart
    ("train", "train"): "train",
    ("epoch", "train"): "train_epoch",
    ("epoch", "test"): "test",
    ("epoch", "ema"): "ema",
}


class Boards:
    """TensorBoard's writers, one for each folder.

    They write in threads of their own, and report an error only at a later call. So whatever was added since the last
    flush is kept, and after an error it is added again, to new files.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """``step``: what was shown after it, by a start that was killed, is hidden."""
        self._folder = folder
        self._flushed = self._step = step
        self._since: list[Callable[[], object]] = []
        self._writers: dict[str, Any] = {}
        self._open_anew()

    def row(self, kind: str, step: int, values: Mapping[str, float | str]) -> None:
        """Each number of a row as a point of a curve."""

        def add() -> None:
            for name, value in values.items():
                part, _, quantity = name.partition("_")
                if (kind, part) in _CURVES and quantity in ("loss", "top1", "top5"):
                    self._writers[_CURVES[kind, part]].add_scalar(quantity, value, step)
                elif not isinstance(value, str) and name not in ("epoch", "best_epoch"):
                    self._writers[""].add_scalar(f"{kind}/{name}", value, step)

        self._add(add, step)

    def graph(self, model: nn.Module, images_NCHW: Tensor) -> None:
        """The network's graph, traced in evaluation mode."""
        if not self._writers:
            return
        was_training = model.training
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".torch.jit")  # add_graph uses a deprecated tracer, and has no other
            try:
                model.eval()
                self._writers[""].add_graph(model, images_NCHW)
            except Exception as error:  # the tracer cannot follow every network; training does not need it
                log.warning("no graph in TensorBoard: %s", error)
        model.train(was_training)

    def final(self, options: Mapping[str, Any], result: Mapping[str, float], first: Collection[str]) -> None:
        """A row of the table of runs: the options, those in ``first`` before the others, beside the final result."""

        def add() -> None:
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
                self._writers[""].file_writer.add_summary(summary)
            for name, value in final.items():
                self._writers[""].add_scalar(name, value)

        self._add(add, step=0)

    def flush(self) -> None:
        """Return when everything so far is in the files."""
        try:
            for writer in self._writers.values():
                writer.flush()
        except OSError as error:
            self._open_anew(after=error)
        self._flushed, self._since = self._step, []

    def close(self) -> None:
        self.flush()
        for writer in self._writers.values():
            writer.close()

    def _add(self, action: Callable[[], object], step: int) -> None:
        if not self._writers:
            return
        self._since.append(action)
        self._step = max(step, self._step)
        try:
            action()
        except OSError as error:
            self._open_anew(after=error)

    def _open(self) -> dict[str, Any]:
        from torch.utils.tensorboard import SummaryWriter

        parts = ("", *_CURVES.values())
        return {part: SummaryWriter(self._folder / part, purge_step=self._flushed + 1) for part in parts}

    def _open_anew(self, after: OSError | None = None) -> None:
        def repeat() -> None:
            self._writers = self._open()
            for action in self._since:
                action()
            for writer in self._writers.values():
                writer.flush()

        try:
            if after is not None and not may_pass(after):
                raise after
            patiently(repeat)
        except OSError as error:
            log.warning("no more TensorBoard: %s", error)
            self._writers = {}
