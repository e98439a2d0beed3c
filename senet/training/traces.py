"""What torch.profiler records on one rank: a trace, a table of operations, on a GPU the history of its memory."""

from __future__ import annotations

import errno
import gzip
import os
import pickle
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from senet import compat
from senet.rundir.files import replace_file
from senet.rundir.profiles import memory_file, table_file, trace_file

_BAR = "update "  # in a trace, over each
_MOST_ROWS = 10


class Recording:
    """First ``begin`` after the updates that warm up, then ``update`` at the beginning of each, at last ``end``, which
    on a GPU waits for it; ``write`` may be called in a thread."""

    def __init__(self, device: torch.device) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it calls it an error that a CPU is no GPU
        self._on_gpu = device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        self._profiler = profile(activities=activities, record_shapes=True)
        self._label: Any = None
        self._memory: Any = None
        self._updates = 0
        self._profiler.prepare_trace()  # takes the time of the first start; nothing is recorded yet

    def begin(self) -> None:
        """From here on operations are recorded."""
        if self._on_gpu:
            compat.record_memory(on=True)
        self._profiler.start_trace()

    def update(self, step: int) -> None:
        """A bar in the trace, from here to the next update."""
        self._end_label()
        self._label = record_function(f"{_BAR}{step}")
        self._label.__enter__()
        self._updates += 1

    def end(self) -> None:
        """Record no more."""
        self._end_label()
        self._profiler.stop_trace()
        if self._on_gpu:
            self._memory = compat.memory_snapshot()
            compat.record_memory(on=False)

    def write(self, stem: Path, rank: int) -> str:
        """Write the files of this rank; rank 0 returns the table."""
        stem.parent.mkdir(exist_ok=True)  # not its parents: another host may not see the run directory
        if self._memory is not None:
            replace_file(memory_file(stem, rank), pickle.dumps(self._memory))
        table = ""
        if rank == 0:
            table = table_of(self._profiler.key_averages(), self._updates, on_gpu=self._on_gpu)
            replace_file(table_file(stem), table.encode())
        replace_file(trace_file(stem, rank), gzip.compress(self._trace(), compresslevel=3))
        return table

    def _trace(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="senet-") as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            content = path.read_bytes() if path.exists() else b""
        if not content.rstrip().endswith(b"}"):  # torch says nothing of a disk that is full
            raise OSError(errno.ENOSPC, "the trace was cut short", folder)
        return content

    def _end_label(self) -> None:
        if self._label is not None:
            self._label.__exit__(None, None, None)
        self._label = None


def table_of(events: Iterable[Any], updates: int, *, on_gpu: bool) -> str:
    """The most expensive operations, each without those that it calls: on a GPU by the time of their kernels. Then how
    much of an update they all take: the rest is Python, waits, and what is no operation."""
    key, known = "self_device_time_total" if on_gpu else "self_cpu_time_total", list(events)
    spent = {
        event.key: (getattr(event, key), event.count)
        for event in known
        if event.device_type.name == "CPU" and not event.is_user_annotation and getattr(event, key) > 0
    }
    whole = sum(time_us for time_us, _ in spent.values()) or 1
    lines = [f"{'ms/update':>10} {'share':>6} {'calls/update':>13}  operation ({'GPU' if on_gpu else 'CPU'} time)"]
    for name, (time_us, count) in sorted(spent.items(), key=lambda each: -each[1][0])[:_MOST_ROWS]:
        lines.append(f"{time_us / updates / 1000:10.3f} {time_us / whole:6.1%} {count / updates:13.1f}  {name}")
    bars_us = sum(e.cpu_time_total for e in known if e.is_user_annotation and e.key.startswith(_BAR))
    lines.append(f"{whole / updates / 1000:10.3f} of {bars_us / updates / 1000:.3f} ms an update are in operations")
    return "\n".join(lines) + "\n"
