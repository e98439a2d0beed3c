"""What ``launch.sh`` does about ``.venv``, with a stand-in for Python; and how many ranks ``senet/launch.py`` takes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from senet import REPOSITORY, launch
from senet.config.options import TrainConfig
from senet.distributed.preemption import StopFlag
from senet.errors import ConfigError

# Makes a virtual environment of itself, "installs" torch into it, and says what else it is asked to run
PYTHON = """\
#!/bin/sh
echo "$(basename "$0") $*" >>"$CALLS"
venv=$(dirname "$(dirname "$0")")
case "$*" in
"-m venv --clear "*) rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
"-m pip install "*)
    touch "$venv/torch"
    printf '#!/bin/sh\\n%s\\n' "'''exec' \\"$venv/bin/python\\"" >"$venv/bin/torchrun"
    ;;
"-I -c "*) [ -e "$venv/torch" ] ;;
"-c "*) ;;
*) echo "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which nothing is installed yet."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("launch.sh", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    return folder


def start(checkout: Path, *args: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    folder = checkout.parent
    environment = {"PATH": f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin", "CALLS": str(folder / "calls")}
    command = [*before, str(checkout / "launch.sh"), *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)


def installs(checkout: Path) -> list[str]:
    """The installations since this was last asked."""
    calls = checkout.parent / "calls"
    lines = calls.read_text().splitlines()
    calls.write_text("")
    return [
        line.split()[3] if "venv" in line.split() else "pip"
        for line in lines
        if "venv" in line.split() or "pip" in line
    ]


def test_it_installs_once_and_again_when_the_list_of_packages_has_changed(checkout: Path) -> None:
    done = start(checkout, "train.epochs=1")
    assert (done.returncode, done.stdout) == (0, "-P -m senet.launch train.epochs=1\n")
    assert installs(checkout) == ["--clear", "pip"]
    assert start(checkout, "train.epochs=1").stderr == ""
    assert start(checkout, "slurm", "status").stdout == f"{checkout}/slurm/submit.py status\n"
    assert installs(checkout) == []
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# another\n")
    assert "installing" in start(checkout).stderr
    assert installs(checkout) == ["pip"]
    assert start(checkout, "setup", "report").returncode == 0
    assert installs(checkout) == ["pip"]


def test_a_checkout_that_was_moved_or_copied_is_set_up_anew(checkout: Path) -> None:
    start(checkout)
    moved = checkout.rename(checkout.parent / "moved")
    installs(moved)
    assert start(moved).returncode == 0
    assert installs(moved) == ["--clear", "pip"]


@pytest.mark.parametrize("gone", [".venv/bin/python", ".venv/torch", ".venv/bin/torchrun"])
def test_a_python_that_was_upgraded_or_a_set_up_that_was_cut_short_is_mended(checkout: Path, gone: str) -> None:
    start(checkout)
    (checkout / gone).unlink()  # a dangling link; packages of another version's folder; pip was killed
    installs(checkout)
    assert start(checkout).returncode == 0
    assert installs(checkout) == ["--clear", "pip"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_checkout_that_cannot_be_written_is_used_as_it_is_or_refused_in_one_line(checkout: Path) -> None:
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    read_only = ("unshare", "--mount", "sh", "-c", mount, str(checkout))
    done = start(checkout, before=read_only)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"launch.sh: {checkout}/.venv is not set up, and {checkout} cannot be written; ")
    start(checkout)
    done = start(checkout, before=read_only)
    assert (done.returncode, done.stdout, done.stderr) == (0, "-P -m senet.launch\n", "")


def test_an_extra_that_does_not_exist_is_refused(checkout: Path) -> None:
    done = start(checkout, "setup", "test")
    assert (done.returncode, done.stderr) == (2, "launch.sh: setup test: there is dev, report, export and benchmarks\n")


@pytest.mark.parametrize(
    ("gpus", "batch", "accumulate", "expected"),
    [
        (8, 64, 1, 8),
        (7, 64, 1, 4),
        (6, 64, 1, 4),
        (3, 64, 1, 2),
        (8, 96, 3, 8),
        (6, 96, 4, 6),
        (0, 64, 1, 2),
        (0, 63, 1, 1),
    ],
)
def test_without_nproc_it_takes_the_most_ranks_that_divide_the_batch_and_says_so(
    gpus: int,
    batch: int,
    accumulate: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(launch, "count_gpus", lambda: gpus)
    assert launch.choose_ranks(TrainConfig(global_batch_size=batch, accumulate=accumulate)) == expected
    note = capsys.readouterr().err
    assert (note == "") == (expected == (gpus or 2))
    if note:
        assert f"launch.sh: {expected} rank(s) " in note
        assert f"train.global_batch_size={batch}" in note


def test_nproc_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "count_gpus", lambda: 8)
    monkeypatch.setenv("NPROC", "")
    assert launch.choose_ranks(TrainConfig(device="cpu")) == 2
    monkeypatch.setenv("NPROC", "4")
    assert launch.choose_ranks(TrainConfig()) == 4
    monkeypatch.setenv("NPROC", "3")
    with pytest.raises(ConfigError, match="use a multiple of 3"):
        launch.choose_ranks(TrainConfig())
    for wrong in ("two", "0", "-1", "1.5"):
        monkeypatch.setenv("NPROC", wrong)
        with pytest.raises(ConfigError, match=f"NPROC={wrong} is not a number of ranks"):
            launch.choose_ranks(TrainConfig())


def test_an_option_that_ends_as_a_file_does_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []

    def torchrun(_ranks: int, argv: list[str], *_: object) -> str:
        started.append(list(argv))
        return "nothing was begun"

    monkeypatch.setattr(os, "environ", dict(os.environ))  # it sets what the ranks inherit
    monkeypatch.setattr(launch, "torchrun", torchrun)
    (tmp_path / "own.yml").write_text("train: {epochs: 1}\n")
    for arguments in (["data.folder=own.yml"], [], [str(tmp_path / "own.yml")]):
        assert launch.main(arguments, StopFlag()) == 1
    quickstart = str(REPOSITORY / "configs" / "quickstart.yaml")
    assert started == [[quickstart, "data.folder=own.yml"], [quickstart], [str(tmp_path / "own.yml")]]
