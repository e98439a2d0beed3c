"""Random changes of batches against torchvision's v2, image by image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from senet.config.options import AugmentConfig
from senet.data.augment import Preprocess
from senet.data.changes.color import HUE, ColorJitter
from senet.data.changes.erasing import Erasing
from senet.data.changes.mixing import Mixing, beta_quantiles
from senet.data.changes.trivial import BINS, KINDS, TrivialAugment, counts_by_adding, counts_by_sorting
from senet.data.draws import mix
from senet.data.keys import draw_uniform, random_bits

CPU = torch.device("cpu")
EVERYTHING: dict[str, Any] = {
    "crop_padding": 3, "flip": True, "trivial": True, "color_jitter": (0.4, 0.4, 0.4, 0.1), "cutout": 4, "erase": 0.5,
    "mixup": 0.2, "cutmix": 1.0,
}  # fmt: skip
OFF: dict[str, Any] = {"crop_padding": 0, "flip": False, "cutout": 0}


def preprocess(**options: Any) -> Preprocess:
    config = AugmentConfig(**options)
    return Preprocess(config, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), seed=7, device=CPU)


def keys(count: int, seed: int = 1) -> Tensor:
    return random_bits(mix(seed), torch.arange(count))


def pictures(size: int) -> Tensor:
    """Noise, something smooth that does not use all values, one value: uint8 [3, 3, size, size]."""
    generator = torch.Generator().manual_seed(size)
    noise = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
    coarse = 30 + 180 * torch.rand(1, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")[0].to(torch.uint8)
    return torch.stack((noise, smooth, torch.full_like(noise, 77)))


def assert_alike(ours: Tensor, theirs: Tensor) -> None:
    """Equal, but for the last step of values where a product and a sum are rounded together or apart."""
    difference = (ours.int() - theirs.int()).abs()
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) < 0.06


@pytest.mark.parametrize("size", [16, 61])
@pytest.mark.parametrize("kind", range(4))
def test_each_change_of_colours_is_torchvisions(kind: int, size: int) -> None:
    function = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)[kind]
    amounts = [0.0] * 4
    amounts[kind] = 0.5
    jitter, images = ColorJitter((*amounts,), CPU), pictures(size)  # type: ignore[arg-type]
    for factor in (-0.5, -0.3, 0.0, 0.1, 0.25, 0.5) if kind == HUE else (0.0, 0.3, 0.77, 1.0, 1.5):
        ours = jitter.apply(images.clone(), torch.full((3, 1), kind), torch.full((3, 4), factor))
        assert_alike(ours, function(images, factor))
        if kind == 0 or factor == float(kind != HUE):
            assert torch.equal(ours, function(images, factor))


def test_each_image_has_the_order_and_the_factors_that_are_drawn_for_it() -> None:
    jitter, images = ColorJitter((0.5, 0.4, 0.3, 0.2), CPU), pictures(32)[torch.arange(64) % 2]
    order_NT, factors_N4 = jitter.draw(keys(64))
    assert len(order_NT.unique(dim=0)) > 12
    ours = jitter.apply(images.clone(), order_NT, factors_N4)
    for image, order, factors, changed in zip(images, order_NT, factors_N4, ours, strict=True):
        expected = image[None].clone()
        for kind in order:
            expected = jitter.apply(expected, kind.view(1, 1), factors[None])
        assert torch.equal(changed, expected[0])


@pytest.mark.parametrize("amounts", [(0.4, 0.3, 0.2, 0.1), (0.0, 1.0, 0.0, 0.5)])
def test_orders_and_factors_are_spread_as_torchvisions(amounts: tuple[float, float, float, float]) -> None:
    torch.manual_seed(0)
    theirs = v2.ColorJitter(*amounts)
    params = [theirs.make_params([]) for _ in range(5000)]
    order_NT, factors_N4 = ColorJitter(amounts, CPU).draw(keys(50_000))
    changed = [kind for kind in range(4) if amounts[kind]]
    for kind, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        if kind in changed:
            assert_same_distribution(factors_N4[:, kind], [each[f"{name}_factor"] for each in params])
    orders = list(itertools.permutations(changed))
    ours = [tuple(order) for order in order_NT.tolist()]
    of_theirs = [tuple(kind for kind in each["fn_idx"].tolist() if kind in changed) for each in params]
    for found in (ours, of_theirs):
        assert chisquare([found.count(order) for order in orders]).pvalue > 1e-3
    for one, other in itertools.combinations(changed, 2):
        assert abs(np.corrcoef(factors_N4[:, one], factors_N4[:, other])[0, 1]) < 0.02


def assert_same_distribution(ours: Tensor, theirs: Any) -> None:
    """By all of both samples, and by mean and standard deviation."""
    one, other = np.asarray(ours, float), np.asarray(theirs, float)
    assert ks_2samp(one, other).pvalue > 1e-3
    error = 4 * other.std() * (1 / len(one) + 1 / len(other)) ** 0.5
    assert abs(one.mean() - other.mean()) <= error
    assert abs(one.std() - other.std()) <= error


@pytest.mark.parametrize("size", [32, 49])
@pytest.mark.parametrize("name", KINDS)
def test_each_trivial_change_is_torchvisions(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, images, trivial, theirs = KINDS.index(name), pictures(size), TrivialAugment(CPU), v2.TrivialAugmentWide()
    assert tuple(theirs._AUGMENTATION_SPACE) == KINDS
    wrong, total = 0, 0
    for strength, sign in itertools.product(range(BINS), range(2)):
        ours = trivial.apply(images.clone(), *(torch.full((3,), value) for value in (kind, strength, sign)))
        drawn: Iterator[int] = itertools.cycle((kind, strength))
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda *_, drawn=drawn: next(drawn))
            patch.setattr(torch, "rand", lambda *_, sign=sign: torch.tensor(1.0 - sign))
            if theirs._AUGMENTATION_SPACE[name][0](BINS, size, size) is None:
                patch.setattr(torch, "randint", lambda *_: kind)
            expected = torch.stack([theirs(image) for image in images])
        if name in KINDS[1:6]:  # where a place lies just between two pixels, its last bit decides
            wrong, total = wrong + int((ours != expected).sum()), total + ours.numel()
        elif name in ("Brightness", "Color", "Contrast", "Sharpness"):
            assert_alike(ours, expected)
        else:
            assert torch.equal(ours, expected)
    assert wrong <= total / 10_000


def test_trivial_draws_are_even_and_each_image_has_its_own() -> None:
    trivial, images = TrivialAugment(CPU), pictures(24)[torch.arange(96) % 2]
    drawn = trivial.draw(keys(60_000))
    for values, count in zip(drawn, (len(KINDS), BINS, 2), strict=True):
        assert chisquare(torch.bincount(values, minlength=count)).pvalue > 1e-3
    pairs = drawn[0] * BINS + drawn[1]
    assert chisquare(torch.bincount(pairs, minlength=len(KINDS) * BINS)).pvalue > 1e-3
    some = [values[:96] for values in drawn]
    ours = trivial.apply(images.clone(), *some)
    for number, image in enumerate(images):
        one = [values[number : number + 1] for values in some]
        assert torch.equal(ours[number], trivial.apply(image[None].clone(), *one)[0])


def test_what_is_erased_is_torchvisions_for_the_same_rectangle() -> None:
    images = torch.randint(0, 256, (64, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pipeline, indices = preprocess(**OFF, erase=0.7), torch.arange(64)
    ours, plain = pipeline.train(images, indices, 3), pipeline.test(images)
    places = Erasing(0.7, CPU).draw(pipeline.keys(indices, 3), 40)
    erased = 0
    for number, (top, left, height, width) in enumerate(zip(*(place.tolist() for place in places), strict=True)):
        erased += height > 0
        expected = F.erase(plain[number], top, left, height, width, torch.zeros(3, 1, 1))
        assert torch.equal(ours[number], expected)
    assert 32 < erased < 58


@pytest.mark.parametrize("size", [16, 224])
def test_rectangles_to_erase_are_spread_as_torchvisions(size: int) -> None:
    torch.manual_seed(0)
    theirs, image = v2.RandomErasing(), [torch.empty(3, size, size)]
    params = [theirs.make_params(image) for _ in range(6000)]
    top_N, left_N, height_N, width_N = Erasing(1.0, CPU).draw(keys(40_000), size)
    assert bool((height_N > 0).all())  # of ten tries one fits but for one time in 10**9
    assert all(each["v"] is not None for each in params)
    for ours, name in ((top_N, "i"), (left_N, "j"), (height_N, "h"), (width_N, "w")):
        assert_same_distribution(ours, [each[name] for each in params])
    assert_same_distribution(height_N.double() / width_N, [each["h"] / each["w"] for each in params])
    assert bool(((top_N + height_N <= size) & (left_N + width_N <= size)).all())
    share = float((Erasing(0.25, CPU).draw(keys(40_000), size)[2] > 0).float().mean())
    assert abs(share - 0.25) < 0.01


def mixed_by_hand(pipeline: Preprocess, images: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``train`` makes of them, their shares, the images before and those of their neighbours."""
    plain = pipeline.test(images)
    shares = pipeline.shares(pipeline.keys(indices, 0), images.shape[1])
    assert shares is not None
    others = plain[torch.arange(len(images)) ^ 1]
    return pipeline.train(images, indices, 0), shares, plain, others


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (256, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_mixup_mixes_neighbours_in_the_shares_of_their_labels(images: Tensor) -> None:
    ours, shares, plain, others = mixed_by_hand(preprocess(**OFF, mixup=0.5), images, torch.arange(50, 306))
    own = shares[:, None, None, None].double()
    torch.testing.assert_close(ours.double(), own * plain + (1 - own) * others, atol=1e-6, rtol=1e-6)
    assert torch.equal(shares[::2], shares[1::2])
    assert 0.5 <= float(shares.min()) < 0.6
    assert len(shares.unique()) > 100


def test_cutmix_takes_a_rectangle_and_its_true_area(images: Tensor) -> None:
    ours, shares, plain, others = mixed_by_hand(preprocess(**OFF, cutmix=1.0), images, torch.arange(50, 306))
    is_own = (ours == plain).all(1)
    assert bool((is_own | (ours == others).all(1)).all())
    both = (plain == others).all(1)  # by chance
    assert int(both.sum()) < 5
    assert shares.tolist() == pytest.approx((is_own & ~both).float().mean((1, 2)).tolist(), abs=0.01)
    kinds = set()
    for own in is_own[~both.flatten(1).any(1)]:
        for inside in (own, ~own):
            rows, columns = inside.any(1), inside.any(0)
            if torch.equal(inside, rows[:, None] & columns) and bool((~inside).any()):
                kinds.add("own" if inside is own else "other")
                break
        else:
            raise AssertionError("neither is a rectangle")
    assert kinds == {"own", "other"}
    assert float(shares.min()) >= 0.5


def test_with_both_each_pair_has_one_of_the_two(images: Tensor) -> None:
    ours, shares, plain, others = mixed_by_hand(preprocess(**OFF, mixup=1.0, cutmix=1.0), images, torch.arange(256))
    own = shares[:, None, None, None].double()
    is_mixed = ((ours - (own * plain + (1 - own) * others)).abs() < 1e-5).flatten(1).all(1)
    is_cut = ((ours == plain) | (ours == others)).all(1).flatten(1).all(1)
    assert torch.equal(is_mixed, ~is_cut | (shares == 1))  # a rectangle may have no pixel
    assert torch.equal(is_cut[::2], is_cut[1::2])
    assert 40 < int(is_cut[::2].sum()) < 88


@pytest.mark.parametrize("a", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_are_spread_as_torchvisions(kind: str, a: float) -> None:
    torch.manual_seed(0)
    batch = [torch.empty(2, 3, 32, 32)]
    theirs = v2.MixUp(alpha=a, num_classes=2) if kind == "mixup" else v2.CutMix(alpha=a, num_classes=2)
    name = "lam" if kind == "mixup" else "lam_adjusted"
    lam = np.array([theirs.make_params(batch)[name] for _ in range(6000)])
    mixing = Mixing(a if kind == "mixup" else 0, a if kind == "cutmix" else 0, CPU)
    ours = mixing.shares(keys(60_000), 32)[::2]
    assert_same_distribution(ours.double().round(decimals=6), np.maximum(lam, 1 - lam).round(6))  # many are near 1


@pytest.mark.parametrize("a", [0.001, 0.2, 1.0, 100.0])
def test_the_table_of_quantiles_has_the_moments_of_its_distribution(a: float) -> None:
    table = beta_quantiles(a).double()
    assert bool(((table >= 0) & (table <= 1)).all())
    assert float(table.mean()) == pytest.approx(0.5, abs=1e-4)
    assert float(table.var()) == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.01)


def test_uniform_draws_are_even() -> None:
    values = draw_uniform(keys(100_000), 42)
    assert values.dtype == torch.float32
    assert 0 <= float(values.min()) < float(values.max()) < 1
    assert chisquare(torch.histc(values, 64, 0, 1)).pvalue > 1e-3


@pytest.mark.parametrize("channels_last", [True, False])
def test_any_split_into_even_parts_has_the_same_pixels_and_shares(images: Tensor, channels_last: bool) -> None:
    config, indices = AugmentConfig(**EVERYTHING), torch.arange(1000, 1256)
    given: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "seed": 3, "device": CPU}
    pipeline = Preprocess(config, **given, channels_last=channels_last)
    before = images.clone()
    whole, shares = pipeline.train(images, indices, 1), pipeline.shares(pipeline.keys(indices, 1), 16)
    assert torch.equal(images, before)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert whole.is_contiguous(memory_format=layout)
    assert shares is not None
    for size in (2, 6, 64, 130):
        parts = [
            pipeline.train(some, rows, 1) for some, rows in zip(images.split(size), indices.split(size), strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)
        of_parts = [pipeline.shares(pipeline.keys(rows, 1), 16) for rows in indices.split(size)]
        assert torch.equal(torch.cat([each for each in of_parts if each is not None]), shares)


def test_what_a_gpu_does_gives_the_same_pixels(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes each change for all images, and leaves out those that are not meant."""
    indices = torch.arange(256)
    expected = preprocess(**EVERYTHING).train(images, indices, 1)

    def for_all(images: Tensor, mask: Tensor, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
        return torch.where(mask[:, None, None, None], function(images, *values), images)

    for module in ("color", "trivial"):
        monkeypatch.setattr(f"senet.data.changes.{module}.change", for_all)
    monkeypatch.setattr("senet.data.changes.trivial.counts_by_adding", counts_by_sorting)
    assert torch.equal(preprocess(**EVERYTHING).train(images, indices, 1), expected)


def test_values_are_counted_alike_by_adding_and_by_sorting() -> None:
    values = pictures(33).flatten(2).flatten(0, 1)
    counts = torch.stack([(values <= level).sum(1) for level in range(256)], dim=1)
    assert torch.equal(counts_by_adding(values), counts)
    assert torch.equal(counts_by_sorting(values), counts)


def test_what_is_switched_on_comes_in_the_documented_order(images: Tensor) -> None:
    indices = torch.arange(256)
    pipeline = preprocess(**EVERYTHING)
    drawn = pipeline.keys(indices, 5)
    flipped = preprocess(**OFF | {"crop_padding": 3, "flip": True}).train(images, indices, 5)
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    planes = ((flipped * std + mean) * 255).round().to(torch.uint8).contiguous()
    planes = ColorJitter(EVERYTHING["color_jitter"], CPU)(TrivialAugment(CPU)(planes, drawn), drawn)
    expected = preprocess(**OFF | {"cutout": 4}).train(planes.permute(0, 2, 3, 1), indices, 5)
    expected = Mixing(0.2, 1.0, CPU)(Erasing(0.5, CPU)(expected, drawn), drawn)
    assert torch.equal(pipeline.train(images, indices, 5), expected)


def test_images_that_have_the_small_size_already_are_not_scaled(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = preprocess(**OFF, small_size=16, small_epochs=2)
    monkeypatch.setattr(torch.nn.functional, "interpolate", None)
    assert torch.equal(pipeline.train(images, torch.arange(256), 1), pipeline.test(images))


def test_images_in_another_order_of_memory_are_not_written_into(images: Tensor) -> None:
    planes = images.permute(0, 3, 1, 2).contiguous()
    preprocess(**OFF, trivial=True).train(planes.permute(0, 2, 3, 1), torch.arange(256), 1)
    assert torch.equal(planes.permute(0, 2, 3, 1), images)
