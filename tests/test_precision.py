"""train.amp=auto: what is measured, what is chosen, and that a run keeps it."""

from __future__ import annotations

import errno
import io
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from senet.distributed.ranks import Ranks
from senet.errors import ConfigError
from senet.models.zoo import build_model
from senet.rundir.checkpoint import read_checkpoint
from senet.rundir.files import read_rows, write_json
from senet.training import precision, rates
from senet.training.precision import choose_amp, faster
from senet.training.rates import measure
from senet.training.run import run
from senet.training.state import Summary
from senet.training.trainer import Trainer
from tests import networks
from tests.conftest import Train
from tests.harness import (
    StopAt,
    checkpoints,
    differing,
    kill_all,
    named,
    on_hosts,
    payload,
    rows,
    run_ranks,
    started,
    tiny,
    tiny_config,
    train_command,
    wait_until,
    without_clock,
)

AUTO = "train.amp=auto"
SMALL = ("model.name=tests.networks:no_norm", "train.epochs=1", "train.global_batch_size=256")


def offers(monkeypatch: pytest.MonkeyPatch, **found: float) -> list[int]:
    """A CPU with bf16 on which these rates are measured; grows with each measurement."""
    measured: list[int] = []
    monkeypatch.setattr(precision, "native_amp", lambda _: "bf16")
    monkeypatch.setattr(precision, "measure", lambda *_, **__: measured.append(1) or found)
    return measured


def chosen(run_dir: Path) -> tuple[str, dict[str, float]]:
    """By the last start of a run, with the rates."""
    start = list(read_rows(run_dir / "starts.jsonl"))[-1]
    return start["amp"], start["amp_rates"]


def images_per_s(network: nn.Module, images: int = 64, image_size: int = 16, **how: Any) -> dict[str, float]:
    return measure(network, images, image_size, **{"channels_last": True, "gather": lambda value: [value]} | how)


