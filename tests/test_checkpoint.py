"""Atomic, verified, pruned."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from senet.errors import ConfigError
from senet.rundir import files, saving
from senet.rundir.checkpoint import CheckpointError, read_checkpoint, unpickle
from senet.rundir.lease import LeaseLost
from senet.rundir.saving import CheckpointManager
from senet.training.resume import read_named
from tests.harness import differing

PAYLOAD = {"model": {"w": torch.arange(1000.0)}, "state": {"step": 1, "sums": [1, 2]}, "empty": {}}


def manager(
    folder: Path, *, keep: int = 3, generation: int = 1, resumed: Mapping[int, int] | None = None, **more: Any
) -> CheckpointManager:
    return CheckpointManager(folder, keep=keep, generation=generation, resumed_from=resumed or {}, **more)


def save(checkpoints: CheckpointManager, step: int, *, best: bool = False, payload: Any = PAYLOAD) -> None:
    checkpoints.save(payload, {"step": step, "best": best}, wait=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def steps(folder: Path) -> list[int]:
    return [int(name[5:14]) for name in names(folder) if name.endswith(".pt")]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save(manager(tmp_path), 5)
    found = manager(tmp_path, generation=2).newest()
    assert found is not None
    assert (found.step, found.manifest["generation"]) == (5, 1)
    assert differing(PAYLOAD, unpickle(found.content)) == []


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert manager(tmp_path / "new").newest() is None


def test_strides_survive(tmp_path: Path) -> None:
    weights = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    save(manager(tmp_path), 1, payload={"w": weights})
    found = manager(tmp_path).newest()
    assert found is not None
    assert unpickle(found.content)["w"].stride() == weights.stride()


def test_the_copy_is_complete_when_save_returns(tmp_path: Path) -> None:
    weights = torch.zeros(2_000_000)
    checkpoints = manager(tmp_path)
    for step in range(1, 6):
        checkpoints.save({"w": weights}, {"step": step, "best": False})
        weights += 1  # as the optimizer does, while the write is under way
    checkpoints.close()
    for path in tmp_path.glob("*.pt"):
        content = unpickle(read_checkpoint(path).content)["w"]
        assert content.unique().tolist() == [int(path.name[5:14]) - 1]


def test_one_flipped_bit_anywhere_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generator = random.Random(0)
    for trial in range(40):
        folder = tmp_path / str(trial)
        checkpoints = manager(folder)
        save(checkpoints, 1)
        save(checkpoints, 2)
        suffix = ".json" if trial % 4 == 0 else ".pt"
        victim = folder / f"step_000000002.g0001{suffix}"
        content = bytearray(victim.read_bytes())
        position = generator.randrange(len(content))
        content[position] ^= 1 << generator.randrange(8)
        victim.write_bytes(content)
        caplog.clear()
        found = manager(folder).newest()
        assert found is not None
        assert found.step == 1, f"bit of byte {position} of {victim.name}"
        [warning] = caplog.messages
        assert "step_000000002" in warning


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_a_truncated_file_is_set_aside(tmp_path: Path, part: float, suffix: str) -> None:
    checkpoints = manager(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    victim = tmp_path / f"step_000000002.g0001{suffix}"
    content = victim.read_bytes()
    victim.write_bytes(content[: int(part * len(content))])
    found = manager(tmp_path).newest()
    assert found is not None
    assert found.step == 1
    assert "step_000000002.g0001.pt.damaged" in names(tmp_path)


def test_a_manifest_that_is_missing_or_of_another_file_is_not_believed(tmp_path: Path) -> None:
    checkpoints = manager(tmp_path)
    for step in (1, 2, 3):
        save(checkpoints, step)
    (tmp_path / "step_000000003.g0001.json").unlink()
    (tmp_path / "step_000000002.g0001.json").write_bytes((tmp_path / "step_000000001.g0001.json").read_bytes())
    found = manager(tmp_path).newest()
    assert found is not None
    assert found.step == 1


def test_all_damaged_is_an_error_each_time_and_never_a_fresh_start(tmp_path: Path) -> None:
    save(manager(tmp_path), 1)
    (tmp_path / "step_000000001.g0001.pt").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
            manager(tmp_path).newest()


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = manager(tmp_path, keep=2)
    for step, best in ((1, True), (2, False), (3, True), (4, False), (5, False), (6, False)):
        save(checkpoints, step, best=best)
    assert steps(tmp_path) == [3, 5, 6]
    assert len(names(tmp_path)) == 6


def test_a_damaged_older_manifest_does_not_disturb_the_next_saves(tmp_path: Path) -> None:
    checkpoints = manager(tmp_path, keep=3)
    for step in range(1, 9):
        save(checkpoints, step)
        if step == 2:
            (tmp_path / "step_000000001.g0001.json").write_text("{")
    assert steps(tmp_path) == [6, 7, 8]


def test_what_cannot_be_read_back_is_not_believed_and_nothing_older_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = manager(tmp_path, keep=1)
    save(checkpoints, 1)
    original = saving.forget_cached

    def reveal(path: Path) -> None:
        """What is really on the disk, once it is not read from memory."""
        original(path)
        path.write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr(saving, "forget_cached", reveal)
    with pytest.raises(CheckpointError, match="do not match the sha256"):
        save(checkpoints, 2)
    assert steps(tmp_path) == [1, 2]


def test_a_left_over_writer_of_an_older_generation_is_ignored_beyond_the_resumed_step(tmp_path: Path) -> None:
    old = manager(tmp_path)
    save(old, 10)
    resumed = {1: 0, 2: 10}
    save(old, 20)  # written by a rank on a lost node, after generation 2 had begun at step 10
    found = manager(tmp_path, generation=2, resumed=resumed).newest()
    assert found is not None
    assert (found.step, found.manifest["generation"]) == (10, 1)
    save(manager(tmp_path, generation=2, resumed=resumed), 15)
    assert steps(tmp_path) == [10, 15]  # what is not of the run goes with the next save


def test_a_writer_that_lost_its_directory_changes_nothing(tmp_path: Path) -> None:
    """At whatever point it loses the directory: the new owner, of generation 2, is in the middle of a save."""
    young = [
        "step_000000015.g0002.json",  # its data follow
        "step_000000015.g0002.pt.0123abcd.tmp",
        *(f"step_0000000{step}.g0002.{kind}" for step in (11, 12, 13) for kind in ("json", "pt")),
    ]
    for asked in range(6):  # how many checks of the owner succeed
        folder = tmp_path / str(asked)
        old = manager(folder, keep=1, is_held=lambda: True)
        save(old, 10)
        for name in young:
            (folder / name).write_text("{}")
        answers = iter([True] * asked)
        old._is_held = lambda answers=answers: next(answers, False)  # type: ignore[assignment]
        with pytest.raises(CheckpointError, match="taken the run directory over") if asked < 2 else nullcontext():
            save(old, 20)
        left = {*names(folder)}
        assert {*young} <= left
        assert ("step_000000020.g0001.pt" in left) == (asked >= 2)  # the second check is before the renames
        assert ("step_000000010.g0001.pt" in left) == (asked < 3)  # the third is before it prunes


def test_what_is_not_of_a_checkpoint_stays(tmp_path: Path) -> None:
    mine = ("notes.json", "notes.tmp", "best.pt")
    checkpoints = manager(tmp_path, keep=1)
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / "link.pt").symlink_to("best.pt")
    for step in (1, 2):
        save(checkpoints, step)
    assert {*mine, "link.pt"} <= {*names(tmp_path)}


def test_a_damaged_file_is_not_set_aside_by_a_start_that_lost_the_directory(tmp_path: Path) -> None:
    save(manager(tmp_path), 1)
    (tmp_path / "step_000000001.g0001.pt").write_bytes(b"")
    before = names(tmp_path)
    with pytest.raises(LeaseLost):
        manager(tmp_path, is_held=lambda: False).newest()
    assert names(tmp_path) == before


@pytest.mark.parametrize("number", ["ENOTCONN", "ESTALE", "EIO", "ETIMEDOUT", "EREMOTEIO"])
@pytest.mark.parametrize("call", ["fsync", "replace", "unlink", "read_bytes"])
def test_a_file_system_that_was_away_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: str
) -> None:
    """All of it is written again: after a failed fsync, a second one may report success without writing."""
    place = os if call == "fsync" else Path
    original, failures, written = getattr(place, call), [0], []
    real_write = saving.write_temporary

    def away(what: Any, *args: Any, **more: Any) -> Any:
        failures[0] += 1
        if failures[0] <= 2:
            raise OSError(getattr(errno, number), number)
        return original(what, *args, **more)

    def write(*args: Any, **more: Any) -> Path:
        written.append(real_write(*args, **more))
        return written[-1]

    checkpoints = manager(tmp_path, keep=1)
    save(checkpoints, 1)
    (tmp_path / "step_000000001.g0001.pt.0123abcd.tmp").write_text("")  # something to unlink
    monkeypatch.setattr(files, "PAUSE_S", 0.01)
    monkeypatch.setattr(saving, "write_temporary", write)
    monkeypatch.setattr(place, call, away)
    save(checkpoints, 2)
    monkeypatch.undo()
    assert failures[0] > 2
    assert len({path.name for path in written}) == len(written)  # each under a new name
    found = manager(tmp_path).newest()
    assert found is not None
    assert found.step == 2
    assert names(tmp_path) == ["step_000000002.g0001.json", "step_000000002.g0001.pt"]


def test_a_file_system_that_stays_away_ends_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_descriptor: int) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    checkpoints = manager(tmp_path)
    monkeypatch.setattr(files, "PATIENCE_S", 0.1)
    monkeypatch.setattr(files, "PAUSE_S", 0.01)
    monkeypatch.setattr(os, "fsync", away)
    with pytest.raises(CheckpointError, match="Transport endpoint is not connected"):
        save(checkpoints, 1)
    assert names(tmp_path) == []


@pytest.fixture
def disk_goes_on(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The disk blocks until this event is set, and a save hardly waits for the one before."""
    goes_on, original = threading.Event(), os.fsync

    def hang(descriptor: int) -> None:
        goes_on.wait(30)
        original(descriptor)

    monkeypatch.setattr(saving, "_IN_LINE_S", 0.5)
    monkeypatch.setattr(os, "fsync", hang)
    return goes_on


