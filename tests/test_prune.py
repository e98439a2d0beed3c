"""What lies in run directories, and what of it can go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from senet import REPOSITORY
from senet.inference.network import load_trained
from senet.prune import main
from senet.rundir.lease import Lease
from senet.rundir.saving import CheckpointManager
from tests.conftest import Once, Train
from tests.harness import StopAt, checkpoints, payload, rows, status

LIGHT = ("model.name=tests.networks:no_norm", "train.amp=off")


@pytest.fixture
def run(train_here: Train, once: Once, tmp_path: Path) -> Path:
    """A finished run of three epochs whose best one is the first, with five checkpoints."""

    def make(folder: Path) -> None:
        options = ("train.epochs=3", "optim.lr=1e-9", "train.ema_decay=0", "checkpoint.keep=4")
        train_here(folder, *LIGHT, *options)

    shutil.copytree(once("run_to_prune", make), tmp_path / "run")
    return tmp_path / "run"


def steps(run: Path) -> list[int]:
    return [int(path.name[5:14]) for path in checkpoints(run)]


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}


def test_it_tells_what_is_there_and_touches_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    assert main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{run}: finished, step 66, ")
    [first, *_] = rows(run, "epoch")
    assert lines[1].split()[0] == "step_000000022.g0001.pt"
    assert lines[1].endswith(f"best, {first['test_top1']:.2f} %")
    assert lines[2].split()[0] == "step_000000066.g0001.pt"
    assert "newest, " in lines[2]
    assert "(3 older checkpoints, 0 damaged or unfinished files)" in lines[-1]
    assert files(run) == before


def test_the_best_and_the_newest_stay_and_the_run_is_still_finished(
    run: Path, train_here: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert steps(run) == [22, 55, 60, 65, 66]
    (run / "checkpoints/step_000000050.g0001.pt.damaged").write_bytes(b"x" * 1000)
    (run / "checkpoints/step_000000051.g0001.pt.0123.tmp").write_bytes(b"x")
    (run / "checkpoints/mine.pt").write_bytes(b"somebody's own")
    others = {name for name in files(run) if not name.startswith("checkpoints/step_")}
    best, newest = payload(run, 0), payload(run)
    assert main([str(run), "--delete"]) == 0
    assert "removed: " in capsys.readouterr().out
    assert steps(run) == [22, 66]
    assert (payload(run, 0)["state"], payload(run)["state"]) == (best["state"], newest["state"])
    assert len(list((run / "checkpoints").iterdir())) == 5  # two, their manifests, and somebody's own
    assert others <= files(run)
    assert load_trained(run, model_name=LIGHT[0].partition("=")[2], device="cpu") is not None
    assert main([str(run), "--delete"]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    again = train_here(run, *LIGHT, "train.epochs=3", "optim.lr=1e-9", "train.ema_decay=0")
    assert (again.state, again.step, len(rows(run, "epoch"))) == ("finished", 66, 3)


def test_a_run_that_has_not_finished_is_left_alone_unless_told(
    train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(tmp_path / "run", *LIGHT, stop=StopAt(18))
    before = files(tmp_path)
    assert main([str(tmp_path / "run"), "--delete"]) == 1
    assert "left alone: it has not finished (stopped); add --unfinished" in capsys.readouterr().out
    assert files(tmp_path) == before
    assert main([str(tmp_path / "run"), "--delete", "--unfinished"]) == 0
    assert steps(tmp_path / "run") == [19]
    assert train_here(tmp_path / "run", *LIGHT).state == "finished"
    assert status(tmp_path / "run")["state"] == "finished"


def test_a_run_that_is_alive_is_left_alone_and_the_others_are_not(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, run.parent / "other")
    with Lease.acquire(run):
        assert main([str(run.parent), "--delete"]) == 1
    assert "left alone: run_dir=" in capsys.readouterr().out
    assert (len(steps(run)), len(steps(run.parent / "other"))) == (5, 2)


def test_nothing_goes_where_what_is_kept_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints(run)[-1].write_bytes(b"x")
    assert main([str(run), "--delete"]) == 1
    assert "do not match the sha256" in capsys.readouterr().out
    assert len(steps(run)) == 5


def test_nothing_goes_where_nothing_would_stay(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Lease.acquire(run) as lease:
        lease.start(0)  # as if all of them were of a process that had lost the run directory
        lease.update(state="finished")
    assert main([str(run), "--delete"]) == 1
    assert "none of its checkpoints belongs to the run" in capsys.readouterr().out
    assert len(steps(run)) == 5


def test_what_does_not_belong_to_the_run_is_not_taken_for_its_best(run: Path) -> None:
    """A process that went on after another start had taken over."""
    with Lease.acquire(run) as lease:
        lease.start(60)
        manager = CheckpointManager(
            run / "checkpoints", keep=9, generation=lease.generation, resumed_from=lease.resumed_from
        )
        manager.save({"x": 1}, {"step": 61, "best": False}, wait=True)
        lease.update(state="finished", step=61)
    assert main([str(run), "--delete"]) == 0
    assert steps(run) == [22, 61]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_of_a_folder_that_is_mounted_read_only_prune_and_sync_name_that_and_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step_000000001.g0001.pt.damaged").touch()
    (tmp_path / "status.json").write_text('{"state": "finished", "step": 3}')
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && "$@"'
    command = ("unshare", "--mount", "sh", "-c", mount, str(tmp_path), sys.executable, "-m")
    for words, out, err in (
        (("prune", "--delete"), "left alone: you cannot write this folder, or it is mounted read-only; run it wh", ""),
        (("sync", "--to=mlflow"), "", ".sync.lock'; run it where you can write that folder\n"),
    ):
        given = (*command, f"senet.{words[0]}", words[1], str(tmp_path))
        env = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
        done = subprocess.run(given, cwd=REPOSITORY, env=env, capture_output=True, text=True)
        assert done.returncode == 1
        assert out in done.stdout
        assert err in done.stderr