@pytest.mark.parametrize(
    ("slow", "factor", "expected"),
    [("off", 1.3, "bf16"), ("bf16", 1.05, "bf16"), ("bf16", 1.3, "off")],
    ids=["fp32 slower", "bf16 hardly slower", "bf16 slower"],
)
def test_the_faster_precision_is_found_ten_times_of_ten(
    monkeypatch: pytest.MonkeyPatch, slow: str, factor: float, expected: str
) -> None:
    """On either side of 15 %."""
    monkeypatch.setattr(rates, "_AIM_S", 0.1)
    found = [faster(images_per_s(networks.busy(slow, factor))) for _ in range(10)]
    assert found == 10 * [expected]


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("network", [networks.tiny_senet, networks.depthwise])
def test_the_rates_are_those_of_a_longer_loop(network: Callable[[int], nn.Module], channels_last: bool) -> None:
    """Whichever precision is the faster one on this machine: layers count by their time, not by their operations."""
    model = network(10)
    found = images_per_s(model, 16, 32, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    images_NCHW, labels_N = torch.randn(16, 3, 32, 32).to(memory_format=layout), torch.arange(16) % 10
    best = dict.fromkeys(found, 0.0)
    with one_thread():
        for _ in range(10):
            for amp in best:
                began = time.thread_time()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp == "bf16"):
                    loss = nn.functional.cross_entropy(model(images_NCHW), labels_N)
                loss.backward()
                best[amp] = max(best[amp], 16 / (time.thread_time() - began))
    # beside much other work they were up to 1.7 times apart, where bf16 took 30 times as long
    difference = math.log(found["bf16"] / found["off"]) - math.log(best["bf16"] / best["off"])
    assert difference == pytest.approx(0, abs=math.log(2))


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class _Clocked(networks._NoNorm):
    """Takes ``image_s`` an image in fp32, half of it in bf16, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, image_s: float) -> None:
        super().__init__(10)
        clock, seen = [0.0], list[tuple[str, int]]()
        monkeypatch.setattr(time, "thread_time", lambda: clock[0])

        def forward(images_NCHW: Tensor) -> Tensor:
            amp = "bf16" if torch.is_autocast_enabled("cpu") else "off"
            assert torch.get_num_threads() == 1
            clock[0] += len(images_NCHW) * image_s / (2 if amp == "bf16" else 1)
            seen.append((amp, len(images_NCHW)))
            return self.linear(images_NCHW.mean((1, 2, 3))[:, None].expand(-1, 16))

        self.forward, self.seen = forward, seen  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("image_s", "images", "passes"),
    [
        (0.01, 1000, [2, 2, *6 * [26]]),  # 1.2 s in 3 pairs
        (0.01, 5, [2, 2, *6 * [5]]),  # no more than in training
        (0.15, 1000, 8 * [2]),
        (0.5, 1000, 4 * [2]),  # 2 s are over
        (9, 1000, 2 * [2]),
        (0.01, 1, 8 * [2]),  # a batch norm takes no fewer
    ],
)
def test_so_many_passes_are_made_that_they_take_a_second_or_two(
    monkeypatch: pytest.MonkeyPatch, image_s: float, images: int, passes: list[int]
) -> None:
    network = _Clocked(monkeypatch, image_s)
    assert images_per_s(network, images) == pytest.approx({"bf16": 2 / image_s, "off": 1 / image_s})
    assert network.seen == list(zip(4 * ["bf16", "off"], passes, strict=False))


class _Uncopyable(networks._NoNorm):
    def __deepcopy__(self, _memo: object) -> nn.Module:
        raise TypeError("holds a lock")


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (_Uncopyable(10), "TypeError: holds a lock"),
        (nn.Conv2d(1, 1, 1), "RuntimeError: Given groups=1"),
        (networks.returns_a_pair(10), "AttributeError: 'tuple'"),
        (nn.Flatten(), "RuntimeError: element 0 of tensors does not require grad"),
    ],
    ids=["copied", "run", "used", "trained"],
)
def test_why_a_network_cannot_be_measured_is_said(
    network: nn.Module, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert images_per_s(network) == {}
    (said,) = caplog.messages
    assert said.startswith(f"train.amp=auto could not measure: {reason}")


def test_rank_0_times_and_one_rank_that_fails_ends_it_for_all() -> None:
    """Each pass is agreed on: the ranks make equally many."""
    assert images_per_s(networks.no_norm(10), gather=lambda _: [0.5, 0.1]) == {"bf16": 4, "off": 4}
    passes = iter([[0.1, 0.1], [0.1, math.nan]])
    assert images_per_s(networks.no_norm(10), gather=lambda _: next(passes)) == {}


def test_what_is_measured_leaves_all_as_it_was() -> None:
    network = networks.restless(10)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(threads + 1)
    assert images_per_s(network)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert network.training
    assert differing(before, dict(network.state_dict())) == []
    assert all(parameter.grad is None for parameter in network.parameters())


def test_rates_that_are_close_leave_the_word_to_the_hardware() -> None:
    assert faster({"off": 114.0, "bf16": 100.0}) == faster({"off": 10.0, "bf16": 100.0}) == "bf16"
    assert faster({"off": 116.0, "bf16": 100.0}) == "off"


@pytest.mark.parametrize(
    ("device", "has_bf16", "amp", "reason"),
    [
        ("cuda", [1, 1], "bf16", "the hardware has bf16"),
        ("cuda", [0], "off", "no bf16 on rank 0 on n1"),
        ("cpu", [1, 0, 0], "off", "no bf16 on rank 1 on n1, rank 2 on n2"),
    ],
)
def test_nothing_is_measured_where_the_hardware_alone_decides(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    device: str,
    has_bf16: list[int],
    amp: str,
    reason: str,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(precision, "measure", None)
    monkeypatch.setattr(precision, "broadcast_bytes", lambda content, _group: io.BytesIO(content))
    monkeypatch.setattr(precision, "gather", lambda value, _group: [value, *has_bf16[1:]])
    monkeypatch.setattr(precision, "cpu_capabilities", lambda: {"avx512_bf16": has_bf16[0]})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16[0])
    ranks = Ranks(0, len(has_bf16), 0, 1, torch.device(device), on_hosts("n1", "n1", "n2"))
    chosen, found = choose_amp(tiny_config(AUTO), ranks, networks.no_norm(10), "this", None, None)  # type: ignore[arg-type]
    assert (chosen, found["amp_rates"]) == (amp, {})
    assert caplog.messages == [f"train.amp=auto takes {amp} ({reason})"]


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("network", ["restless", "tiny_senet"])
def test_a_run_has_the_bits_of_one_that_was_given_the_precision(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, amp: str
) -> None:
    """``restless`` draws random numbers and changes a buffer wherever it runs."""
    options = (*SMALL, f"model.name=tests.networks:{network}")
    train_here(tmp_path / "given", f"train.amp={amp}", *options)
    monkeypatch.setattr(precision, "native_amp", lambda _: "bf16")
    measured: list[dict[str, float]] = []
    monkeypatch.setattr(
        precision, "measure", lambda *given, **how: measured.append(measure(*given, **how)) or measured[0]
    )
    monkeypatch.setattr(precision, "faster", lambda _: amp)
    train_here(tmp_path / "auto", AUTO, *options)
    assert measured[0]
    assert chosen(tmp_path / "auto")[0] == amp
    one, other = (without_clock(payload(tmp_path / name)) for name in ("given", "auto"))
    assert differing(one, other) == []


def test_the_choice_is_said_with_both_rates_and_kept_in_the_run_directory(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offers(monkeypatch, off=281.4, bf16=170.2)
    train_here(tmp_path, AUTO, *SMALL, stop=StopAt(3))
    said = capsys.readouterr().err
    assert "INFO: train.amp=auto takes off (170 images/s per core in bf16, 281 in fp32)\n" in said
    assert chosen(tmp_path) == ("off", {"off": 281.4, "bf16": 170.2})
    facts = read_checkpoint(checkpoints(tmp_path)[-1]).manifest["facts"]
    assert facts["amp"] == "off"
    assert "amp_rates" not in facts  # they differ from start to start


def test_a_resumed_run_keeps_its_precision_and_does_not_measure_again(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offers(monkeypatch, off=3, bf16=1)
    train_here(tmp_path / "unbroken", AUTO, *SMALL)
    train_here(tmp_path / "broken", AUTO, *SMALL, stop=StopAt(3))
    measured = offers(monkeypatch, off=1, bf16=3)
    capsys.readouterr()
    train_here(tmp_path / "broken", AUTO, *SMALL)
    assert not measured
    said = capsys.readouterr().err
    assert "INFO: train.amp=auto stays off, as in the first start\n" in said
    assert "bit for bit" not in said
    one, other = (without_clock(payload(tmp_path / name)) for name in ("unbroken", "broken"))
    assert differing(one, other) == []


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (
            {"off": 1.0, "bf16": 3.0},
            "WARNING: train.amp=auto stays off, as in the first start, but here bf16 is faster (3 images/s per core in "
            "bf16, 1 in fp32); train.amp=bf16 with resume.allow_changes=true changes it\n",
        ),
        ({"off": 1.0, "bf16": 1.1}, "INFO: train.amp=auto stays off, as in the first start (1.1 images/s per core"),
        ({"off": 3.0, "bf16": 1.0}, "INFO: train.amp=auto stays off, as in the first start (1 images/s per core"),
    ],
    ids=["slower", "close", "faster"],
)
def test_on_another_processor_a_resumed_run_keeps_its_precision_and_says_when_it_is_the_slower_one(
    train_here: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    now: dict[str, float],
    line: str,
) -> None:
    offers(monkeypatch, off=3, bf16=1)
    train_here(tmp_path / "unbroken", AUTO, *SMALL)
    train_here(tmp_path / "broken", AUTO, *SMALL, stop=StopAt(3))
    measured = offers(monkeypatch, **now)
    monkeypatch.setattr("senet.training.run.processor", lambda _: "another one")
    capsys.readouterr()
    train_here(tmp_path / "broken", AUTO, *SMALL)
    assert line in capsys.readouterr().err
    assert len(measured) == 1
    assert chosen(tmp_path / "broken") == ("off", now)
    one, other = (without_clock(payload(tmp_path / name)) for name in ("unbroken", "broken"))
    assert differing(one, other) == []


def test_a_precision_that_the_hardware_of_a_resume_does_not_have_is_kept_and_warned_of(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offers(monkeypatch, off=1, bf16=3)
    train_here(tmp_path, AUTO, *SMALL, stop=StopAt(3))
    measured = offers(monkeypatch)
    monkeypatch.setattr(precision, "native_amp", lambda _: "off")
    monkeypatch.setattr("senet.training.run.processor", lambda _: "another one")
    train_here(tmp_path, AUTO, *SMALL, stop=StopAt(3))
    assert (
        f"WARNING: train.amp=auto stays bf16, as in the first start, but no bf16 on {named(0)}; train.amp=off "
        in capsys.readouterr().err
    )
    assert not measured
    assert chosen(tmp_path) == ("bf16", {})


class _Killed(Exception):
    """In place of SIGKILL: nothing is saved."""


def _killed_before_it_saves(train_here: Train, run_dir: Path, *options: str) -> None:
    def end(_self: Trainer) -> None:
        raise _Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", end)
        with pytest.raises(_Killed):
            train_here(run_dir, *options)


def test_before_the_first_checkpoint_the_choice_is_kept_too_unless_an_option_is_changed(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers(monkeypatch, off=3, bf16=1)
    _killed_before_it_saves(train_here, tmp_path, AUTO, *SMALL)
    measured = offers(monkeypatch, off=1, bf16=3)
    for _ in range(2):
        _killed_before_it_saves(train_here, tmp_path, AUTO, *SMALL, "log.every_steps=3")
        assert chosen(tmp_path)[0] == "off"
    assert not measured
    _killed_before_it_saves(train_here, tmp_path, AUTO, *SMALL, "train.global_batch_size=32")
    assert (chosen(tmp_path)[0], len(measured)) == ("bf16", 1)
    _killed_before_it_saves(train_here, tmp_path, "train.amp=off", *SMALL)
    _killed_before_it_saves(train_here, tmp_path, AUTO, *SMALL)
    assert (chosen(tmp_path)[0], len(measured)) == ("bf16", 2)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\x00", b"[1]\n", b'{"amp": 5, "options": {}}\n', b'{"amp": "off", "options": 5}\n']
)
def test_a_damaged_table_of_starts_counts_as_none(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    measured = offers(monkeypatch, off=3, bf16=1)
    _killed_before_it_saves(train_here, tmp_path, AUTO, *SMALL)
    (tmp_path / "starts.jsonl").write_bytes(damage)
    (tmp_path / "config.yaml").write_bytes(b"{")
    _killed_before_it_saves(train_here, tmp_path, AUTO, *SMALL)
    assert (chosen(tmp_path)[0], len(measured)) == ("off", 2)


def test_a_run_that_changes_to_auto_chooses_and_keeps_that(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a precision that was given, with resume.allow_changes; killed before it has saved, and resumed."""
    measured = offers(monkeypatch, off=1, bf16=3)
    train_here(tmp_path, "train.amp=off", *SMALL, stop=StopAt(3))
    options = (AUTO, *SMALL, "resume.allow_changes=true")
    with pytest.raises(ConfigError, match=r"train\.amp: off -> auto"):
        train_here(tmp_path, AUTO, *SMALL)
    _killed_before_it_saves(train_here, tmp_path, *options)
    assert (chosen(tmp_path), len(measured)) == (("bf16", {"off": 1, "bf16": 3}), 1)
    offers(monkeypatch, off=3, bf16=1)
    train_here(tmp_path, *options, stop=StopAt(3))
    train_here(tmp_path, AUTO, *SMALL, stop=StopAt(3))
    assert chosen(tmp_path) == ("bf16", {})


