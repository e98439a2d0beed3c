"""Rows in metrics.jsonl and TensorBoard, written beside the training."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from senet.rundir import files
from senet.rundir.lease import LeaseLost
from senet.training.writer import Writer
from tests.harness import rows, wait_until


def writer(folder: Path, *, step: int = 0, to: Sequence[str] = (), **more: Any) -> Writer:
    return Writer(folder, resumed_step=step, epochs_done=0, to=to, **more)


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in rows(folder)]


def test_rows_past_the_resumed_step_are_cut(tmp_path: Path) -> None:
    writer = Writer(tmp_path, resumed_step=0, epochs_done=0, to=())
    for step in range(1, 9):
        writer.write("train", step, loss=1.0)
        if step % 4 == 0:
            writer.write("epoch", step, epoch=step // 4)
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a kill in the middle of a row
        file.write('\n{"note": "restarted by hand"}\n{"kind": "epoch", "step": "4"}\n')
    writer = Writer(tmp_path, resumed_step=4, epochs_done=0, to=())  # stopped in the first evaluation
    writer.write("train", 5, loss=2.0)
    writer.close()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2)]
    assert rows(tmp_path, "epoch") == []
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_tensorboard_shows_losses_in_one_chart_no_counters_and_first_the_options_that_are_not_defaults(
    tmp_path: Path,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, parse_experiment_plugin_data

    writer = Writer(tmp_path, resumed_step=0, epochs_done=0, to=("tensorboard",))
    writer.write("train", 2, train_loss=2.5, train_s=1.0)
    losses = {"train_loss": 2.0, "test_loss": 1.5, "ema_loss": 1.0}
    writer.write("epoch", 4, epoch=1, **losses, epoch_s=2.0, best_top1=90.0, best_epoch=1, weights="raw")
    options = {"a": [1], "b": 0.1, "c": "x", "d": True}
    writer.final(options, {"test_loss": 1.5}, first={"b", "d"})
    writer.close()
    seen = {}
    for folder in ("train", "train_epoch", "test", "ema", ""):
        events = EventAccumulator(str(tmp_path / "tensorboard" / folder))
        events.Reload()
        scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        seen[folder] = {tag: [(event.step, event.value) for event in scalars[tag]] for tag in scalars}
    assert [seen.pop(name) for name in ("train", "train_epoch", "test", "ema")] == [
        {"loss": [(step, loss)]} for step, loss in ((2, 2.5), (4, 2.0), (4, 1.5), (4, 1.0))
    ]
    assert seen[""].keys() == {"train/train_s", "epoch/epoch_s", "epoch/best_top1", "final/test_loss"}
    columns = parse_experiment_plugin_data(events.SummaryMetadata(EXPERIMENT_TAG).plugin_data.content).hparam_infos
    assert {column.name: column.differs for column in columns} == {"a": False, "b": True, "c": False, "d": True}


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = Writer(None, resumed_step=0, epochs_done=0, to=("tensorboard",))
    writer.write("train", 1, loss=1.0)
    writer.sync()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_rows_for_which_there_was_no_room_are_written_when_there_is(tmp_path: Path) -> None:
    written = writer(tmp_path)
    written.write("train", 1, loss=1.0)
    written.sync()
    assert written._rows._file is not None
    written._rows._file.close()
    written._rows._file = FileIO("/dev/full", "a")
    for step in (2, 3):
        written.write("train", step, loss=1.0)
    written.close()
    assert steps(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.ENOSPC])
def test_rows_that_a_file_system_has_lost_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(files, "PAUSE_S", 0.01)
    original = os.fsync

    def fail(descriptor: int) -> None:
        """Fails once: what was written since the last fsync is lost, and the next fsync succeeds."""
        monkeypatch.setattr(os, "fsync", original)
        os.truncate(f"/proc/self/fd/{descriptor}", 3)
        raise OSError(number, os.strerror(number))

    written = writer(tmp_path)
    written.write("train", 1, loss=1.0)
    written.sync()
    written.write("train", 2, loss=2.0)
    written.write("train", 3, loss=3.0)
    monkeypatch.setattr(os, "fsync", fail)
    written.sync()
    assert steps(tmp_path) == [1, 2, 3]
    written.write("train", 4, loss=4.0)
    written.close()
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_disk_that_stands_still_delays_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, stuck, original = threading.Event(), threading.Event(), os.fsync
    written = writer(tmp_path)

    def hang(descriptor: int) -> None:
        stuck.set()
        goes_on.wait(30)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", hang)
    saving = threading.Thread(target=written.sync)
    saving.start()
    assert stuck.wait(30)
    began = time.monotonic()
    for step in range(100):
        written.write("train", step, loss=1.0)
    assert time.monotonic() - began < 25
    assert saving.is_alive()
    goes_on.set()
    saving.join()
    written.close()
    assert steps(tmp_path) == list(range(100))


def test_a_left_over_writer_replaces_nothing(tmp_path: Path) -> None:
    held = True
    old = writer(tmp_path, is_held=lambda: held)
    old.write("train", 1, loss=1.0)
    old.sync()
    held = False
    new = writer(tmp_path, step=1)
    new.write("train", 2, loss=2.0)
    new.sync()
    old._rows._abandon(OSError("gone"))  # after an error it would write all of it again
    old.write("train", 9, loss=9.0)
    old.close()
    new.close()
    assert steps(tmp_path) == [1, 2]
    with pytest.raises(LeaseLost):
        writer(tmp_path, is_held=lambda: False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own threads die
@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ENOSPC])
def test_tensorboard_goes_on_in_new_files_after_its_file_system_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    original = RecordWriter.write
    written = writer(tmp_path, to=("tensorboard",))
    written.write("train", 1, train_loss=1.0)
    written.sync()

    met: list[int] = []

    def away(*_: object) -> None:
        met.append(number)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(RecordWriter, "write", away)
    written.write("train", 2, train_loss=2.0)
    boards = written._boards
    assert boards is not None
    time.sleep(1.1)  # files are told apart by the second
    wait_until(lambda: number in met)
    monkeypatch.setattr(RecordWriter, "write", original)
    written.write("train", 3, train_loss=3.0)
    written.close()
    assert steps(tmp_path) == [1, 2, 3]
    events = EventAccumulator(str(tmp_path / "tensorboard" / "train"))
    events.Reload()
    shown = [event.step for event in events.Scalars("loss")]
    if number == errno.ENOTCONN:
        assert shown == [1, 2, 3]
    else:
        assert shown == [1]
        assert "no more TensorBoard: [Errno 28]" in caplog.text
