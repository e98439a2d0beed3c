"""What holds a GPU up: hidden waits of the host, checkpoints beside training, memory at a resume."""

from __future__ import annotations

import ast
import gc
import inspect
import itertools
import math
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from senet import REPOSITORY
from senet.training.trainer import Observer, Trainer
from tests.conftest import Train
from tests.gpu.conftest import HERE, MARKS, ON_GPU, SENET18, SMALLER
from tests.harness import rows, status

pytestmark = MARKS
WAITS = "called a synchronizing CUDA operation"  # torch's warning
COPY_MS, STALL_MS = (50, 10) if ON_GPU else (2000, 2000)  # a CPU that tests share with others has pauses of its own
SAVED = "the copy has been made"
MIB = 2**20


@contextmanager
def noted_waits() -> Iterator[list[str]]:
    """Of the operations for which the host waited for the device: where no comment in ``senet/`` says so."""
    found: list[str] = []

    def note(message: Warning | str, *_: Any) -> None:
        frames = list(own_frames(sys._getframe(1)))
        if WAITS in str(message) and not any(says_so(frame) for frame in frames):
            found.append(" < ".join(f"{Path(f.f_code.co_filename).name}:{f.f_lineno}" for f in frames))

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        warnings.showwarning = note
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("warn")
        else:
            for name in ("item", "tolist", "__bool__", "__float__"):
                patch.setattr(torch.Tensor, name, warns(getattr(torch.Tensor, name)))
        try:
            yield found
        finally:
            if ON_GPU:
                torch.cuda.set_sync_debug_mode("default")


def warns(method: Callable[..., Any]) -> Callable[..., Any]:
    """In place of a GPU: whatever reads a tensor waits, but for copies of losses that a CPU does not make."""

    def warning(tensor: torch.Tensor, *args: Any) -> Any:
        if Path(sys._getframe(1).f_code.co_filename).name != "agreement.py":
            warnings.warn(WAITS, stacklevel=2)
        return method(tensor, *args)

    return warning


def own_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Functions of ``senet/`` from there outwards."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(f"{REPOSITORY}/senet/") and not frame.f_code.co_name.startswith("<"):
            yield frame
        frame = frame.f_back


def says_so(frame: FrameType) -> bool:
    """Whether the line, the one above it, or the function's doc string names a sync point."""
    lines, first = inspect.getsourcelines(frame.f_code)
    [function] = ast.parse(textwrap.dedent("".join(lines))).body
    assert isinstance(function, ast.FunctionDef)
    line = frame.f_lineno - first
    text = "".join([ast.get_docstring(function) or "", *lines[max(0, line - 1) : line + 1]])
    return "sync point" in text.lower()


WORK = {
    "sgd": ["train.amp=bf16"],
    "fp16": ["train.amp=fp16", "train.clip_norm=1"],
    "adamw": ["train.amp=bf16", "optim.name=adamw", "optim.lr=0.001", "data.resident=off"],
    "muon": ["train.amp=bf16", "optim.name=muon", *SMALLER],
    "changes": [
        "train.amp=bf16",
        "augment.trivial=true",
        "augment.color_jitter=[0.4,0.4,0.4,0.1]",
        "augment.erase=0.5",
        "augment.mixup=0.2",
        "augment.cutmix=1",
    ],
    "shards": ["train.amp=bf16", "train.shards=4", "train.accumulate=2", "train.ema_decay=0"],
}


def waits_of(train_here: Train, run_dir: Path, *options: str) -> set[str]:
    """Those of 65 updates with their log rows, checkpoints, comparisons of ranks, and three evaluations."""
    with noted_waits() as found:

        def observe(_: Trainer) -> Observer:
            updates = itertools.count(1)
            return lambda: found.clear() if next(updates) == 1 else None  # the start and the first update may wait

        often = ("checkpoint.every_steps=20", "log.every_steps=10", "train.desync_check_every=20")
        train_here(run_dir, HERE, "train.epochs=3", *often, *options, observe=observe)
    assert status(run_dir)["step"] == 66
    assert len(rows(run_dir)) == 6
    return set(found)