def test_a_branch_of_another_run_goes_on_in_its_precision(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers(monkeypatch, off=3, bf16=1)
    train_here(tmp_path / "a", AUTO, *SMALL, stop=StopAt(3))
    begin = checkpoints(tmp_path / "a")[-1]
    measured = offers(monkeypatch, off=1, bf16=3)
    _killed_before_it_saves(train_here, tmp_path / "b", AUTO, *SMALL)  # this one chose bf16
    train_here(tmp_path / "b", AUTO, *SMALL, f"resume.mode={begin}")
    assert (chosen(tmp_path / "b"), len(measured)) == (("off", {}), 1)
    train_here(tmp_path / "a", AUTO, *SMALL)
    one, other = (without_clock(payload(tmp_path / name)) for name in "ab")
    assert differing(one, other) == []


@pytest.mark.parametrize("differs", ["processor", "network"])
def test_the_cells_of_a_sweep_take_the_precision_of_the_first(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], differs: str
) -> None:
    write_json(tmp_path / "sweep.json", {"cells": {"a": {}, "b": {}, "c": {}}})
    offers(monkeypatch, off=3, bf16=1)
    train_here(tmp_path / "a", AUTO, *SMALL, stop=StopAt(3))
    measured = offers(monkeypatch, off=1, bf16=3)
    train_here(tmp_path / "b", AUTO, *SMALL, "optim.lr=0.2", stop=StopAt(3))
    assert (chosen(tmp_path / "b")[0], measured) == ("off", [])
    assert "INFO: train.amp=auto takes off, as the cell a of this sweep\n" in capsys.readouterr().err
    other = "model.name=tests.networks:tiny_senet"
    if differs == "processor":
        monkeypatch.setattr("senet.training.run.processor", lambda _: "another one")
        other = SMALL[0]
    train_here(tmp_path / "c", AUTO, *SMALL, other, stop=StopAt(3))
    assert (chosen(tmp_path / "c")[0], len(measured)) == ("off", 1)
    said = capsys.readouterr().err
    assert "WARNING: train.amp=auto takes off, as the cell a of this sweep, but here bf16 is faster (3 images/s" in said
    assert "train.amp=bf16 in a sweep of another name changes it" in said


