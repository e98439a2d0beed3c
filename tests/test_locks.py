"""Locks between processes, on file systems with and without support for locks."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import pytest

from senet import REPOSITORY
from senet.rundir import locks
from senet.rundir.lease import Lease
from senet.rundir.locks import StillHeld, has_ended, lock, own_folder, this_process
from slurm import submission, submit
from tests.harness import tiny, wait_until

NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


def failing(code: int) -> Callable[..., NoReturn]:
    """An ``fcntl.flock`` of a file system without locks."""

    def flock(*_: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return flock


def held_elsewhere(path: Path) -> int:
    """The lock as a process of another host has it."""
    path.write_text(json.dumps(this_process() | {"host": "elsewhere", "pid": 77}))
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_one_after_the_other(tmp_path: Path) -> None:
    entered: list[str] = []

    def second() -> None:
        with lock(tmp_path / "lock", patience_s=60):
            entered.append("second")

    with lock(tmp_path / "lock", patience_s=60):
        assert json.loads((tmp_path / "lock").read_text()) == this_process()
        thread = Thread(target=second)
        thread.start()
        time.sleep(0.2)
        entered.append("first")
    thread.join(60)
    assert entered == ["first", "second"]
    assert (tmp_path / "lock").read_text() == ""  # a process that has released it is not named


def test_a_holder_without_a_sign_of_life_is_named(tmp_path: Path) -> None:
    descriptor = held_elsewhere(tmp_path / "lock")
    with (
        pytest.raises(
            StillHeld, match=r"process 77 on host elsewhere holds .*/lock, and gave no sign of life for 0\.2 s"
        ),
        lock(tmp_path / "lock", patience_s=0.2),
    ):
        raise AssertionError("entered")
    os.close(descriptor)


def test_one_waits_for_a_holder_who_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(locks, "BEAT_S", 0.1)
    patience_s, held_s = 6.0, 8.0

    def hold() -> None:
        with lock(tmp_path / "lock", patience_s=60):
            time.sleep(held_s)

    thread = Thread(target=hold)
    thread.start()
    wait_until(lambda: (tmp_path / "lock").exists() and (tmp_path / "lock").read_text())
    with lock(tmp_path / "lock", patience_s=patience_s):
        pass
    thread.join()


def test_a_long_wait_names_the_holder_and_a_short_one_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    descriptor = held_elsewhere(tmp_path / "lock")
    with pytest.raises(StillHeld), lock(tmp_path / "lock", patience_s=0.2):
        raise AssertionError("entered")
    assert "waiting" not in caplog.text
    monkeypatch.setattr(locks, "_SILENT_S", 0.1)
    with pytest.raises(StillHeld), lock(tmp_path / "lock", patience_s=1.5):
        raise AssertionError("entered")
    assert f"waiting for process 77 on host elsewhere, which holds {tmp_path / 'lock'}" in caplog.text
    os.close(descriptor)


@pytest.mark.parametrize("code", NO_LOCKS)
def test_where_there_are_no_locks_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(code))
    with lock(tmp_path / "lock", patience_s=60):
        pass
    assert f"{tmp_path / 'lock'} cannot be locked ({os.strerror(code)}); going on without" in caplog.text
    with Lease.acquire(tmp_path / "run") as lease:
        lease.start(0)
        assert lease.is_held()


def test_a_job_is_submitted_where_there_are_no_locks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    for name, answer in (("preflight", []), ("owner", []), ("_send", "77")):
        monkeypatch.setattr(submission, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(submission.shutil, "which", lambda _: "/usr/bin/sbatch")
    submit.submit(tiny(f"run_dir={tmp_path / 'run'}"))
    assert "submitted job 77" in capsys.readouterr().out
    assert f"{tmp_path / 'run/slurm/.submit.lock'} cannot be locked (No locks available)" in caplog.text


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), lock(tmp_path / "lock", patience_s=60):
        raise AssertionError("entered")
    assert (tmp_path / "precious").read_text() == "content"


@pytest.mark.ranks
def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from senet.rundir.locks import lock\n"
        "with lock(pathlib.Path(sys.argv[1]), patience_s=60): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        holder: dict[str, Any] = json.loads((tmp_path / "lock").read_text())
        assert holder["pid"] == process.pid
        assert not has_ended(holder)
        with pytest.raises(StillHeld, match=f"process {process.pid} on"), lock(tmp_path / "lock", patience_s=0.2):
            raise AssertionError("entered")
        process.kill()
    with lock(tmp_path / "lock", patience_s=60):
        assert has_ended(holder)
    assert not has_ended(holder | {"host": "elsewhere"})
    assert not has_ended({})


def test_what_others_have_put_beside_it_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / ".somebodys.tmp").write_text("no folder")
    with own_folder(tmp_path, "mine") as own:
        (own / "made").touch()
    assert [path.name for path in tmp_path.iterdir()] == [".somebodys.tmp"]
