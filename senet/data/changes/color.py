"""Brightness, contrast, saturation and hue, as torchvision's v2 changes uint8 images.

Values are whole numbers from 0 to 255, in uint8 or float32; what comes between two of them is cut off after each
change. Each product and each sum is an operation by itself: one that does both rounds once or twice, as it happens to
be compiled, and so at one place in a batch otherwise than at another. torchvision's results may differ by 1.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from senet.data.changes.some import change
from senet.data.keys import draw_below, draw_uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class ColorJitter:
    """torchvision's ColorJitter, of which each image has an order and factors of its own.

    Args:
        amounts: of brightness, contrast, saturation, hue; 0: not changed.
    """

    def __init__(self, amounts: tuple[float, float, float, float], device: torch.device) -> None:
        self._changed = [kind for kind, amount in enumerate(amounts) if amount]
        self._orders = torch.tensor(list(itertools.permutations(self._changed)), device=device)
        self._lowest, self._span = (
            torch.tensor(values, device=device)
            for values in ([1 - amount for amount in amounts[:HUE]] + [-amounts[HUE]], [2 * each for each in amounts])
        )

    def __call__(self, images_NCHW: Tensor, keys_N: Tensor) -> Tensor:
        """uint8 in and out."""
        return self.apply(images_NCHW, *self.draw(keys_N))

    def draw(self, keys_N: Tensor) -> tuple[Tensor, Tensor]:
        """The kinds of each image in their order, int64 [N, kinds that are changed], and the factors of the four kinds,
        float32 [N, 4]: of hue the part of a turn that is added."""
        order_NT = self._orders[draw_below(len(self._orders), keys_N, 30)]
        unit_N4 = torch.stack([draw_uniform(keys_N, 31 + kind) for kind in range(4)], dim=1)
        return order_NT, self._lowest + unit_N4 * self._span

    def apply(self, images_NCHW: Tensor, order_NT: Tensor, factors_N4: Tensor) -> Tensor:
        """With these; the images may be overwritten."""
        return change(images_NCHW, torch.ones_like(order_NT[:, 0], dtype=torch.bool), self._all, order_NT, factors_N4)

    def _all(self, images_NCHW: Tensor, order_NT: Tensor, factors_N4: Tensor) -> Tensor:
        pixels_NCHW = images_NCHW.float()
        for kind_N in order_NT.unbind(1):
            factor_N = factors_N4.gather(1, kind_N[:, None])[:, 0]
            pixels_NCHW = self._blended(pixels_NCHW, kind_N, factor_N)
            if HUE in self._changed:
                pixels_NCHW = change(pixels_NCHW, kind_N == HUE, turn_hue, factor_N)
        return pixels_NCHW.to(torch.uint8)

    def _blended(self, pixels_NCHW: Tensor, kind_N: Tensor, factor_N: Tensor) -> Tensor:
        """Changed in brightness, contrast or saturation: these differ in what the images are blended with alone."""
        factor_N = torch.where(kind_N == HUE, 1, factor_N)
        if not {CONTRAST, SATURATION} & set(self._changed):
            return blend(pixels_NCHW, factor_N)
        grey_N1HW = grey(pixels_NCHW)
        rest_N = 1 - factor_N
        of_pixels, of_mean = (((kind_N == kind) * rest_N)[:, None, None, None] for kind in (SATURATION, CONTRAST))
        return blend(pixels_NCHW, factor_N, (grey_N1HW * of_pixels).add_(mean(grey_N1HW) * of_mean))


def blend(pixels_NCHW: Tensor, factor_N: Tensor, rest: Tensor | None = None) -> Tensor:
    """``factor`` times the images plus the rest, which has been multiplied by 1 - ``factor``; float32."""
    blended_NCHW = pixels_NCHW * factor_N[:, None, None, None]
    if rest is not None:
        blended_NCHW += rest
    return blended_NCHW.clamp_(0, 255).floor_()


def grey(pixels_NCHW: Tensor) -> Tensor:
    """Whole numbers in float32, [N, 1, H, W]. Ten thousand times the grey is one too: no order of sums changes it."""
    red, green, blue = pixels_NCHW.float().chunk(3, dim=1)
    return (red * 2989 + green * 5870).add_(blue * 1140).div_(10_000).floor_()


def mean(grey_N1HW: Tensor) -> Tensor:
    """Of each image, [N, 1, 1, 1]; the sums are exact."""
    sums = grey_N1HW.sum(3, keepdim=True).sum(2, keepdim=True, dtype=torch.float64)
    return sums.float() / grey_N1HW[0].numel()


def turn_hue(pixels_NCHW: Tensor, turn_N: Tensor) -> Tensor:
    """Hue, saturation and value with ``turn_N`` added to the hue, a turn being 1; float32."""
    red, green, blue = pixels_NCHW.chunk(3, dim=1)
    value, lowest = pixels_NCHW.amax(1, keepdim=True), pixels_NCHW.amin(1, keepdim=True)
    chroma = value - lowest
    divisor = chroma.clamp(min=1)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )  # in sixths of a turn
    hue = hue + 6 * turn_N[:, None, None, None]
    channels = []
    for first in (5, 3, 1):
        sixths = (hue + first).remainder_(6)
        channels.append(value - torch.minimum(sixths, 4 - sixths).clamp_(0, 1).mul_(chroma))
    return torch.cat(channels, dim=1).mul_(255.999 / 255).floor_()  # as torchvision cuts off
