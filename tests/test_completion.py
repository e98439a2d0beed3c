"""``completion.bash``: what Tab offers, in a checkout whose Python is a stand-in that counts how often it is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from senet import REPOSITORY
from senet.config.manual import completions
from senet.config.options import groups

VERBS = ["train", "predict", "evaluate", "export", "report", "compare", "tensorboard", "drill", "doctor", "slurm"]
VERBS += ["sweep", "follow", "why", "profile", "prune", "sync", "data", "setup", "help"]
RECIPES = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "configs").rglob("*.yaml"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("launch.sh", "completion.bash"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (tmp_path / "senet" / "config").mkdir(parents=True)
    shutil.copy(REPOSITORY / "senet" / "config" / "options.py", tmp_path / "senet" / "config")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\necho "$*" >>"{tmp_path}/asked"\nPYTHONPATH={REPOSITORY} exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    for run in ("runs/one", "elsewhere/two"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "metrics.jsonl").touch()
    (tmp_path / "runs" / "no run").mkdir()
    (tmp_path / "runs" / "rates").mkdir()
    (tmp_path / "runs" / "rates" / "sweep.json").touch()
    (tmp_path / "own.yml").touch()
    return tmp_path


def offered(checkout: Path, *lines: str, cwd: str = "") -> list[list[str]]:
    """What Tab offers at the end of each line."""
    script = """
    source "$0"
    for line in "$@"; do
        COMP_LINE=$line COMP_POINT=${#line} COMP_CWORD=1 COMP_WORDS=()
        _launch
        for word in "${COMPREPLY[@]}"; do printf '%s ' "${word:-EMPTY}"; done
        echo
    done
    """
    done = subprocess.run(
        ["bash", "-c", script, checkout / "completion.bash", *lines],
        cwd=checkout / cwd,
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    assert done.stderr == ""
    return [line.split() for line in done.stdout.splitlines()]


def test_tab_offers_what_launch_sh_and_its_options_are(checkout: Path) -> None:
    names = [name for _, name in groups() if name]
    keys = {word.partition("=")[0] for word in completions()}
    first = {f"{name}." for name in names} | {f"{key}=" for key in keys if "." not in key}
    everything, of_train, of_optim, of_help = offered(
        checkout,
        "./launch.sh ",
        "./launch.sh train configs/tiny.yaml ",
        "./launch.sh optim.",
        "./launch.sh train --help ",
    )
    assert set(everything) == {*VERBS, *first, *RECIPES, "own.yml"}
    assert set(of_train) == {*first, *RECIPES, "own.yml"}
    assert set(of_optim) == {f"{key}=" for key in keys if key.startswith("optim.")}
    assert set(of_help) == {*names, "all"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("./launch.sh pre", "predict"),
        ("./launch.sh train.amp=", "auto bf16 fp16 off"),
        ("./launch.sh seed=1 train.amp=b", "bf16"),
        ("./launch.sh train train.compile=", "false true"),
        ("./launch.sh train.epochs=", ""),
        ("./launch.sh data.folder=", ""),
        ("./launch.sh run_dir=elsewhere/", ""),
        ("./launch.sh train.epo", "train.epochs="),
        ("./launch.sh own", "own.yml"),
        ("./launch.sh slurm st", "status stop"),
        ("./launch.sh drill drill.", "drill.ranks= drill.steps="),
        ("./launch.sh drill train.amp=b", "bf16"),
        ("./launch.sh doctor train.amp=b", "bf16"),
        ("./launch.sh doctor --", "--help --json --max-seconds --out"),
        ("./launch.sh slurm --", "--dry-run --help"),
        ("./launch.sh slurm slurm.cluster=l", "local"),
        ("./launch.sh slurm stop ", "rates runs/one"),
        ("./launch.sh why ra", "rates"),
        ("./launch.sh slurm clear ", "runs/one"),
        ("./launch.sh data ", "list prepare prune verify"),
        ("./launch.sh data prepare own", "own.yml"),
        ("./launch.sh data prepare data.source=di", "digits"),
        ("./launch.sh data list data.roo", "data.root="),
        ("./launch.sh data prune --", "--delete --help"),
        ("./launch.sh data list --", "--help --json"),
        ("./launch.sh slurm d", "data. distributed. doctor drill"),
        ("./launch.sh evaluate ", "runs/one"),
        ("./launch.sh predict elsewhere/", "elsewhere/two"),
        ("./launch.sh report elsewhere/two r", "runs/one"),
        ("./launch.sh compare elsewhere/t", "elsewhere/two"),
        ("./launch.sh compare runs --", "--against --csv --help --json --page --score"),
        ("./launch.sh tensorboard elsewhere/t", "elsewhere/two"),
        ("./launch.sh predict runs/one ", ""),  # the names of files, which bash offers by itself
        ("./launch.sh slurm --help resu", "resume"),
        ("./launch.sh setup ", "benchmarks dev export gpu mlflow report timm wandb"),
        ("./launch.sh help pre", "predict"),
        ("./launch.sh help predict ", ""),
    ],
)
def test_tab_offers_what_goes_on_from_there(line: str, expected: str, checkout: Path) -> None:
    assert offered(checkout, line) == [expected.split()]


def test_bash_puts_no_space_behind_an_equals_sign_and_completes_the_folder(checkout: Path) -> None:
    typed = (
        'PS1=; source completion.bash; launch.sh() { echo "$@" >>typed; }\n'
        "launch.sh run_dir=\telse\ttwo\n"
        "launch.sh seed=1 data.folder=else\tt\t\n"
        "launch.sh model.name=\tresnet20\n"
        "exit\n"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(checkout), "TERM": "dumb", "INPUTRC": "/dev/null"}
    keyboard, terminal = os.openpty()
    try:
        os.write(keyboard, typed.encode())
        bash = ["bash", "--norc", "-i"]
        subprocess.run(
            bash, cwd=checkout, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, timeout=180
        )
    finally:
        os.close(keyboard)
        os.close(terminal)
    lines = (checkout / "typed").read_text().splitlines()
    assert lines == ["run_dir=elsewhere/two", "seed=1 data.folder=elsewhere/two/", "model.name=resnet20"]


def test_recipes_are_offered_in_any_folder(checkout: Path) -> None:
    assert offered(checkout, "./launch.sh configs/", cwd="elsewhere") == [RECIPES]


def test_python_is_asked_once_for_the_options_and_again_when_they_have_changed(checkout: Path) -> None:
    lines = 3 * ["./launch.sh optim.n"]
    expected = 3 * [["optim.name=", "optim.nesterov="]]
    assert offered(checkout, *lines) == expected
    assert (checkout / "asked").read_text().splitlines() == ["-P -m senet.config --completions"]
    os.utime(checkout / "senet" / "config" / "options.py", (2**31, 2**31))
    assert offered(checkout, *lines[:1]) == expected[:1]
    assert len((checkout / "asked").read_text().splitlines()) == 2
    (checkout / ".venv" / ".completions").unlink()
    (checkout / ".venv" / "bin" / "python").unlink()
    assert offered(checkout, "./launch.sh optim.n", "./launch.sh ev") == [[], ["evaluate"]]  # before the set-up
