"""Profiles: which updates are recorded, that nothing changes for it, and that a failure of it ends nothing."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from senet import REPOSITORY, compat
from senet.distributed.agreement import Agreement
from senet.distributed.ranks import Ranks
from senet.errors import ConfigError
from senet.rundir import lease, profiles
from senet.rundir.files import read_json, write_json
from senet.rundir.lease import Lease
from senet.training import traces
from senet.training.profiling import Window, next_window
from senet.training.run import run
from tests.conftest import Train
from tests.harness import (
    StopAt,
    differing,
    payload,
    run_ranks,
    started,
    status,
    tiny,
    tiny_config,
    train_command,
    wait_until,
    without_clock,
)  # fmt: skip
from tests.test_groups import with_group

SMALL = ("model.name=tests.networks:no_norm", "train.amp=off", "train.epochs=2")
FIVE = ("log.profile_at=5", "log.profile_steps=3")


def trace(run_dir: Path, first: int, rank: int = 0) -> list[dict[str, Any]]:
    file = profiles.trace_file(profiles.stem(run_dir, first), rank)
    return list(json.loads(gzip.decompress(file.read_bytes()))["traceEvents"])


def updates(events: list[dict[str, Any]]) -> list[int]:
    """Those that have a bar in a trace, in order."""
    bars = {e["name"] for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("update ")}
    return sorted(int(name.split()[1]) for name in bars)


def optimizer_steps(events: list[dict[str, Any]]) -> int:
    return sum(bool(re.match(r"Optimizer\.step#", e["name"])) and e.get("cat") == "user_annotation" for e in events)


def done(window: Window, *, begun_at: int, epochs: int, per_epoch: int) -> list[tuple[str, int]]:
    """What is done before which update, over some epochs."""
    found: list[tuple[str, int]] = []
    for epoch in range(epochs):
        ends = (epoch + 1) * per_epoch
        for step in range(max(begun_at, epoch * per_epoch) + 1, ends + 2):
            what = window.before(step, ends)
            window.has_begun |= what == "prepare"
            found += [(what, step)] if what else []
            if what in ("end", "miss"):
                return found
    return found


def test_the_update_before_the_first_warms_up_and_the_last_one_is_whole() -> None:
    expected = [("prepare", 4), ("record", 5), ("record", 6), ("end", 7)]
    assert done(Window(5, 6), begun_at=0, epochs=2, per_epoch=10) == expected
    assert done(Window(5, 6), begun_at=3, epochs=2, per_epoch=10) == expected


def test_a_profile_ends_with_its_epoch() -> None:
    assert done(Window(9, 12), begun_at=0, epochs=2, per_epoch=10)[-2:] == [("record", 10), ("end", 11)]
    # an evaluation is not even recorded where it comes before the first update
    across = [("prepare", 10), ("record", 11), ("record", 12), ("end", 13)]
    assert done(Window(11, 12), begun_at=0, epochs=2, per_epoch=10) == across


def test_a_start_that_begins_within_the_updates_has_no_profile_of_them() -> None:
    assert done(Window(5, 6), begun_at=4, epochs=1, per_epoch=10) == [("miss", 5)]
    assert done(Window(5, 6), begun_at=8, epochs=1, per_epoch=10) == [("miss", 9)]


@pytest.mark.parametrize(
    ("step", "wanted", "first"),
    [
        (3, 5, 4),  # updates 4 to 8
        (5, 5, 6),  # the last five of the epoch
        (6, 5, 12),  # the next epoch, whose first update warms up
        (11, 5, 12),
        (4, 10, 5),  # more than an epoch ever has
        (16, 5, 17),  # in the last epoch: what is left of it
    ],
)
def test_what_is_asked_for_is_of_one_epoch_if_it_fits(step: int, wanted: int, first: int) -> None:
    epoch_ends = 10 if step <= 10 else 20
    planned = next_window(step, wanted, epoch_ends=epoch_ends, updates_per_epoch=10, total=20)
    assert (planned.first, planned.last) == (first, first + wanted - 1)


def test_a_profile_holds_exactly_its_updates_and_changes_no_bit(
    train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(tmp_path / "without", *SMALL)
    train_here(tmp_path / "with", *SMALL, *FIVE)
    assert not (tmp_path / "without" / "profile").exists()
    events = trace(tmp_path / "with", 5)
    assert updates(events) == [5, 6, 7]
    assert optimizer_steps(events) == 3
    table = profiles.table_file(profiles.stem(tmp_path / "with", 5)).read_text()
    assert "aten::" in table
    assert len(table.splitlines()) == 12
    part, whole = re.search(r"([0-9.]+) of ([0-9.]+) ms an update are in operations", table).groups()  # type: ignore[union-attr]
    assert 0 < float(part) < float(whole)
    assert table.rstrip() in capsys.readouterr().err
    one, other = (without_clock(payload(tmp_path / name)) for name in ("without", "with"))
    assert differing(one, other) == []


def test_a_profile_goes_on_where_a_run_is_resumed_before_it_and_is_left_out_after_it(
    train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(tmp_path, *SMALL, *FIVE, stop=StopAt(1))
    assert status(tmp_path)["step"] <= 3
    assert not (tmp_path / "profile").exists()
    train_here(tmp_path, *SMALL, *FIVE, stop=StopAt(8))
    writing = [thread for thread in threading.enumerate() if thread.name == "profile"]  # a stop does not wait for it
    for thread in writing:
        thread.join(120)
    assert updates(trace(tmp_path, 5)) == [5, 6, 7]
    step = status(tmp_path)["step"]
    train_here(tmp_path, *SMALL, f"log.profile_at={step}")
    assert f"updates {step} to {step + 4} are not profiled: they had begun before" in capsys.readouterr().err
    assert len(list((tmp_path / "profile").glob("*.json.gz"))) == 1


def _no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["prepare_trace", "start_trace", "stop_trace", "key_averages", "export", "disk"])
def test_a_profile_that_fails_is_warned_of_and_the_training_goes_on(
    broken: str, train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if broken == "disk":
        monkeypatch.setattr(traces, "replace_file", _no_room)
    elif broken == "export":  # torch does not say that it could not write everything
        monkeypatch.setattr(traces.profile, "export_chrome_trace", lambda _, path: Path(path).write_text('{"trace'))
    else:
        original = getattr(traces.profile, broken)

        def fail(self: Any) -> None:
            original(self)  # or the profiler of torch would stay on
            raise RuntimeError(broken)

        monkeypatch.setattr(traces.profile, broken, fail)
    if broken == "start_trace":
        monkeypatch.setattr(traces.Recording, "__del__", lambda self: self._profiler.stop_trace(), raising=False)
    assert train_here(tmp_path, *SMALL, *FIVE).state == "finished"
    assert "updates 5 to 7 are not profiled on this rank: " in capsys.readouterr().err
    assert status(tmp_path)["profile"]["failed"]
    assert not list((tmp_path / "profile").glob("*.json.gz"))


def test_on_a_gpu_the_history_of_its_memory_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(compat, "record_memory", lambda *, on: asked.append(on))
    monkeypatch.setattr(compat, "memory_snapshot", lambda: {"segments": []})
    monkeypatch.setattr(traces, "profile", lambda **_: profile(activities=[ProfilerActivity.CPU]))
    recording = traces.Recording(torch.device("cuda"))
    recording.begin()
    recording.update(2)
    torch.ones(8, 8) @ torch.ones(8, 8)
    recording.end()
    assert asked == [True, False]
    recording.write(profiles.stem(tmp_path, 2), 1)
    kept = profiles.memory_file(profiles.stem(tmp_path, 2), 1).read_bytes()
    assert b"segments" in kept


def test_the_most_expensive_operations_come_first_without_what_they_call() -> None:
    class Event:
        device_type, is_user_annotation = SimpleNamespace(name="CPU"), False

        def __init__(self, key: str, time_us: float, count: int) -> None:
            self.key, self.self_cpu_time_total, self.count = key, time_us, count
            self.cpu_time_total = time_us

    bar = Event("update 5", 16e3, 1)
    bar.is_user_annotation = True
    events = [bar, Event("aten::add", 1000.0, 8), Event("aten::mm", 3000.0, 4), Event("aten::view", 0.0, 2)]
    title, *lines = traces.table_of(events, 2, on_gpu=False).splitlines()
    assert title.split() == ["ms/update", "share", "calls/update", "operation", "(CPU", "time)"]
    assert [line.split() for line in lines] == [
        ["1.500", "75.0%", "2.0", "aten::mm"],
        ["0.500", "25.0%", "4.0", "aten::add"],
        ["2.000", "of", "8.000", "ms", "an", "update", "are", "in", "operations"],
    ]


def test_a_profile_at_the_first_update_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"log\.profile_at=1: the update before"):
        tiny_config("log.profile_at=1")


def test_a_request_is_taken_once_and_a_second_one_waits_for_the_first(tmp_path: Path) -> None:
    assert profiles.take(tmp_path) is None
    request = profiles.ask(tmp_path, 7)
    with pytest.raises(ConfigError, match="somebody else's request"):
        profiles.ask(tmp_path, 5)
    assert profiles.take(tmp_path) == request
    assert profiles.take(tmp_path) is None
    profiles.withdraw(tmp_path, request)


@pytest.mark.parametrize(
    "content", ["[", '{"id": "x"}', '{"id": "x", "updates": "many"}', '{"id": "x", "updates": null}']
)
def test_a_request_that_makes_no_sense_does_not_end_the_heartbeat(content: str, tmp_path: Path) -> None:
    (tmp_path / profiles.REQUEST).write_text(content)
    assert profiles.take(tmp_path) is None
    assert not (tmp_path / profiles.REQUEST).exists()


def test_a_start_does_not_answer_a_request_to_the_one_before(tmp_path: Path) -> None:
    profiles.ask(tmp_path, 5)
    with Lease.acquire(tmp_path):
        assert profiles.take(tmp_path) is None


def test_rank_0_looks_for_a_request_with_each_heartbeat_and_at_no_step(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    monkeypatch.setattr(profiles, "take", looks.append)
    monkeypatch.setattr(lease, "HEARTBEAT_S", 3600.0)
    train_here(tmp_path, *SMALL)
    steps = status(tmp_path)["step"]
    assert 0 < len(looks) < 6 < steps  # with each state that is published at once


def _wishes(every: int) -> list[tuple[int, int]]:
    """Rank 0 wants 7 updates at step 5, and later 3; at which steps this rank hears of it, and of how many."""

    def loop(ranks: Ranks, group: Any) -> list[tuple[int, int]]:
        agreement, heard = Agreement(group, every), []
        for step in range(1, 40):
            if ranks.rank == 0 and step in (5, 20):
                agreement.want_profile(7 if step == 5 else 3)
            agreement.exchange(stop=False)
            if step in (5, 20):
                agreement.conclude()  # a vote of its own, as before a checkpoint
            while agreement.to_profile:
                heard.append((step, agreement.to_profile.pop()))
        return heard

    return with_group(loop)  # type: ignore[no-any-return]


@pytest.mark.ranks
@pytest.mark.parametrize("every", [1, 4])
def test_all_ranks_hear_of_a_wish_at_the_same_step_and_once(every: int, tmp_path: Path) -> None:
    one, *others = run_ranks(3, _wishes, every, tmp_path=tmp_path)
    assert others == [one, one]
    assert [updates for _, updates in one] == [7, 3]
    assert all(step <= heard <= step + 2 * every for step, (heard, _) in zip((5, 20), one, strict=True))


def _profiled(options: list[str]) -> str:
    return run(tiny_config(*options, world_size=2), tiny(*options), StopAt(10**6)).state


@pytest.mark.ranks
@pytest.mark.slow
def test_each_rank_has_a_trace_of_the_same_updates(data_root: Path, tmp_path: Path) -> None:
    options = [*SMALL, *FIVE, f"run_dir={tmp_path}/run", f"data.root={data_root}", "log.to=[]"]
    assert run_ranks(2, _profiled, options, tmp_path=tmp_path) == ["finished"] * 2
    both = [trace(tmp_path / "run", 5, rank) for rank in (0, 1)]
    assert [updates(each) for each in both] == [[5, 6, 7]] * 2
    assert [optimizer_steps(each) for each in both] == [3, 3]


def command(run_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-m", "senet.profile", str(run_dir), *words]
    return subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)


@pytest.mark.ranks
@pytest.mark.slow
def test_a_run_that_trains_is_profiled_on_demand_and_any_other_is_refused(data_root: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = tiny(*SMALL, "train.epochs=2000", f"run_dir={run_dir}", f"data.root={data_root}", "log.to=[]")
    with started(train_command(2, options), tmp_path / "log") as process:
        wait_until(lambda: read_json(run_dir / "status.json").get("step"), what=(tmp_path / "log").read_text())
        asked = command(run_dir, "--steps", "4")
        assert asked.returncode == 0, asked.stderr
        first, last = map(int, re.findall(r"^updates (\d+) to (\d+): ", asked.stdout)[0])
        assert last == first + 3
        assert [updates(trace(run_dir, first, rank)) for rank in (0, 1)] == [list(range(first, last + 1))] * 2
        assert asked.stdout.endswith(profiles.table_file(profiles.stem(run_dir, first)).read_text())
        assert not (run_dir / profiles.REQUEST).exists()
        process.terminate()
        process.wait(100)
    refused = command(run_dir)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(rf"profile: {run_dir} does not train: stopped: .*\n", refused.stderr)
    wrong = command(run_dir, "--steps", "0")
    assert (wrong.returncode, wrong.stderr) == (2, "profile: --steps 0: use 1 to 1000\n")


def test_who_asks_is_told_when_the_run_has_ended_or_the_profile_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from senet import profile
    from senet.errors import RunError

    request = profiles.Request("mine", 5)
    monkeypatch.setattr(profile, "_POLL_S", 0.0)
    monkeypatch.setattr(profile, "_LOOK_S", 0.0)
    with pytest.raises(RunError, match="does not train any more: "):
        profile.wait(tmp_path, request)
    write_json(tmp_path / "status.json", {"profile": {"id": "mine", "failed": "OSError: x"}})
    with pytest.raises(RunError, match="no profile: OSError: x"):
        profile.wait(tmp_path, request)
    monkeypatch.setattr(profile, "does_not_train", lambda _: "")
    monkeypatch.setattr(profile, "_LATE_S", 0.0)
    told: Callable[..., None] = lambda **more: write_json(tmp_path / "status.json", {"profile": more})  # noqa: E731
    told(id="mine", first=5, last=9, ranks=2, written=True)
    with pytest.raises(RunError, match=r"2 of 2 traces are not there, the first .*rank_0000\.json\.gz"):
        profile.wait(tmp_path, request)
