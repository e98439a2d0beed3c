"""Mixup and cutmix of neighbours in a batch: images 0 and 1, 2 and 3, and so on.

The two of a pair are mixed with each other in one share, which the random bits of the first decide. Any part of a batch
with an even number of images holds whole pairs, so no rank, shard or micro-batch needs another's image.

The own share is the larger one of an image. That takes nothing away: the share lam of Beta(a, a) is as likely as
1 - lam, and those two give a pair the same two mixed images and targets, in the other order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from senet.data.changes.erasing import rectangles
from senet.data.keys import QUANTILES, draw_below, draw_quantile

Rectangle = tuple[Tensor, Tensor, Tensor, Tensor]
"""Top, left, height, width, int64 [P]."""


class Mixing:
    """``augment.mixup`` and ``augment.cutmix``: parameters of Beta(a, a), 0: off. With both, each pair has one."""

    def __init__(self, mixup: float, cutmix: float, device: torch.device) -> None:
        self._mixup, self._cutmix = (beta_quantiles(a).to(device) if a else None for a in (mixup, cutmix))

    def __call__(self, images_NCHW: Tensor, keys_N: Tensor) -> Tensor:
        """In place; float, square images, an even number."""
        own = self._own(keys_N[::2], images_NCHW.shape[-1])
        first, second = images_NCHW[::2], images_NCHW[1::2]
        mixed = first * own + second * (1 - own)
        images_NCHW[1::2] = second * own + first * (1 - own)
        images_NCHW[::2] = mixed
        return images_NCHW

    def shares(self, keys_N: Tensor, size: int) -> Tensor:
        """What of each image of this height and width is its own, float32 [N], at least 1/2: the weight of its label;
        that of its neighbour's is the rest."""
        share_P, _, _ = self._draw(keys_N[::2], size)
        return torch.stack((share_P, share_P), dim=1).flatten()

    def _own(self, keys_P: Tensor, size: int) -> Tensor:
        """The own share of both images of each pair: of each pixel, [P, 1, size, size], or of all, [P, 1, 1, 1]."""
        share_P, is_cut_P, cut = self._draw(keys_P, size)
        share = share_P[:, None, None, None]
        if cut is None:
            return share
        _, _, height_P, width_P = cut
        own_is_inside_P = 2 * height_P * width_P > size**2
        own = (rectangles(*cut, size) == own_is_inside_P[:, None, None, None]).float()
        return own if is_cut_P is None else torch.where(is_cut_P[:, None, None, None], own, share)

    def _draw(self, keys_P: Tensor, size: int) -> tuple[Tensor, Tensor | None, Rectangle | None]:
        """The own share of both images of each pair, float32 [P]; which pairs are cut, bool [P], where not all have
        the same; their rectangles, where any can have one."""
        if self._mixup is None:
            share_P, cut = self._cut(keys_P, size)
            return share_P, None, cut
        share_P = draw_quantile(self._mixup, keys_P, 90)
        share_P = torch.maximum(share_P, 1 - share_P)
        if self._cutmix is None:
            return share_P, None, None
        cut_share_P, cut = self._cut(keys_P, size)
        is_cut_P = draw_below(2, keys_P, 91) == 1
        return torch.where(is_cut_P, cut_share_P, share_P), is_cut_P, cut

    def _cut(self, keys_P: Tensor, size: int) -> tuple[Tensor, Rectangle]:
        """The rectangle of the paper, cut at the border; its area is the share of one image. Where that is more than
        half, the rectangle is the own image, and what is around it the other."""
        assert self._cutmix is not None
        share_P = draw_quantile(self._cutmix, keys_P, 92)
        half_P = ((1 - share_P).sqrt() * 0.5 * size).long()
        edges = []
        for draw in (93, 94):
            centre_P = draw_below(size, keys_P, draw)
            edges += [(centre_P - half_P).clamp(min=0), (centre_P + half_P).clamp(max=size)]
        top_P, bottom_P, left_P, right_P = edges
        height_P, width_P = bottom_P - top_P, right_P - left_P
        area_P = height_P * width_P
        return torch.maximum(area_P, size**2 - area_P) / size**2, (top_P, left_P, height_P, width_P)


def neighbours(values_N: Tensor) -> Tensor:
    """Of a vector each pair the other way round."""
    return values_N.view(-1, 2).flip(1).view(-1)


def beta_quantiles(a: float) -> Tensor:
    """Of Beta(a, a), float32 [QUANTILES]."""
    from scipy.special import betaincinv  # takes a tenth of a second to import

    middles = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    return torch.from_numpy(betaincinv(a, a, middles.numpy())).float()
