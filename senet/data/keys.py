"""64 random bits of each image in an epoch, int64 [N] on any device, and the draws that they decide.

Draws below 100 are those of the program: 0 and 1 are crop_padding's, 2 flip's, 3 and 4 cutout's, 8 to 29 crop_area's,
30 to 49 color_jitter's, 50 to 59 trivial's, 60 to 89 erase's, 90 to 99 mixup's and cutmix's.
"""

from __future__ import annotations

from torch import Tensor

from senet.data.draws import GAMMA, MIX_1, MIX_2

QUANTILES = 1 << 16


def random_bits(key: int, indices: Tensor) -> Tensor:
    """64 random bits per index: element ``index`` of the SplitMix64 sequence that starts at ``key``."""
    z = (indices + 1) * _signed(GAMMA) + _signed(key)
    z = (z ^ _shift_right(z, 30)) * _signed(MIX_1)
    z = (z ^ _shift_right(z, 27)) * _signed(MIX_2)
    return z ^ _shift_right(z, 31)


def draw_below(limit: int | Tensor, keys: Tensor, draw: int) -> Tensor:
    """The draw-th integer of each key in [0, limit), by multiply and shift; uneven by at most limit / 2**32."""
    return (_shift_right(random_bits(0, keys + draw), 32) * limit) >> 32


def draw_uniform(keys: Tensor, draw: int) -> Tensor:
    """The draw-th number of each key in [0, 1), float32: a multiple of 2**-24."""
    return _shift_right(random_bits(0, keys + draw), 40) * 2.0**-24


def draw_quantile(table: Tensor, keys: Tensor, draw: int) -> Tensor:
    """The draw-th number of each key from a distribution, by a table of its ``QUANTILES`` quantiles.

    A table is made on the host once; on a device exp and the like may have other bits, from one place in a batch to
    another.
    """
    return table[_shift_right(random_bits(0, keys + draw), 48)]


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical, not arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The int64 with the same bits."""
    return x - (1 << 64) if x >> 63 else x
