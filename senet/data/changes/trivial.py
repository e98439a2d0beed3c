"""TrivialAugment in torchvision's wide version: each image is changed in one way out of 14, by one of 31 strengths."""

from __future__ import annotations

import torch
from torch import Tensor

from senet.data.changes.color import blend, grey, mean
from senet.data.changes.some import change
from senet.data.keys import draw_below

KINDS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
"""By torchvision's names, in its order."""

BINS = 31
_MOVED = slice(KINDS.index("ShearX"), KINDS.index("Rotate") + 1)


class TrivialAugment:
    """As torchvision.transforms.v2.TrivialAugmentWide, nearest pixels, black outside of the image."""

    def __init__(self, device: torch.device) -> None:
        self._strengths = _strengths().float().to(device)
        self._matrices = _matrices().float().to(device)

    def __call__(self, images_NCHW: Tensor, keys_N: Tensor) -> Tensor:
        """uint8 in and out, square images; they may be overwritten."""
        return self.apply(images_NCHW, *self.draw(keys_N))

    def draw(self, keys_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each image its place in ``KINDS``, the bin of its strength and whether that is negative, int64 [N]."""
        return draw_below(len(KINDS), keys_N, 50), draw_below(BINS, keys_N, 51), draw_below(2, keys_N, 52)

    def apply(self, images_NCHW: Tensor, kind_N: Tensor, bin_N: Tensor, sign_N: Tensor) -> Tensor:
        """With these."""
        moved_N = (kind_N >= _MOVED.start) & (kind_N < _MOVED.stop)
        images_NCHW = change(images_NCHW, moved_N, move, self._matrices[kind_N, bin_N, sign_N])
        strength_N = self._strengths[kind_N, bin_N, sign_N]
        for name, function in _OF_VALUES.items():
            images_NCHW = change(images_NCHW, kind_N == KINDS.index(name), function, strength_N)
        return images_NCHW


def _strengths() -> Tensor:
    """float64 [kind, bin, sign]: what the functions below take."""
    steps = torch.arange(BINS)
    signed = torch.linspace(0, 0.99, BINS).double()
    table = torch.zeros(len(KINDS), BINS, 2, dtype=torch.float64)
    for name in ("Brightness", "Color", "Contrast", "Sharpness"):
        table[KINDS.index(name)] = torch.stack((1 + signed, 1 - signed), dim=1)
    table[KINDS.index("Posterize")] = 2 ** (steps / ((BINS - 1) / 6)).round().double()[:, None]
    table[KINDS.index("Solarize")] = 255 * torch.linspace(1, 0, BINS).double()[:, None]
    return table


def _matrices() -> Tensor:
    """float64 [kind, bin, sign, 2, 4]: the x, and the y, of the pixel of the image that comes to (x, y), both from its
    middle, is the sum of these four times x, y, 1 and the size of the image."""
    table = torch.zeros(len(KINDS), BINS, 2, 2, 4, dtype=torch.float64)
    table[..., 0, 0] = table[..., 1, 1] = 1
    signs = torch.tensor([1, -1])
    shear, shift, turn = (torch.linspace(0, most, BINS).double()[:, None] * signs for most in (0.99, 32, 135))
    for axis, (sheared, shifted) in enumerate((("ShearX", "TranslateX"), ("ShearY", "TranslateY"))):
        of_shear, of_shift = table[KINDS.index(sheared)], table[KINDS.index(shifted)]
        of_shear[..., axis, 1 - axis] = shear
        of_shear[..., axis, 3] = shear / 2  # the corner stays where it is
        of_shift[..., axis, 2] = -shift.trunc()
    cos, sin = turn.deg2rad().cos(), turn.deg2rad().sin()
    rotated = table[KINDS.index("Rotate")]
    rotated[..., 0, 0], rotated[..., 0, 1], rotated[..., 1, 0], rotated[..., 1, 1] = cos, -sin, sin, cos
    return table


def move(images_NCHW: Tensor, matrices_N24: Tensor) -> Tensor:
    """Each image by its matrix; see ``_matrices``. The nearest pixel, or 0 where that is outside."""
    size = images_NCHW.shape[-1]
    middle = (size - 1) / 2
    from_middle = torch.arange(size, device=images_NCHW.device) - middle
    x, y = from_middle[None, :], from_middle[:, None]
    by_x, by_y, by_1, by_size = matrices_N24[:, :, :, None, None].unbind(2)  # each [N, 2, 1, 1]
    places_N2HW = ((by_x * x + by_y * y) + (by_1 + by_size * size) + middle).round_()
    inside_NHW = ((places_N2HW >= 0) & (places_N2HW < size)).all(1)
    column_NHW, row_NHW = places_N2HW.clamp_(0, size - 1).long().unbind(1)
    index = (row_NHW * size + column_NHW).flatten(1)[:, None].expand(-1, images_NCHW.shape[1], -1)
    return images_NCHW.flatten(2).gather(2, index).view_as(images_NCHW) * inside_NHW[:, None]


def _brighten(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    return blend(images_NCHW, factor_N).to(torch.uint8)


def _saturate(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    return blend(images_NCHW, factor_N, grey(images_NCHW) * _column(1 - factor_N)).to(torch.uint8)


def _contrast(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    return blend(images_NCHW, factor_N, mean(grey(images_NCHW)) * _column(1 - factor_N)).to(torch.uint8)


def _sharpen(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Blended with the mean of 3x3 pixels in which the middle one counts five times; the border stays."""
    pixels_NCHW = images_NCHW.float()
    inner = pixels_NCHW[..., 1:-1, 1:-1]
    rows = pixels_NCHW[..., :-2, :] + pixels_NCHW[..., 1:-1, :] + pixels_NCHW[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = sums.add_(4 * inner).div_(13).round_()
    sharp = smooth.sub_(inner).mul_(_column(1 - factor_N)).add_(inner).clamp_(0, 255)
    inner.copy_(sharp)
    return pixels_NCHW.to(torch.uint8)


def _posterize(images_NCHW: Tensor, step_N: Tensor) -> Tensor:
    step = _column(step_N)
    return (images_NCHW / step).floor_().mul_(step).to(torch.uint8)


def _solarize(images_NCHW: Tensor, threshold_N: Tensor) -> Tensor:
    return torch.where(images_NCHW >= _column(threshold_N), 255 - images_NCHW, images_NCHW)


def _autocontrast(images_NCHW: Tensor, _: Tensor) -> Tensor:
    """Each channel from 0 to 255, unless it has one value."""
    lowest, highest = (extreme.float() for extreme in (images_NCHW.amin((2, 3), True), images_NCHW.amax((2, 3), True)))
    scale = (highest - lowest) * (1 / 255)
    one = scale == 0
    scaled = (images_NCHW - lowest.masked_fill(one, 0)).div_(scale.masked_fill(one, 1))
    return scaled.clamp_(0, 255).to(torch.uint8)


def _equalize(images_NCHW: Tensor, _: Tensor) -> Tensor:
    """Each channel by Pillow's rule, in whole numbers: as many pixels of each value as can be."""
    values_MP = images_NCHW.flatten(2).flatten(0, 1)
    up_to_M256 = (counts_by_adding if values_MP.device.type == "cpu" else counts_by_sorting)(values_MP)
    below_M256 = torch.nn.functional.pad(up_to_M256[:, :-1], (1, 0))
    highest_M1 = values_MP.amax(1, keepdim=True).long()
    step_M1 = below_M256.gather(1, highest_M1) // 255  # without those of the highest value
    table_M256 = ((below_M256 + step_M1 // 2) // step_M1.clamp(min=1)).clamp_(max=255)
    table_M256 = torch.where(step_M1 == 0, torch.arange(256, device=step_M1.device), table_M256).to(torch.uint8)
    return table_M256.gather(1, values_MP.long()).view_as(images_NCHW)


def counts_by_adding(values_MP: Tensor) -> Tensor:
    """How many of each row are at most 0, 1, ... 255, int64 [M, 256]."""
    rows = torch.arange(len(values_MP), device=values_MP.device)[:, None] * 256
    return torch.bincount((values_MP + rows).flatten(), minlength=256 * len(values_MP)).view(-1, 256).cumsum(1)


def counts_by_sorting(values_MP: Tensor) -> Tensor:
    """The same, for a GPU: there bincount waits for the device, and deterministic mode refuses it."""
    levels_M256 = torch.arange(256, dtype=torch.uint8, device=values_MP.device).repeat(len(values_MP), 1)
    return torch.searchsorted(values_MP.sort(dim=1).values, levels_M256, right=True)


def _column(values_N: Tensor) -> Tensor:
    return values_N[:, None, None, None]


_OF_VALUES = {
    "Brightness": _brighten,
    "Color": _saturate,
    "Contrast": _contrast,
    "Sharpness": _sharpen,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}
