"""Which rectangle of a picture is shown: the central square, or a random one that a key decides. No torch."""

from __future__ import annotations

import math

from senet.data.draws import draw_32

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the picture, upright."""

RATIOS = (3 / 4, 4 / 3)
_TRIES = 10
_TRY_DRAWS = range(8, 8 + 2 * _TRIES, 2)  # the first of two: area and ratio
_TOP_DRAW, _LEFT_DRAW = 28, 29


def center_box(width: int, height: int, share: float = 1.0) -> Box:
    """The central square whose side is this share of the shorter side."""
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, key: int, area: tuple[float, float]) -> Box:
    """A rectangle of whole pixels anywhere in the picture, by torchvision's RandomResizedCrop: its share of the area
    is uniform in ``area``, the logarithm of its ratio uniform between those of ``RATIOS``; where none of ten such fits,
    the largest one around the centre whose ratio is allowed.

    Args:
        key: 64 random bits; see ``senet.data.keys``.
    """
    low, high = (math.log(ratio) for ratio in RATIOS)
    for draw in _TRY_DRAWS:
        share, place = draw_32(key, draw) / 2**32, draw_32(key, draw + 1) / 2**32
        pixels = width * height * (area[0] + (area[1] - area[0]) * share)
        ratio = math.exp(low + (high - low) * place)
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = draw_32(key, _TOP_DRAW) * (height - h + 1) >> 32
            left = draw_32(key, _LEFT_DRAW) * (width - w + 1) >> 32
            return left, top, left + w, top + h
    w, h = min(width, round(height * RATIOS[1])), min(height, round(width / RATIOS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