@pytest.mark.parametrize("has_links", [True, False])
def test_of_cells_that_begin_at_the_same_moment_the_first_to_have_measured_chooses(
    train_here: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_links: bool,
) -> None:
    write_json(tmp_path / "sweep.json", {"cells": {"a": {}, "b": {}}})
    offers(monkeypatch)

    def measured_meanwhile(*_: Any, **__: Any) -> dict[str, float]:
        write_json(tmp_path / precision.FILE, {"amp": "bf16", "processor": "another one", "model": "m", "cell": "a"})
        return {"off": 3.0, "bf16": 1.0}

    def refused(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(precision, "measure", measured_meanwhile)
    if not has_links:
        monkeypatch.setattr(Path, "hardlink_to", refused)
    train_here(tmp_path / "b", AUTO, *SMALL, stop=StopAt(3))
    assert chosen(tmp_path / "b") == ("bf16" if has_links else "off", {"off": 3.0, "bf16": 1.0})
    assert ("may take different precisions ([Errno 1] no links here)" in capsys.readouterr().err) != has_links
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def _on_hardware_of_its_own(run_dir: str, root: str, lacking: int) -> list[str | bool | int]:
    """Train two updates. fp32 is faster on rank 0, bf16 on rank 1, and rank ``lacking`` has none. Returns what this
    rank trains in, and how often it was timed."""
    rank, passes = int(os.environ["RANK"]), list[str]()
    precision.native_amp = lambda _: "off" if rank == lacking else "bf16"

    def seconds(_count: int, amp: str) -> float:
        passes.append(amp)
        return 0.3 if (amp == "off") == bool(rank) else 0.1

    rates._passes_of_a_copy = lambda *_, **__: seconds
    seen: list[str | bool | int] = []
    original = Trainer.fit

    def fit(self: Trainer) -> Summary:
        with self.learner.autocast():
            seen.extend([self.record.manifest["facts"]["amp"], torch.is_autocast_enabled("cpu"), len(passes)])
        return original(self)

    Trainer.fit = fit  # type: ignore[method-assign]
    options = (AUTO, f"data.root={root}", f"run_dir={run_dir}", "train.desync_check_every=1")
    run(tiny_config(*options, world_size=2), tiny(*options), StopAt(2))
    return seen


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("lacking", "passes", "measured"),
    [
        (-1, 8, {"bf16": 2 / 0.3, "off": 2 / 0.1}),
        (1, 0, {}),
    ],
    ids=["rank 0 chooses", "one has none"],
)
def test_all_ranks_have_one_precision(
    data_root: Path,
    tmp_path: Path,
    lacking: int,
    passes: int,
    measured: dict[str, float],
) -> None:
    options = (f"{tmp_path}/run", str(data_root), lacking)
    assert run_ranks(2, _on_hardware_of_its_own, *options, tmp_path=tmp_path) == 2 * [["off", False, passes]]
    assert chosen(tmp_path / "run") == ("off", pytest.approx(measured))


