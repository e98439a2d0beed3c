"""Counter-based random numbers: a draw is a function of its keys, so nothing has to be stored to repeat it."""

from __future__ import annotations

_MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def mix(*keys: int) -> int:
    """A 64-bit hash of integers: the finaliser of SplitMix64, applied to one key after another.

    Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 15.
    """
    z = 0
    for key in keys:
        z = _finalise(z + key + GAMMA)
    return z


def draw_32(key: int, draw: int) -> int:
    """32 random bits: the draw-th of a key, of which ``keys.draw_below`` makes an integer."""
    return _finalise((key + draw + 1) * GAMMA) >> 32


def _finalise(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * MIX_2) & _MASK
    return z ^ (z >> 31)
