"""What is seen of a process that hangs. The processes are real, py-spy is a script."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from senet.distributed import hangs
from senet.distributed.roster import Process
from senet.rundir.locks import started_at
from tests.harness import wait_until


def asleep() -> subprocess.Popen[bytes]:
    """A program that has come so far that it sleeps: on a busy host one that has just begun waits for a core."""
    process = subprocess.Popen(["sleep", "600"])
    try:
        wait_until(lambda: hangs.state(as_rank(process)) == "S")
    except BaseException:
        process.kill()
        raise
    return process


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with asleep() as process:
        yield process
        process.kill()


def as_rank(process: subprocess.Popen[bytes]) -> Process:
    return Process.own()._replace(pid=process.pid, started=started_at(process.pid))


@pytest.fixture
def spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of py-spy: what it does is written into this file."""
    script = tmp_path / "py-spy"
    script.touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(hangs.sys, "prefix", str(tmp_path))
    return script


def test_states_of_a_process_from_its_start_to_its_end(sleeper: subprocess.Popen[bytes]) -> None:
    process = as_rank(sleeper)
    assert hangs.state(Process.own()) in ("R", "S")
    assert hangs.state(process._replace(started=process.started - 1)) == ""  # another one had this pid
    sleeper.send_signal(signal.SIGSTOP)
    wait_until(lambda: hangs.state(process) == "T")
    sleeper.kill()
    wait_until(lambda: hangs.state(process) == "")
    assert Path(f"/proc/{sleeper.pid}").exists()  # its parent has not asked how it ended
    sleeper.wait()
    assert hangs.state(process) == ""
    assert len({hangs.in_words(letter) for letter in ("S", "T", "D", "", "?")}) == 5


def test_the_stacks_of_all_threads_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    def waits_for_ever(there: threading.Event, done: threading.Event) -> None:
        there.set()
        done.wait()

    there, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=waits_for_ever, args=(there, done))
    thread.start()
    there.wait()
    hangs.write_stacks("rank 1 on n2")
    done.set()
    thread.join()
    said = capfd.readouterr().err
    assert said.startswith("--- rank 1 on n2: the stacks of all its threads\n")
    assert "in waits_for_ever" in said
    assert "in test_the_stacks_of_all_threads_go_to_stderr" in said


@pytest.mark.parametrize("how", ["runs", "stopped"])
def test_what_hangs_is_looked_at_and_killed(
    sleeper: subprocess.Popen[bytes], spy: Path, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    spy.write_text("#!/bin/sh\ncase $* in *native*) echo no native >&2; exit 1 ;; esac\necho asked for $*\n")
    process, asked = as_rank(sleeper), f"dump --pid {sleeper.pid}"
    if how == "stopped":
        sleeper.send_signal(signal.SIGSTOP)
        wait_until(lambda: hangs.state(process) == "T")
    hangs.end({"rank 1 on n2": process})
    assert sleeper.wait(180) == -signal.SIGKILL
    first, *rest = capfd.readouterr().err.splitlines()
    if how == "stopped":
        assert first.startswith("--- rank 1 on n2: stopped by a signal (state T), waits in ")
        assert rest == [f"--- {spy} {asked} --nonblocking", f"asked for {asked} --nonblocking"]
    else:
        assert first.startswith("--- rank 1 on n2: alive, but its Python does not run (state S), waits in ")
        assert rest == [f"--- {spy} {asked} --native", "no native", f"--- {spy} {asked}", f"asked for {asked}"]


def test_a_py_spy_that_hangs_is_not_waited_for_however_many_processes_there_are(
    spy: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hangs, "LIMIT_S", 3)
    spy.write_text("#!/bin/sh\nexec sleep 600\n")
    with ExitStack() as stack:
        sleepers = [stack.enter_context(asleep()) for _ in range(40)]
        began = time.monotonic()
        hangs.end({f"rank {rank} on n2": as_rank(sleeper) for rank, sleeper in enumerate(sleepers)})
        assert time.monotonic() - began < 60  # one after another it would be 96
        assert [sleeper.wait(180) for sleeper in sleepers] == [-signal.SIGKILL] * 40
    said = capfd.readouterr().err
    assert said.count(": alive, but its Python does not run (state S), waits in ") == 40
    assert " timed out after " in said


def test_without_py_spy_the_state_is_told(
    sleeper: subprocess.Popen[bytes], spy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spy.unlink()
    hangs.end({"rank 1 on n2": as_rank(sleeper)})
    assert sleeper.wait(180) == -signal.SIGKILL
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_process_that_has_the_pid_now_is_left_alone(sleeper: subprocess.Popen[bytes], spy: Path) -> None:
    spy.unlink()
    hangs.end({"rank 1 on n2": as_rank(sleeper)._replace(started=1)})
    time.sleep(0.2)
    assert sleeper.poll() is None
