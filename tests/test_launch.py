"""``launch.sh`` as a person uses it; its set-up is the virtual environment the tests run in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from senet.config import REPOSITORY
from tests.harness import checkpoints, descendants, rows, started, status, survivors, tiny, wait_until

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(
        Path(sys.prefix) != REPOSITORY / ".venv", reason="launch.sh has a virtual environment of its own: use make test"
    ),
]
LAUNCH = str(REPOSITORY / "launch.sh")


def launch(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LAUNCH, *args], capture_output=True, text=True, env=os.environ | env, timeout=120)


def test_finished_and_again(data_root: Path, tmp_path: Path) -> None:
    options = tiny(f"data.root={data_root}", "run_dir=run")
    command = [LAUNCH, *options]
    for expected in ("epoch 2/2", "resumed from"):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        assert "finished: " in done.stdout
        assert "installing" not in done.stderr
    assert status(tmp_path / "run")["state"] == "finished"


@pytest.mark.parametrize(
    ("args", "env", "expected"),
    [
        (["optim.lrr=1"], {}, "did you mean 'optim.lr'"),
        (["train.global_batch_size=64"], {"NPROC": "3"}, "use a multiple of 3"),
        ([], {"NPROC": "two"}, "NPROC=two"),
    ],
)
def test_bad_input_ends_before_torchrun_with_one_line(args: list[str], env: dict[str, str], expected: str) -> None:
    done = launch(*args, **env)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert expected in line


def test_bad_input_that_only_a_rank_can_see_is_code_2_too(data_root: Path, tmp_path: Path) -> None:
    done = launch(*tiny(f"data.root={data_root}", f"run_dir={tmp_path}", "resume.mode=nothing.pt"))
    assert done.returncode == 2
    assert done.stderr.count("resume.mode=nothing.pt: no such file") == 1


def test_the_default_is_the_quickstart(tmp_path: Path) -> None:
    done = launch("data.root=/proc/nowhere", "train.epochs=1", f"run_dir={tmp_path}")
    assert done.returncode == 2
    assert "stores/digits" not in done.stderr
    assert "data.root=/proc/nowhere" in done.stderr
    assert "cifar" not in done.stderr


def test_help_needs_no_torchrun() -> None:
    done = launch("--help")
    assert done.returncode == 0
    assert "train.global_batch_size = 128" in done.stdout


@pytest.mark.parametrize("names", [["SIGTERM"], ["SIGINT", "SIGINT", "SIGINT"], ["SIGUSR2", "SIGTERM"]])
def test_signals_stop_it_once_with_code_85(names: list[str], data_root: Path, tmp_path: Path) -> None:
    options = tiny(
        f"data.root={data_root}", f"run_dir={tmp_path}/run", "train.epochs=500", "checkpoint.every_steps=10000"
    )
    with started([LAUNCH, *options], tmp_path / "log", NPROC="2") as process:
        wait_until(lambda: rows(tmp_path / "run") and rows(tmp_path / "run")[-1]["step"] > 30)
        tree = descendants(process)
        for name in names:
            process.send_signal(getattr(signal, name))
        assert process.wait(60) == 85
        assert survivors(tree) == []
    found = status(tmp_path / "run")
    assert found["state"] == "stopped"
    assert found["reason"] in names  # of two that are pending at once, either may come first
    assert (tmp_path / "log").read_text().count("stopped at step") == 1
    assert int(checkpoints(tmp_path / "run")[-1].name[5:14]) == found["step"]


def test_a_run_that_dies_is_code_1(data_root: Path, tmp_path: Path) -> None:
    options = tiny(f"data.root={data_root}", f"run_dir={tmp_path}/run", "train.epochs=500")
    with started([LAUNCH, *options], tmp_path / "log", NPROC="2") as process:
        wait_until(lambda: rows(tmp_path / "run"))
        next(p for p in descendants(process) if p.cmdline()[-1:] and "-u" in p.cmdline()).kill()
        assert process.wait(60) == 1
    assert "launch.sh: the run failed" in (tmp_path / "log").read_text()


def test_slurm_is_the_command_of_that_name(tmp_path: Path) -> None:
    done = launch("slurm", "--dry-run", *tiny(f"run_dir={tmp_path}/run", "slurm.nodes=2"))
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --nodes=2" in done.stdout
    assert launch("slurm", "status", str(tmp_path)).returncode == 2
