"""What counts as progress, and the message when there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from senet import REPOSITORY, errors
from senet.distributed import watchdog
from senet.distributed.environment import Place
from senet.distributed.watchdog import Watchdog
from tests.harness import named, on_hosts

LIMIT_S = 0.3  # the watchdog ends after twice this time, so that other errors come first


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_ANSWERS_S", 0.5)


@contextmanager
def watched(place: Place, limit_s: float = LIMIT_S) -> Iterator[tuple[Watchdog, list[str], threading.Event]]:
    said: list[str] = []
    ended = threading.Event()

    def end(reason: str) -> None:
        said.append(reason)
        ended.set()
        dog.close()

    with Watchdog(place, limit_s, end) as dog:
        yield dog, said, ended


def test_a_start_without_progress_is_ended_naming_phase_and_place() -> None:
    with watched(Place()) as (dog, said, ended):
        dog.phase("making the process groups")
        assert ended.wait(30)
    [reason] = said
    assert reason.startswith(f"the start made no progress for distributed.start_timeout_s=0.3: {named(0)}: making the ")
    assert "threading.py" in reason or "test_watchdog.py" in reason  # where the main thread waits


@pytest.mark.parametrize(("rank", "alone", "tells"), [(0, False, True), (1, False, False), (1, True, True)])
def test_a_start_that_waits_says_for_what_and_one_that_waits_for_others_only_on_rank_0(
    rank: int, alone: bool, tells: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "_TELL_S", 0.1)
    monkeypatch.setattr(watchdog, "_TICK_S", 0.1)
    monkeypatch.setattr(watchdog, "_WORK", (10.0, 2**40))  # this process has other work
    with watched(Place(rank, 2), 60) as (dog, _, _):
        dog.phase("meeting rank 7", alone=alone)
        time.sleep(2.5)
    assert (f"{named(rank)}: still meeting rank 7 after " in capfd.readouterr().err) == tells


def frame(file: Path) -> FrameType:
    names: dict[str, FrameType] = {}
    exec(compile("import sys\nframe = sys._getframe()", str(file), "exec"), names)
    return names["frame"]


def test_the_place_of_an_error_is_in_the_users_own_code_where_it_went_through_that() -> None:
    senet, installed = REPOSITORY / "senet", Path("/venv/lib/site-packages/einops/einops.py")
    before = [(frame(REPOSITORY / "train_ddp.py"), 1), (frame(senet / "training" / "trainer.py"), 2)]
    own = [(frame(REPOSITORY / "mine" / "net.py"), 3), (frame(Path("/home/me/blocks.py")), 4)]
    for inner in (
        [],
        [(frame(installed), 5)],
        [(frame(senet / "models" / "senet.py"), 6)],
        [(frame(Path("<eval>")), 7)],
    ):
        assert errors.place([*before, *own, *inner]) == "me/blocks.py:4 <module>"
    assert errors.place([*before, *own]) == "me/blocks.py:4 <module>"
    assert errors.place([*before, (frame(installed), 5)]) == "einops/einops.py:5 <module>"
    assert errors.place(before) == "training/trainer.py:2 <module>"


def test_only_the_package_torch_is_left_out_of_a_place_and_not_a_folder_of_that_name() -> None:
    own, of_torch = frame(Path("/home/me/torch/senet/own.py")), frame(Path(torch.__file__).parent / "nn" / "inner.py")
    assert errors.place([(own, 2), (of_torch, 1)]) == "senet/own.py:2 <module>"
    assert errors.place([(of_torch, 1)]) == "an unknown place"


def test_phases_that_begin_are_progress() -> None:
    with watched(Place(), 2) as (dog, said, ended):
        for number in range(90):
            dog.phase(f"phase {number}")
            assert not ended.wait(0.05), said


def test_a_rank_that_computes_gets_on_only_where_it_does_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_WORK", (0.05, 2**40))
    for alone in (True, False):
        with watched(Place()) as (dog, said, ended):
            dog.phase("at work", alone=alone)
            until = time.monotonic() + (2 if alone else 30)
            while time.monotonic() < until and not ended.is_set():
                sum(range(1000))
            assert ended.is_set() != alone, said


def test_a_rank_that_reads_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_WORK", (1e9, 1000))
    with watched(Place(), 2) as (dog, said, ended), Path("/dev/zero").open("rb", buffering=0) as file:
        dog.phase("reading", alone=True)
        until = time.monotonic() + 6
        while time.monotonic() < until:
            file.read(1000)
            assert not ended.wait(0.02), said


def test_waiting_is_no_work_however_long_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that only poll use two hundredths of a core, here for some minutes."""
    began = time.monotonic()

    def now() -> float:
        return 100 * (time.monotonic() - began)

    monkeypatch.setattr(watchdog, "_TICK_S", 0.05)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=now))
    monkeypatch.setattr(watchdog, "_used", lambda: (0.02 * now(), 0.0))
    with Watchdog(Place(), 100_000, end=lambda _: None) as dog:
        dog.phase("hung", alone=True)
        time.sleep(3)
        assert dog._progress == 1  # the phase


def test_progress_of_another_rank_counts_and_rank_0_says_where_all_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_ANSWERS_S", 4.0)
    store = dist.HashStore()  # type: ignore[attr-defined]
    with watched(Place(0, 3), 1) as (main, said, ended), watched(Place(1, 3), 1) as (other, _, _):
        main.phase("waiting until all ranks are prepared")
        for dog in (main, other):
            dog.share(store, on_hosts("n1", "n2", "n3"))
        for number in range(9):
            other.phase(f"file {number}")
            assert not ended.wait(0.25), said
        assert ended.wait(30)
    assert "rank 0 on n1: waiting until all ranks are prepared, at " in said[0]
    assert "rank 1 on n2: file 8, at " in said[0]
    assert "rank 2 on n3: does not answer: killed, stopped or cut off" in said[0]
