"""Rectangles in images, and random erasing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from senet.data.keys import QUANTILES, draw_below, draw_quantile, draw_uniform

_AREA, _RATIO, _TRIES = (0.02, 0.33), (0.3, 3.3), 10  # torchvision's


def rectangles(top_N: Tensor, left_N: Tensor, height_N: Tensor, width_N: Tensor, size: int) -> Tensor:
    """Masks, bool [N, 1, size, size], that are set inside; what lies outside of the image is cut off."""
    pixels = torch.arange(size, device=top_N.device)
    in_rows, in_columns = (
        (pixels >= first_N[:, None]) & (pixels < (first_N + length_N)[:, None])
        for first_N, length_N in ((top_N, height_N), (left_N, width_N))
    )
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


class Erasing:
    """As torchvision's RandomErasing: a share of 0.02 to 0.33 of the area, height to width 0.3 to 3.3, set to 0, which
    is the mean after normalisation."""

    def __init__(self, probability: float, device: torch.device) -> None:
        self._probability = probability
        low, high = map(math.log, _RATIO)
        middles = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
        self._ratios = (low + (high - low) * middles).exp().float().to(device)

    def __call__(self, images_NCHW: Tensor, keys_N: Tensor) -> Tensor:
        """In place; float, square images."""
        size = images_NCHW.shape[-1]
        return images_NCHW.masked_fill_(rectangles(*self.draw(keys_N, size), size), 0.0)

    def draw(self, keys_N: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height, width, int64 [N]; height and width 0 where nothing is erased.

        The first of ten pairs of area and ratio whose rectangle is smaller than the image in both directions counts.
        """
        keys_NT = keys_N[:, None] + torch.arange(_TRIES, device=keys_N.device)
        area_NT = (_AREA[0] + (_AREA[1] - _AREA[0]) * draw_uniform(keys_NT, 61)) * size**2
        ratio_NT = draw_quantile(self._ratios, keys_NT, 61 + _TRIES)
        height_NT, width_NT = (area_NT * ratio_NT).sqrt_().round_().long(), (area_NT / ratio_NT).sqrt_().round_().long()
        fits_NT = (height_NT < size) & (width_NT < size)
        first_N1 = fits_NT.int().argmax(1, keepdim=True)
        erased_N1 = fits_NT.gather(1, first_N1) & (draw_uniform(keys_N, 60) < self._probability)[:, None]
        height_N, width_N = ((length.gather(1, first_N1) * erased_N1)[:, 0] for length in (height_NT, width_NT))
        top_N = draw_below(size - height_N + 1, keys_N, 61 + 2 * _TRIES)
        left_N = draw_below(size - width_N + 1, keys_N, 62 + 2 * _TRIES)
        return top_N, left_N, height_N, width_N
