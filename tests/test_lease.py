"""One owner of a run directory."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from senet import REPOSITORY
from senet.errors import ConfigError, RunError
from senet.rundir import files, lease, mirror, owner
from senet.rundir.files import read_json, write_json
from senet.rundir.lease import Lease, LeaseLost
from senet.rundir.owner import Watch, holder, nothing_left_if_refused, slurm_job
from tests.harness import wait_until


def edit_owner(run_dir: Path, **changes: Any) -> None:
    path = run_dir / "owner.json"
    path.write_text(json.dumps(read_json(path) | changes))


def test_a_second_run_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path), pytest.raises(ConfigError, match=r"alive \(process \d+ on host "):
        Lease.acquire(tmp_path)
    with Lease.acquire(tmp_path) as second:  # released
        assert second.generation == 2


def test_a_holder_that_was_killed_here_is_succeeded_at_once(tmp_path: Path) -> None:
    code = "import os; from pathlib import Path; from senet.rundir.lease import Lease; "
    code += f"Lease.acquire(Path({str(tmp_path)!r})); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 9
    assert not read_json(tmp_path / "owner.json").get("released")
    with Lease.acquire(tmp_path) as after:
        assert after.generation == 2


def test_a_process_id_used_again_by_another_program_does_not_hold(tmp_path: Path) -> None:
    Lease.acquire(tmp_path)
    edit_owner(tmp_path, pid_started=1)
    Lease.acquire(tmp_path).close()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory that was held by a process of another host, and was not released. An hour is 8 s there."""
    monkeypatch.setattr(owner, "WATCH_S", 0.4)
    monkeypatch.setattr(owner, "POLL_S", 0.02)
    monkeypatch.setattr(lease, "POLL_S", 0.02)
    Lease.acquire(tmp_path).close()
    edit_owner(tmp_path, released=False, host="elsewhere")
    return tmp_path


