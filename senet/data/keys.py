"""64 random bits of each image in an epoch, int64 [N] on any device, and the draws that they decide."""

from __future__ import annotations

from torch import Tensor

from senet.data.draws import GAMMA, MIX_1, MIX_2


def random_bits(key: int, indices: Tensor) -> Tensor:
    """64 random bits per index: element ``index`` of the SplitMix64 sequence that starts at ``key``."""
    z = (indices + 1) * _signed(GAMMA) + _signed(key)
    z = (z ^ _shift_right(z, 30)) * _signed(MIX_1)
    z = (z ^ _shift_right(z, 27)) * _signed(MIX_2)
    return z ^ _shift_right(z, 31)


def draw_below(limit: int, keys: Tensor, draw: int) -> Tensor:
    """The draw-th integer of each key in [0, limit), by multiply and shift; uneven by at most limit / 2**32."""
    return (_shift_right(random_bits(0, keys + draw), 32) * limit) >> 32


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical, not arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The int64 with the same bits."""
    return x - (1 << 64) if x >> 63 else x
