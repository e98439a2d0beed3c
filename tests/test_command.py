"""How a command ends, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from senet import REPOSITORY, evaluate, export, predict
from senet.command import CRASH_VARIABLE
from senet.errors import ConfigError
from senet.report import __main__ as report
from slurm import control

START = """
from senet.command import *
def fails(error):
    raise error
def prints(text):
    print(text)
    return 0
end("name", lambda argv: """


def run(body: str, stdout: int = subprocess.PIPE) -> tuple[int, list[str]]:
    """Exit code and lines on stderr."""
    command = [sys.executable, "-c", f"{START}{body})"]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("body", "code", "lines"),
    [
        ("prints('x')", 0, []),
        ("prints('x') or 1", 1, []),
        ("prints(chr(0xdc80))", 0, []),  # a byte of a file name that is not UTF-8
        ("fails(ConfigError('two\\nlines'))", 2, ["name: two lines"]),
        ("fails(ConfigError('class \\x1b[31mred\\x9b0m\\u202e'))", 2, ["name: class ?[31mred?0m?"]),
        ("fails(RunError('x'))", 1, ["name: x"]),
        ("fails(PermissionError(13, 'Permission denied', 'file'))", 1, ["name: [Errno 13] Permission denied: 'file'"]),
        ("fails(KeyboardInterrupt())", 130, []),
        ("Parser().parse_args(['--no'])", 2, ["name: unrecognized arguments: --no; --help shows the usage"]),
    ],
)
def test_an_end_is_an_exit_code_and_at_most_one_line(body: str, code: int, lines: list[str]) -> None:
    assert run(body) == (code, lines)


def test_a_bug_has_its_traceback() -> None:
    code, lines = run("fails(KeyError('x'))")
    assert (code, lines[0], lines[-1]) == (1, "Traceback (most recent call last):", "KeyError: 'x'")


def test_output_that_found_no_room_is_a_failure() -> None:
    with Path("/dev/full").open("w") as full:
        assert run("prints('x')", full.fileno()) == (1, ["name: [Errno 28] No space left on device"])


@pytest.mark.parametrize(
    "command",
    [
        ["train_ddp.py", "--help", "all"],
        ["-m", "senet.launch", "train", "--help", "all"],
        ["slurm/submit.py", "--help"],
    ],
)
def test_a_manual_whose_reader_has_seen_enough_ends_without_a_word(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(
            [sys.executable, *command], stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, timeout=180
        )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    "command",
    [
        lambda path: predict.main([path, "a.png"]),
        lambda path: export.main([path, "--format=onnx"]),
        lambda path: report.main([path]),
        lambda path: control.stop([path]),
        lambda path: control.status([path]),
    ],
)
def test_a_tilde_is_home_for_every_command(
    command: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=f"{tmp_path}/none"):
        command("~/none")
    with pytest.raises(ConfigError, match=r"~nobody-here.* no such user"):
        command("~nobody-here/run")


def test_a_tilde_is_home_in_every_path_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = evaluate._parser().parse_args(["~/run", "--predictions=~/a.csv"])
    assert (arguments.network, arguments.predictions) == (tmp_path / "run", tmp_path / "a.csv")
    arguments = export._parser().parse_args(["~/run", "--format=onnx", "--output=~/a.onnx"])
    assert arguments.output == tmp_path / "a.onnx"
    (tmp_path / "a.png").touch()
    assert predict.expand("~") == predict.expand("~/a.png") == [str(tmp_path / "a.png")]
    assert predict.expand("https://host/~/a.png") == ["https://host/~/a.png"]


def test_torchrun_is_told_why_a_rank_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    said = {}
    for number, error in enumerate(("ConfigError('no such file')", "KeyError('x')")):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(number)))
        run(f"fails({error})")
        message = ProcessFailure(0, 1, 1, str(tmp_path / str(number))).message
        said[error] = message["extraInfo"]["py_callstack"]
    assert said["ConfigError('no such file')"] == "no such file"
    assert said["KeyError('x')"].startswith("Traceback")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_reason_to_fail(closed: str) -> None:
    code = f"{START}prints('x'))"
    done = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code], cwd=REPOSITORY)
    assert done.returncode == 0


@pytest.mark.parametrize("named", [False, True])
def test_a_page_that_is_not_to_be_had_leaves_its_place_behind(named: bool, tmp_path: Path) -> None:
    body = (
        "import mmap; from senet.command import trace_crashes; trace_crashes(); "
        "file = open('mapped', 'w+b'); file.write(b'1'); file.flush(); page = mmap.mmap(file.fileno(), 1); "
        "file.truncate(0); page[0]"
    )
    place = {"PYTHONPATH": str(REPOSITORY)} | ({CRASH_VARIABLE: str(tmp_path / "crash")} if named else {})
    done = subprocess.run(
        [sys.executable, "-c", body], env=os.environ | place, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == -signal.SIGBUS
    text = (tmp_path / "crash").read_text() if named else done.stderr
    assert text.startswith("Fatal Python error: Bus error\n")
    assert 'File "<string>", line 1' in text
