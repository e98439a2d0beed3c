"""The arithmetic of the benchmarks, since a mistake would not show in their tables."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import ring
import time_to_accuracy
import torch
from common import gflop_per_image, lay_store

from senet.config.load import load_config
from senet.data.samplers import open_data
from senet.models.senet import SENet18

MB = 1_000_000


def test_a_ring_takes_what_it_takes_by_hand() -> None:
    link = ring.Ring(latency_s=0.001, bandwidth=10 * MB)
    assert link.all_reduce_s(40 * MB, 1) == 0
    # two ranks send one half twice: 2 x 1 ms + 40 MB at 10 MB/s
    assert link.all_reduce_s(40 * MB, 2) == pytest.approx(0.002 + 4)
    # four ranks send a quarter six times: 6 x 1 ms + 60 MB at 10 MB/s
    assert link.all_reduce_s(40 * MB, 4) == pytest.approx(0.006 + 6)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_fit_finds_the_ring_that_made_the_times(ranks: int) -> None:
    true = ring.Ring(latency_s=50e-6, bandwidth=0.7e9)
    found = ring.fit(ring.SIZES, [true.all_reduce_s(size, ranks) for size in ring.SIZES], ranks)
    assert found == pytest.approx(true)


def test_efficiency_lies_between_nothing_hidden_and_all_that_fits_into_the_backward_pass() -> None:
    link = ring.Ring(latency_s=0, bandwidth=1)  # of 2 ranks: as many seconds as bytes
    assert ring.efficiency(link, 2, 3, compute_s=9) == pytest.approx((9 / 12, 1))  # 3 s fit into 6
    assert ring.efficiency(link, 2, 9, compute_s=9) == pytest.approx((9 / 18, 9 / 12))  # 6 of 9 s are hidden


def test_senet18_takes_3_33_gflop_for_an_image_forward_and_backward() -> None:
    found = gflop_per_image(SENet18(), 32)
    # thrice the forward pass, but for the stem, whose input needs no gradient
    assert found == pytest.approx(3.33, rel=0.01)


def test_pflop_and_deviations_add_up_over_epochs_and_seeds() -> None:
    config = load_config(["configs/tiny.yaml", "train.epochs=2", "train.global_batch_size=100"])
    runs = [
        [{"step": 14, "train_s": 3.0, "test_top1": 50.0}, {"step": 28, "train_s": 6.0, "test_top1": top1}]
        for top1 in (60.0, 64.0)
    ]
    first, last = time_to_accuracy.points(config, runs, {config.data.image_size: 1000.0})
    assert (first.pflop, last.pflop) == pytest.approx((1.4, 2.8))  # 1,400 images an epoch, one TFLOP each
    assert last.test_top1 == pytest.approx((62, math.sqrt(8)))
    assert last.ema_top1 is None


def test_small_images_are_counted_as_such() -> None:
    config = load_config(["configs/fast.yaml"])
    counts = [time_to_accuracy.images_by_size(config, [{"step": 195 * n} for n in range(1, e + 1)]) for e in (2, 6)]
    assert counts == [{24: 2 * 195 * 256}, {24: 3 * 195 * 256, 32: 3 * 195 * 256}]


@pytest.mark.slow
def test_an_update_of_muon_costs_five_iterations_of_three_products() -> None:
    def products(rows: int, columns: int) -> int:  # X X', (X X')^2, and that times X
        return 5 * (4 * rows * rows * columns + 2 * rows**3)

    kernels = [m.weight for m in SENet18().modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    expected = sum(products(*sorted((len(kernel), kernel[0].numel()))) for kernel in kernels)
    fast = ["configs/fast.yaml", "optim.muon_ns_steps=5"]
    assert time_to_accuracy.flop_of_an_update(SENet18(), load_config(fast)) == expected
    assert time_to_accuracy.flop_of_an_update(SENet18(), load_config(["configs/cifar10.yaml"])) == 0


def test_a_laid_store_is_one_that_the_trainer_opens(tmp_path: Path) -> None:
    data = open_data(load_config(lay_store(tmp_path, 300, 20)).data)
    assert (len(data.train), len(data.test), len(data.classes)) == (300, 20, 10)
