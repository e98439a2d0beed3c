"""A change of some images of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_IN_CACHE = 1 << 18  # values at once: in float32 they and one more of them stay in a core's cache


def change(images_NCHW: Tensor, mask_N: Tensor, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """The images, where the mask is set ``function(images, *values)`` of them.

    On a CPU for those alone, a few at a time, written into ``images_NCHW``. On a GPU for all, and the others are left
    out after that: which ones they are is known on the device only, and nothing may wait for it.

    Args:
        values: of each image, [N, ...].
    """
    if images_NCHW.device.type != "cpu":
        return torch.where(mask_N[:, None, None, None], function(images_NCHW, *values), images_NCHW)
    at_once = max(1, _IN_CACHE // images_NCHW[0].numel())
    for rows in mask_N.nonzero()[:, 0].split(at_once):
        if len(rows):
            first, end = int(rows[0]), int(rows[-1]) + 1
            some = slice(first, end) if end - first == len(rows) else rows  # a slice is not copied
            images_NCHW[some] = function(images_NCHW[some], *(value[some] for value in values))
    return images_NCHW
