"""Atomic, verified, pruned."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from senet.checkpoint import CheckpointError, CheckpointManager, read_checkpoint, unpickle
from senet.config import ConfigError
from senet.resume import read_named
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
    original = CheckpointManager._publish

    def lossy(self: CheckpointManager, *args: Any) -> Path:
        path = original(self, *args)
        path.write_bytes(path.read_bytes()[:-1])
        return path

    monkeypatch.setattr(CheckpointManager, "_publish", lossy)
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


def test_a_writer_that_lost_its_directory_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="taken the run directory over"):
        save(manager(tmp_path, is_held=lambda: False), 1)
    assert manager(tmp_path).newest() is None


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