def test_training_does_not_wait_for_a_disk_that_stands_still_and_the_newest_of_those_in_line_is_saved(
    tmp_path: Path, disk_goes_on: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = manager(tmp_path)
    began = time.monotonic()
    for step in (1, 2, 3, 4):
        checkpoints.save(PAYLOAD, {"step": step, "best": False})
    assert time.monotonic() - began < 25
    disk_goes_on.set()
    checkpoints.finish()
    assert steps(tmp_path) == [1, 4]
    assert [line.split(":")[0] for line in caplog.messages] == [
        f"a checkpoint gives its place to that of step {step}" for step in (3, 4)
    ]


def test_the_best_checkpoint_keeps_its_place_in_line(tmp_path: Path, disk_goes_on: threading.Event) -> None:
    checkpoints = manager(tmp_path)
    for step in (1, 2, 3, 4, 5):
        checkpoints.save(PAYLOAD, {"step": step, "best": step in (2, 3)})
    disk_goes_on.set()
    checkpoints.finish()
    assert steps(tmp_path) == [1, 3, 5]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_sync_a_folder_is_no_reason_not_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    original = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        original(descriptor)

    monkeypatch.setattr(files, "PATIENCE_S", 0.0)
    monkeypatch.setattr(os, "fsync", only_files)
    with nullcontext() if number == errno.EINVAL else pytest.raises(CheckpointError, match="Input/output error"):
        save(manager(tmp_path), 1)


def test_a_checkpoint_is_read_back_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    advise, read = os.posix_fadvise, Path.read_bytes

    def forget(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        advise(descriptor, offset, length, advice)
        calls.append(f"forget {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def note(path: Path) -> bytes:
        calls.append(f"read {path.name}")
        return read(path)

    monkeypatch.setattr(os, "posix_fadvise", forget)
    monkeypatch.setattr(Path, "read_bytes", note)
    save(manager(tmp_path), 1)
    assert calls == ["forget step_000000001.g0001.pt", "read step_000000001.g0001.pt"]


def test_what_must_be_on_the_disk_before_a_checkpoint_is(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    checkpoints = manager(tmp_path)
    checkpoints.save(PAYLOAD, {"step": 1, "best": False}, first=lambda: seen.append(names(tmp_path)), wait=True)
    assert seen == [[]]


def test_left_overs_of_a_killed_writer_go_with_the_next_save(tmp_path: Path) -> None:
    save(manager(tmp_path), 1)
    (tmp_path / "step_000000002.g0001.pt.99.tmp").write_bytes(b"half")
    (tmp_path / "step_000000002.g0001.json").write_text("{}")  # its data never followed
    assert manager(tmp_path).newest() is not None
    save(manager(tmp_path), 3)
    assert names(tmp_path) == [f"step_00000000{step}.g0001.{kind}" for step in (1, 3) for kind in ("json", "pt")]


def test_a_failing_write_is_retried_then_ends_the_run_and_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = manager(tmp_path)
    save(checkpoints, 1)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for step in (2, 3, 4):
        checkpoints.save(PAYLOAD, {"step": step, "best": False})
    assert len(caplog.messages) == 2
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoints.save(PAYLOAD, {"step": 5, "best": False})
    monkeypatch.undo()
    assert names(tmp_path) == ["step_000000001.g0001.json", "step_000000001.g0001.pt"]
    found = manager(tmp_path).newest()
    assert found is not None
    assert found.step == 1
    save(manager(tmp_path), 6)
    assert steps(tmp_path) == [1, 6]


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (os.environ["HOSTILE_TARGET"], "w"))


def test_a_hostile_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTILE_TARGET", str(tmp_path / "was-here"))
    save(manager(tmp_path / "c"), 1, payload={"model": _Hostile()})
    found = manager(tmp_path / "c").newest()
    assert found is not None  # its hash is right
    (tmp_path / "was-here").unlink(missing_ok=True)  # pickling it does not run it, but be sure
    with pytest.raises(Exception, match=r"was not opened \(it holds a io\.open, which is neither"):
        unpickle(found.content)
    assert not (tmp_path / "was-here").exists()


def test_a_named_file_must_be_there_and_whole(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_named(str(tmp_path / "nothing.pt"))
    save(manager(tmp_path), 1)
    path = tmp_path / "step_000000001.g0001.pt"
    assert read_named(str(path)).step == 1
    manifest = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(manifest | {"step": 7}))
    with pytest.raises(ConfigError, match="does not match its own sha256"):
        read_named(str(path))