@pytest.mark.ranks
@pytest.mark.slow
def test_a_run_that_is_killed_before_its_first_checkpoint_goes_on_in_its_precision(
    data_root: Path, tmp_path: Path, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    # 22 updates, five a second: it is killed long before the checkpoint at its end, however busy this host is
    slow = ("model.name=tests.networks:slow_senet", "train.global_batch_size=64", "checkpoint.every_steps=1000")
    options = (AUTO, *SMALL, *slow)
    command = train_command(1, tiny(*options, f"data.root={data_root}", f"run_dir={run_dir}"))
    with started(command, tmp_path / "log") as process:
        wait_until(lambda: rows(run_dir))
        kill_all(process)
    assert not checkpoints(run_dir)
    first, _ = chosen(run_dir)
    other = "off" if first == "bf16" else "bf16"
    measured = offers(monkeypatch, **{first: 1.0, other: 3.0})
    train_here(run_dir, *options)
    assert (chosen(run_dir), measured) == ((first, {}), [])
    train_here(tmp_path / "unbroken", f"train.amp={first}", *options[1:])
    one, two = (without_clock(payload(tmp_path / name)) for name in ("run", "unbroken"))
    assert differing(one, two) == []


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet18", 16, "layer4.0.conv1"),
        ("resnet18", 32, ""),
        ("resnet50", 16, "layer4.0.conv2"),
        ("senet18", 8, ""),
        ("tests.networks:of_one_channel", 16, ""),  # fails
    ],
)
def test_a_convolution_of_which_bf16_has_wrong_gradients_is_found(name: str, size: int, expected: str) -> None:
    config = tiny_config(f"model.name={name}")
    config = replace(config, data=replace(config.data, image_size=size))
    assert precision.narrow_convolution(build_model(name, num_classes=10), config) == expected


