"""Augmentation against a loop over images, and for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from senet.config.options import AugmentConfig
from senet.data.augment import Preprocess
from senet.data.draws import mix
from senet.data.keys import draw_below, random_bits

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")


def preprocess(config: AugmentConfig, seed: int = 7, channels_last: bool = True) -> Preprocess:
    return Preprocess(config, mean=MEAN, std=STD, seed=seed, device=CPU, channels_last=channels_last)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (64, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_normalisation_by_hand(images: torch.Tensor) -> None:
    expected = ((images.numpy() / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    out = preprocess(AugmentConfig()).test(images)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert preprocess(AugmentConfig(), channels_last=False).test(images).is_contiguous()


def draw(seed: int, epoch: int, index: int, number: int, limit: int) -> int:
    """The documented random integer, in Python's own arithmetic."""

    def finalise(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    gamma = 0x9E3779B97F4A7C15
    key = finalise(((index + 1) * gamma + mix(seed, epoch)) % 2**64)
    return ((finalise((key + number + 1) * gamma % 2**64) >> 32) * limit) >> 32


@pytest.mark.parametrize("padding", [3, 0])
def test_crop_flip_and_cutout_are_those_of_a_loop_over_images(images: torch.Tensor, padding: int) -> None:
    config = AugmentConfig(crop_padding=padding, flip=True, cutout=5)
    indices = torch.arange(100, 164)
    out = preprocess(config).train(images, indices, epoch=2)
    for position, index in enumerate(indices.tolist()):
        top, left = draw(7, 2, index, 0, 2 * padding + 1), draw(7, 2, index, 1, 2 * padding + 1)
        padded = np.pad(images[position].numpy(), ((padding, padding), (padding, padding), (0, 0)))
        crop = padded[top : top + 16, left : left + 16]
        if draw(7, 2, index, 2, 2):
            crop = crop[:, ::-1]
        expected = (crop / 255 - MEAN) / STD
        y, x = draw(7, 2, index, 3, 16), draw(7, 2, index, 4, 16)
        expected[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = 0
        np.testing.assert_allclose(out[position].numpy(), expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("config", [AugmentConfig(4, True, 6), AugmentConfig(0, True, 0), AugmentConfig(2, False, 0)])
def test_a_sample_has_the_same_pixels_in_any_share_of_the_batch(images: torch.Tensor, config: AugmentConfig) -> None:
    indices = torch.randperm(1000)[:64]
    whole = preprocess(config).train(images, indices, epoch=1)
    for world_size in (2, 4):
        shares = zip(images.chunk(world_size), indices.chunk(world_size), strict=True)
        parts = [preprocess(config).train(i, n, epoch=1) for i, n in shares]
        assert torch.equal(torch.cat(parts), whole)


def test_epochs_and_seeds_give_other_pixels(images: torch.Tensor) -> None:
    indices = torch.arange(64)
    one = preprocess(AugmentConfig()).train(images, indices, epoch=0)
    assert torch.equal(one, preprocess(AugmentConfig()).train(images, indices, epoch=0))
    assert not torch.equal(one, preprocess(AugmentConfig()).train(images, indices, epoch=1))
    assert not torch.equal(one, preprocess(AugmentConfig(), seed=8).train(images, indices, epoch=0))


def test_switched_off_it_only_normalises(images: torch.Tensor) -> None:
    off = preprocess(AugmentConfig(crop_padding=0, flip=False, cutout=0))
    assert torch.equal(off.train(images, torch.arange(64), epoch=3), off.test(images))


@pytest.mark.parametrize("limit", [2, 9, 32])
def test_draws_are_uniform_and_independent(limit: int) -> None:
    keys = random_bits(mix(3, 4), torch.arange(200_000))
    one, other = draw_below(limit, keys, 0), draw_below(limit, keys, 1)
    assert (int(one.min()), int(one.max())) == (0, limit - 1)
    expected = 200_000 / limit
    for values in (one, (one + other) % limit, (one[1:] + other[:-1]) % limit):
        chi2 = ((torch.bincount(values, minlength=limit) - expected) ** 2 / expected).sum()
        assert chi2 < limit + 5 * (2 * limit) ** 0.5


def test_alternating_flips_show_each_image_both_ways_in_two_epochs(images: torch.Tensor) -> None:
    config = AugmentConfig(crop_padding=0, flip=True, alternate_flip=True, cutout=0)
    indices, plain = torch.arange(64), preprocess(config).test(images)
    epochs = [preprocess(config).train(images, indices, epoch) for epoch in range(4)]
    mirrored = [torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(e, plain, strict=True)]) for e in epochs]
    assert 16 < int(mirrored[0].sum()) < 48  # by chance
    assert torch.equal(mirrored[1], ~mirrored[0])
    assert torch.equal(mirrored[2], mirrored[0])
    assert torch.equal(mirrored[3], ~mirrored[0])
    off = AugmentConfig(crop_padding=0, flip=False, alternate_flip=True, cutout=0)
    assert torch.equal(preprocess(off).train(images, indices, 1), plain)


def test_the_first_epochs_may_have_smaller_images(images: torch.Tensor) -> None:
    config = AugmentConfig(crop_padding=0, flip=False, cutout=0, small_size=8, small_epochs=2)
    indices, plain = torch.arange(64), preprocess(config).test(images)
    small = preprocess(config).train(images, indices, epoch=1)
    assert small.shape == (64, 3, 8, 8)
    assert small.is_contiguous(memory_format=torch.channels_last)
    # a triangle two pixels wide on either side, at every second pixel
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (weights[:, None] * weights).expand(3, 1, 4, 4)
    inner = torch.nn.functional.conv2d(plain[:, :, 1:-1, 1:-1], kernel, stride=2, groups=3)
    torch.testing.assert_close(small[:, :, 1:-1, 1:-1], inner, atol=1e-4, rtol=0)
    assert torch.equal(preprocess(config).train(images, indices, epoch=2), plain)
