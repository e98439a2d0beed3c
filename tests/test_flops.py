"""Model FLOP utilisation: operations counted by hand, peaks by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from senet.distributed.ranks import Ranks
from senet.training import flops
from senet.training.flops import Utilisation, peak_of
from tests.conftest import Train
from tests.harness import rows, status

RANKS = Ranks(0, 4, 0, 4, torch.device("cpu"))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this processor's peak were known."""
    monkeypatch.setattr(flops, "peak_flops", lambda _device, _amp: 1e12)


@pytest.mark.usefixtures("known")
def test_operations_are_those_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 10))
    images = torch.zeros(2, 3, 16, 16)
    found = Utilisation.measure(lambda: network(images).sum().backward(), 2, amp="off", ranks=RANKS)
    convolution, linear = 2 * (16 * 16) * (8 * 3 * 3 * 3), 2 * (8 * 16 * 16) * 10
    # forward and weights of both; the images need no gradient
    assert found.per_image == 2 * convolution + 3 * linear
    assert found.peak == 4e12
    assert found.facts(1e6) == {"mfu": pytest.approx((2 * convolution + 3 * linear) * 1e6 / 4e12)}


def test_on_a_cpu_nothing_is_counted_and_nothing_said() -> None:
    found = Utilisation.measure(lambda: pytest.fail("it ran"), 2, amp="bf16", ranks=RANKS)
    assert found.facts(1e6) == {}


@pytest.mark.usefixtures("known")
def test_a_network_that_cannot_be_looked_into_is_trained_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def run() -> None:
        torch.rand(1)
        raise NotImplementedError("no look inside")

    state = torch.get_rng_state()
    assert Utilisation.measure(run, 2, amp="off", ranks=RANKS).facts(1e6) == {}
    assert "no model FLOP utilisation: NotImplementedError: no look inside" in caplog.text
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "amp", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "off", 156),
        ("NVIDIA H100 80GB HBM3", "fp16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "off", 417),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-SXM2-16GB", "bf16", 0),
        ("Tesla T4", "off", 8.1),
        ("NVIDIA L40", "bf16", 0),  # another one than L4
        ("NVIDIA A10G", "bf16", 0),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", 0),
        ("NVIDIA GeForce RTX 4090", "bf16", 0),
    ],
)
def test_a_peak_is_known_by_the_whole_name(name: str, amp: str, tera: float) -> None:
    assert peak_of(name, amp) == tera * 1e12


@pytest.mark.usefixtures("known")
def test_a_run_tells_its_utilisation_where_the_peak_is_known(
    train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(tmp_path, "model.name=tests.networks:no_norm", "train.amp=off", "train.epochs=1")
    found = [*rows(tmp_path), *rows(tmp_path, "epoch")]
    ratios = {round(row["mfu"] / row["images_per_s"], 18) for row in found}
    assert len(ratios) == 1
    assert status(tmp_path)["mfu"] == rows(tmp_path)[-1]["mfu"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "images/s" in line]
    assert lines
    assert not [line for line in lines if "  MFU " not in line]


@pytest.mark.usefixtures("known")
def test_smaller_images_have_no_utilisation(train_here: Train, tmp_path: Path) -> None:
    small = ("augment.small_size=16", "augment.small_epochs=1", "data.image_size=32", "train.epochs=2")
    train_here(tmp_path, "model.name=tests.networks:no_norm", *small)
    assert ["mfu" in row for row in rows(tmp_path, "epoch")] == [False, True]
