"""Drawing images of unequal classes: counts, repeats, the same on any number of ranks."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch

from senet.data.balance import BalancedSampler, shares
from senet.data.samplers import ImageData, ResumableSampler, load_batches
from senet.data.splits import Split

SIZES = (50, 20, 9, 1)


def unequal() -> Split:
    labels = np.repeat(np.arange(len(SIZES)), SIZES)
    np.random.default_rng(0).shuffle(labels)
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    return Split(pixels, labels)


def sampler(balance: float, *, batch: int = 16, rank: int = 0, world_size: int = 1, seed: int = 0) -> BalancedSampler:
    return BalancedSampler(
        unequal(), balance=balance, global_batch_size=batch, rank=rank, world_size=world_size, seed=seed
    )


def by_hand(counts: tuple[int, ...], balance: int) -> list[int]:
    """Exact fractions; largest remainders, the first of equals."""
    powers = [Fraction(count) ** (1 - balance) for count in counts]
    quotas = [sum(counts) * power / sum(powers) for power in powers]
    whole = [int(quota) for quota in quotas]
    order = sorted(range(len(counts)), key=lambda i: (-(quotas[i] - whole[i]), i))
    return [number + (i in order[: sum(counts) - sum(whole)]) for i, number in enumerate(whole)]


@pytest.mark.parametrize("balance", [0, 1])
@pytest.mark.parametrize("counts", [SIZES, (3, 3, 3), (1, 1000), (7,), (5, 1, 1)])
def test_shares_are_those_of_exact_arithmetic(counts: tuple[int, ...], balance: int) -> None:
    assert shares(list(counts), balance) == by_hand(counts, balance)


def test_shares_between_lie_between_and_sum_to_the_epoch() -> None:
    assert shares([64, 16], 0.5) == [53, 27]  # 8 : 4 of 80
    for balance in np.linspace(0, 1, 21):
        assert sum(shares(list(SIZES), float(balance))) == sum(SIZES)


@pytest.mark.parametrize("balance", [0.3, 1.0])
def test_an_epoch_has_each_class_its_share_and_each_image_of_it_as_often_as_any_other(balance: float) -> None:
    split, this = unequal(), sampler(balance)
    extra = []
    for epoch in range(3):
        this.set_epoch(epoch)
        numbers = this.order()
        assert len(numbers) == len(split)
        assert len(numbers.unique()) == len(numbers)  # each draw has a number, and changes, of its own
        images = numbers % len(split)
        assert torch.bincount(split.labels[images], minlength=4).tolist() == shares(list(SIZES), balance)
        times = Counter(images.tolist())
        for label in range(4):
            of_class = [times[i] for i in range(len(split)) if split.labels[i] == label]
            assert max(of_class) - min(of_class) <= 1
        extra.append(frozenset(i for i in times if split.labels[i] == 0))
    assert len(set(extra)) == 3  # others of the large class in each epoch


def test_without_balance_each_image_is_drawn_once() -> None:
    assert sorted(sampler(0.0).order().tolist()) == list(range(80))


def test_the_draws_are_a_function_of_seed_and_epoch() -> None:
    one, other = sampler(1.0, seed=1), sampler(1.0, seed=1)
    assert torch.equal(one.order(), other.order())
    assert not torch.equal(one.order(), sampler(1.0, seed=2).order())
    other.set_epoch(1)
    assert not torch.equal(one.order(), other.order())


def test_ranks_share_the_same_batches_also_from_the_middle_of_an_epoch() -> None:
    whole = sampler(1.0)
    whole.start_at(2, 0)
    batches = list(whole)
    assert len(batches) == 5
    for world_size in (2, 4):
        parts = [sampler(1.0, rank=rank, world_size=world_size) for rank in range(world_size)]
        for part in parts:
            part.start_at(2, 3)
        joined = [torch.cat(shares) for shares in zip(*parts, strict=True)]
        assert [each.tolist() for each in joined] == [each.tolist() for each in batches[3:]]


def test_a_number_beyond_the_last_image_stands_for_one_again() -> None:
    this = sampler(1.0)
    for images, labels, numbers in load_batches(unequal(), this, torch.device("cpu"), repeats=True):
        rows = numbers % 80
        assert images[:, 0, 0, 0].tolist() == rows.tolist()
        assert torch.equal(labels, unequal().labels[rows])
    assert int(numbers.max()) >= 80


def test_the_order_without_balance_is_torchs_permutation(digits: ImageData) -> None:
    """As it has always been."""
    plain = ResumableSampler(digits.train, global_batch_size=64, rank=0, world_size=1, seed=3)
    plain.start_at(1, 0)
    from senet.data.draws import mix

    expected = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(mix(3, 1)))
    assert torch.equal(torch.cat(list(plain)), expected[: 22 * 64])
