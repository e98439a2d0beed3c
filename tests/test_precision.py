"""train.amp=auto: what is measured, what is chosen, and that a run keeps it."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from senet.distributed.ranks import Ranks
from senet.errors import ConfigError
from senet.rundir.checkpoint import read_checkpoint
from senet.rundir.files import read_rows
from senet.training import precision, rates
from senet.training.precision import choose_amp, faster
from senet.training.rates import Layer, largest_layers, measure
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
BLACK = torch.zeros(2, 3, 16, 16)


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


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (networks.tiny_senet, {"convolution": ((1, 8, 16, 16), (8, 8, 3, 3))}),
        (networks.wide, {"product": ((1, 768), (768, 768))}),
        (networks.attention, {"convolution": ((1, 3, 16, 16), (32, 3, 4, 4)), "product": ((16, 32), (96, 32))}),
        (networks.functional, {"convolution": ((1, 3, 16, 16), (8, 3, 3, 3)), "product": ((1, 1568), (64, 1568))}),
    ],
    ids=["convolutions", "products", "attention", "functions"],
)
def test_the_layers_with_most_operations_are_found_in_any_network(
    network: Callable[..., nn.Module], expected: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    model = network(num_classes=10).eval()
    found = largest_layers(model, BLACK)
    assert {layer.kind: (layer.input, layer.weight) for layer, _ in found} == expected
    with FlopCounterMode(display=False) as counter:
        model(BLACK)
    flop = {operation.__name__: count for operation, count in counter.get_flop_counts()["Global"].items()}
    flop["product"] = flop.pop("mm", 0) + flop.pop("addmm", 0)
    for layer, share in found:
        assert share == pytest.approx(flop[layer.kind] / sum(flop.values()))
        one = layer.apply(torch.zeros([max(1, round(size)) for size in layer.input]), torch.zeros(layer.weight))
        assert layer.flop == 2 * one.numel() * math.prod(layer.weight[1:])


class _Uncopyable(networks._NoNorm):
    def __deepcopy__(self, _memo: object) -> nn.Module:
        raise TypeError("holds a lock")


@pytest.mark.parametrize("network", [nn.Flatten(), _Uncopyable(10), nn.Conv2d(1, 1, 1)])
def test_in_a_network_that_cannot_be_copied_or_tried_nothing_is_found(network: nn.Module) -> None:
    assert largest_layers(network, BLACK) == []


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("slow", ["off", "bf16"])
def test_the_faster_precision_is_found_ten_times_of_ten(
    monkeypatch: pytest.MonkeyPatch, slow: str, channels_last: bool
) -> None:
    """Whichever is the faster one on this machine: the other one takes 1000 times as long."""
    monkeypatch.setattr(rates, "training_pass", _slowed(slow, 1000))
    layers = largest_layers(networks.tiny_senet(10), BLACK)
    found = [faster(measure(layers, 64, channels_last=channels_last)) for _ in range(10)]
    assert found == 10 * ["bf16" if slow == "off" else "off"]


def _slowed(slow: str, factor: float) -> Any:
    original = rates.training_pass

    def training_pass(layer: Layer, images: int, amp: str, *, channels_last: bool) -> Callable[[], float]:
        timed = original(layer, images, amp, channels_last=channels_last)
        return lambda: timed() * (factor if amp == slow else 1)

    return training_pass


def test_rates_are_the_operations_of_the_layers_over_their_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a pass of so many images is chosen that all tries together take 0.4 s."""
    seconds, seen = {"convolution": 0.002, "product": 0.001}, set[int]()

    def training_pass(layer: Layer, images: int, amp: str, *, channels_last: bool) -> Callable[[], float]:
        assert channels_last
        assert torch.get_num_threads() == 1
        seen.add(images)
        return lambda: images * seconds[layer.kind] / (2 if amp == "bf16" else 1)

    monkeypatch.setattr(rates, "training_pass", training_pass)
    convolution = Layer("convolution", torch.mul, (1.0, 3), (3,), flop=2e9)
    product = Layer("product", torch.mul, (1.0, 3), (3,), flop=4e9)
    found = measure([(convolution, 0.25), (product, 0.75)], 1000, channels_last=True)
    # 0.25 at 3 * 2 GFLOP / 2 ms, 0.75 at 3 * 4 GFLOP / 1 ms
    off = 1 / (0.25 / 3000 + 0.75 / 12000)
    assert found == pytest.approx({"off": off, "bf16": 2 * off})
    assert seen == {2, int(0.4 / 6 / (0.003 + 0.0015))}
    seen.clear()
    measure([(convolution, 1.0)], 5, channels_last=True)
    assert seen == {2, 5}  # no more than in training