@pytest.mark.parametrize("skew_s", [-86_400, -300, 0, 300, 86_400])
def test_a_holder_on_another_host_holds_while_its_heart_beats_whatever_its_clock_says(
    elsewhere: Path, skew_s: float
) -> None:
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            write_json(elsewhere / "owner.json", before | {"heartbeat": time.time() + skew_s})

    before = read_json(elsewhere / "owner.json")
    edit_owner(elsewhere, heartbeat=time.time() + skew_s)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ConfigError, match=r"alive \(process \d+ on host elsewhere\)"):
            Lease.acquire(elsewhere)
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("skew_s", [-300, 0, 300, 86_400])
def test_a_holder_on_another_host_whose_heart_stands_still_is_succeeded_whatever_its_clock_said(
    elsewhere: Path, skew_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    edit_owner(elsewhere, heartbeat=time.time() + skew_s)
    waits: list[float] = []
    began = time.monotonic()
    Lease.acquire(elsewhere, waiting=lambda: waits.append(time.monotonic())).close()
    assert time.monotonic() - began > 0.4
    assert len(waits) > 5  # progress, for the ranks that wait for this one
    [line] = caplog.messages
    assert "was held by process" in line
    assert "on host elsewhere; watching for" in line


def test_a_holder_on_another_host_whose_files_are_an_hour_old_is_succeeded_at_once(elsewhere: Path) -> None:
    long_ago = time.time() - 2 * owner.OLD_S
    edit_owner(elsewhere, heartbeat=long_ago)
    os.utime(elsewhere / "owner.json", (long_ago, long_ago))
    waits: list[None] = []
    Lease.acquire(elsewhere, waiting=lambda: waits.append(None)).close()
    assert waits == []


def test_time_in_which_the_file_system_was_away_kills_no_holder(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(owner.time, "monotonic", lambda: clock[0])
    edit_owner(elsewhere, heartbeat=time.time())
    watch = Watch(elsewhere)
    for now in (0.0, 0.02, 1000.0, 1000.02):  # nothing could be read for a thousand seconds
        clock[0] = now
        assert watch.look() is None
    for step in range(100):
        clock[0] = 1000.02 + 0.02 * step
        if watch.look() is False:
            return
    pytest.fail("never sure")


def test_another_boot_of_this_host_counts_as_elsewhere(elsewhere: Path) -> None:
    edit_owner(elsewhere, host=socket.gethostname(), boot="another")
    assert Watch(elsewhere).look() is None


def test_who_may_hold_a_directory_is_said_at_once(elsewhere: Path) -> None:
    for age_s, text, certain in (
        (10, "last heartbeat 10 s ago", True),
        (600, "last heartbeat 600 s ago", False),
        (-86_400, "last heartbeat 86400 s ahead of this host's clock", False),
        (2 * owner.OLD_S, "", False),
    ):
        now = time.time()
        edit_owner(elsewhere, heartbeat=now - age_s)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, "WATCH_S", 75.0)
            patch.setattr(owner, "time", SimpleNamespace(time=lambda now=now: now, monotonic=time.monotonic))
            who, sure = holder(elsewhere)
        assert (text in who, bool(who), sure) == (True, bool(text), certain)


def test_a_restarted_job_takes_over_from_itself_only(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_owner(elsewhere, job="77", heartbeat=time.time())
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert Watch(elsewhere).look() is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert Watch(elsewhere).look() is None
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert Watch(elsewhere).look() is False


def test_a_later_launch_takes_over_from_an_earlier_one_and_never_the_other_way(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SENET_LAUNCH", "1")
    for launch, alive in ((0, False), (1, None), (2, None)):
        edit_owner(elsewhere, job="77", job_launch=launch, heartbeat=time.time())
        assert Watch(elsewhere).look() is alive
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert Watch(elsewhere).look() is False  # of an earlier start


def test_the_old_holder_notices_and_writes_no_more(tmp_path: Path) -> None:
    old = Lease.acquire(tmp_path)
    old.start(0)
    edit_owner(tmp_path, pid_started=1)
    with Lease.acquire(tmp_path) as new:
        new.start(4)
        assert not old.is_held()
        old.update(state="finished")
        old.close()
        assert new.is_held()
        assert read_json(tmp_path / "status.json")["state"] == "running"
        assert read_json(tmp_path / "status.json")["generation"] == 2
        assert read_json(tmp_path / "owner.json")["resumed_from"] == {"1": 0, "2": 4}


def test_a_start_that_was_overtaken_while_preparing_ends(tmp_path: Path) -> None:
    slow = Lease.acquire(tmp_path)
    edit_owner(tmp_path, pid_started=1)
    with Lease.acquire(tmp_path) as new:
        with pytest.raises(LeaseLost, match="taken over"):
            slow.start(0)
        slow.close()
        assert new.is_held()


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    with Lease.acquire(tmp_path) as held:
        held.start(0)
        before = read_json(tmp_path / "owner.json")["heartbeat"], read_json(tmp_path / "status.json")["heartbeat"]
        held.update(step=7)
        wait_until(lambda: read_json(tmp_path / "owner.json")["heartbeat"] > before[0])
        wait_until(lambda: read_json(tmp_path / "status.json").get("step") == 7)
        assert read_json(tmp_path / "status.json")["heartbeat"] > before[1]


def test_a_start_that_is_refused_leaves_the_status_of_the_last_run(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path) as first:
        first.start(0)
        first.update(state="stopped", step=9)
    before = (tmp_path / "status.json").read_text()
    with pytest.raises(ConfigError), Lease.acquire(tmp_path):
        raise ConfigError("found later")
    assert (tmp_path / "status.json").read_text() == before


def test_a_failure_is_put_down_with_its_reason(tmp_path: Path) -> None:
    def fail() -> None:
        with Lease.acquire(tmp_path) as held:
            held.start(0)
            raise RuntimeError("the\nreason")

    with pytest.raises(RuntimeError):
        fail()
    status, line = read_json(tmp_path / "status.json"), fail.__code__.co_firstlineno + 3
    reason = f"RuntimeError: the reason, at tests/test_lease.py:{line} fail"
    assert (status["state"], status["reason"]) == ("failed", reason)
    assert "kind" not in status  # its words tell


def test_the_kind_of_a_known_failure_is_put_down_and_the_next_start_has_none(tmp_path: Path) -> None:
    def fail() -> None:
        with Lease.acquire(tmp_path) as held:
            held.start(0)
            raise LeaseLost("another start has it")

    with pytest.raises(LeaseLost):
        fail()
    assert read_json(tmp_path / "status.json")["kind"] == "taken over"
    with Lease.acquire(tmp_path) as held:
        held.start(0)
    assert "kind" not in read_json(tmp_path / "status.json")


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Lease.acquire(tmp_path / "file" / "run")


def test_what_a_person_links_to_is_nobody_elses_business_but_names_that_are_written_to_are(tmp_path: Path) -> None:
    Lease.acquire(tmp_path / "run").close()
    target = tmp_path / "target"
    target.write_text("a person's")
    (tmp_path / "run" / "checkpoints").mkdir()
    for name in ("best.pt", "checkpoints/best.pt", "checkpoints/step_000000001.g0001.pt", "notes"):
        (tmp_path / "run" / name).symlink_to(target)
    Lease.acquire(tmp_path / "run").close()
    for name in ("owner.json", "status.json", "metrics.jsonl", "restarts.jsonl", ".owner.lock", "tensorboard", "slurm"):
        path = tmp_path / "run" / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        with pytest.raises(ConfigError, match=f"{name} is a symbolic link"):
            Lease.acquire(tmp_path / "run")
        path.unlink()
    assert target.read_text() == "a person's"


def test_a_file_system_that_stands_still_delays_no_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.01)
    stuck, goes_on = threading.Event(), threading.Event()
    original = os.fsync

    def hang(descriptor: int) -> None:
        stuck.set()
        goes_on.wait(30)
        original(descriptor)

    with Lease.acquire(tmp_path) as held:
        held.start(0)
        monkeypatch.setattr(os, "fsync", hang)
        assert stuck.wait(30)  # the heartbeat
        began = time.monotonic()
        for step in range(100):
            held.update(step=step)
        assert time.monotonic() - began < 25
        monkeypatch.setattr(lease, "_PUBLISH_S", 0.1)
        held.update(state="stopped")  # waits for a while, no longer
        goes_on.set()
        monkeypatch.setattr(lease, "_PUBLISH_S", 60.0)
    assert read_json(tmp_path / "status.json")["state"] == "stopped"
    assert read_json(tmp_path / "owner.json")["released"]


def test_a_heartbeat_that_could_not_be_written_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, left = os.fsync, [5]

    def away(descriptor: int) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        original(descriptor)

    monkeypatch.setattr(files, "PAUSE_S", 0.01)
    with Lease.acquire(tmp_path) as held:
        held.start(0)
        monkeypatch.setattr(os, "fsync", away)
        held.update(state="finished")
        assert left == [0]
        assert read_json(tmp_path / "status.json")["state"] == "finished"
    assert "Transport endpoint is not connected" in caplog.text


@pytest.mark.parametrize("rest", ["", "{", "[]", "{}", '{"token": "x"}', None])
def test_an_owner_file_that_a_power_cut_emptied_costs_no_generation(tmp_path: Path, rest: str | None) -> None:
    with Lease.acquire(tmp_path) as first:
        first.start(0)
    (tmp_path / "starts.jsonl").write_text(
        '{"generation": 1, "resumed_from": 0}\n{"generation": 4, "resumed_from": 8}\n{"ge'
    )
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_000000012.g0006.pt").write_text("")
    if rest is None:
        (tmp_path / "owner.json").unlink()
    else:
        (tmp_path / "owner.json").write_text(rest)
    with Lease.acquire(tmp_path) as after:
        assert after.generation == 7
        assert after.resumed_from == {1: 0, 4: 8}


def test_each_heartbeat_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    original = os.fsync
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.01)

    def note(descriptor: int) -> None:
        original(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    with Lease.acquire(tmp_path) as held:
        held.start(0)
        monkeypatch.setattr(os, "fsync", note)
        synced.clear()
        wait_until(lambda: len(synced) >= 8)
    for name in ("owner.json", "status.json"):
        first = next(index for index, each in enumerate(synced) if each.startswith(name))
        assert synced[first + 1] == tmp_path.name  # the folder, so that the rename is as durable


def test_what_killed_holders_left_half_written_goes(tmp_path: Path) -> None:
    Lease.acquire(tmp_path).close()
    for name in ("owner.json.0123abcd.tmp", "metrics.jsonl.0123abcd.tmp", "mine.tmp"):
        (tmp_path / name).write_text("")
    Lease.acquire(tmp_path).close()
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["mine.tmp"]


def test_a_start_that_was_overtaken_replaces_no_file(tmp_path: Path) -> None:
    old = Lease.acquire(tmp_path)
    edit_owner(tmp_path, pid_started=1)
    with Lease.acquire(tmp_path) as new:
        new.write("config.yaml", b"new")
        with pytest.raises(LeaseLost):
            old.write("config.yaml", b"old")
    old.close()
    assert (tmp_path / "config.yaml").read_bytes() == b"new"


@pytest.mark.parametrize("taken", [True, False])
def test_a_refused_start_removes_its_run_directory_unless_another_has_taken_it(tmp_path: Path, taken: bool) -> None:
    run_dir = tmp_path / "run"

    def refused() -> None:
        with nothing_left_if_refused(run_dir):
            Lease.acquire(run_dir).close()
            if taken:
                edit_owner(run_dir, pid=1, released=False)
            raise ConfigError("refused")

    with pytest.raises(ConfigError, match="refused"):
        refused()
    assert run_dir.exists() is taken


def test_what_a_rank_knows_of_itself_beats_a_guess_whoever_writes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mirror.json"
    monkeypatch.setenv(mirror.MIRROR_VARIABLE, str(path))
    cause = {"state": "failed", "reason": "No space left on device"}
    guess = {"state": "failed", "reason": "rank 0 did not answer any more", "guess": True}
    for first, second in ((cause, guess), (guess, cause)):
        mirror.forget_outcome(path)
        for status in ({"state": "running"}, first, second, {"state": "running"}):  # the heartbeat goes on
            mirror.mirror_status(status)
        assert read_json(path) == mirror.read_outcome(path) == cause
    mirror.mirror_status({"state": "failed", "reason": "it came later, and may have followed"})
    assert mirror.read_outcome(path) == cause


def test_a_rank_that_was_stopped_while_it_wrote_undoes_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mirror.json"
    monkeypatch.setenv(mirror.MIRROR_VARIABLE, str(path))
    told = {"state": "failed", "reason": "rank 0 did not answer any more", "guess": True}
    write = write_json

    def stopped(*args: Any, **more: Any) -> None:
        monkeypatch.setattr(mirror, "write_json", write)
        mirror.mirror_status(told)  # of rank 1, while rank 0 is stopped
        write(*args, **more)

    monkeypatch.setattr(mirror, "write_json", stopped)
    mirror.mirror_status({"state": "running", "step": 5})
    assert read_json(path)["state"] == "running"
    mirror.mirror_status({"state": "failed", "reason": "rank 1 did not answer any more", "guess": True})
    assert mirror.mirrored_end() == mirror.read_outcome(path) == told
    mirror.forget_outcome(path)
    assert mirror.read_outcome(path) == {}


def test_nothing_stops_the_heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.02)
    replace, failed = Lease._replace, []

    def stumble(self: Lease, name: str, content: dict[str, Any], **more: Any) -> None:
        if name == "status.json" and not failed:
            failed.append(name)
            raise KeyError("a fault of the program")
        replace(self, name, content, **more)

    monkeypatch.setattr(Lease, "_replace", stumble)
    with Lease.acquire(tmp_path / "run") as held:
        held.start(3)
        wait_until(lambda: read_json(tmp_path / "run/status.json").get("step") == 3)
    assert failed


def test_a_guess_of_the_holder_gives_way_to_what_another_rank_said_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mirror.MIRROR_VARIABLE, str(tmp_path / "mirror.json"))

    def fail() -> None:
        lost = RunError("rank 1 did not answer any more")
        lost.guess = True
        with Lease.acquire(tmp_path / "run") as held:
            held.start(0)
            mirror.mirror_status({"state": "failed", "reason": "rank 1 has no memory", "kind": "ranks differ"})
            raise lost

    with pytest.raises(RunError):
        fail()
    status = read_json(tmp_path / "run/status.json")
    assert (status["reason"], status["kind"]) == ("rank 1 has no memory", "ranks differ")


def test_a_task_of_an_array_is_named_by_array_and_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one of its tasks SLURM_JOB_ID is the id of the whole array."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert slurm_job() == "77"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    assert slurm_job() == "77_4"