@pytest.mark.parametrize(
    ("kernel", "stride", "height", "width"),
    [(3, 1, 1, 1), (3, 1, 4, 1), (3, 2, 2, 2), (3, 2, 1, 4), (1, 2, 1, 1), (3, 3, 1, 3), (5, 2, 1, 2), (3, 3, 4, 4)],
)
def test_convolutions_that_are_left_in_bf16_have_the_gradients_of_fp32(
    kernel: int, stride: int, height: int, width: int
) -> None:
    layer = nn.Conv2d(32, 32, kernel, stride, padding=kernel // 2, bias=False).to(memory_format=torch.channels_last)
    for _ in range(5):
        del_me = [torch.full((2 * layer.weight.numel(),), math.nan, dtype=torch.bfloat16) for _ in range(3)]
        del del_me  # its memory is that of what follows
        images = torch.randn(8, 32, height, width).bfloat16().float().to(memory_format=torch.channels_last)
        found = []
        for enabled in (True, False):
            layer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                layer(images).float().square().sum().backward()
            assert layer.weight.grad is not None
            found.append(layer.weight.grad)
        torch.testing.assert_close(*found, rtol=0.1, atol=0.05 * float(found[1].abs().max()))


@pytest.mark.parametrize(
    ("layer", "size", "is_found"),
    [
        (nn.Conv2d(3, 4, 3, 3, padding=1), 2, True),
        (nn.Conv2d(3, 4, 3, 4, padding=1), 3, True),
        (nn.Conv2d(3, 4, 5, padding=2), 1, True),
        (nn.Conv2d(3, 4, 5, padding="same"), 1, True),
        (nn.Conv2d(3, 4, 2, 3), 2, False),  # without padding
        (nn.Conv2d(3, 4, 3, 3, padding=1), 3, False),
        (nn.Conv2d(3, 4, 3, padding=1), 1, False),
        (nn.Conv2d(3, 4, 1, 2, padding=1), 1, False),
    ],
)
def test_it_is_one_whose_stride_is_larger_than_its_images_are_wide(layer: nn.Module, size: int, is_found: bool) -> None:
    config = tiny_config()
    config = replace(config, data=replace(config.data, image_size=size))
    assert precision.narrow_convolution(nn.Sequential(layer), config) == ("0" if is_found else "")


def test_auto_takes_fp32_and_bf16_is_refused_where_its_gradients_are_wrong(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offers(monkeypatch, off=1.0, bf16=2.0)
    narrow = ("model.name=resnet18", "train.epochs=1", "train.global_batch_size=256")
    with pytest.raises(ConfigError, match=r"^train\.amp=bf16: .* wrong gradients of layer4\.0\.conv1 in bf16"):
        train_here(tmp_path / "bf16", *narrow, "train.amp=bf16")
    train_here(tmp_path / "auto", *narrow, AUTO, stop=StopAt(1))
    assert chosen(tmp_path / "auto") == ("off", {})
    assert "takes off (in bf16 the gradients of layer4.0.conv1 are wrong on a CPU)" in capsys.readouterr().err