def test_what_is_measured_costs_little_and_leaves_all_as_it_was() -> None:
    network = networks.restless(10)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(threads + 1)
    began = time.process_time()
    assert measure(largest_layers(network, BLACK), 64, channels_last=True)
    assert time.process_time() - began < 2
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
    ("device", "has_bf16", "amp"), [("cuda", True, "bf16"), ("cuda", False, "off"), ("cpu", False, "off")]
)
def test_nothing_is_measured_where_the_hardware_alone_decides(
    monkeypatch: pytest.MonkeyPatch, device: str, has_bf16: bool, amp: str
) -> None:
    monkeypatch.setattr(precision, "measure", None)
    monkeypatch.setattr(precision, "broadcast_bytes", lambda content, _group: io.BytesIO(content))
    monkeypatch.setattr(precision, "cpu_capabilities", dict)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    facts: dict[str, Any] = {"processor": "this"}
    ranks = Ranks(0, 1, 0, 1, torch.device(device))
    assert choose_amp(tiny_config(AUTO), ranks, networks.no_norm(10), facts, None, None) == {"amp_rates": {}}  # type: ignore[arg-type]
    assert facts["amp"] == amp


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("network", ["restless", "tiny_senet"])
def test_a_run_has_the_bits_of_one_that_was_given_the_precision(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, amp: str
) -> None:
    """``restless`` draws random numbers and changes a buffer wherever it runs."""
    options = (*SMALL, f"model.name=tests.networks:{network}")
    train_here(tmp_path / "given", f"train.amp={amp}", *options)
    monkeypatch.setattr(precision, "native_amp", lambda _: "bf16")
    monkeypatch.setattr(rates, "training_pass", _slowed("bf16" if amp == "off" else "off", 1000))
    train_here(tmp_path / "auto", AUTO, *options)
    assert chosen(tmp_path / "auto")[0] == amp
    one, other = (without_clock(payload(tmp_path / name)) for name in ("given", "auto"))
    assert differing(one, other) == []


def test_the_choice_is_said_with_both_rates_and_kept_in_the_run_directory(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offers(monkeypatch, off=281.4, bf16=170.2)
    train_here(tmp_path, AUTO, *SMALL, stop=StopAt(3))
    said = capsys.readouterr().err
    assert "INFO: train.amp=auto takes off (170 GFLOP/s per core in bf16, 281 in fp32)\n" in said
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
            "WARNING: train.amp=auto stays off, as in the first start, but here bf16 is faster (3 GFLOP/s per core in "
            "bf16, 1 in fp32); train.amp=bf16 with resume.allow_changes=true changes it\n",
        ),
        ({"off": 1.0, "bf16": 1.1}, "INFO: train.amp=auto stays off, as in the first start (1.1 GFLOP/s per core"),
        ({"off": 3.0, "bf16": 1.0}, "INFO: train.amp=auto stays off, as in the first start (1 GFLOP/s per core"),
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
    assert "WARNING: train.amp=auto stays bf16, as in the first start, but here off is" in capsys.readouterr().err
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


def _on_hardware_of_its_own(run_dir: str, root: str) -> list[str | bool]:
    """Train two updates where rank 0 would take off and rank 1 bf16; what this rank trains in."""
    is_first = os.environ["RANK"] == "0"
    precision.native_amp = lambda _: "bf16" if is_first else "off"
    precision.measure = lambda *_, **__: {"off": 3.0, "bf16": 1.0} if is_first else {"off": 1.0, "bf16": 3.0}
    seen: list[str | bool] = []
    original = Trainer.fit

    def fit(self: Trainer) -> Summary:
        with self.learner.autocast():
            seen.extend([self.record.manifest["facts"]["amp"], torch.is_autocast_enabled("cpu")])
        return original(self)

    Trainer.fit = fit  # type: ignore[method-assign]
    options = (AUTO, f"data.root={root}", f"run_dir={run_dir}", "train.desync_check_every=1")
    run(tiny_config(*options, world_size=2), tiny(*options), StopAt(2))
    return seen


@pytest.mark.ranks
def test_rank_0_chooses_for_all_ranks(data_root: Path, tmp_path: Path) -> None:
    found = run_ranks(2, _on_hardware_of_its_own, f"{tmp_path}/run", str(data_root), tmp_path=tmp_path)
    assert found == 2 * [["off", False]]
    assert chosen(tmp_path / "run") == ("off", {"off": 3.0, "bf16": 1.0})


@pytest.mark.ranks
@pytest.mark.slow
def test_a_run_that_is_killed_before_its_first_checkpoint_goes_on_in_its_precision(
    data_root: Path, tmp_path: Path, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    options = ("model.name=tests.networks:slow_senet", AUTO, *SMALL, "checkpoint.every_steps=1000")
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
    train_here(tmp_path / "unbroken", *options[:1], f"train.amp={first}", *options[2:])
    one, two = (without_clock(payload(tmp_path / name)) for name in ("run", "unbroken"))
    assert differing(one, two) == []
