"""Which rectangle of a picture is shown, against torchvision's random resized crop and Pillow's fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from senet.data.crops import Box, center_box, random_box
from senet.data.draws import draw_32, mix
from senet.data.keys import draw_below, random_bits
from senet.data.sources.pictures import fit_image

SIZES = ((500, 375), (375, 500), (2000, 1500), (64, 64), (900, 100), (40, 1000), (17, 16), (1, 1))
AREAS = ((0.08, 1.0), (0.35, 1.0), (0.25, 0.25))


def keys(count: int) -> list[int]:
    return random_bits(mix(0, 0), torch.arange(count)).tolist()


def boxes(width: int, height: int, area: tuple[float, float], count: int) -> np.ndarray:
    """float64 [count, 4]: left, top, width, height."""
    found = np.array([random_box(width, height, key, area) for key in keys(count)])
    return np.concatenate([found[:, :2], found[:, 2:] - found[:, :2]], 1)


def theirs(width: int, height: int, area: tuple[float, float], count: int) -> np.ndarray:
    torch.manual_seed(0)
    crop, picture = v2.RandomResizedCrop(16, scale=area), [torch.empty(3, height, width)]
    drawn = [crop.make_params(picture) for _ in range(count)]
    return np.array([[each[name] for name in ("left", "top", "width", "height")] for each in drawn], np.float64)


def test_draws_on_the_host_are_those_on_the_device() -> None:
    for key in keys(20):
        for limit in (2, 1000, 2**31):
            found = draw_below(limit, torch.tensor([key]), 9).item()
            assert draw_32(key, 9) * limit >> 32 == found


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_random_boxes_are_distributed_as_torchvisions(width: int, height: int, area: tuple[float, float]) -> None:
    count = 3000
    ours, others = boxes(width, height, area, count), theirs(width, height, area, count)
    for quantity in (*range(4), "area"):
        a, b = (each[:, 2] * each[:, 3] if quantity == "area" else each[:, quantity] for each in (ours, others))
        error = np.hypot(a.std(), b.std()) / count**0.5
        assert abs(a.mean() - b.mean()) <= 4 * error
        assert abs(a.std() - b.std()) <= 4 * error + 1e-9
        edges = np.unique(np.quantile(np.concatenate([a, b]), np.linspace(0, 1, 9)))
        bins = [np.bincount(np.searchsorted(edges[1:-1], each, side="right"), minlength=9) for each in (a, b)]
        assert np.abs(bins[0] - bins[1]).max() <= 4.5 * (2 * max(bins[0].max(), 1)) ** 0.5


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_random_box_lies_in_the_picture_and_is_a_function_of_its_key(width: int, height: int) -> None:
    for key in keys(200):
        left, top, right, bottom = box = random_box(width, height, key, (0.08, 1.0))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert box == random_box(width, height, key, (0.08, 1.0))
    if min(width, height) > 60:
        assert len({random_box(width, height, key, (0.08, 1.0)) for key in keys(50)}) > 10


@pytest.mark.parametrize("share", [1.0, 0.875, 224 / 256, 0.5])
@pytest.mark.parametrize("size", [(500, 375), (333, 500), (16, 16), (64, 64), (7, 400)])
def test_the_central_square_is_scaled_as_pillow_fits_it(size: tuple[int, int], share: float) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    expected = ImageOps.fit(picture, (64, 64), Image.Resampling.BILINEAR, bleed=(1 - share) / 2)
    if share == 1:  # bit for bit: stores that exist stay what they are
        np.testing.assert_array_equal(fit_image(picture, 64), np.asarray(expected))
        return
    box: Box = center_box(*size, share)  # its border is that of Pillow, but for the last bits of a float
    np.testing.assert_allclose([box[2] - box[0], box[3] - box[1]], min(size) * share)
    np.testing.assert_allclose([box[0] + box[2], box[1] + box[3]], size)
    found = fit_image(picture, 64, share).astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 1


def test_the_usual_ratio_shows_what_torchvisions_resize_and_center_crop_show() -> None:
    values = np.add.outer(np.arange(256), np.arange(320)) % 256
    picture = Image.fromarray(values.astype(np.uint8)).convert("RGB").resize((640, 512), Image.Resampling.BICUBIC)
    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(picture)
    found = fit_image(picture, 224, 224 / 256).astype(int)
    assert np.abs(found - np.asarray(theirs)).mean() < 0.5