@pytest.mark.parametrize("work", WORK)
def test_the_host_waits_only_where_a_comment_says_so(work: str, train_here: Train, tmp_path: Path) -> None:
    found = waits_of(train_here, tmp_path, *WORK[work])
    assert not found, "\n".join(found)


def test_a_wait_that_no_comment_names_is_noted(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senet.training.trainer.clip_grad_norm_", lambda parameters, _: next(parameters).max().item())
    [found] = waits_of(train_here, tmp_path, "train.amp=off", "train.clip_norm=1")
    assert found.startswith("trainer.py:")


def test_a_checkpoint_beside_training_is_no_stall(
    train_here: Train, tmp_path: Path, say: Callable[[str], None]
) -> None:
    """The longest time without a kernel: usually; at a save, which copies; and in the 24 updates after, while it is
    written. Not at the first save, which takes the pinned memory that later ones use."""
    usual, saving = (profile(activities=activities()) for _ in range(2))
    begin, end = {60: usual, 99: saving}, {70: usual, 125: saving}

    def observe(trainer: Trainer) -> Observer:
        with profile(activities=activities()):
            pass  # the first one in a process takes time

        def observer() -> None:
            if profiler := begin.get(trainer.state.step):
                profiler.start()
            elif profiler := end.get(trainer.state.step):
                profiler.stop()
            elif trainer.state.step == 101:
                with record_function(SAVED):
                    pass

        return observer

    options = (
        "train.global_batch_size=16",
        "checkpoint.every_steps=100",
        "log.every_steps=1000",
    )  # 89 updates an epoch
    train_here(tmp_path, HERE, *SENET18, "train.amp=bf16", *options, observe=observe)
    (usual_ms, _), (copied_ms, written_ms) = map(longest_pauses_ms, (usual, saving))
    pauses = f"{usual_ms:.2f} ms, {copied_ms:.2f} ms while a checkpoint is copied, {written_ms:.2f} while it is written"
    say(f"longest pause between kernels {pauses}")
    assert copied_ms - usual_ms < COPY_MS
    assert written_ms - usual_ms < STALL_MS


def activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]


def longest_pauses_ms(profiler: profile) -> tuple[float, float]:
    """Between the end of one kernel and the beginning of the next, before SAVED and from there on; copies are no
    kernels. On a CPU, of its operations."""
    wanted, events = DeviceType.CUDA if ON_GPU else DeviceType.CPU, list(profiler.events() or [])
    saved_us = min((e.time_range.start for e in events if e.name == SAVED), default=math.inf)
    kernels = [e for e in events if e.device_type == wanted and not e.is_user_annotation and e.name != SAVED]
    spans = sorted(
        (e.time_range.start, e.time_range.end) for e in kernels if not e.name.startswith(("Memcpy", "Memset"))
    )
    assert len(spans) > 1000, "hardly any kernels in the trace"
    pauses_us, end = [0.0, 0.0], spans[0][1]
    for start, until in spans:
        is_later = start > saved_us
        pauses_us[is_later], end = max(pauses_us[is_later], start - end), max(end, until)
    return pauses_us[0] / 1000, pauses_us[1] / 1000


def test_a_resume_takes_no_more_memory_than_a_fresh_start(
    train_here: Train, tmp_path: Path, say: Callable[[str], None]
) -> None:
    peaks: list[int] = []

    def observe(trainer: Trainer) -> Observer:
        first = trainer.state.step + 1

        def observer() -> None:
            if trainer.state.step == first:
                peaks.append(peak_bytes())

        return observer

    for epochs in (1, 2):
        start_counting()
        options = (f"train.epochs={epochs}", "schedule.name=constant", "resume.allow_changes=true")
        train_here(tmp_path, HERE, *SENET18, "train.amp=bf16", *options, observe=observe)
    fresh, resumed = peaks
    say(f"peak memory after the first update: {fresh / MIB:,.0f} MiB fresh, {resumed / MIB:,.0f} MiB resumed")
    assert resumed <= 1.05 * fresh


def start_counting() -> None:
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Since ``start_counting``; on a CPU what the process has now."""
    return torch.cuda.max_memory_allocated() if ON_GPU else psutil.Process().memory_info().rss
